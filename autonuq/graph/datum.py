"""Caffe's messages about images: the Datum of a database record and the mean image of a `.binaryproto`.

Source: caffe.proto (`Datum`, `BlobProto`) and `io.cpp` (what a writer puts into them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autonuq.errors import EvaluatorError
from autonuq.graph import caffe_pb2
from autonuq.graph.model import Array
from autonuq.reading import reading


@dataclass(frozen=True)
class Datum:
    """One record of an image database.

    Attributes
    ----------
    label : int
    encoded : bytes
        A picture file (JPEG, PNG); empty where `values` are there.
    values : ndarray of uint8 or float32, shape (channels, height, width), or None
        Pixels as they were stored, BGR where Caffe's tools wrote them.
    """

    label: int
    encoded: bytes
    values: Array | None


def parse_datum(record: bytes, key: str, path: Path) -> Datum:
    """Read a database record; `key` and `path` are for messages.

    Raises
    ------
    EvaluatorError
        The record is no Datum, or holds another number of values than its shape says.
    """
    with reading(path, EvaluatorError, "is no Datum of Caffe's", what=f"record '{key}'"):
        message = caffe_pb2.Datum.FromString(record)
    if message.encoded:
        return Datum(message.label, message.data, None)
    values = np.frombuffer(message.data, np.uint8) if message.data else np.array(message.float_data, np.float32)
    shape = (message.channels, message.height, message.width)
    if values.size == 0 or values.size != math.prod(shape) or min(shape) < 1:
        raise EvaluatorError(f"record '{key}' has {values.size} values, its shape {shape} wants others", path=path)
    return Datum(message.label, b"", values.reshape(shape))


def load_mean_image(path: Path) -> Array:
    """Read a mean image out of a `.binaryproto`.

    Returns
    -------
    ndarray of float32, shape (channels, height, width)

    Raises
    ------
    EvaluatorError
        The file cannot be read or holds no such image.
    """
    with reading(path, EvaluatorError, "is no BlobProto of Caffe's", what="mean file"):
        message = caffe_pb2.BlobProto.FromString(path.read_bytes())
    shape = tuple(message.shape.dim) or (message.num, message.channels, message.height, message.width)
    kind, data = ("<f8", message.double_data) if message.double_data else ("<f4", message.data)
    if (
        len(shape) not in (3, 4)
        or len(data) == 0
        or min(shape) < 1
        or math.prod(shape) * np.dtype(kind).itemsize != len(data)
    ):
        raise EvaluatorError(f"mean file does not hold one image: its shape is {shape}", path=path)
    return np.frombuffer(data, kind).astype(np.float32).reshape(shape[-3:])
