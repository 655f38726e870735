"""Execution of a graph: one engine (`session`), and Caffe's own Python interface on top of it (`net`)."""
