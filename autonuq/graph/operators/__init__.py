"""Caffe's layers as ONNX operators, one module a family; importing it fills `builder.LOWERINGS`.

Source: each layer's `Forward_cpu` in BVLC Caffe, master; ONNX operator set 17. The package `shapes` holds the shape
rules of the same types, module for module.
"""

from autonuq.graph.operators import arithmetic, channels, detectors, layout, losses, quantizers, recurrent, windows

__all__ = ["arithmetic", "channels", "detectors", "layout", "losses", "quantizers", "recurrent", "windows"]
