"""The codec `ascend`: a layer's codes as ATC's weight compressor stores them on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.atc.chips import is_kept, judge_fractal_bytes
from autonuq.quant.atc.codebook import UNITS, USEFUL_LEVELS, build_ascend_codebooks, estimate_compressed_bytes
from autonuq.quant.atc.compressor import Compressed, StreamFormat, compress, compressed_bytes, decompress, find_index
from autonuq.quant.atc.layout import device_bytes, device_layout, restore_layout
from autonuq.quant.codebook import BINS, Codebook
from autonuq.quant.feedback import Prices

_UNIT_BITS = 3
_MOST_RATIO = 8  # a packet of 8 bytes covers 64
_ZERO = 128


@dataclass(frozen=True)
class AscendCodec:
    """ATC's weight compressor for one layer, whose shape decides on padding and fractals.

    Parameters
    ----------
    shape : tuple of int
        (N, C, H, W) of a convolution, (N, K) of an InnerProduct.
    is_compressed : bool
        False: the chip's compiler leaves the layer alone, and the device holds it plain.

    Notes
    -----
    **Size**: what the device holds, as ATC's judge counts it: the compressed bytes of the device layout, padding
    included, index not. A layer that does not get below 0.8 of its device bytes is stored plain, and costs all of
    them. Weights of 32 * i inputs and 16 * j outputs need no padding: then that is one byte per weight.

    **Format**: the fractals' streams back to back, or the plain device layout. Only the latter has its length. Where
    fractals start is found by reading them, since each lane says where it ends.

    **Cost**: encoding some 0.1, its exact size alone 0.03 microseconds a weight; an estimate some microseconds in all.
    """

    shape: tuple[int, ...]
    is_compressed: bool = True
    name: str = "ascend"
    entropy_coded: bool = True

    def __post_init__(self) -> None:
        """Refuse shapes that no layer has."""
        if len(self.shape) not in (2, 4) or any(extent < 1 for extent in self.shape):
            rule = "(N, C, H, W) or (N, K), all positive"
            raise ValueError(f"The 'shape' parameter of AscendCodec must be {rule}. Got {self.shape} instead.")

    @property
    def kind(self) -> str:
        """What `device_layout` calls such a layer."""
        return "conv" if len(self.shape) == 4 else "fc"

    @property
    def device_bytes(self) -> int:
        """Bytes of the layer on the device, uncompressed."""
        return device_bytes(self.shape)

    @property
    def fractal_bytes(self) -> int:
        """Fractals that ATC cuts it into."""
        return judge_fractal_bytes(self.device_bytes)

    @property
    def padding_zeros(self) -> int:
        """Bytes on the device that are no weights."""
        return self.device_bytes - int(np.prod(self.shape, dtype=np.int64))

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Columns of the weights (outputs, K) that lie beside each other on the device, shape (P, 2), each once.

        The next two channels at one place of the kernel; two zeros there cost what one does.
        """
        columns = np.arange(np.prod(self.shape[1:], dtype=np.int64)).reshape(self.shape[1], -1)
        pairs = self.shape[1] // 2
        return np.stack((columns[0 : 2 * pairs : 2], columns[1 : 2 * pairs : 2]), axis=-1).reshape(-1, 2)

    def prices(self, histogram: NDArray[np.int64]) -> Prices:
        """Return what codes take, given the count of each before bits had a price, shape (256,).

        Zero is taken for the most frequent byte: with padding it nearly always is. Where no other zero is beside it,
        it breaks up no run of padding and costs nothing.
        """
        counts = histogram.copy()
        counts[_ZERO] = np.iinfo(counts.dtype).max
        in_pairs = np.empty(BINS)
        in_pairs[np.argsort(-counts, kind="stable")] = _UNIT_BITS * UNITS
        bits = in_pairs.copy()
        bits[_ZERO] = 0.0
        return Prices(bits, in_pairs)

    def encode(self, codes: NDArray[np.int8]) -> bytes:
        """Return the bytes of codes of the layer's shape."""
        weights = self._layout(codes)
        if not self.is_compressed:
            return weights.tobytes()
        data = compress(weights, fractal_bytes=self.fractal_bytes).data
        return data if is_kept(len(data), weights.size) else weights.tobytes()

    def decode(self, data: bytes, count: int) -> NDArray[np.int8]:
        """Return the codes, shape (count,).

        Raises
        ------
        QuantizationError
            The data cannot be so many weights, or is damaged; the fractal is named.
        """
        if count != self.device_bytes - self.padding_zeros:
            raise QuantizationError(f"a layer of shape {self.shape} has not {count} weights")
        if len(data) * _MOST_RATIO < self.device_bytes:
            raise QuantizationError(f"{len(data)} bytes cannot be {count} weights: truncated or damaged")
        if len(data) != self.device_bytes:
            form = StreamFormat(self.fractal_bytes)
            index = find_index(data, self.device_bytes // self.fractal_bytes, form)
            data = decompress(Compressed(data, index, form))
        codes = restore_layout(data, self.shape)
        if not np.array_equal(self._layout(codes), np.frombuffer(data, dtype=np.int8)):
            raise QuantizationError("the padding is not zero: the data is damaged")
        return codes.reshape(-1)

    def size_bytes(self, codes: NDArray[np.int8]) -> int:
        """Return exactly ``len(encode(codes))``, without encoding."""
        weights = self._layout(codes)
        if not self.is_compressed:
            return weights.size
        size = compressed_bytes(weights, fractal_bytes=self.fractal_bytes)
        return size if is_kept(size, weights.size) else weights.size

    def estimate_bytes(self, histogram: NDArray[np.int64]) -> float:
        """Return about that, from the count of each code, shape (256,)."""
        if not self.is_compressed:
            return float(self.device_bytes)
        size = estimate_compressed_bytes(histogram, padding_zeros=self.padding_zeros, fractal_bytes=self.fractal_bytes)
        return size if is_kept(round(size), self.device_bytes) else float(self.device_bytes)

    def build_codebooks(
        self,
        histogram: NDArray[Any],
        lagrangians: NDArray[np.float64],
        *,
        importance: NDArray[Any] | None = None,
        max_levels: int = USEFUL_LEVELS,
    ) -> list[Codebook]:
        """Choose codebooks for this layer and codec; `lagrangians` are errors that a bit is worth, shape (L,)."""
        return build_ascend_codebooks(
            histogram,
            _UNIT_BITS * np.asarray(lagrangians),
            importance=importance,
            padding_zeros=self.padding_zeros,
            max_levels=max_levels,
        )

    def _layout(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        if codes.shape != self.shape:
            raise ValueError(f"A codec for weights of shape {self.shape} got codes of shape {codes.shape}.")
        return device_layout(codes, self.kind)
