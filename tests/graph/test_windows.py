"""Convolution, pooling and normalization against loops that say what Caffe's definition says."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autonuq.errors import ModelError


def positions(shape):
    return itertools.product(*(range(size) for size in shape))


def convolve(x, weights, bias, stride, pad, dilation, group):
    """Convolve (N, C, spatial...) with (O, C / group, kernel...)."""
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
    kernel = weights.shape[2:]
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    top = np.zeros((len(x), len(weights), *sizes))
    per_group, outputs = x.shape[1] // group, len(weights) // group
    for at in positions(sizes):
        window = tuple(
            slice(a * s, a * s + d * (k - 1) + 1, d) for a, s, d, k in zip(at, stride, dilation, kernel, strict=True)
        )
        for output in range(len(weights)):
            first = output // outputs * per_group
            patch = x[(slice(None), slice(first, first + per_group), *window)]
            top[(slice(None), output, *at)] = (patch * weights[output]).sum(axis=tuple(range(1, x.ndim)))
    return top + bias.reshape(-1, *(1,) * len(sizes))


def deconvolve(x, weights, bias, stride, pad, dilation, group):
    """Transpose of `convolve`: every input value adds its kernel, (C, O / group, kernel...), to the output."""
    kernel, per_output = weights.shape[2:], weights.shape[1]
    full = [s * (n - 1) + d * (k - 1) + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    top = np.zeros((len(x), per_output * group, *full))
    for at in positions(x.shape[2:]):
        window = tuple(
            slice(a * s, a * s + d * (k - 1) + 1, d) for a, s, d, k in zip(at, stride, dilation, kernel, strict=True)
        )
        for channel in range(x.shape[1]):
            first = channel // (x.shape[1] // group) * per_output
            values = x[(slice(None), channel, *at)].reshape(-1, *(1,) * (x.ndim - 1))
            top[(slice(None), slice(first, first + per_output), *window)] += values * weights[channel]
    top = top[(slice(None), slice(None), *(slice(p, n - p) for p, n in zip(pad, full, strict=True)))]
    return top + bias.reshape(-1, *(1,) * len(full))


# name: input, num_output, kernel, stride, pad, dilation, group, prototxt
CONVOLUTIONS = {
    "1-D": ((2, 4, 9), 6, (3,), (2,), (1,), (2,), 2, "kernel_size: 3 stride: 2 pad: 1 dilation: 2 group: 2"),
    "3-D": (
        (1, 2, 5, 6, 4), 3, (2, 3, 1), (1, 2, 1), (1, 0, 1), (1, 2, 1), 1,
        "kernel_size: 2 kernel_size: 3 kernel_size: 1 stride: 1 stride: 2 stride: 1 "
        "pad: 1 pad: 0 pad: 1 dilation: 1 dilation: 2 dilation: 1",
    ),
    "rectangular": (
        (2, 3, 8, 7), 2, (2, 4), (3, 1), (1, 3), (1, 1), 1,
        "kernel_h: 2 kernel_w: 4 stride_h: 3 stride_w: 1 pad_h: 1 pad_w: 3",
    ),
    "depthwise, two outputs a channel": (
        (2, 3, 7, 7), 6, (3, 3), (1, 1), (2, 2), (2, 2), 3, "kernel_size: 3 pad: 2 dilation: 2 group: 3"
    ),
    "dilated groups": (
        (1, 4, 9, 8), 4, (3, 2), (2, 2), (1, 1), (3, 1), 2,
        "kernel_size: 3 kernel_size: 2 stride: 2 pad: 1 dilation: 3 dilation: 1 group: 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(run, rng, kind, name):
    shape, outputs, kernel, stride, pad, dilation, group, text = CONVOLUTIONS[name]
    weight_shape = (outputs, shape[1] // group) if kind == "Convolution" else (shape[1], outputs // group)
    x, weights = rng.normal(size=shape), rng.normal(size=(*weight_shape, *kernel))
    bias = rng.normal(size=outputs)
    layer = (
        f'layer {{ name: "c" type: "{kind}" bottom: "x" top: "y" '
        f"convolution_param {{ num_output: {outputs} {text} }} }}"
    )
    found = run(layer, {"x": x}, {"c": [weights, bias]})["y"]
    reference = convolve if kind == "Convolution" else deconvolve
    np.testing.assert_allclose(found, reference(x, weights, bias, stride, pad, dilation, group), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [2, -3])
def test_convolution_over_another_axis_takes_the_axes_before_it_as_batches(run, rng, axis):
    x, weights, bias = rng.normal(size=(2, 3, 4, 6, 5)), rng.normal(size=(2, 4, 3, 3)), rng.normal(size=2)
    layer = (
        'layer { name: "c" type: "Convolution" bottom: "x" top: "y" '
        f"convolution_param {{ num_output: 2 kernel_size: 3 axis: {axis} }} }}"
    )
    found = run(layer, {"x": x}, {"c": [weights, bias]})["y"]
    wanted = convolve(x.reshape(6, 4, 6, 5), weights, bias, (1, 1), (0, 0), (1, 1), 1)
    np.testing.assert_allclose(found, wanted.reshape(2, 3, 2, 4, 3), rtol=1e-4, atol=1e-5)


def test_convolution_without_spatial_axes_is_a_product(run, rng):
    x, weights = rng.normal(size=(3, 4)), rng.normal(size=(2, 4))
    layer = (
        'layer { name: "c" type: "Convolution" bottom: "x" top: "y" '
        "convolution_param { num_output: 2 kernel_size: 1 bias_term: false } }"
    )
    np.testing.assert_allclose(run(layer, {"x": x}, {"c": [weights]})["y"], x @ weights.T, rtol=1e-5, atol=1e-6)


def test_bottoms_of_one_layer_share_its_weights(run, rng):
    x, z, weights = rng.normal(size=(1, 2, 4, 4)), rng.normal(size=(1, 2, 4, 4)), rng.normal(size=(3, 2, 2, 2))
    layer = (
        'layer { name: "c" type: "Convolution" bottom: "x" bottom: "z" top: "y" top: "w" '
        "convolution_param { num_output: 3 kernel_size: 2 bias_term: false } }"
    )
    found = run(layer, {"x": x, "z": z}, {"c": [weights]})
    for values, top in ((x, "y"), (z, "w")):
        wanted = convolve(values, weights, np.zeros(3), (1, 1), (0, 0), (1, 1), 1)
        np.testing.assert_allclose(found[top], wanted, rtol=1e-4, atol=1e-5)


def test_im2col_of_three_axes_dilated(run, rng):
    x = rng.normal(size=(1, 2, 4, 5, 6))
    layer = (
        'layer { name: "i" type: "Im2col" bottom: "x" top: "y" convolution_param { kernel_size: 2 pad: 0 pad: 1 pad: 2 '
        "stride: 1 stride: 2 stride: 1 dilation: 1 dilation: 1 dilation: 3 } }"
    )
    one_hot = np.zeros((16, 2, 2, 2, 2))
    for output, (channel, *place) in enumerate(positions((2, 2, 2, 2))):
        one_hot[(output, channel, *place)] = 1
    wanted = convolve(x, one_hot, np.zeros(16), (1, 2, 1), (0, 1, 2), (1, 1, 3), 1)
    np.testing.assert_array_equal(run(layer, {"x": x})["y"], np.float32(wanted))


def test_im2col_puts_kernel_positions_behind_their_channel(run, rng):
    x = rng.normal(size=(2, 3, 6, 5))
    layer = (
        'layer { name: "i" type: "Im2col" bottom: "x" top: "y" '
        "convolution_param { kernel_h: 2 kernel_w: 3 stride: 2 pad: 1 dilation: 1 } }"
    )
    found = run(layer, {"x": x})["y"]
    one_hot = np.zeros((18, 3, 2, 3))
    for channel, row, column in positions((3, 2, 3)):
        one_hot[channel * 6 + row * 3 + column, channel, row, column] = 1
    np.testing.assert_array_equal(found, np.float32(convolve(x, one_hot, np.zeros(18), (2, 2), (1, 1), (1, 1), 1)))


def pool(x, method, kernel, stride, pad, floor=False):
    """Caffe's PoolingLayer: sizes, clipping and both forward loops; returns the top and the mask."""
    sizes = []
    for size, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True):
        steps = (size + 2 * p - k) / s
        count = int(math.floor(steps) if floor else math.ceil(steps)) + 1
        if any(pad) and (count - 1) * s >= size + p:
            count -= 1
        sizes.append(count)
    top, mask = np.zeros((*x.shape[:2], *sizes), np.float32), np.full((*x.shape[:2], *sizes), -1.0)
    height, width = x.shape[2:]
    for n, c, h, w in positions(top.shape):
        start = [h * stride[0] - pad[0], w * stride[1] - pad[1]]
        ends = [
            min(a + k, size + (p if method == "AVE" else 0))
            for a, k, size, p in zip(start, kernel, (height, width), pad, strict=True)
        ]
        area = (ends[0] - start[0]) * (ends[1] - start[1])
        rows, columns = (
            range(max(a, 0), min(e, size)) for a, e, size in zip(start, ends, (height, width), strict=True)
        )
        if method == "AVE":
            total = sum(float(x[n, c, i, j]) for i in rows for j in columns)
            top[n, c, h, w] = total / area if area else np.nan
        else:
            best = -np.finfo(np.float32).max
            for i, j in itertools.product(rows, columns):
                if x[n, c, i, j] > best:
                    best, mask[n, c, h, w] = x[n, c, i, j], i * width + j
            top[n, c, h, w] = best
    return top, mask


@st.composite
def pooled(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return {
        "size": draw(st.tuples(st.integers(4, 9), st.integers(4, 9))),
        "kernel": kernel,
        "stride": draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        "pad": tuple(draw(st.integers(0, k - 1)) for k in kernel),
        "floor": draw(st.booleans()),
        "method": draw(st.sampled_from(["MAX", "AVE"])),
    }


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=pooled())
def test_pooling_is_caffes_for_any_window(run, case):
    rng = np.random.default_rng(1)
    x = rng.integers(-9, 9, size=(2, 2, *case["size"])).astype(np.float32)  # with equal values: the first one counts
    pairs = " ".join(
        f"{word}_h: {case[key][0]} {word}_w: {case[key][1]}"
        for word, key in (("kernel", "kernel"), ("stride", "stride"), ("pad", "pad"))
    )
    rounding = "round_mode: FLOOR" if case["floor"] else ""
    tops = 'top: "y" top: "m"' if case["method"] == "MAX" else 'top: "y"'
    layer = (
        f'layer {{ name: "p" type: "Pooling" bottom: "x" {tops} '
        f"pooling_param {{ pool: {case['method']} {pairs} {rounding} }} }}"
    )
    found = run(layer, {"x": x})
    top, mask = pool(x, case["method"], case["kernel"], case["stride"], case["pad"], case["floor"])
    np.testing.assert_allclose(found["y"], top, rtol=1e-5, atol=1e-5)
    if case["method"] == "MAX":
        np.testing.assert_array_equal(found["m"], mask)


def test_global_max_pooling_gives_a_mask_too(run, rng):
    x = rng.normal(size=(2, 3, 4, 5))
    layer = 'layer { name: "p" type: "Pooling" bottom: "x" top: "y" top: "m" pooling_param { global_pooling: true } }'
    found = run(layer, {"x": x})
    np.testing.assert_array_equal(found["m"].reshape(2, 3), x.reshape(2, 3, -1).argmax(axis=2))
    np.testing.assert_array_equal(found["y"].reshape(2, 3), np.float32(x).max(axis=(2, 3)))


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize(("size", "height"), [((7, 8), 3), ((9, 13), 2), ((6, 6), 1)])
def test_spatial_pyramid(run, rng, method, size, height):
    x = rng.normal(size=(2, 3, *size)).astype(np.float32)
    layer = (
        'layer { name: "s" type: "SPP" bottom: "x" top: "y" '
        f"spp_param {{ pool: {method} pyramid_height: {height} }} }}"
    )
    parts = []
    for level in range(height):
        kernel = [math.ceil(n / 2**level) for n in size]
        pad = [(k * 2**level - n + 1) // 2 for k, n in zip(kernel, size, strict=True)]
        parts.append(pool(x, method, kernel, kernel, pad)[0])
    wanted = parts[0] if height == 1 else np.concatenate([part.reshape(2, -1) for part in parts], axis=1)
    np.testing.assert_allclose(run(layer, {"x": x})["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "size"), [(6, 3), (4, 7), (1, 5), (5, 1)])
def test_lrn_across_channels(run, rng, channels, size):
    x = rng.normal(size=(2, channels, 3, 4)) * 3
    layer = (
        'layer { name: "n" type: "LRN" bottom: "x" top: "y" '
        f"lrn_param {{ local_size: {size} alpha: 0.7 beta: 0.8 k: 1.5 }} }}"
    )
    half = size // 2
    wanted = np.stack(
        [
            x[:, c] * (1.5 + 0.7 / size * (x[:, max(0, c - half) : c + half + 1] ** 2).sum(axis=1)) ** -0.8
            for c in range(channels)
        ],
        axis=1,
    )
    np.testing.assert_allclose(run(layer, {"x": x})["y"], wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("size", [3, 7])
def test_lrn_within_a_channel_takes_k_as_one(run, rng, size):
    x = rng.normal(size=(1, 2, 5, 4)) * 3
    layer = (
        'layer { name: "n" type: "LRN" bottom: "x" top: "y" '
        f"lrn_param {{ local_size: {size} alpha: 0.7 beta: 0.8 k: 9 norm_region: WITHIN_CHANNEL }} }}"
    )
    half = size // 2
    wanted = np.empty_like(x)
    for n, c, h, w in positions(x.shape):
        around = x[n, c, max(0, h - half) : h + half + 1, max(0, w - half) : w + half + 1]
        wanted[n, c, h, w] = x[n, c, h, w] * (1 + 0.7 * (around**2).sum() / size**2) ** -0.8
    np.testing.assert_allclose(run(layer, {"x": x})["y"], wanted, rtol=2e-5, atol=1e-6)


def test_two_convolution_inputs_of_different_shapes_are_refused(run, rng):
    layer = (
        'layer { name: "c" type: "Convolution" bottom: "x" bottom: "z" top: "y" top: "w" '
        "convolution_param { num_output: 3 kernel_size: 2 } }"
    )
    with pytest.raises(ModelError, match="differ in shape"):
        run(layer, {"x": rng.normal(size=(1, 2, 4, 4)), "z": rng.normal(size=(1, 2, 4, 5))})
