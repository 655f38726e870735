"""Layers in Python between layers in the engine: Caffe's own Python type, and types that a user registers."""

import importlib
import re
import sys

import numpy as np
import pytest

import autonuq as nuq
from autonuq.errors import ModelError, RuntimeFailure
from autonuq.graph.files import load_graph, write_caffemodel, write_prototxt
from autonuq.graph.hosted import HOST_LAYERS, register_layer, registry
from autonuq.graph.layers import LAYER_TYPES

pytestmark = pytest.mark.usefixtures("python_layers_run")

INPUT = 'input: "x" input_shape { dim: 2 dim: 3 dim: 4 dim: 5 }\n'
X = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)


@pytest.fixture
def new_type():
    """Register a type for the length of a test."""
    names = []

    def register(name, *args, **kwargs):
        names.append(name)
        register_layer(name, *args, **kwargs)

    yield register
    for name in names:
        registry._registered.discard(name)
        HOST_LAYERS.pop(name, None)
        LAYER_TYPES.pop(name, None)


@pytest.fixture
def net_of(tmp_path):
    def make(text, **blobs):
        (tmp_path / "net.prototxt").write_text(INPUT + text)
        graph = load_graph(tmp_path / "net.prototxt")
        graph = graph.with_layers(
            layer.with_(blobs=[np.float32(blob) for blob in blobs.get(layer.name, [])]) for layer in graph.layers
        )
        write_caffemodel(graph, tmp_path / "net.caffemodel")
        return nuq.Net(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")

    return make


def layer(name, kind, bottom, top, rest=""):
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {rest} }}\n'


def test_a_function_stands_between_layers(net_of, new_type):
    new_type("Mish", lambda layer, x: x * np.tanh(np.logaddexp(0, x)))
    net = net_of(layer("a", "AbsVal", "x", "a") + layer("m", "Mish", "a", "m") + layer("n", "Power", "m", "n",
                 "power_param { scale: 2 }"))  # fmt: skip
    positive = np.abs(X)
    mish = positive * np.tanh(np.logaddexp(0, positive))
    assert net.forward(x=X)["n"] == pytest.approx(2 * mish, rel=1e-5)
    assert net.blobs["m"].data == pytest.approx(mish, rel=1e-5)
    assert net.blobs["a"].data == pytest.approx(positive)
    assert net.forward(x=X, end="m")["m"] == pytest.approx(mish, rel=1e-5)
    net.blobs["m"].data[...] = 1
    assert (net.forward(start="n")["n"] == 2).all()


def test_in_place_and_several_tops(net_of, new_type):
    new_type("Twice", lambda layer, x: [x * 2, x.sum((2, 3))], shapes=lambda layer, x: [x, x[:2]])
    net = net_of('layer { name: "t" type: "Twice" bottom: "x" top: "x" top: "s" }' + layer("r", "ReLU", "x", "r"))
    assert net.blobs["s"].shape == (2, 3)
    found = net.forward(x=X)
    assert found["r"] == pytest.approx(np.maximum(2 * X, 0))
    assert found["s"] == pytest.approx(X.sum((2, 3)), rel=1e-5)


def test_a_function_may_write_into_its_inputs(net_of, new_type):
    def spoil(layer, x):
        x[:] = 0
        return x

    new_type("Spoil", spoil)
    net = net_of(layer("s", "Spoil", "x", "s") + layer("c", "AbsVal", "x", "c"))
    assert (net.forward(x=X)["c"] == np.abs(X)).all()
    assert (net.blobs["s"].data == 0).all()


def test_layers_behind_adapt_to_what_the_data_decide(net_of, new_type):
    new_type("Positive", lambda layer, x: x[x > 0][:, None], shapes=lambda layer, x: [(1, 1)])
    net = net_of(layer("p", "Positive", "x", "p") + layer("ip", "InnerProduct", "p", "ip",
                 "inner_product_param { num_output: 2 bias_term: false }"), ip=[[[1], [2]]])  # fmt: skip
    for values in (X, -X, X[::-1]):
        kept = values[values > 0][:, None]
        assert net.forward(x=values)["ip"] == pytest.approx(kept * [1, 2])
        assert net.blobs["p"].shape == kept.shape


def test_weights_come_from_the_caffemodel(net_of, new_type):
    new_type("Shift", lambda layer, x: x + layer.blobs[0], weights=lambda layer, x: [x[-1:]])
    net = net_of(layer("s", "Shift", "x", "s"), s=[np.arange(5)])
    assert net.forward(x=X)["s"] == pytest.approx(X + np.arange(5, dtype=np.float32))
    net.params["s"][0].data[...] = 0
    assert (net.forward(x=X)["s"] == X).all()


def test_parameters_that_nobody_knows(net_of, new_type, tmp_path):
    def power(layer, x):
        (text,) = layer.message.foreign_param
        return x * float(re.search(r"alpha: ([\d.]+)", text)[1])

    new_type("Own", power)
    text = layer("o", "Own", "x", "o", 'own_param { alpha: 3  # so much\n s: "}{\\"" inner { b: 1 } } relu_param { }')
    net = net_of(text)
    assert net.forward(x=X)["o"] == pytest.approx(3 * X)
    write_prototxt(load_graph(tmp_path / "net.prototxt"), tmp_path / "copy.prototxt")
    assert "own_param { alpha: 3  # so much" in (tmp_path / "copy.prototxt").read_text()
    again = nuq.Net(tmp_path / "copy.prototxt", tmp_path / "net.caffemodel")
    assert again.forward(x=X)["o"] == pytest.approx(3 * X)
    with pytest.raises(ModelError, match="layer 'r'.*'ReLU' has no parameters 'rely_param'"):
        net_of(layer("r", "ReLU", "x", "r", "rely_param { negative_slope: 1 }"))
    with pytest.raises(ModelError, match="no field named"):
        net_of(layer("r", "ReLU", "x", "r", "relu_param { slope: 1 }"))


def test_parameters_that_nobody_knows_of_types_that_nobody_knows(net_of):
    with pytest.raises(ModelError, match="layer 'o': type 'Own' is not supported; register_layer can add it"):
        net_of(layer("o", "Own", "x", "o", "own_param { alpha: 3 }"))


def test_parameters_come_with_the_layer(net_of, new_type):
    new_type("Times", lambda layer, x: x * float(layer.message.python_param.param_str))
    net = net_of(layer("t", "Times", "x", "t", 'python_param { param_str: "3" }'))
    assert net.forward(x=X)["t"] == pytest.approx(3 * X)


def test_a_layer_runs_once_a_pass(net_of, new_type):
    calls = []
    new_type("Count", lambda layer, x: calls.append(1) or x)
    net = net_of(layer("c", "Count", "x", "c") + layer("a", "AbsVal", "c", "a") + layer("b", "ReLU", "a", "b"))
    net.forward(x=X)
    assert len(calls) == 1
    assert (net.blobs["a"].data == np.abs(X)).all()  # left out of the pass, computed now
    assert (net.blobs["c"].data == X).all()
    assert len(calls) == 1
    net.forward(x=X)
    assert len(calls) == 2


def test_observers_see_what_a_function_made(net_of, new_type, tmp_path):
    new_type("Double", lambda layer, x: 2 * x)
    record = tmp_path / "record.txt"
    watch = (
        f'layer {{ name: "w" type: "IFMR" bottom: "d" ifmr_param {{ batch_num: 1 with_offset: false '
        f"search_range_start: 0.7 search_range_end: 1.3 search_step: 0.01 max_percentile: 0.999999 "
        f'min_percentile: 0.999999 object_layer: "r" record_file_path: "{record}" }} }}'
    )
    net = net_of(layer("d", "Double", "x", "d") + watch + layer("r", "ReLU", "d", "r"))
    net.forward(x=X)
    assert "scale_d" in record.read_text()


def raising(layer, *arrays):
    raise KeyError("no such box")


def test_what_a_function_raises_names_the_layer(net_of, new_type):
    new_type("Bad", raising)
    net = net_of(layer("oops", "Bad", "x", "y"))
    with pytest.raises(RuntimeFailure, match="layer 'oops'.*'Bad' raised KeyError.*no such box"):
        net.forward(x=X)


def test_what_a_shape_rule_raises_names_the_layer(net_of, new_type):
    new_type("Bad", raising, shapes=raising)
    with pytest.raises(RuntimeFailure, match="layer 'oops'.*KeyError"):
        net_of(layer("oops", "Bad", "x", "y"))


def test_too_few_tops(net_of, new_type):
    new_type("Few", lambda layer, x: [])
    net = net_of(layer("few", "Few", "x", "y"))
    with pytest.raises(RuntimeFailure, match="layer 'few'.*0 tops instead of 1"):
        net.forward(x=X)


def test_misuse():
    with pytest.raises(ValueError, match="'ReLU'.*built-in"):
        register_layer("ReLU", raising)
    with pytest.raises(TypeError, match="'function'"):
        register_layer("New", None)
    with pytest.raises(TypeError, match="'name'"):
        register_layer("", raising)
    assert "New" not in LAYER_TYPES


def test_an_unknown_type_says_what_to_do(net_of):
    with pytest.raises(ModelError, match="layer 'u'.*'Unheard' is not supported.*register_layer"):
        net_of(layer("u", "Unheard", "x", "y"))


MODULE = '''
import caffe
import json

class Affine(caffe.Layer):
    """Multiply and add; count what happens."""

    events = []

    def setup(self, bottom, top):
        if len(bottom) != 1:
            raise Exception("needs one bottom")
        self.scale = json.loads(self.param_str)["scale"]
        self.events.append("setup")

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)
        if len(top) > 1:
            top[1].reshape(1)
        self.events.append("reshape")

    def forward(self, bottom, top):
        assert (bottom[0].num, bottom[0].channels, bottom[0].height, bottom[0].width) == bottom[0].data.shape
        top[0].data[...] = bottom[0].data * self.scale
        if len(top) > 1:
            top[1].data[0] = bottom[0].count

    def backward(self, top, propagate_down, bottom):
        pass


class Ramp(object):
    """A source of data: 0, 1, 2, ..."""

    def setup(self, bottom, top):
        self.next = 0

    def reshape(self, bottom, top):
        top[0].reshape(1, 2)

    def forward(self, bottom, top):
        top[0].data[...] = self.next
        self.next += 1


class Broken(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(1)

    def forward(self, bottom, top):
        return 1 / 0
'''


def python(name, kind, bottom, top, scale=2.0):
    rest = f'python_param {{ module: "layers_of_a_test" layer: "{kind}" param_str: "{{\\"scale\\": {scale}}}" }}'
    return layer(name, "Python", bottom, top, rest)


@pytest.fixture
def module(tmp_path):
    """Put a module with layers beside the prototxt, and have no `caffe` before and after."""
    sys.modules.pop("caffe", None)
    (tmp_path / "layers_of_a_test.py").write_text(MODULE)
    yield lambda: importlib.import_module("layers_of_a_test")
    sys.modules.pop("layers_of_a_test", None)
    sys.modules.pop("caffe", None)


def test_python_layer(net_of, module):
    net = net_of(layer("a", "AbsVal", "x", "a") + python("p", "Affine", "a", "p") + layer("b", "Power", "p", "b"))
    assert net.blobs["p"].shape == X.shape
    for _ in range(2):
        assert net.forward(x=X)["b"] == pytest.approx(2 * np.abs(X))
    assert "caffe" not in sys.modules
    events = module().Affine.events
    assert events.count("setup") <= 2  # one of them for the graph from which the test wrote the weights
    net.blobs["x"].reshape(1, 3, 2, 2)
    assert net.forward(x=X[:1, :, :2, :2])["b"].shape == (1, 3, 2, 2)


def test_python_layer_in_place_with_two_tops(net_of, module):
    text = python("p", "Affine", "x", "x").replace('top: "x"', 'top: "x" top: "count"')
    found = net_of(text + layer("b", "ReLU", "x", "b")).forward(x=X)
    assert found["b"] == pytest.approx(np.maximum(2 * X, 0))
    assert found["count"] == [120]


def test_two_layers_of_a_class_do_not_share(net_of, module):
    net = net_of(python("p", "Affine", "x", "p", 3) + python("q", "Affine", "p", "q", 0.5))
    assert net.forward(x=X)["q"] == pytest.approx(1.5 * X)


def test_python_layer_as_a_source(tmp_path, module):
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "r" type: "Python" top: "r" python_param { module: "layers_of_a_test" layer: "Ramp" } }'
        + layer("p", "Power", "r", "p", "power_param { shift: 10 }")
    )
    net = nuq.Net(path)
    assert net.inputs == []
    assert [net.forward()["p"].tolist() for _ in range(3)] == [[[10, 10]], [[11, 11]], [[12, 12]]]


def test_python_layer_that_fails_is_named(net_of, module):
    net = net_of(python("broken", "Broken", "x", "y"))
    with pytest.raises(RuntimeFailure, match="layer 'broken'.*ZeroDivisionError"):
        net.forward(x=X)
    with pytest.raises(RuntimeFailure, match="layer 'two'.*needs one bottom"):
        net_of(python("two", "Affine", "x", "y").replace('bottom: "x"', 'bottom: "x" bottom: "x"'))


@pytest.mark.parametrize("kind", ["Missing", ""])
def test_class_that_is_not_there(net_of, module, kind):
    with pytest.raises(ModelError, match="layer 'p'.*cannot load class"):
        net_of(python("p", kind, "x", "y"))


@pytest.mark.parametrize("named", ["os.getpid", "builtins.breakpoint", "builtins.dict"])
def test_what_is_no_layer_is_not_called(net_of, named):
    module, name = named.split(".")
    with pytest.raises(ModelError, match=f"class '{name}' of module '{module}' is no layer: it must be a class with"):
        net_of(python("p", name, "x", "y").replace("layers_of_a_test", module))


def test_module_that_is_not_there(net_of):
    with pytest.raises(ModelError, match="layer 'p'.*layers_of_a_test.*ModuleNotFoundError"):
        net_of(python("p", "Affine", "x", "y"))


def test_installed_pycaffe_has_the_base_class(net_of, module):
    nuq.pycaffe.install()
    net = net_of(python("p", "Affine", "x", "y"))
    assert issubclass(module().Affine, nuq.pycaffe.Layer)
    assert net.forward(x=X)["y"] == pytest.approx(2 * X)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [("-1, 3", r"0 or more. Got \(-1, 3\)"), ("(2, 3)", r"write reshape\(\*shape\)"), ("2, 1.5", "Got 1.5")],
)
def test_sizes_that_a_top_cannot_have_are_named(tmp_path, sizes, message):
    (tmp_path / "sizes.py").write_text(
        "import caffe\n\n\nclass Sized(caffe.Layer):\n    def setup(self, bottom, top):\n        pass\n\n"
        f"    def reshape(self, bottom, top):\n        top[0].reshape({sizes})\n\n"
        "    def forward(self, bottom, top):\n        pass\n"
    )
    (tmp_path / "n.prototxt").write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 } } }'
        'layer { name: "mine" type: "Python" bottom: "x" top: "y" python_param { module: "sizes" layer: "Sized" } }'
    )
    with pytest.raises(RuntimeFailure, match=f"layer 'mine': .*{message}"):
        nuq.Net(tmp_path / "n.prototxt", nuq.pycaffe.TEST)
    sys.modules.pop("sizes", None)
