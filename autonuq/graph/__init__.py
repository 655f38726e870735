"""The Caffe graph adapter: files, graph, passes over it, and its lowering to ONNX.

Read `model` first (what a graph is), then `files` (where it comes from), `layers` (what each layer type means),
`passes` (what is done to it) and `lowering` (how it gets executed).
"""
