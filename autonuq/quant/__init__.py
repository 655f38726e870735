"""Numbers only: uniform int8 weights, activation ranges, codebooks, codecs, rate-distortion curves.

NumPy arrays in, arrays out; nothing here knows Caffe, ONNX or Optuna.
"""
