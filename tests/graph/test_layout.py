"""Layers that move values: the results are exact."""

import numpy as np
import pytest


def assert_exact(found, wanted):
    np.testing.assert_array_equal(found, np.float32(wanted))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("shape { dim: 0 dim: -1 }", (2, 60)),
        ("shape { dim: -1 dim: 0 dim: 0 }", (10, 3, 4)),
        ("shape { dim: 4 dim: -1 } axis: 1 num_axes: 2", (2, 4, 3, 5)),
        ("shape { dim: 2 dim: 2 } axis: -3 num_axes: 1", (2, 3, 2, 2, 5)),
        ("shape { dim: 1 dim: 1 } axis: -1 num_axes: 0", (2, 3, 4, 5, 1, 1)),
        ("shape { dim: 5 dim: 0 dim: -1 } axis: 1", (2, 5, 4, 3)),
        ("shape { } axis: 2 num_axes: 0", (2, 3, 4, 5)),
        ("shape { dim: 120 }", (120,)),
    ],
)
def test_reshape(run, rng, text, wanted):
    x = rng.normal(size=(2, 3, 4, 5))
    found = run(f'layer {{ name: "r" type: "Reshape" bottom: "x" top: "y" reshape_param {{ {text} }} }}', {"x": x})
    assert_exact(found["y"], x.reshape(wanted))


def test_reshape_to_a_scalar(run):
    layer = 'layer { name: "r" type: "Reshape" bottom: "x" top: "y" reshape_param { shape { } } }'
    assert_exact(run(layer, {"x": np.array([[3.5]])})["y"], 3.5)


@pytest.mark.parametrize(("axis", "end", "wanted"), [(0, -1, (120,)), (-2, -1, (2, 3, 20)), (1, 1, (2, 3, 4, 5))])
def test_flatten(run, rng, axis, end, wanted):
    x = rng.normal(size=(2, 3, 4, 5))
    text = f"flatten_param {{ axis: {axis} end_axis: {end} }}"
    layer = f'layer {{ name: "f" type: "Flatten" bottom: "x" top: "y" {text} }}'
    assert_exact(run(layer, {"x": x})["y"], x.reshape(wanted))


@pytest.mark.parametrize(("axis", "tiles"), [(0, 3), (2, 2), (-3, 4)])
def test_tile_repeats_the_whole_axis(run, rng, axis, tiles):
    x = rng.normal(size=(2, 3, 4))
    layer = f'layer {{ name: "t" type: "Tile" bottom: "x" top: "y" tile_param {{ axis: {axis} tiles: {tiles} }} }}'
    assert_exact(run(layer, {"x": x})["y"], np.concatenate([x] * tiles, axis=axis))


def test_slice_by_points_and_concat_back(run, rng):
    x = rng.normal(size=(2, 3, 7))
    text = """
    layer { name: "s" type: "Slice" bottom: "x" top: "a" top: "b" top: "c"
            slice_param { axis: -1 slice_point: 1 slice_point: 5 } }
    layer { name: "o" type: "Slice" bottom: "x" top: "all" }
    layer { name: "j" type: "Concat" bottom: "c" bottom: "a" top: "j" concat_param { axis: 2 } }
    """
    found = run(text, {"x": x})
    assert_exact(found["b"], x[..., 1:5])
    assert_exact(found["all"], x)
    assert_exact(found["j"], np.concatenate([x[..., 5:], x[..., :1]], axis=2))


@pytest.mark.parametrize(
    ("text", "start", "axis"),
    [("", (0, 0, 0, 0), 2), ("axis: 1 offset: 1", (0, 1, 1, 1), 1), ("axis: 2 offset: 3 offset: 0", (0, 0, 3, 0), 2)],
)
def test_crop(run, rng, text, start, axis):
    x, like = rng.normal(size=(2, 4, 6, 5)), rng.normal(size=(2, 2, 3, 4))
    found = run(
        f'layer {{ name: "c" type: "Crop" bottom: "x" bottom: "like" top: "y" crop_param {{ {text} }} }}',
        {"x": x, "like": like},
    )
    size = x.shape[:axis] + like.shape[axis:]
    assert_exact(found["y"], x[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))])


def test_batch_reindex_truncates_indices(run, rng):
    x = rng.normal(size=(4, 2, 3))
    layer = 'layer { name: "r" type: "BatchReindex" bottom: "x" bottom: "i" top: "y" }'
    found = run(layer, {"x": x, "i": np.array([3, 0, 0, 2.9, 1])})
    assert_exact(found["y"], x[[3, 0, 0, 2, 1]])


def test_filter_keeps_items_whose_selector_is_not_zero(run, rng):
    x, z = rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 1))
    layer = 'layer { name: "f" type: "Filter" bottom: "x" bottom: "z" bottom: "s" top: "y" top: "w" }'
    found = run(layer, {"x": x, "z": z, "s": np.array([[0], [1], [0], [-0.5]])}, shapes=False)
    assert_exact(found["y"], x[[1, 3]])
    assert_exact(found["w"], z[[1, 3]])


def test_data_that_a_net_brings_along(run, rng):
    text = """
    layer { name: "d" type: "DummyData" top: "a" top: "b"
            dummy_data_param { shape { dim: 2 dim: 3 } data_filler { value: 1.5 } data_filler { value: -2 } } }
    layer { name: "o" type: "DummyData" top: "o" dummy_data_param { num: 1 channels: 2 height: 3 width: 4 } }
    layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 dim: 3 } } }
    layer { name: "e" type: "Eltwise" bottom: "a" bottom: "p" top: "e" }
    layer { name: "q" type: "Silence" bottom: "o" bottom: "b" }
    """
    values = rng.normal(size=(2, 3))
    found = run(text, {}, {"p": [values]})
    assert_exact(found["a"], np.full((2, 3), 1.5))
    assert_exact(found["b"], np.full((2, 3), -2))
    assert_exact(found["o"], np.zeros((1, 2, 3, 4)))
    assert_exact(found["p"], values)
    assert_exact(found["e"], np.float32(values) + np.float32(1.5))
