"""What ATC does with a layer's weights on each chip, predicted from numbers: does it mark them, does it compress them.

Two questions with two answers. *Marked*: while compiling, ATC puts `_fe_weight_compress` on the layers whose weights
take longer to load than the matrix unit takes to use them; AMCT reads its list of non-uniform layers from there.
*Kept*: with weight compression switched on, ATC compresses a layer's bytes and keeps the result if it is small enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from autonuq.quant.atc.compressor import compressed_bytes, device_layout
from autonuq.quant.atc.index import BLOCK_BYTES, MAX_FRACTAL_BYTES

DDR_RATES: Mapping[str, int] = MappingProxyType({"ascend310": 67, "ascend310b": 17, "ascend310p": 17, "ascend910": 32})
"""Bytes that a chip loads from memory per cycle, by chip.

Source: the platform files that come with the graph engine's published tests; an installed toolkit's may differ.
"""

MARKS = ("compiler", "all")
"""Which layers a chip's compiler compresses: those that it marks; or, with `--enable_compress_weight`, all it can."""

MARK_BYTES = 262144
"""Weights must be more than this to be marked."""

MARK_RATIO = 0.8
"""Loading cycles per computing cycle from which on a convolution is marked."""

KEEP_RATIO = 0.8
"""Compressed size by size up to which compressed weights are kept; the value for every number of cores."""

_CUBE = 16  # rows and columns of the matrix unit
_CUBE_DEPTH = {True: 32, False: 16}  # inputs per cycle: int8, float16
_CLOSE = np.float32(1.19e-7)  # the judge takes float32 figures that differ by less as equal


@dataclass(frozen=True)
class Mark:
    """Whether ATC would mark a layer.

    Attributes
    ----------
    is_marked : bool
    reason : str
        Why, or why not; half a sentence.
    ratio : float
        Loading by computing cycles; NaN of groups.
    """

    is_marked: bool
    reason: str
    ratio: float = float("nan")


def predict_mark(
    chip: str,
    *,
    kernel_height: int,
    kernel_width: int,
    channels: int,
    outputs: int,
    map_height: int,
    map_width: int,
    is_fc: bool = False,
    group: int = 1,
    is_int8: bool = True,
) -> Mark:
    """Predict whether ATC marks a layer for weight compression.

    Parameters
    ----------
    chip : str
        A key of `DDR_RATES`.
    kernel_height, kernel_width, channels, outputs : int
        The layer's weights; channels are those of its input.
    map_height, map_width : int
        Its output map.
    is_fc : bool
        A fully connected layer: not marked, whatever its size, as in the one mapping file that is published; the
        published source, which is newer, marks every one.
    group : int
        Grouped convolutions cannot be compressed.
    is_int8 : bool
        Whether its input is quantized; a float16 input takes twice the computing.

    Returns
    -------
    Mark

    Raises
    ------
    ValueError
        The chip is not known, or a size is not positive.

    Notes
    -----
    Neither the batch nor the unit's frequency counts.

    **Shapes**: 512 x 512 x 3 x 3 over 7 x 7 on ascend310: 2,359,296 / 67 loading cycles by 4 * 144 * 32 computing
    ones = 1.91: marked. 256 x 256 x 3 x 3 over 14 x 14: 0.59: not marked.
    """
    if chip not in DDR_RATES:
        raise ValueError(
            f"The 'chip' parameter of predict_mark must be one of {sorted(DDR_RATES)}. Got {chip!r} instead."
        )
    sizes = {"kernel_height": kernel_height, "kernel_width": kernel_width, "channels": channels, "outputs": outputs}
    for name, size in {**sizes, "map_height": map_height, "map_width": map_width, "group": group}.items():
        if size < 1:
            raise ValueError(f"The '{name}' parameter of predict_mark must be positive. Got {size} instead.")
    if group > 1:
        return Mark(False, f"{group} groups")
    depth = kernel_height * kernel_width * channels
    size = depth * outputs
    blocks = (map_height * map_width, _CUBE), (depth, _CUBE_DEPTH[is_int8]), (outputs, _CUBE)
    cycles = np.prod([-(-extent // side) for extent, side in blocks], dtype=np.int64)
    ratio = size / DDR_RATES[chip] / float(cycles)
    if is_fc:
        return Mark(False, "fully connected: only newer compilers mark it", ratio)
    if size <= MARK_BYTES:
        return Mark(False, f"{size} bytes of weights, not over {MARK_BYTES}", ratio)
    if ratio < MARK_RATIO:
        return Mark(False, f"loads in {ratio:.2f} of its computing time, less than {MARK_RATIO}", ratio)
    return Mark(True, f"loads in {ratio:.2f} times its computing time", ratio)


@dataclass(frozen=True)
class Judgement:
    """What ATC makes of a layer's weights.

    Attributes
    ----------
    device_bytes : int
        The weights in the order of the device, padding included.
    fractal_bytes : int
        Fractals they are cut into.
    compressed_bytes : int
        All fractals, index not counted.
    """

    device_bytes: int
    fractal_bytes: int
    compressed_bytes: int

    @property
    def ratio(self) -> float:
        """Compressed by device bytes."""
        return self.compressed_bytes / self.device_bytes

    @property
    def is_kept(self) -> bool:
        """Whether ATC keeps them compressed."""
        return is_kept(self.compressed_bytes, self.device_bytes)


def judge(codes: NDArray[np.int8], kind: str) -> Judgement:
    """Predict whether ATC keeps a layer compressed, and its exact size.

    Parameters
    ----------
    codes : ndarray of int8
        Shape (N, C, H, W) for "conv", (N, K) for "fc".
    kind : {"conv", "fc"}

    Returns
    -------
    Judgement

    Notes
    -----
    The same on every chip: four engines, `max_ratio` 64, low-sparse codes. What is shipped afterwards is cut by the
    chip's own tiling and differs a little.

    **Cost**: O(n), as `atc.compressed_bytes`.
    """
    weights = device_layout(codes, kind)
    fractal_bytes = judge_fractal_bytes(weights.size)
    return Judgement(weights.size, fractal_bytes, compressed_bytes(weights, fractal_bytes=fractal_bytes))


def judge_fractal_bytes(size: int) -> int:
    """Return the fractals into which ATC cuts so many device bytes: the largest multiple of 512 that divides them."""
    if size <= 0 or size % BLOCK_BYTES:
        rule = f"a positive multiple of {BLOCK_BYTES}"
        raise ValueError(f"The 'size' parameter of judge_fractal_bytes must be {rule}. Got {size} instead.")
    return next(part for part in range(MAX_FRACTAL_BYTES, 0, -BLOCK_BYTES) if size % part == 0)


def is_kept(compressed: int, size: int) -> bool:
    """Tell whether ATC keeps so many compressed bytes of so many device bytes; in float32, as it counts."""
    ratio, limit = np.float32(compressed) / np.float32(size), np.float32(KEEP_RATIO)
    return bool(ratio > _CLOSE and (ratio < limit or abs(ratio - limit) < _CLOSE))
