"""The module that a script gets for `import caffe.net_spec`: networks written down as Python expressions.

`layers.Convolution(n.data, num_output=8, kernel_size=3)` is a layer, its tops are what other layers take, and a
`NetSpec` gives tops names. `params.Pooling.MAX` are the constants of Caffe's messages.

Source: pycaffe's `net_spec.py`: names, which keyword means what, what layers and tops are called if nobody says, and
that a layer is written when something that is wanted reads it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from autonuq.pycaffe.io import caffe_pb2

__all__ = ["NetSpec", "Top", "assign_proto", "layers", "params", "to_proto"]

_OWN = frozenset({"ntop", "in_place"})  # what a layer's keywords say to us and not to Caffe


def _parameter_fields() -> dict[str, str]:
    """Return the field of LayerParameter that holds the parameters of a type, by the type's name."""
    suffix = "Parameter"
    return {
        field.message_type.name.removesuffix(suffix): field.name
        for field in caffe_pb2.LayerParameter.DESCRIPTOR.fields
        if field.name.endswith("_param") and field.message_type is not None
    }


_FIELDS = _parameter_fields()


class Top:
    """One output of a layer."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn = fn
        self.n = n

    def to_proto(self) -> Any:
        """Return the network that makes this top, a NetParameter."""
        return to_proto(self)


class Function:
    """One layer: its type, the tops that it reads, its parameters.

    Raises
    ------
    TypeError
        An input is no top.
    """

    def __init__(self, type_name: str, inputs: Sequence[Top], params: Mapping[str, Any]) -> None:
        for index, each in enumerate(inputs):
            if not isinstance(each, Top):
                kind = type(each).__name__
                raise TypeError(f"{type_name} input {index} is not a Top (type is {kind}): parameters need a keyword")
        self.type_name = type_name
        self.inputs = tuple(inputs)
        self.params = {name: value for name, value in params.items() if name not in _OWN}
        self.ntop = int(params.get("ntop", 1))
        self.in_place = bool(params.get("in_place", False))
        self.tops = tuple(Top(self, n) for n in range(self.ntop))


class _Writer:
    """Writes layers in an order in which each comes behind those that it reads.

    Parameters
    ----------
    names : mapping of Top or Function to str
        Those that have a name; the others are called after their layer's type and numbered.
    """

    def __init__(self, names: Mapping[Top | Function, str]) -> None:
        self._names = dict(names)
        self._numbers: Counter[str] = Counter()
        self._written: dict[Function, Any] = {}

    def write(self, fn: Function) -> None:
        """Write a layer and all that it needs; each once. No recursion: networks are deep."""
        waiting = [fn]
        while waiting:
            missing = [top.fn for top in waiting[-1].inputs if top.fn not in self._written]
            if missing:
                waiting.append(missing[0])
            else:
                fn = waiting.pop()
                if fn not in self._written:
                    self._written[fn] = self._message(fn)

    def net(self) -> Any:
        """Return what was written."""
        return caffe_pb2.NetParameter(layer=self._written.values())

    def _message(self, fn: Function) -> Any:
        message = caffe_pb2.LayerParameter(type=fn.type_name)
        message.bottom.extend(self._written[top.fn].top[top.n] for top in fn.inputs)
        message.top.extend(message.bottom if fn.in_place else [self._name(top, fn) for top in fn.tops])
        message.name = self._name(fn.tops[0] if fn.tops else fn, fn)
        for name, value in fn.params.items():
            _assign_parameter(message, fn.type_name, name, value)
        return message

    def _name(self, thing: Top | Function, fn: Function) -> str:
        if thing not in self._names:
            self._numbers[fn.type_name] += 1
            self._names[thing] = f"{fn.type_name}{self._numbers[fn.type_name]}"
        return self._names[thing]


def _assign_parameter(message: Any, type_name: str, name: str, value: Any) -> None:
    """Set a keyword: a field of the type's own parameters if they have it, of the layer otherwise."""
    field = _FIELDS.get(type_name)
    if not name.endswith("param") and field is not None:
        descriptor = message.DESCRIPTOR.fields_by_name[field].message_type
        if name in descriptor.fields_by_name:
            assign_proto(getattr(message, field), name, value)
            return
    if name not in message.DESCRIPTOR.fields_by_name:
        where = f"{type_name} has no parameter" + (f", and {field} no field" if field else "")
        raise AttributeError(f"{where} '{name}'")
    assign_proto(message, name, value)


def assign_proto(proto: Any, name: str, val: Any) -> None:
    """Set a field of a message: a list for what is repeated, or one value of it; a dict for a message."""
    field = getattr(proto, name)
    if hasattr(field, "extend"):
        values = list(val) if isinstance(val, list | tuple | np.ndarray) else [val]
        if values and isinstance(values[0], Mapping):
            for each in values:
                _assign_all(field.add(), each)
        else:
            field.extend(values)
    elif isinstance(val, Mapping):
        field.SetInParent()
        _assign_all(field, val)
    elif hasattr(field, "CopyFrom"):
        field.CopyFrom(val)
    else:
        setattr(proto, name, val)


def _assign_all(proto: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        assign_proto(proto, name, value)


def to_proto(*tops: Top | Function) -> Any:
    """Return the network that makes some tops, a NetParameter; everything in it is named after its type."""
    return _net({}, tops)


def _net(names: Mapping[Top | Function, str], wanted: Iterable[Top | Function]) -> Any:
    writer = _Writer(names)
    for each in wanted:
        writer.write(each.fn if isinstance(each, Top) else each)
    return writer.net()


class NetSpec:
    """Tops by name: `n.conv1 = layers.Convolution(n.data, ...)`; a layer is called like its first top."""

    tops: OrderedDict[str, Any]

    def __init__(self) -> None:
        super().__setattr__("tops", OrderedDict())

    def __setattr__(self, name: str, value: Any) -> None:
        self.tops[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["tops"][name]
        except KeyError:
            raise AttributeError(f"this NetSpec has no top '{name}'") from None

    def __setitem__(self, key: str, value: Any) -> None:
        self.tops[key] = value

    def __getitem__(self, item: str) -> Any:
        return self.tops[item]

    def __delitem__(self, name: str) -> None:
        del self.tops[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tops

    def keys(self) -> list[str]:
        """Return the names of the tops."""
        return list(self.tops)

    def vals(self) -> list[Any]:
        """Return the tops."""
        return list(self.tops.values())

    def update(self, name: str, params: Mapping[str, Any]) -> None:
        """Change parameters of the layer that makes a top."""
        self.tops[name].fn.params.update(params)

    def to_proto(self) -> Any:
        """Return the network as a NetParameter, the layers in the order in which the tops were given names."""
        return _net({top: name for name, top in self.tops.items()}, self.tops.values())


class LayerMaker:
    """Makes layers: every attribute is a function, called like the layer type."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def layer(*inputs: Top, **parameters: Any) -> Any:
            fn = Function(name, inputs, parameters)
            return fn if fn.ntop == 0 else fn.tops[0] if fn.ntop == 1 else fn.tops

        return layer


class Constants:
    """Finds constants: `params.Pooling.MAX` is `PoolingParameter.MAX`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(caffe_pb2, f"{name}Parameter")
        except AttributeError:
            raise AttributeError(f"Caffe has no message '{name}Parameter'") from None


layers = LayerMaker()
params = Constants()
