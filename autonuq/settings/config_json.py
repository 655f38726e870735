"""AMCT's quantization settings: what a value may be, and the ``config.json`` that holds them.

Two files of AMCT end in the same `QuantizationConfig`: ``config.json`` (here) and the simplified ``.cfg``
(`simplified`). The allowed values have their one owner here; both readers hand their values, under AMCT's
JSON keys, to `build_activation` and `build_weights`, so that neither file accepts what the other refuses.

The file in short: the global keys, then one object per quantized layer in network order. A layer that is
missing, or says ``"quant_enable":false``, stays float. Every other key that is missing takes its default.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from autonuq.atomic import replace_text
from autonuq.errors import QuantizationError, suggest_name
from autonuq.graph.capability import CHANNEL_WISE_TYPES, Capability
from autonuq.quant.codecs import broken_rule, unknown_word
from autonuq.quant.config import (
    NO_TARGET,
    ActivationSettings,
    LayerSettings,
    QuantizationConfig,
    Target,
    WeightSettings,
)
from autonuq.reading import reading

# AMCT's table of uniformly quantizable layer types (Caffe PTQ pages).
QUANTIZABLE_TYPES = (*CHANNEL_WISE_TYPES, "InnerProduct", "Pooling")

_GLOBAL_KEYS = (
    "version",
    "batch_num",
    "activation_offset",
    "joint_quant",
    "weight_offset",
    "do_fusion",
    "skip_fusion_layers",
)
_TARGET_KEYS = ("codec", "chip", "marks", "marked_layers")
"""Global keys of our own, written where they are said: AMCT has none for what bytes are counted with."""
_LAYER_KEYS = ("quant_enable", "activation_quant_params", "weight_quant_params")
_ACTIVATION_KEYS = {
    "ifmr": ("max_percentile", "min_percentile", "search_range", "search_step"),
    "hfmg": ("num_of_bins",),
}
_WEIGHT_KEYS = {"arq_quantize": ("channel_wise",), "nuq_quantize": ("num_steps", "num_of_iteration")}
_WEIGHT_ALGORITHMS: dict[str, Literal["arq", "nuq"]] = {"arq_quantize": "arq", "nuq_quantize": "nuq"}
_LARGEST = sys.float_info.max
_WEIGHT_NAMES = {short: name for name, short in _WEIGHT_ALGORITHMS.items()}


@dataclass(frozen=True)
class LoadedConfig:
    """What a settings file asks for, and what of it could not be had.

    Attributes
    ----------
    config : QuantizationConfig
    warnings : tuple of str
        One line for each wish that was not fulfilled, e.g. a layer that cannot carry a codebook.
    """

    config: QuantizationConfig
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a value stands: the file, the layer if there is one, and what its key is called in full.

    Attributes
    ----------
    path : Path or None
    layer : str or None
    prefix : str
        Goes in front of a key in messages, e.g. ``"weight_quant_params."``.
    spelling : mapping of str to str
        What the file calls a key, where that is not the name in ``config.json``.
    """

    path: Path | None
    layer: str | None = None
    prefix: str = ""
    spelling: Mapping[str, str] = field(default_factory=dict)

    def at(self, layer: str) -> Place:
        """Name the same place for the layer `layer`."""
        return replace(self, layer=layer)

    def under(self, block: str) -> Place:
        """Name the place of the block `block` inside this one."""
        return replace(self, prefix=f"{self.prefix}{block}.")

    def refuse(self, key: str, rule: str, got: object, hint: str = "") -> NoReturn:
        """Raise the one sentence that every wrong value gets."""
        shown = json.dumps(got, ensure_ascii=False, default=str)
        name = f"{self.prefix}{self.spelling.get(key, key)}"
        raise QuantizationError(
            f"The '{name}' key must be {rule}. Got {shown[:80]} instead.{hint}",
            path=self.path,
            layer=self.layer,
        )

    def check(self, key: str, rule: Rule, got: object) -> Any:
        """Return `got` if it keeps `rule`, else raise."""
        if not rule.holds(got):
            self.refuse(key, rule.words, got)
        return got


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_range(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value)) and 0 < value[0] < value[1]


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _one_of(choices: Sequence[int | str]) -> Rule:
    words = ", ".join(json.dumps(choice) for choice in choices[:-1])
    return Rule(
        f"{words} or {json.dumps(choices[-1])}",
        lambda value: (_is_int(value) or isinstance(value, str)) and value in choices,
    )


# Ranges: AMCT's manual-tuning pages (Caffe PTQ), the tables of global and of layer parameters.
FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("text", lambda value: isinstance(value, str))
NAMES = Rule("a list of layer names", _is_names)
VERSION = Rule("1", lambda value: _is_int(value) and value == 1)
BATCH_NUM = Rule("an int > 0", lambda value: _is_int(value) and value > 0)
WEIGHT_OFFSET = Rule("false (weights are symmetric)", lambda value: value is False)
NUM_BITS = Rule("8", lambda value: _is_int(value) and value == 8)
ACT_ALGO = _one_of(tuple(_ACTIVATION_KEYS))
PERCENTILE = Rule("a number in (0.5, 1]", lambda value: _is_number(value) and 0.5 < value <= 1)
SEARCH_RANGE = Rule("two numbers [start, end] with 0 < start < end", _is_range)
NUM_OF_BINS = _one_of((1024, 2048, 4096, 8192))
WTS_ALGO = _one_of(tuple(_WEIGHT_KEYS))
NUM_STEPS = _one_of((16, 32))
NUM_OF_ITERATION = Rule("an int in [0, 5]", lambda value: _is_int(value) and 0 <= value <= 5)


def _search_step(start: float, end: float) -> Rule:
    # The slack lets 0.1 pass for [0.9, 1.0], whose difference is a little less in binary.
    widest = (end - start) * (1 + 1e-6)
    return Rule(
        f"a number in (0, {end - start:.6g}], the width of search_range",
        lambda value: _is_number(value) and 0 < value <= widest,
    )


def shorten_float(value: float) -> float:
    """Undo a detour through float32: 0.9999989867210388 becomes 0.999999, other numbers stay.

    Only a number that a float32 holds exactly is touched; it becomes the shortest decimal of that float32.
    """
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if float(single) == value else float(value)


def parse_json(path: Path, **hooks: Any) -> object:
    """Read a JSON file; every way in which it can fail becomes a `QuantizationError`.

    Parameters
    ----------
    path : Path
    **hooks
        Passed on to `json.loads`; a hook refuses by ``ValueError``.
    """
    with reading(path, QuantizationError, "is not JSON"):
        text = path.read_text(encoding="utf-8")
        try:
            return json.loads(text, **hooks)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise QuantizationError(f"is not JSON at {where}: {error.msg}", path=path) from error


def build_activation(values: Mapping[str, Any], place: Place) -> ActivationSettings:
    """Check an ``activation_quant_params`` object and fill it with defaults.

    Parameters
    ----------
    values : mapping
        By AMCT's JSON keys; any of them may be missing.
    place : Place
        Named in messages.

    Raises
    ------
    QuantizationError
        On an unknown key, a value out of its range, or keys of IFMR and HFMG side by side.
    """
    usual = ActivationSettings()
    algorithm = place.check("act_algo", ACT_ALGO, values.get("act_algo", usual.algorithm))
    _refuse_foreign_keys(values, ("num_bits", "act_algo", "asymmetric"), "act_algo", algorithm, place)
    place.check("num_bits", NUM_BITS, values.get("num_bits", 8))
    asymmetric = place.check("asymmetric", FLAG, values["asymmetric"]) if "asymmetric" in values else None
    if algorithm == "hfmg":
        bins = place.check("num_of_bins", NUM_OF_BINS, values.get("num_of_bins", usual.num_of_bins))
        return ActivationSettings("hfmg", num_of_bins=bins, asymmetric=asymmetric)
    span = values.get("search_range", [usual.search_start, usual.search_end])
    start, end = map(shorten_float, place.check("search_range", SEARCH_RANGE, span))
    step = values.get("search_step", usual.search_step)
    step = shorten_float(step) if _is_number(step) else step
    highest = values.get("max_percentile", usual.max_percentile)
    lowest = values.get("min_percentile", usual.min_percentile)
    return ActivationSettings(
        "ifmr",
        max_percentile=shorten_float(place.check("max_percentile", PERCENTILE, highest)),
        min_percentile=shorten_float(place.check("min_percentile", PERCENTILE, lowest)),
        search_start=start,
        search_end=end,
        search_step=place.check("search_step", _search_step(start, end), step),
        asymmetric=asymmetric,
    )


def build_weights(values: Mapping[str, Any], layer_type: str, place: Place) -> WeightSettings:
    """Check a ``weight_quant_params`` object and fill it with the defaults of the layer's type.

    Parameters
    ----------
    values : mapping
        By AMCT's JSON keys; any of them may be missing.
    layer_type : str
        Caffe's layer type: it decides about `channel_wise`.
    place : Place
        Named in messages.

    Raises
    ------
    QuantizationError
        On an unknown key, a value out of its range, or keys of ARQ and NUQ side by side.
    """
    usual = WeightSettings()
    by_channel = layer_type in CHANNEL_WISE_TYPES
    algorithm = place.check("wts_algo", WTS_ALGO, values.get("wts_algo", _WEIGHT_NAMES[usual.algorithm]))
    _refuse_foreign_keys(values, ("num_bits", "wts_algo"), "wts_algo", algorithm, place)
    place.check("num_bits", NUM_BITS, values.get("num_bits", 8))
    channel_wise = place.check("channel_wise", FLAG, values.get("channel_wise", by_channel))
    if channel_wise and not by_channel:
        place.refuse("channel_wise", f"false for {layer_type} layers", channel_wise)
    iterations = values.get("num_of_iteration", usual.num_of_iteration)
    return WeightSettings(
        algorithm=_WEIGHT_ALGORITHMS[algorithm],
        channel_wise=channel_wise,
        num_steps=place.check("num_steps", NUM_STEPS, values.get("num_steps", usual.num_steps)),
        num_of_iteration=place.check("num_of_iteration", NUM_OF_ITERATION, iterations),
    )


def settle_weights(
    weights: WeightSettings, capability: Capability, path: Path
) -> tuple[WeightSettings, tuple[str, ...]]:
    """Keep uniform weights, with a warning, where NUQ is asked for and the layer cannot have it."""
    if weights.algorithm != "nuq" or capability.nuq:
        return weights, ()
    warning = (
        f"{path}, layer '{capability.name}': nuq_quantize is asked for, but the layer keeps uniform int8"
        f" weights (arq_quantize): {capability.reason or 'NUQ does not support it'}."
    )
    return default_weights(capability.type), (warning,)


def default_weights(layer_type: str) -> WeightSettings:
    """Build AMCT's default weight settings of a layer type: ARQ, by channel where the type has channels."""
    return WeightSettings(channel_wise=layer_type in CHANNEL_WISE_TYPES)


def check_known_layers(
    key: str, names: Iterable[str], capabilities: Sequence[Capability], place: Place
) -> tuple[Capability, ...]:
    """Return the capabilities of the named layers; refuse unknown and repeated names."""
    known = {capability.name: capability for capability in capabilities}
    found: dict[str, Capability] = {}
    for name in names:
        if name not in known:
            rule = "made of names of layers of the network"
            place.at(name).refuse(key, rule, name, suggest_name(name, known))
        if name in found:
            place.at(name).refuse(key, "free of repetitions", name)
        found[name] = known[name]
    return tuple(found.values())


def check_skip_layers(
    key: str, names: Iterable[str], capabilities: Sequence[Capability], place: Place
) -> frozenset[str]:
    """Return the names to skip; each must be a layer of the network and of a type that can be quantized."""
    layers = check_known_layers(key, names, capabilities, place)
    for layer in layers:
        if layer.type not in QUANTIZABLE_TYPES:
            wanted = f"made of layers of type {', '.join(QUANTIZABLE_TYPES)}"
            place.at(layer.name).refuse(key, wanted, layer.type)
    return frozenset(layer.name for layer in layers)


def check_skip_fusion_layers(names: Iterable[str], capabilities: Sequence[Capability], place: Place) -> tuple[str, ...]:
    """Return the names to leave unfolded; BatchNorm or Scale must be foldable into each."""
    layers = check_known_layers("skip_fusion_layers", names, capabilities, place)
    for layer in layers:
        if not layer.fusible:
            wanted = "made of layers that BatchNorm or Scale can be folded into"
            place.at(layer.name).refuse("skip_fusion_layers", wanted, layer.type)
    return tuple(layer.name for layer in layers)


def build_arq_config(
    capabilities: Sequence[Capability],
    *,
    skip_layers: Iterable[str] = (),
    batch_num: int = 1,
    activation_offset: bool = True,
) -> QuantizationConfig:
    """Build AMCT's settings for a network without a ``.cfg``: ARQ and IFMR for all that can be quantized.

    Parameters
    ----------
    capabilities : sequence of Capability
        Every layer, in network order.
    skip_layers : iterable of str
        Layers that stay float.
    batch_num : int > 0
        Forward passes of the calibration.
    activation_offset : bool
        True for asymmetric activations.

    Raises
    ------
    QuantizationError
        If a layer to skip is unknown, named twice, or of a type that is never quantized.
    ValueError, TypeError
        If another parameter is misused.
    """
    sentence = "The '{}' parameter of create_quant_config must be {}. Got {!r} instead."
    if isinstance(skip_layers, str):
        raise TypeError(sentence.format("skip_layers", "a list of str", skip_layers))
    if not BATCH_NUM.holds(batch_num):
        raise ValueError(sentence.format("batch_num", BATCH_NUM.words, batch_num))
    if not FLAG.holds(activation_offset):
        raise TypeError(sentence.format("activation_offset", "a bool", activation_offset))
    skipped = check_skip_layers("skip_layers", skip_layers, capabilities, Place(None))
    layers = {
        capability.name: LayerSettings(weights=default_weights(capability.type))
        for capability in capabilities
        if capability.quantizable and capability.name not in skipped
    }
    return QuantizationConfig(layers, batch_num=batch_num, activation_offset=activation_offset)


def load_config_json(path: str | Path, capabilities: Sequence[Capability]) -> LoadedConfig:
    """Read a ``config.json`` strictly.

    Parameters
    ----------
    path : str or Path
    capabilities : sequence of Capability
        Every layer of the folded network, in network order.

    Returns
    -------
    LoadedConfig
        Defaults filled in; layers in network order. A layer that asks for ``nuq_quantize`` and cannot have it
        is left uniform and named in the warnings.

    Raises
    ------
    QuantizationError
        If the file cannot be read or breaks a rule; the message names file, layer, key, rule and value.

    Notes
    -----
    **Source**: AMCT's manual-tuning page (Caffe PTQ); what it leaves open is in `unsaid`.
    """
    path = Path(path)
    return _build_config(_parse_document(path), capabilities, path)


def write_config_json(path: str | Path, config: QuantizationConfig, capabilities: Sequence[Capability]) -> None:
    """Write a ``config.json`` in AMCT's own form: global keys, then layers in network order.

    Parameters
    ----------
    path : str or Path
        Replaced if it exists.
    config : QuantizationConfig
    capabilities : sequence of Capability
        Every layer of the folded network, in network order.

    Raises
    ------
    QuantizationError
        If `config` names a layer that the network lacks, or holds a value that `load_config_json` would refuse.
    """
    path = Path(path)
    place = Place(path)
    known = [capability.name for capability in capabilities]
    for name in config.layers:
        if name not in known:
            raise _unknown_layer(name, known, path)
        if name in _GLOBAL_KEYS:
            place.refuse(name, "a global setting; rename the layer of this name", name)
        if name in (aim := _target_object(config.target)):
            place.refuse(name, "the layer of this name; say it to auto_nuq instead", aim[name])
    document: dict[str, Any] = {
        "version": 1,
        "batch_num": config.batch_num,
        "activation_offset": config.activation_offset,
        "joint_quant": config.joint_quant,
        "do_fusion": config.do_fusion,
        "skip_fusion_layers": list(config.skip_fusion_layers),
        **_target_object(config.target),
    }
    document |= {name: _layer_object(config.layers[name]) for name in known if name in config.layers}
    _build_config(_Object(document.items()), capabilities, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, dump_json(document))


def dump_json(document: object) -> str:
    """Return JSON in the form of AMCT's files: indented by 4, no space behind colons, no newline at the end."""
    return json.dumps(document, indent=4, separators=(",", ":"), ensure_ascii=False)


def _target_object(target: Target) -> dict[str, Any]:
    marked = None if target.marked is None else list(target.marked)
    values = {"codec": target.codec, "chip": target.chip, "marks": target.marks, "marked_layers": marked}
    return {key: value for key, value in values.items() if value not in ("", None)}


def build_target(values: Mapping[str, Any], place: Place, said: Target = NO_TARGET) -> Target:
    """Check what bytes are counted with.

    Parameters
    ----------
    values : mapping
        By our JSON keys; any of them may be missing.
    place : Place
        Named in messages.
    said : Target, optional
        What comes before it: of a study that says more than this file.

    Returns
    -------
    Target
        Both together.

    Raises
    ------
    QuantizationError
        A value is not among its choices, or chip, marks and codec do not go together.
    """
    for key in ("codec", "chip", "marks"):
        place.check(key, TEXT, values.get(key, ""))
    marked = values.get("marked_layers")
    names = None if marked is None else tuple(place.check("marked_layers", NAMES, marked))
    target = Target(values.get("codec", ""), values.get("chip", ""), values.get("marks", ""), names)
    whole = said.over(target)
    broken = unknown_word(target) or (broken_rule(whole) and broken_rule(target))
    if broken:
        place.refuse(broken.key, broken.words, broken.got, broken.hint)
    return whole


def _layer_object(settings: LayerSettings) -> _Object:
    activation, weights = settings.activation, settings.weights
    activation_keys: dict[str, Any] = {"num_bits": 8, "act_algo": activation.algorithm}
    if activation.algorithm == "ifmr":
        activation_keys |= {
            "max_percentile": shorten_float(activation.max_percentile),
            "min_percentile": shorten_float(activation.min_percentile),
            "search_range": [shorten_float(activation.search_start), shorten_float(activation.search_end)],
            "search_step": shorten_float(activation.search_step),
        }
    else:
        activation_keys |= {"num_of_bins": activation.num_of_bins}
    if activation.asymmetric is not None:
        activation_keys["asymmetric"] = activation.asymmetric
    weight_keys: dict[str, Any] = {"wts_algo": _WEIGHT_NAMES[weights.algorithm]}
    if weights.algorithm == "arq":
        weight_keys = {"num_bits": 8, **weight_keys, "channel_wise": weights.channel_wise}
    else:
        weight_keys |= {"num_steps": weights.num_steps, "num_of_iteration": weights.num_of_iteration}
    return _Object(
        {
            "quant_enable": True,
            "activation_quant_params": _Object(activation_keys),
            "weight_quant_params": _Object(weight_keys),
        }
    )


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came twice."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    counts = Counter(key for key, _ in pairs)
    result.repeated = tuple(key for key, count in counts.items() if count > 1)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_document(path: Path) -> _Object:
    document = parse_json(path, object_pairs_hook=_object, parse_constant=_refuse_constant)
    if not isinstance(document, _Object):
        raise QuantizationError("must hold one JSON object with global keys and layers", path=path)
    return document


def _build_config(document: _Object, capabilities: Sequence[Capability], path: Path) -> LoadedConfig:
    place = Place(path)
    known = {capability.name: capability for capability in capabilities}
    _refuse_repeated(document, place)
    aim = {key: document[key] for key in _TARGET_KEYS if key in document and not _is_layer(key, document, known)}
    every = (*_GLOBAL_KEYS, *_TARGET_KEYS)
    for key, value in document.items():
        if key in every or key in known:
            continue
        if isinstance(value, dict):
            raise _unknown_layer(key, known, path)
        place.refuse(key, f"one of the global keys {', '.join(every)}", value, suggest_name(key, every))

    usual = QuantizationConfig({})
    place.check("version", VERSION, document.get("version", 1))
    place.check("weight_offset", WEIGHT_OFFSET, document.get("weight_offset", False))
    flags = {
        key: place.check(key, FLAG, document.get(key, getattr(usual, key)))
        for key in ("activation_offset", "joint_quant", "do_fusion")
    }
    unfolded = place.check("skip_fusion_layers", NAMES, document.get("skip_fusion_layers", []))
    layers: dict[str, LayerSettings] = {}
    warnings: tuple[str, ...] = ()
    for name, capability in known.items():
        if name not in document or name in _GLOBAL_KEYS or name in aim:
            continue
        settings, more = _build_layer(document[name], capability, path)
        warnings += more
        if settings is not None:
            layers[name] = settings
    config = QuantizationConfig(
        layers,
        batch_num=place.check("batch_num", BATCH_NUM, document.get("batch_num", usual.batch_num)),
        skip_fusion_layers=check_skip_fusion_layers(unfolded, capabilities, place),
        target=_checked_target(aim, capabilities, place),
        **flags,
    )
    return LoadedConfig(config, warnings)


def _checked_target(values: Mapping[str, Any], capabilities: Sequence[Capability], place: Place) -> Target:
    target = build_target(values, place)
    if target.marked is not None and not target.chip:
        place.refuse("marked_layers", "left out without a chip, whose compiler marks them", list(target.marked))
    check_known_layers("marked_layers", target.marked or (), capabilities, place)
    return target


def _is_layer(key: str, document: Mapping[str, Any], known: Container[str]) -> bool:
    """Say whether a key of ours is a layer's name there: AMCT knows nothing of such keys, and layers are objects."""
    return key in known and isinstance(document[key], _Object)


def _build_layer(values: object, capability: Capability, path: Path) -> tuple[LayerSettings | None, tuple[str, ...]]:
    place = Place(path, capability.name)
    if not isinstance(values, _Object):
        place.refuse(capability.name, "an object with the layer's settings", values)
    if not capability.quantizable:
        reason = capability.reason or f"type {capability.type} is not supported"
        raise QuantizationError(
            f"The layer cannot be quantized: {reason}. Remove its object.", path=path, layer=capability.name
        )
    _refuse_repeated(values, place)
    _refuse_unknown_keys(values, _LAYER_KEYS, place)
    parts = {key: values.get(key, _Object()) for key in _LAYER_KEYS[1:]}
    for key, part in parts.items():
        if not isinstance(part, _Object):
            place.refuse(key, "an object", part)
        _refuse_repeated(part, place.under(key))
    activation = build_activation(parts["activation_quant_params"], place.under("activation_quant_params"))
    weights = build_weights(parts["weight_quant_params"], capability.type, place.under("weight_quant_params"))
    if not place.check("quant_enable", FLAG, values.get("quant_enable", True)):
        return None, ()
    weights, warnings = settle_weights(weights, capability, path)
    return LayerSettings(activation, weights), warnings


def _unknown_layer(name: str, known: Iterable[str], path: Path) -> QuantizationError:
    hint = suggest_name(name, known)
    return QuantizationError(f"The network has no layer of this name.{hint}", path=path, layer=name)


def _refuse_repeated(values: _Object, place: Place) -> None:
    if values.repeated:
        key = f"{place.prefix}{values.repeated[0]}"
        raise QuantizationError(
            f"The '{key}' key must be given once. Got it several times instead.",
            path=place.path,
            layer=place.layer,
        )


def _refuse_unknown_keys(values: Mapping[str, Any], known: Sequence[str], place: Place) -> None:
    for key in values:
        if key not in known:
            place.refuse(key, f"one of {', '.join(known)}", values[key], suggest_name(key, known))


def _refuse_foreign_keys(
    values: Mapping[str, Any], shared: tuple[str, ...], selector: str, algorithm: str, place: Place
) -> None:
    """Refuse unknown keys, and keys of another algorithm than the selected one."""
    owners = _ACTIVATION_KEYS if selector == "act_algo" else _WEIGHT_KEYS
    every = shared + tuple(key for keys in owners.values() for key in keys)
    _refuse_unknown_keys(values, every, place)
    for key in values:
        if key not in shared and key not in owners[algorithm]:
            other = next(owner for owner, keys in owners.items() if key in keys)
            chosen = f'"{selector}" is "{algorithm}"' + ("" if selector in values else " by default")
            place.refuse(key, f'left out where {chosen}: it belongs to "{other}"', values[key])
