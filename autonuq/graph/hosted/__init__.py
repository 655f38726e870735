"""Layers that run in Python, on NumPy arrays, between the parts of a network that ONNX executes.

They are the ones that ONNX has no operator for, Caffe's own `Python` layers, and what users register.
"""

from autonuq.graph.hosted import detection, python_layer
from autonuq.graph.hosted.registry import HOST_LAYERS, HostLayer, register_layer

__all__ = ["HOST_LAYERS", "HostLayer", "detection", "python_layer", "register_layer"]
