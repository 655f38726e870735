"""What a layer's operating points will take, before any of it is made."""

from __future__ import annotations

from dataclasses import dataclass

from autonuq.quant.feedback import assignment_bytes
from autonuq.quant.inputs import sampling_of
from autonuq.quant.points import is_packed

_SETS = 48  # of levels that are tried
# Bytes that a weight takes in all points of its layer, as they are stored: as they are, and of a large layer as
# bitstreams. Seen of Gaussian weights, which have the longest curves.
_STORED, _PACKED = 25.0, 4.8
# Seconds on one core of 2024: what rounding takes for a weight and a set, and a multiplication of a matrix product.
_ROUNDING_S, _PRODUCT_S = 5e-8, 4e-11


@dataclass(frozen=True)
class LayerNeeds:
    """What the operating points of one layer take.

    Attributes
    ----------
    layer : str
    memory_bytes : float
        While they are built.
    beside_bytes : float
        What each further assignment takes that runs beside another.
    inputs_bytes, points_bytes : float
        On disk: what the calibration keeps of the inputs until then, and the points.
    seconds : float
        About, on one core.
    """

    layer: str
    memory_bytes: float
    beside_bytes: float
    inputs_bytes: float
    points_bytes: float
    seconds: float


def layer_needs(layer: str, outputs: int, columns: int, *, groups: int, samples: int, nuq: bool) -> LayerNeeds:
    """Say what a layer's operating points take.

    Parameters
    ----------
    layer : str
    outputs, columns : int
        Rows of weights, and weights of each.
    groups : int
        Of outputs, with inputs of their own.
    samples : int
        That the calibration sees of what a row meets.
    nuq : bool
        False: one point.
    """
    weights = outputs * columns
    is_large = is_packed((outputs, columns))
    sets = 1 if not nuq else _SETS // 2 if is_large else _SETS
    used, as_rows = sampling_of(columns).expected(samples)
    if as_rows and groups == 1:
        inputs = 4.0 * used * columns
        factor, carried = 2 * inputs + 16.0 * used**2, float(used)
        products = 2.0 * columns * used**2 + 2.0 * sets * weights * used
    else:
        inputs = 4.0 * groups * columns * (columns + 2)
        factor, carried = 16.0 * columns**2, columns / groups
        products = groups * columns**3 / 3 + 0.5 * sets * weights * columns
    stored = _PACKED if is_large else _STORED
    points = weights * (stored if nuq else 1.0)
    assignment = assignment_bytes(outputs, columns, carried)
    return LayerNeeds(
        layer=layer,
        memory_bytes=factor + 4.0 * weights + assignment + points,
        beside_bytes=assignment if nuq else 0.0,
        inputs_bytes=inputs,
        points_bytes=points,
        seconds=sets * weights * _ROUNDING_S + products * _PRODUCT_S,
    )
