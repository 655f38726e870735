"""Execution of a graph: one engine (`session`), and Caffe's own Python interface on top of it (`net`).

`program` cuts a graph into what the engine runs and what is done on the host; `device` says on which device. During a
calibration, `calibration` finds the ranges, `moments`, `inputs` and `samples` keep what is observed beside the record
file. `memory` gives memory back to the system. `engine_errors` turns the engine's messages into layers and reasons.
"""
