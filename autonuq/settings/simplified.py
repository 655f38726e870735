"""AMCT's simplified configuration: a short ``.cfg`` in protobuf text form instead of one object per layer.

What a layer gets is decided by the most specific block that names it, taken whole: `override_layer_configs`,
then `override_layer_types`, then `common_config`; what the block leaves out takes AMCT's default. On top of
that, `nuq_config` gives the layers that its mapping file marks (or, without one, that its chip is predicted to mark)
non-uniform weights, except where `override_layer_configs` names the layer. A layer that is skipped stays float,
whatever else names it.

Where AMCT's pages say nothing, `unsaid` records what was chosen here and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import EncodeError

from autonuq.errors import QuantizationError, suggest_name
from autonuq.graph.capability import CHANNEL_WISE_TYPES, Capability
from autonuq.graph.model import Graph
from autonuq.graph.text import unescape_bytes
from autonuq.quant.config import (
    NO_TARGET,
    ActivationSettings,
    LayerSettings,
    QuantizationConfig,
    Target,
    WeightSettings,
)
from autonuq.reading import reading
from autonuq.settings import quant_config_pb2 as schema
from autonuq.settings.config_json import (
    BATCH_NUM,
    QUANTIZABLE_TYPES,
    LoadedConfig,
    Place,
    build_activation,
    build_target,
    build_weights,
    check_known_layers,
    check_skip_fusion_layers,
    check_skip_layers,
    default_weights,
    settle_weights,
)
from autonuq.settings.mapping import Marks, load_marks, predicted_layers

_DEPRECATED = {
    "conv_calibration_config": ("Convolution", "Deconvolution"),
    "fc_calibration_config": ("InnerProduct",),
}


# What the .cfg calls the keys of config.json, where the names differ.
_SPELLING = {"num_bits": "quant_bits", "search_range": "search_range_start, search_range_end"}


def load_simplified(
    path: str | Path, capabilities: Sequence[Capability], graph: Graph | None = None, said: Target = NO_TARGET
) -> LoadedConfig:
    """Read a simplified configuration and resolve it to settings per layer.

    Parameters
    ----------
    path : str or Path
        The ``.cfg``. A relative `mapping_file` in it is looked up in the working directory of the process
        first, as AMCT's samples have it, then in the folder of the ``.cfg``.
    capabilities : sequence of Capability
        Every layer of the folded network, in network order.
    graph : Graph, optional
        The network, with or without blobs; what `nuq_config.chip` marks is predicted from it.
    said : Target, optional
        What the study says itself; it comes before what `nuq_config` says, and decides with it on layers.

    Returns
    -------
    LoadedConfig
        Layers in network order, and one warning for each wish that was not fulfilled.

    Raises
    ------
    QuantizationError
        On a syntax error (with line and column), an unknown layer or type, or a value out of its range.

    Notes
    -----
    A field that is given twice counts as its last occurrence; so does the choice between ARQ and NUQ, and
    between IFMR and HFMG. Both are protobuf's rules for merging text, which AMCT's pages name for the choice.
    """
    path = Path(path)
    message = _parse_text(path)
    place = Place(path, spelling=_SPELLING)
    batch_num = message.batch_num if message.HasField("batch_num") else 1
    choices, warnings = _read_choices(message, capabilities, place)
    target = _read_target(message, place, said)
    marked, target, more = _read_marked(message, capabilities, path, graph, target)
    warnings += more
    skipped = check_skip_layers("skip_layers", message.skip_layers, capabilities, place)
    skipped_types = _check_types("skip_layer_types", message.skip_layer_types, place)
    layers: dict[str, LayerSettings] = {}
    for capability in capabilities:
        overridden = capability.name in choices.by_layer
        if capability.name in skipped or capability.type in skipped_types:
            warnings += _skipped_override(capability.name, path) if overridden else ()
        elif capability.quantizable:
            settings = choices.settings(capability)
            if capability.name in marked and not overridden:
                settings = replace(settings, weights=marked[capability.name])
            weights, more = settle_weights(settings.weights, capability, path)
            layers[capability.name] = replace(settings, weights=weights)
            warnings += more
    config = QuantizationConfig(
        layers,
        batch_num=place.check("batch_num", BATCH_NUM, batch_num),
        activation_offset=message.activation_offset if message.HasField("activation_offset") else True,
        joint_quant=message.joint_quant,
        do_fusion=message.do_fusion if message.HasField("do_fusion") else True,
        skip_fusion_layers=check_skip_fusion_layers(message.skip_fusion_layers, capabilities, place),
        target=target,
    )
    return LoadedConfig(config, warnings)


@dataclass(frozen=True)
class _Choices:
    """Settings by how specifically a block names a layer; a missing entry falls to the next level."""

    by_layer: Mapping[str, LayerSettings]
    by_type: Mapping[str, LayerSettings]

    def settings(self, capability: Capability) -> LayerSettings:
        usual = LayerSettings(weights=default_weights(capability.type))
        return self.by_layer.get(capability.name, self.by_type.get(capability.type, usual))


def _parse_text(path: Path) -> schema.AMCTConfig:
    message = schema.AMCTConfig()
    with reading(path, QuantizationError, "is not UTF-8 text"):
        text = unescape_bytes(path.read_text(encoding="utf-8"))
    with reading(path, QuantizationError, "is no simplified configuration of AMCT's"):
        try:
            # Merge, not Parse: only Merge lets the last of two exclusive blocks win.
            text_format.Merge(text, message)
        except text_format.ParseError as error:
            line, column = error.GetLine(), error.GetColumn()
            problem = str(error).removeprefix(f"{line}:{column} : ").replace("\n", " ")
            where = f"line {line}, column {column}: " if line is not None else ""
            raise QuantizationError(f"{where}{problem}", path=path) from error
    try:
        message.SerializeToString()  # text is merged without a look at required fields, bytes are not
    except EncodeError as error:
        keys = str(error).rpartition(": ")[2]
        raise QuantizationError(f"The '{keys}' key must be given. Got nothing instead.", path=path) from error
    return message


def _read_choices(
    message: schema.AMCTConfig, capabilities: Sequence[Capability], place: Place
) -> tuple[_Choices, tuple[str, ...]]:
    by_type: dict[str, LayerSettings] = {}
    warnings: tuple[str, ...] = ()
    if message.HasField("common_config"):
        for layer_type in QUANTIZABLE_TYPES:
            block = _common_block(message.common_config, layer_type)
            by_type[layer_type] = _read_block(block, layer_type, place.under("common_config"))
    modern = message.HasField("common_config") or bool(message.override_layer_types)
    for key, types in _DEPRECATED.items():
        if message.HasField(key):
            if modern:
                warnings += (
                    f"{place.path}: {key} is deprecated and ignored, because common_config or"
                    " override_layer_types is there.",
                )
                continue
            block = getattr(message, key)
            by_type |= {name: _read_block(block, name, place.under(key)) for name in types}
    _check_types("override_layer_types", (item.layer_type for item in message.override_layer_types), place)
    for item in message.override_layer_types:
        inside = place.under(f"override_layer_types[{item.layer_type}]")
        by_type[item.layer_type] = _read_block(item.calibration_config, item.layer_type, inside)
    return _Choices(_read_overrides(message, capabilities, place), by_type), warnings


def _read_overrides(
    message: schema.AMCTConfig, capabilities: Sequence[Capability], place: Place
) -> dict[str, LayerSettings]:
    key = "override_layer_configs"
    names = [item.layer_name for item in message.override_layer_configs]
    layers = check_known_layers(key, names, capabilities, place)
    result = {}
    for item, layer in zip(message.override_layer_configs, layers, strict=True):
        at = place.at(layer.name)
        if not layer.quantizable:
            reason = layer.reason or f"type {layer.type} is not supported"
            at.refuse(key, f"made of layers that can be quantized ({reason})", layer.type)
        result[layer.name] = _read_block(item.calibration_config, layer.type, at.under(key))
    return result


def _common_block(block: schema.CalibrationConfig, layer_type: str) -> schema.CalibrationConfig:
    """Drop a common channel_wise for a type that has no channels: there it cannot have been meant."""
    if layer_type in CHANNEL_WISE_TYPES or not block.HasField("arq_quantize"):
        return block
    result = schema.CalibrationConfig()
    result.CopyFrom(block)
    result.arq_quantize.ClearField("channel_wise")
    return result


def _read_block(block: schema.CalibrationConfig, layer_type: str, place: Place) -> LayerSettings:
    """Translate one CalibrationConfig to the keys of config.json and check it there."""
    activation: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    activation_block = block.WhichOneof("activation")
    if activation_block == "ifmr_quantize":
        activation = {"act_algo": "ifmr"} | _given(block.ifmr_quantize)
        _join_search_range(activation)
    elif activation_block == "hfmg_quantize":
        activation = {"act_algo": "hfmg"} | _given(block.hfmg_quantize)
    weights_block = block.WhichOneof("weights")
    if weights_block is not None:
        weights = {"wts_algo": weights_block} | _given(getattr(block, weights_block))
        if "quant_bits" in weights:
            weights["num_bits"] = weights.pop("quant_bits")
    return LayerSettings(
        build_activation(activation, place.under(activation_block or "activation")),
        build_weights(weights, layer_type, place.under(weights_block or "weights")),
    )


def _given(
    message: schema.ARQuantize | schema.NUQuantize | schema.FMRQuantize | schema.HFMGQuantize,
) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def _join_search_range(values: dict[str, Any]) -> None:
    """Replace the two fields of the .cfg by the one key of config.json."""
    if "search_range_start" in values or "search_range_end" in values:
        usual = ActivationSettings()
        values["search_range"] = [
            values.pop("search_range_start", usual.search_start),
            values.pop("search_range_end", usual.search_end),
        ]


def _check_types(key: str, types: Iterable[str], place: Place) -> frozenset[str]:
    found: set[str] = set()
    for name in types:
        if name not in QUANTIZABLE_TYPES:
            rule = f"made of the layer types {', '.join(QUANTIZABLE_TYPES)}"
            place.refuse(key, rule, name, suggest_name(name, QUANTIZABLE_TYPES))
        if name in found:
            place.refuse(key, "free of repetitions", name)
        found.add(name)
    return frozenset(found)


def _read_target(message: schema.AMCTConfig, place: Place, said: Target) -> Target:
    block = message.nuq_config
    given = {"codec": block.codec, "chip": block.chip.lower(), "marks": block.marks}
    return build_target(given, place.under("nuq_config"), said)


def _read_marked(
    message: schema.AMCTConfig, capabilities: Sequence[Capability], path: Path, graph: Graph | None, target: Target
) -> tuple[dict[str, WeightSettings], Target, tuple[str, ...]]:
    """Return the weight settings of the layers that are to have codebooks, and the target with its marks.

    Those are what the mapping file marks; without one what the chip is predicted to mark, or all if it compresses all.
    The file is of the chip that stands beside it, if one does: for another one that the study says it does not count.
    """
    if not message.HasField("nuq_config"):
        return {}, target, ()
    block = message.nuq_config
    place = Place(path, spelling=_SPELLING).under("nuq_config")
    if not (block.HasField("mapping_file") or target.chip):
        raise QuantizationError(
            "The 'nuq_config.mapping_file' key must be given, or 'nuq_config.chip' to predict the marks. Got nothing "
            "instead.",
            path=path,
        )
    values = {"wts_algo": "nuq_quantize"} | _given(block.nuq_quantize)
    types = {capability.name: capability.type for capability in capabilities}
    wanted = {name: build_weights(values, name, place.under("nuq_quantize")) for name in QUANTIZABLE_TYPES}
    layers: tuple[str, ...]
    is_of_other = block.HasField("mapping_file") and block.chip.lower() not in ("", target.chip)
    if block.HasField("mapping_file") and not is_of_other:
        mapping_file = _find_mapping_file(block.mapping_file, path)
        marks = load_marks(mapping_file, capabilities)
        layers, warnings = marks.layers, _unused_marks(mapping_file, marks)
        if target.chip:
            target = replace(target, marked=layers)
            warnings += _differences(mapping_file, layers, target.chip, _predicted(graph, target.chip))
    else:
        layers = _predicted(graph, target.chip)
        warnings = () if layers or target.marking == "all" else (_gains_nothing(path, target.chip),)
        if is_of_other:
            warnings += (f"{path}: mapping_file is of {block.chip}; what {target.chip} marks is predicted.",)
    if target.chip and target.marking == "all":
        layers = tuple(capability.name for capability in capabilities if capability.nuq)
    return {name: wanted[types[name]] for name in layers}, target, warnings


def _predicted(graph: Graph | None, chip: str) -> tuple[str, ...]:
    if graph is None:
        raise ValueError("The 'graph' parameter of load_simplified must be given where nuq_config has a chip.")
    return predicted_layers(graph, chip)


def _unused_marks(mapping_file: Path, marks: Marks) -> tuple[str, ...]:
    if marks.unmatched and not marks.layers:
        raise QuantizationError(
            f"The mapping file must be this network's. Got {len(marks.unmatched)} marked operators instead, "
            f"'{marks.unmatched[0]}' the first, none of which holds a layer of it that can be quantized. Write it with "
            "'atc --mode=1' from the .om of this network's deploy pair.",
            path=mapping_file,
        )
    warnings = tuple(
        f"{mapping_file}: the marked operator '{name}' holds no layer of the network that can be quantized."
        for name in marks.unmatched
    )
    if not marks.layers:
        warnings += (f"{mapping_file}: no layer of the network is marked, so nuq_config changes nothing.",)
    return warnings


def _differences(mapping_file: Path, marked: tuple[str, ...], chip: str, predicted: tuple[str, ...]) -> tuple[str, ...]:
    """Compare the marks of the file with those predicted; the file counts."""
    only_file = [name for name in marked if name not in predicted]
    only_chip = [name for name in predicted if name not in marked]
    sides = (("only the file marks", only_file), ("only the prediction marks", only_chip))
    said = "; ".join(f"{side} {', '.join(names)}" for side, names in sides if names)
    return (f"{mapping_file} differs from the prediction for {chip}: {said}. The file counts.",) if said else ()


def _gains_nothing(path: Path, chip: str) -> str:
    return (
        f"{path}: on {chip} no convolution takes longer to load its weights than to compute with them, so non-uniform "
        "quantization gains nothing there and nuq_config changes nothing."
    )


def _find_mapping_file(name: str, cfg: Path) -> Path:
    """Look in the working directory, then beside the .cfg."""
    candidates = list(dict.fromkeys([Path(name), cfg.parent / name]))
    with reading(cfg, QuantizationError, "its 'nuq_config.mapping_file' can be no file's name"):
        for candidate in candidates:
            if candidate.is_file():
                return candidate
    looked = " and ".join(str(candidate) for candidate in candidates)
    raise QuantizationError(
        f"The 'nuq_config.mapping_file' key must name a file. Got \"{name}\" instead; looked for {looked}.",
        path=cfg,
    )


def _skipped_override(name: str, path: Path) -> tuple[str, ...]:
    return (f"{path}, layer '{name}': override_layer_configs is ignored, because the layer is skipped.",)
