"""What ATC marks, and what it keeps compressed."""

import numpy as np
import pytest

from autonuq.graph.files import load_graph
from autonuq.graph.layers import infer_shapes
from autonuq.quant.atc.chips import DDR_RATES, is_kept, judge, judge_fractal_bytes, predict_mark

# Convolutions of ResNet-50: kernel, channels, outputs, map, and the chips that mark them.
RESNET50 = {
    "conv1": (7, 3, 64, 112, set()),
    "res2a_branch2b": (3, 64, 64, 56, set()),
    "res3a_branch1": (1, 256, 512, 28, set()),
    "res3b_branch2b": (3, 128, 128, 28, set()),
    "res4a_branch1": (1, 512, 1024, 14, {"ascend310b", "ascend310p", "ascend910"}),
    "res4b_branch2a": (1, 1024, 256, 14, set()),  # 262,144 bytes: not more than that
    "res4b_branch2b": (3, 256, 256, 14, {"ascend310b", "ascend310p", "ascend910"}),
    "res5a_branch1": (1, 1024, 2048, 7, set(DDR_RATES)),
    "res5a_branch2a": (1, 1024, 512, 7, set(DDR_RATES)),
    "res5a_branch2b": (3, 512, 512, 7, set(DDR_RATES)),
    "res5c_branch2c": (1, 512, 2048, 7, set(DDR_RATES)),
}
MARKED = {f"res5{block}_branch2{part}" for block in "abc" for part in "abc"} | {"res5a_branch1"}


def mark(chip, kernel, channels, outputs, side, **options):
    return predict_mark(
        chip,
        kernel_height=kernel,
        kernel_width=kernel,
        channels=channels,
        outputs=outputs,
        map_height=side,
        map_width=side,
        **options,
    )


@pytest.mark.parametrize("chip", DDR_RATES)
@pytest.mark.parametrize("layer", RESNET50)
def test_layers_of_resnet50(layer, chip):
    *sizes, chips = RESNET50[layer]
    found = mark(chip, *sizes)
    assert found.is_marked == (chip in chips)
    assert found.reason


def test_all_of_resnet50_on_ascend310(shared):
    graph = load_graph(shared / "models" / "resnet50-shape" / "deploy.prototxt", None)
    shapes = infer_shapes(graph)
    marked, seen = set(), 0
    for layer in graph.layers:
        if layer.type != "Convolution":
            continue
        seen += 1
        parameter = layer.message.convolution_param
        channels = shapes[layer.bottoms[0]][1]
        _, outputs, height, width = shapes[layer.tops[0]]
        found = predict_mark(
            "ascend310",
            kernel_height=parameter.kernel_size[0],
            kernel_width=parameter.kernel_size[0],
            channels=channels,
            outputs=outputs,
            map_height=height,
            map_width=width,
        )
        marked |= {layer.name} if found.is_marked else set()
    assert seen == 53
    assert marked == MARKED


@pytest.mark.parametrize(("chip", "side"), [("ascend310", 12), ("ascend310b", 24), ("ascend310p", 24)])
def test_the_largest_map(chip, side):
    assert mark(chip, 3, 512, 512, side).is_marked
    assert not mark(chip, 3, 512, 512, side + 1).is_marked


def test_ratios_that_were_published():
    assert mark("ascend310", 3, 512, 512, 7).ratio == pytest.approx(1.91, abs=0.005)
    assert mark("ascend310", 3, 256, 256, 14).ratio == pytest.approx(0.588, abs=0.0005)
    assert mark("ascend310", 3, 512, 512, 7, is_int8=False).ratio == pytest.approx(0.955, abs=0.0005)


def test_other_layers():
    assert not mark("ascend310", 1, 2048, 1000, 1, is_fc=True).is_marked
    assert not mark("ascend310", 3, 512, 512, 7, group=2).is_marked
    with pytest.raises(ValueError, match="'chip' parameter"):
        mark("ascend1", 3, 512, 512, 7)
    with pytest.raises(ValueError, match="'map_height' parameter"):
        mark("ascend310", 3, 512, 512, 0)


@pytest.mark.parametrize(("size", "fractal"), [(512, 512), (64512, 32256), (294912, 32768), (512 * 67, 512)])
def test_fractals(size, fractal):
    assert judge_fractal_bytes(size) == fractal


def test_only_blocks_have_fractals():
    for size in (0, 100):
        with pytest.raises(ValueError, match="'size' parameter"):
            judge_fractal_bytes(size)


def test_kept_up_to_four_fifths():
    assert is_kept(8 * 512, 10 * 512)
    assert not is_kept(8 * 512 + 128, 10 * 512)
    assert not is_kept(0, 512)


def test_judging_a_layer():
    rng = np.random.default_rng(0)
    plain = rng.integers(-128, 128, (64, 64, 3, 3)).astype(np.int8)
    found = judge(plain, "conv")
    assert (found.device_bytes, found.fractal_bytes, found.compressed_bytes) == (36864, 18432, 36864)
    assert not found.is_kept
    few = judge(np.where(plain > 60, np.int8(7), np.int8(0)), "conv")
    assert few.is_kept
    assert few.ratio < 0.4
