"""Layers of the networks that autonuq quantizes, for every Caffe that was built with Python layers.

This file lies beside the model that needs it; its folder has to be on PYTHONPATH. It takes nothing but NumPy and Caffe,
and runs on Python 2.7 and 3. Parameters are JSON in `param_str`; a float there is a float32 to the last digit.

=======  ==============================================================================================================
Quant    factor: 1 / scale; offset
DeQuant  scale, shift: lists, one number for each channel or one in all; the shift N is in 1..16
IFMR     batch_num, with_offset, max_percentile, min_percentile, search_start, search_end, search_step, and as HFMG
HFMG     batch_num, with_offset, num_of_bins, record_file; objects: one for each bottom, with
         key: name of the layer in the record file, as protobuf's text writes it;
         inputs (or null): what is kept of what each output's weights multiply, its samples x of K numbers:
             moments: file for the sums of x x' and x and the number of samples, of each group of outputs;
             rows: file for the samples themselves, where there are few;
             samples, scarce, most_rows: how many make moments at most, how many are few, how many are kept at most;
             window (or null: all of the input): groups; kernel, stride, dilation, pad, and stretch or null,
                 (rows, columns) each: a window over the input, spread by `stretch` and then met in reverse order
=======  ==============================================================================================================

Source: AMCT's layers of the same names; autonuq's own documentation has the formulas.
"""

from __future__ import division

import io
import json
import os

import caffe
import numpy as np

CHUNK = 1 << 20  # values that are worked on at a time
TAIL = 1 << 16  # values that IFMR keeps at either end
BINS = 1 << 16  # bins in which it counts what lies between
EPSILON = np.finfo(np.float32).eps


def write_zeros(path, shape):
    """Write an array that can be mapped: one without blocks of its own would end the process on a full disk."""
    with io.open(path, "wb") as file:
        head = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        row = np.zeros(shape[2], np.float32).tobytes()
        for _ in range(shape[0] * shape[1]):
            file.write(row)


def round_half_away(x):
    """Round like C: halves away from zero."""
    below_half = np.nextafter(x.dtype.type(0.5), x.dtype.type(0))
    return np.trunc(x + np.copysign(below_half, x))


class Quant(caffe.Layer):
    """Fake quantization: onto the int8 grid and back to float."""

    def setup(self, bottom, top):
        parameters = json.loads(self.param_str)
        self.factor = np.float32(parameters["factor"])
        self.low, self.high = (np.float32(end - parameters["offset"]) for end in (-128, 127))

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        steps = np.clip(bottom[0].data * self.factor, self.low, self.high)
        top[0].data[...] = round_half_away(steps) / self.factor


class DeQuant(caffe.Layer):
    """What hardware with 16-bit sums loses: the low N bits of the int32 result, and what leaves int16."""

    def setup(self, bottom, top):
        parameters = json.loads(self.param_str)
        over_channels = (-1,) + (1,) * (bottom[0].data.ndim - 2)
        self.scale = np.array(parameters["scale"], np.float32).reshape(over_channels)
        self.power = np.exp2(np.array(parameters["shift"], np.float32)).reshape(over_channels)

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        codes = round_half_away(bottom[0].data / self.scale)
        kept = np.clip(round_half_away(codes / self.power), np.float32(-(2**15)), np.float32(2**15 - 1))
        top[0].data[...] = kept * self.scale * self.power


class Observer(caffe.Layer):
    """A calibration layer: watches its bottoms for some passes, then writes their range to the record file."""

    def setup(self, bottom, top):
        self.settings = json.loads(self.param_str)
        self.passes = 0
        self.inputs = {}

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        if self.passes >= self.settings["batch_num"]:
            return
        self.passes += 1
        for blob, described in zip(bottom, self.settings["objects"]):
            if not np.isfinite(blob.data).all():
                raise ValueError("the input of layer %s is not finite" % described["key"])
            self.take(np.array(blob.data, np.float32).reshape(-1))
            if described["inputs"]:
                if described["key"] not in self.inputs:
                    self.inputs[described["key"]] = Inputs(described["inputs"], self.settings["batch_num"])
                self.inputs[described["key"]].add(blob.data)
        if self.passes == self.settings["batch_num"]:
            scale, offset = self.find_range()
            for blob, described in zip(bottom, self.settings["objects"]):
                channels, height, width = (tuple(blob.data.shape[1:]) + (1, 1, 1))[:3]
                factors = [("scale_d", "%.9g" % scale), ("offset_d", offset)]
                factors += [("channels", channels), ("height", height), ("width", width)]
                write_factors(self.settings["record_file"], described["key"], factors)


class Inputs(object):
    """Keeps second moments of what a layer's weights meet, or samples of it, in files."""

    def __init__(self, described, passes):
        self.described, self.passes, self.seen = described, passes, 0

    def add(self, data):
        """Take in one pass; where there are more samples than needed, an even share of them, chosen at random."""
        views = windows(np.array(data, np.float32), self.described["window"])
        available = int(np.prod(views.shape[:3]))
        groups = self.described["window"]["groups"] if self.described["window"] else 1
        columns = int(np.prod(views.shape[3:])) // groups
        if self.seen == 0:
            self.begin(available * self.passes, groups, columns)
        share = self.used * (self.seen + 1) // self.passes - self.used * self.seen // self.passes
        self.seen += 1
        places = np.arange(available)
        if share < available:
            places = np.random.RandomState(self.seen).permutation(available)[:share]
        size = max(1, (16 * CHUNK) // (groups * columns))
        for begin in range(0, len(places), size):
            some = views[np.unravel_index(places[begin : begin + size], views.shape[:3])]
            self.take(np.ascontiguousarray(some.reshape(len(some), groups, columns).swapaxes(0, 1)))

    def begin(self, samples, groups, columns):
        """Decide what is kept of so many samples."""
        used = min(samples, self.described["samples"])
        self.are_rows = used <= self.described["scarce"] and groups == 1
        self.used = min(used, self.described["most_rows"]) if self.are_rows else used
        if not self.are_rows:
            shape = (groups, columns + 2, columns)
            write_zeros(self.described["moments"], shape)

    def take(self, rows):
        """Add samples, shape (groups, some, K)."""
        if self.are_rows:
            with io.open(self.described["rows"], "ab") as kept:
                kept.write(rows.tobytes())
            return
        stored = np.load(self.described["moments"], mmap_mode="r+")
        for group, own in enumerate(rows):
            stored[group, :-2] += own.T.dot(own.copy())  # some BLAS are wrong where both are the same: OpenBLAS 5873
            stored[group, -2] += own.sum(axis=0)
            stored[group, -1] += len(own)


class IFMR(Observer):
    """Keeps both tails and counts the rest; takes the range whose steps restore all with the least squared error."""

    def take(self, values):
        if not hasattr(self, "kept"):
            self.kept, self.low, self.high = np.zeros(0, np.float32), np.inf, -np.inf
            self.means, self.counts, self.exponent = np.zeros(0), np.zeros(0), -40
        for begin in range(0, values.size, CHUNK):
            chunk = values[begin : begin + CHUNK]
            between = (chunk >= self.low) & (chunk <= self.high)
            self.kept = np.sort(np.concatenate([self.kept, chunk[~between]]))
            self.count(np.concatenate([chunk[between], self.kept[TAIL:-TAIL]]).astype(np.float64))
            if self.kept.size > 2 * TAIL:
                self.kept = np.concatenate([self.kept[:TAIL], self.kept[-TAIL:]])
                self.low, self.high = self.kept[TAIL - 1 : TAIL + 1]

    def count(self, values):
        """Put values into bins, which have a count and a mean; their width is a power of two that fits the range."""
        if not values.size:
            return
        points = np.concatenate([self.means, values])
        counts = np.concatenate([self.counts, np.ones(values.size)])
        width = np.ptp(points) / BINS
        if width > 0:
            self.exponent = max(self.exponent, int(np.frexp(width)[1]))
        bins = np.unique(np.floor(np.ldexp(points, -self.exponent)), return_inverse=True)[1].reshape(-1)
        self.counts = np.bincount(bins, counts)
        self.means = np.bincount(bins, counts * points) / self.counts

    def find_range(self):
        values = np.concatenate([self.kept[:TAIL], self.means, self.kept[TAIL:]]).astype(np.float32)  # ascending
        counts = np.ones(values.size)
        counts[TAIL : TAIL + self.counts.size] = self.counts
        del self.kept, self.means, self.counts
        get = self.settings.get
        size = int(counts.sum())
        low = min(at_rank(values, counts, rank_of(get("min_percentile"), size) - 1), np.float32(0))
        high = max(at_rank(values, counts, size - rank_of(get("max_percentile"), size)), np.float32(0))
        start, end, step = (np.float32(get(key)) for key in ("search_start", "search_end", "search_step"))
        ratios = start + np.arange(int((end - start) / step + np.float32(1)), dtype=np.float32) * step
        if get("with_offset"):
            highs, lows = ratios * high, np.full_like(ratios, low)
            scales = (highs - lows) / np.float32(255)
        else:
            highs = ratios * max(high, -low)
            lows = -highs
            scales = highs / np.float32(127 if high > -low else 128)
        usable = scales <= 1 / EPSILON
        if not usable.any():
            raise ValueError("the input is too large to be quantized; skip this layer")
        scales = np.where(scales < EPSILON, np.float32(1), scales)
        errors = [
            squared_error(values, counts, *found) if fits else np.inf
            for found, fits in zip(zip(lows, highs, scales), usable)
        ]
        best = int(np.argmin(errors))
        return scales[best], offset_of(lows[best], scales[best]) if get("with_offset") else 0


class HFMG(Observer):
    """Keeps a histogram; takes the range with the least error, the density in each bin being uniform."""

    def take(self, values):
        if not hasattr(self, "counts"):
            self.counts, self.low, self.high, self.zeros = np.zeros(self.settings["num_of_bins"]), 0.0, 0.0, 0
        low, high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        bins = self.counts.size
        if (low, high) != (self.low, self.high):
            if self.low < self.high:  # spread the old counts over the new bins
                seen = np.concatenate([[0.0], np.cumsum(self.counts)])
                edges = np.linspace(self.low, self.high, bins + 1)
                self.counts = np.diff(np.interp(np.linspace(low, high, bins + 1), edges, seen))
            elif self.zeros:
                self.counts += np.histogram([0.0], bins, (low, high))[0] * self.zeros
            self.low, self.high = low, high
        if low == high:
            self.zeros += values.size
            return
        for begin in range(0, values.size, CHUNK):
            self.counts += np.histogram(values[begin : begin + CHUNK], bins, (low, high))[0]

    def find_range(self):
        with_offset = self.settings["with_offset"]
        edges = np.linspace(self.low, self.high, self.counts.size + 1)
        left, right = (edges[side] for side in np.array(self.trimmed()).T)
        low, high = np.minimum(left, 0).astype(np.float32), np.maximum(right, 0).astype(np.float32)
        symmetric = np.where(high > -low, high / np.float32(127), -low / np.float32(128))
        scale = (high - low) / np.float32(255) if with_offset else symmetric
        scale = np.where(scale < EPSILON, np.float32(1), scale)
        if not (scale <= 1 / EPSILON).all():
            raise ValueError("the input is too large to be quantized; skip this layer")
        first = round_half_away(low / scale) if with_offset else np.full_like(scale, -128)
        if self.low == self.high:
            best = 0
        else:
            density = self.counts / (edges[1] - edges[0])
            falls = np.concatenate([[0.0], density]) - np.concatenate([density, [0.0]])
            best = int(np.argmin([uniform_error(edges, falls, *found) for found in zip(scale.astype(float), first)]))
        return scale[best], offset_of(low[best], scale[best]) if with_offset else 0

    def trimmed(self):
        """Return the bins (left, right) that are kept after each greedy step, widest first."""
        bins, width = self.counts.size, self.high - self.low
        zero = 0 if width == 0 else min(int(-self.low / width * bins), bins - 1)
        below = np.concatenate([[0.0], np.cumsum(self.counts)])
        above = below[-1] - below[::-1]
        step = max(np.ceil(below[-1] / 100000), 1.0)
        allowances = step * np.arange(1, 2 + int(below[-1] / step))
        left_limits = np.minimum(np.searchsorted(below, allowances, "right") - 1, zero)
        right_limits = np.maximum(bins + 1 - np.searchsorted(above, allowances, "right"), zero + 1)
        left, right, left_used, right_used = 0, bins, 0, 0
        kept = [(left, right)]
        while right - left > bins // 4 and max(left_used, right_used) < allowances.size:
            left_gain, right_gain = left_limits[left_used] - left, right - right_limits[right_used]
            if left_gain <= 0 and right_gain <= 0:
                left_used, right_used = left_used + 1, right_used + 1
                continue
            if left_gain > right_gain:
                left, left_used = left + left_gain, left_used + 1
            else:
                right, right_used = right - right_gain, right_used + 1
            kept.append((left, right))
        return kept


def rank_of(percentile, size):
    """Return how many values from the end a percentile is: size - floor(percentile * size), at least 1."""
    return max(size - int(np.floor(np.float32(percentile) * np.float32(size))), 1)


def at_rank(values, counts, rank):
    """Return the value that has `rank` others before it."""
    return values[np.searchsorted(np.cumsum(counts), rank, "right")]


def squared_error(values, counts, low, high, scale):
    """Sum the squared error of values that are clipped and rounded to steps."""
    error = (round_half_away(np.clip(values, low, high) / scale) * scale).astype(np.float64) - values
    return float(np.dot(counts, error * error))


def uniform_error(edges, falls, scale, first):
    """Sum the squared error over a density that falls by `falls` at the edges: the integral's antiderivative there."""
    steps = np.clip(round_half_away(edges / scale), first, first + 255)
    rest = edges - steps * scale
    return float(np.dot((steps - first) * (scale**3 / 12) + rest**3 / 3, falls))


def offset_of(low, scale):
    """Return the code of zero."""
    return -int(round_half_away(np.float32(low) / np.float32(scale))) - 128


def windows(data, window):
    """Return a view of what a layer's weights meet, shape (images, rows, columns, channels, *kernel)."""
    if window is None:
        return data.reshape(len(data), 1, 1, -1, 1, 1)
    if window["stretch"]:
        (stretch_h, stretch_w), (height, width) = window["stretch"], data.shape[2:]
        spread = np.zeros(data.shape[:2] + ((height - 1) * stretch_h + 1, (width - 1) * stretch_w + 1), np.float32)
        spread[:, :, ::stretch_h, ::stretch_w] = data
        data = spread
    padded = np.pad(data, [(0, 0), (0, 0)] + [(pad, pad) for pad in window["pad"]], mode="constant")
    (kernel_h, kernel_w), (stride_h, stride_w), (step_h, step_w) = (
        window[name] for name in ("kernel", "stride", "dilation")
    )
    images, channels, height, width = padded.shape
    n, c, h, w = padded.strides
    rows = (height - (kernel_h - 1) * step_h - 1) // stride_h + 1
    columns = (width - (kernel_w - 1) * step_w - 1) // stride_w + 1
    shape = (images, rows, columns, channels, kernel_h, kernel_w)
    strides = (n, h * stride_h, w * stride_w, c, h * step_h, w * step_w)
    views = np.lib.stride_tricks.as_strided(padded, shape, strides)
    return views[..., ::-1, ::-1] if window["stretch"] else views


def write_factors(path, key, factors):
    """Put a layer's input factors into a record file, as protobuf's text; what else stands there stays."""
    lines = []
    if os.path.exists(path):
        with io.open(path, encoding="utf-8") as record:
            lines = record.read().splitlines()
    new = [u"    %s: %s" % factor for factor in factors]
    places = [index for index, line in enumerate(lines) if line.strip() == u"key: %s" % key]
    if places:
        begin = places[0] + 2  # behind the line 'value {'
        length = [line.strip() for line in lines[begin:]].index(u"}")
        names = tuple(name + u":" for name, _ in factors)
        kept = [line for line in lines[begin : begin + length] if not line.strip().startswith(names)]
        lines[begin : begin + length] = new + kept
    else:
        lines += [u"record {", u"  key: %s" % key, u"  value {"] + new + [u"  }", u"}"]
    temporary = "%s.%d" % (path, os.getpid())
    with io.open(temporary, "w", encoding="utf-8") as record:
        record.write(u"\n".join(lines) + u"\n")
    getattr(os, "replace", os.rename)(temporary, path)
