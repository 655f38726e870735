"""A convolution as one product of matrices, for images of codes whose channels lie last.

A row of the first matrix is what lies under a strip of neighbouring windows, so it makes several outputs; the weights
of each stand in the second matrix where its window lies, zeros elsewhere. Rows of pixels are cut into blocks, one for
each strip, so that the rows of the matrix are put together from few long pieces of memory instead of many short ones:
with 16 channels a third of the time, for a third more products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from autonuq.graph.model import Array, Shape
from autonuq.graph.shapes.windows import ConvolutionWindow

_BLOCK_BYTES = 64  # pieces that are copied about as fast as longer ones
_INDEX_BYTES = 8 + 4  # while an index is made: int64, then int32


@dataclass(frozen=True)
class Strip:
    """How an image is cut.

    Attributes
    ----------
    window : ConvolutionWindow
    batch, channels : int
    output : tuple of int
        Outputs of an image, (rows, columns).
    count : int
        Outputs of a strip.
    block : int
        Pixels by which a strip is further right than its neighbour.
    width : int
        Blocks under a strip.
    before, behind : tuple of int
        Pixels of padding, (rows, columns); negative ones cut the image.
    """

    window: ConvolutionWindow
    batch: int
    channels: int
    output: Shape
    count: int
    block: int
    width: int
    before: Shape
    behind: Shape

    @property
    def across(self) -> int:
        """Strips side by side; what the last one makes beyond the image is cut off."""
        return -(-self.output[1] // self.count)

    @property
    def size(self) -> Shape:
        """Rows of the padded image, and blocks of each."""
        (stride, _), (dilation, _), (kernel, _) = self.window.stride, self.window.dilation, self.window.kernel
        return (self.output[0] - 1) * stride + dilation * (kernel - 1) + 1, self.across - 1 + self.width

    @property
    def bytes(self) -> int:
        """What `index`, `matrix` and a padded image take: much, for few weights, where a window or padding is wide."""
        rows, outputs = self.window.kernel[0], self.window.num_output
        inputs = rows * self.width * self.block * self.channels
        index = self.output[0] * rows * self.across * self.width
        return index * _INDEX_BYTES + inputs * self.count * outputs + self.blocks * self.block * self.channels

    @property
    def blocks(self) -> int:
        """Blocks of an image."""
        return math.prod(self.size)

    def index(self) -> Array:
        """Return the blocks under every strip, strip after strip, row by row: ndarray of int32."""
        (stride, _), (dilation, _), (kernel, _) = self.window.stride, self.window.dilation, self.window.kernel
        rows = stride * np.arange(self.output[0])[:, None] + dilation * np.arange(kernel)
        blocks = np.arange(self.across)[:, None] + np.arange(self.width)
        return (rows[:, None, :, None] * self.size[1] + blocks[None, :, None, :]).reshape(-1).astype(np.int32)

    def matrix(self, codes: Array) -> Array:
        """Return the weights, each output's where its window lies: (row, pixel, channel) x (output of strip, channel).

        Parameters
        ----------
        codes : ndarray of int8, shape (outputs, channels, rows, columns)
        """
        (_, stride), (_, dilation), (_, kernel) = self.window.stride, self.window.dilation, self.window.kernel
        outputs, channels, rows, _ = codes.shape
        matrix = np.zeros((rows, self.width * self.block, channels, self.count, outputs), np.int8)
        for place in range(self.count):
            begin = place * stride
            under = slice(begin, begin + dilation * (kernel - 1) + 1, dilation)
            matrix[:, under, :, place] = codes.transpose(2, 3, 1, 0)
        return matrix.reshape(-1, self.count * outputs)


def strip_of(window: ConvolutionWindow, bottom: Shape, top: Shape) -> Strip:
    """Return strips whose blocks are long enough to be copied fast."""
    batch, channels, *size = bottom
    stride = window.stride[1]
    count = 1
    while count * stride * channels < _BLOCK_BYTES and count < top[3]:
        count *= 2
    block = count * stride
    span = (count - 1) * stride + window.dilation[1] * (window.kernel[1] - 1) + 1
    strip = Strip(window, batch, channels, top[2:], count, block, -(-span // block), window.pad, (0, 0))
    rows, blocks = strip.size
    behind = (rows - size[0] - window.pad[0], blocks * block - size[1] - window.pad[1])
    return replace(strip, behind=behind)
