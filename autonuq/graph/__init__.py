"""The Caffe graph adapter: files, graph, passes over it, and its lowering to ONNX.

Read `model` first (what a graph is), then `files` (where it comes from), `layers` (shapes of a whole graph; the rule
of each layer type is in `shapes`), `passes` (what is done to it) and `lowering` (how it gets executed; each layer
type's ONNX operators are in `operators`).
"""
