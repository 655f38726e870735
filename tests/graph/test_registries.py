import ast
from pathlib import Path

import pytest

import autonuq.graph
from autonuq.errors import ModelError
from autonuq.graph.hosted import HOST_LAYERS
from autonuq.graph.layers import LAYER_TYPES
from autonuq.graph.lowering import LOWERINGS

ROOM = Path(autonuq.graph.__file__).parent


def test_every_type_has_shapes_and_a_lowering():
    assert set(LAYER_TYPES) == set(LOWERINGS) | set(HOST_LAYERS)
    assert not set(LOWERINGS) & set(HOST_LAYERS)


@pytest.mark.parametrize("path", sorted((ROOM / "shapes").glob("*.py")), ids=lambda path: path.stem)
def test_shape_rules_know_no_onnx(path):
    modules = [
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    assert not [name for name in modules if name.startswith(("onnx", "autonuq.graph.operators", "autonuq.graph.low"))]


def test_families_are_the_same_on_both_sides():
    names = {folder: {path.stem for path in (ROOM / folder).glob("*.py")} for folder in ("shapes", "operators")}
    assert names["shapes"] - {"registry"} == names["operators"] - {"builder"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('type: "Dropout" bottom: "x" top: "y" top: "z"', "makes 1 tops, but 2 are named"),
        ('type: "Eltwise" bottom: "x" bottom: "x" top: "y" eltwise_param { operation:PROD coeff: 1 coeff: 2 }', "SUM"),
        ('type: "Eltwise" bottom: "x" bottom: "x" top: "y" eltwise_param { coeff: 1 }', "1 coefficients for 2"),
        ('type: "LRN" bottom: "x" top: "y" lrn_param { local_size: 4 }', "odd"),
        ('type: "Pooling" bottom: "x" top: "y" pooling_param { kernel_size: 2 pad: 2 }', "smaller than kernel"),
        ('type: "Pooling" bottom: "x" top: "y" pooling_param { pool: STOCHASTIC kernel_size: 2 }', "STOCHASTIC"),
        ('type: "Slice" bottom: "x" top: "y" top: "z" slice_param { slice_point: 4 }', "inside axis 1"),
        ('type: "Slice" bottom: "x" top: "y" top: "z" top: "w"', "equal parts"),
        ('type: "Slice" bottom: "x" top: "y" slice_param { axis: 1 slice_dim: 1 }', "only one"),
        ('type: "Reshape" bottom: "x" top: "y" reshape_param { shape { dim: -1 dim: -1 } }', "once -1"),
        ('type: "Reshape" bottom: "x" top: "y" reshape_param { shape { dim: 0 dim: 7 } }', "different numbers"),
        ('type: "Flatten" bottom: "x" top: "y" flatten_param { axis: 2 end_axis: 1 }', "before axis"),
        ('type: "ArgMax" bottom: "x" top: "y" argmax_param { axis: 1 top_k: 5 }', "1..4"),
        ('type: "Tile" bottom: "x" top: "y"', "tiles must be positive"),
        ('type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 3 kernel_size: 9 }', "larger than"),
        ('type: "DummyData" top: "y" dummy_data_param { shape { dim: 1 } data_filler { type: "xavier" } }', "constant"),
        ('type: "Relu" bottom: "x" top: "y"', "did you mean 'ReLU'"),
    ],
    ids=lambda value: value.split('"')[1] if "type:" in value else "",
)
def test_bad_settings_are_named(run, rng, text, words):
    with pytest.raises(ModelError, match=words) as caught:
        run(f'layer {{ name: "bad" {text} }}', {"x": rng.normal(size=(2, 4, 5, 6))})
    assert caught.value.layer == "bad"
