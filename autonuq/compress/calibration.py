"""The calibration pass: its network, and what its record file says afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import write_runnable
from autonuq.compress.quantized import QuantizedModel
from autonuq.errors import QuantizationError
from autonuq.graph import caffe_pb2
from autonuq.graph.files import ModelPair
from autonuq.graph.lowering import lower
from autonuq.graph.model import Graph, Layer
from autonuq.graph.passes import QuantizedBlobs, insert_observers, insert_quantizers, joint_groups
from autonuq.graph.record import load_record, write_record
from autonuq.runtime.moments import (
    describe_inputs,
    is_observable,
    request_moments,
)
from autonuq.runtime.session import Session


def write_calibration_model(
    model: QuantizedModel, pair: ModelPair, record_file: Path, inputs: Iterable[str], *, python_layers: bool = False
) -> None:
    """Write the modified model: fake-quantized weights, and a calibration layer before every quantized layer.

    The record file is written with the weights' factors; running the model for `config.batch_num` forward passes
    adds the inputs' factors to it, and, in our runtime and by `Python` layers, second moments of the inputs of the
    layers named by `inputs` beside it. For `python_layers` see `write_fake_quant`.
    """
    write_record(record_file, model.factors)
    kept = [layer for layer in map(model.graph.by_name.__getitem__, inputs) if is_observable(layer)]
    request_moments(record_file, [layer.name for layer in kept])
    config = model.config
    observed = insert_observers(
        Candidate(model).weights_only_graph(),
        {name: settings.activation for name, settings in config.layers.items()},
        batch_num=config.batch_num,
        with_offset=config.activation_offset,
        record_file=record_file,
        joint=joint_groups(model.graph, config.layers) if config.joint_quant else (),
    )
    described = {layer.name: describe_inputs(record_file, layer) for layer in kept}
    write_runnable(observed, pair, python_layers, described)


def calibrated(model: QuantizedModel, record_file: Path) -> QuantizedModel:
    """Return the model with the factors of a record file.

    Raises
    ------
    QuantizationError
        A layer has no input factors (too few forward passes), or factors of other weights.
    """
    records = load_record(record_file)
    factors = {}
    for name, own in model.factors.items():
        found = records.get(name)
        if found is None or found.scale_d is None:
            raise QuantizationError(
                f"has no activation factors in {record_file}: the calibration needs {model.config.batch_num} forward "
                "passes (batch_num) of the whole modified network",
                layer=name,
            )
        if not np.array_equal(np.asarray(found.scale_w, np.float32), np.asarray(own.scale_w, np.float32)):
            raise QuantizationError(f"{record_file} holds the factors of other weights", layer=name)
        factors[name] = replace(found, cluster=own.cluster)
    return replace(model, factors=factors)


def layer_outputs(
    model: QuantizedModel, name: str, inputs: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the output of one layer alone for given inputs, float and fake-quantized.

    Parameters
    ----------
    model : QuantizedModel
        Calibrated.
    name : str
        A quantized layer.
    inputs : ndarray of float32
        In the shape of the layer's bottom, any number of images.
    """
    layer = model.graph.by_name[name]
    source = Layer(caffe_pb2.LayerParameter(name="input", type="Input", top=layer.bottoms))
    source.message.input_param.shape.add(dim=inputs.shape)
    single = Graph(name, (source, layer))
    blobs = Candidate(model).blobs(layer)
    fake = insert_quantizers(single, {name: QuantizedBlobs(blobs, model.factors[name])})
    (bottom,), (top,) = layer.bottoms, layer.tops
    outputs = (Session(lower(graph, outputs=[top])).run({bottom: inputs})[top] for graph in (single, fake))
    return next(outputs), next(outputs)
