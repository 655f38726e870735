"""AMCT's create_quant_config: write config.json for a network."""

from __future__ import annotations

from collections.abc import Sequence

from autonuq.amct.log import open_log, warn_of
from autonuq.graph.files import load_graph
from autonuq.graph.passes import capabilities
from autonuq.settings.config_json import build_arq_config, write_config_json
from autonuq.settings.simplified import load_simplified


def create_quant_config(
    config_file: str,
    model_file: str,
    weights_file: str,
    skip_layers: Sequence[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | None = None,
) -> None:
    """Write the JSON configuration of a network.

    Parameters
    ----------
    config_file : str
        The JSON to write; an existing one is replaced.
    model_file, weights_file : str
        prototxt and caffemodel.
    skip_layers : list of str, optional
        Layers that stay float.
    batch_num : int
        Forward passes of the calibration.
    activation_offset : bool
        Asymmetric activations.
    config_defination : str, optional
        A simplified configuration (AMCT's own spelling); `skip_layers`, `batch_num` and `activation_offset` are
        ignored when it is given.

    Raises
    ------
    ModelError, QuantizationError
        A file cannot be used, or a setting is outside its rule.
    """
    log = open_log()
    graph = load_graph(model_file, weights_file)
    able = capabilities(graph)
    if config_defination is None:
        config = build_arq_config(
            able, skip_layers=skip_layers or (), batch_num=batch_num, activation_offset=activation_offset
        )
    else:
        loaded = load_simplified(config_defination, able, graph)
        warn_of(loaded.warnings)
        config = loaded.config
    write_config_json(config_file, config, able)
    codebooks = sum(layer.weights.algorithm == "nuq" for layer in config.layers.values())
    log.info("wrote %s: %d layers are quantized, %d of them non-uniformly", config_file, len(config.layers), codebooks)
