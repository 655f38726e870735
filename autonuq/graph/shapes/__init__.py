"""Shape rules of the layer types, one module a family; importing it fills `registry.LAYER_TYPES`.

Every formula is Caffe's own definition (`LayerSetUp` and `Reshape` of the layer in BVLC Caffe, master). The package
`operators` holds the arithmetic of the same types, module for module.
"""

from autonuq.graph.shapes import arithmetic, channels, detectors, layout, losses, quantizers, recurrent, windows

__all__ = ["arithmetic", "channels", "detectors", "layout", "losses", "quantizers", "recurrent", "windows"]
