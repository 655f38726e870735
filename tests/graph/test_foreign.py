"""Fields of forks: what they mean depends on the layer that they stand in."""

import pytest

import autonuq as nuq
from autonuq.errors import ModelError
from autonuq.graph.files import load_graph, prototxt_text
from autonuq.graph.foreign import find_foreign

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 8 dim: 8 } } }\n'
V1_INPUT = 'input: "x" input_dim: 1 input_dim: 2 input_dim: 8 input_dim: 8\n'
TRAIN = "include { phase: TRAIN }"

# Of layers that training alone has; the messages are those of SSD, DetectNet, DeepLab, OpenPose, FlowNet and others.
LEFT_OUT = {
    "SSD": 'type: "AnnotatedData" transform_param { mirror: true resize_param { prob: 1 resize_mode: WARP height: 300 '
    "interp_mode: LINEAR interp_mode: AREA } emit_constraint { emit_type: CENTER } distort_param { hue_prob: 0.5 } } "
    'annotated_data_param { batch_sampler { max_sample: 1 sampler { min_scale: 0.3 } } label_map_file: "}{\\"" }',
    "brackets": 'type: "X" a_param < list: [1, 2, "]"], inner: < b: -1e-5 > > scalar: -inf; other: "a" \'b\' # }\n',
    "OpenPose": 'type: "CPMData" cpm_transform_param { stride: 8 max_rotate_degree: 40 visualize: false }',
    "FlowNet": 'type: "DataAugmentation" augmentation_param { augment_during_test: false mean_per_pixel: '
    'false translate { rand_type: "uniform_bernoulli" exp: false spread: 0.4 } }',
    "what the parser refuses": 'type: "Data" data_param { source: "a" source: "b" batch_size: -1 } image_data_param { '
    "batch_size: 1.5 } transform_param { crop_size: 1 crop_size: 2 } rank: 1",
    "own messages, other forms": 'type: "Python" python_param { module: "a" param: 3 } loss_param: 3 data_param { '
    'backend: ROCKSDB batch_size: "2" }',
}
# type of the layer and what it has beyond the schema, all without a meaning for the result
HARMLESS = {
    "engine": ("Pooling", 'pooling_param { pool: AVE kernel_size: 2 engine: MKL2017 } engine: "MKLDNN"'),
    "precision": ("ReLU", "forward_type: FLOAT16 backward_math: FLOAT cudnn_math_override: 1 debug: true"),
    "algorithm": ("Convolution", "convolution_param { num_output: 1 kernel_size: 1 cudnn_convolution_algo_seeker: A }"),
    "learning": ("PReLU", 'param { lr_mult: 1 lr_policy: "step" }'),
    "filler": ("Convolution", "convolution_param { num_output: 1 kernel_size: 1 weight_filler { diag_val: 1 } }"),
    "SegNet": ("Dropout", "dropout_param { sample_weights_test: false }"),
    "splitting": ("Split", "split_param { engine: MKL2017 }"),
    "loading": ("ReLU", "transform_param { resize_param { width: 3 } }"),
}  # fmt: skip
REFUSED = {
    "field": ("ReLU", "\nrelu_param { slope: 1 }", r"'relu_param' has no field named \"slope\" \(line 3, column 14\)"),
    "near": ("ReLU", "relu_param { negative_slop: 1 }", r"\"negative_slop\".*Did you mean 'negative_slope'\?"),
    "message": ("ReLU", "fused_param { kind: SUM }", r"type 'ReLU' has no parameters 'fused_param' \(line 2"),
    "fused": ("Convolution", "convolution_param { relu: true }", "'convolution_param' has no field named \"relu\""),
    "value": ("Pooling", "pooling_param { pool: LP }", "'pooling_param.pool' has no value named LP"),
    "form": ("ReLU", 'param: "shared"', "'param' is written in another form"),
    "random": ("Dropout", "dropout_param { sample_weights_test: true }", 'has no field named "sample_weights_test"'),
    "rule": ("ReLU", "include { phase: TRAIN weekday: 3 }", "'include' has no field named \"weekday\""),
}


def layer(kind, text, name="l", bottom="x", top="y"):
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {text} }}\n'


@pytest.fixture
def load(tmp_path):
    def made(text):
        (tmp_path / "net.prototxt").write_text(text)
        return load_graph(tmp_path / "net.prototxt")

    return made


@pytest.mark.parametrize("text", LEFT_OUT.values(), ids=LEFT_OUT)
def test_layers_that_are_left_out_may_say_anything(load, text):
    dropped = f'layer {{ name: "d" {TRAIN} top: "x" top: "label" {text} }}\n'
    for whole in (dropped + INPUT, INPUT + dropped, dropped * 2 + INPUT):
        assert [found.name for found in load(whole + layer("ReLU", "")).layers] == ["in", "l"]


@pytest.mark.parametrize("text", LEFT_OUT.values(), ids=LEFT_OUT)
def test_of_a_type_that_is_not_supported_the_type_is_what_is_wrong(load, text):
    _, _, rest = text.partition(" ")
    with pytest.raises(ModelError, match="layer 'l': type 'BN' is not supported; register_layer can add it"):
        load(INPUT + layer("BN", rest.partition(" ")[2] + " bn_param { frozen: true slope_filler { value: 1 } }"))


@pytest.mark.parametrize(("kind", "text"), HARMLESS.values(), ids=HARMLESS)
def test_what_does_not_change_the_result_is_passed_over(load, kind, text):
    found = load(INPUT + layer(kind, text))
    assert found.layers[1].type == kind
    assert load(prototxt_text(found)) == found


@pytest.mark.parametrize(("kind", "text", "words"), REFUSED.values(), ids=REFUSED)
def test_what_may_change_the_result_is_refused(load, kind, text, words):
    with pytest.raises(ModelError, match=words) as caught:
        load(INPUT + layer(kind, text))
    assert caught.value.layer == "l"


def test_of_the_network(load):
    assert load('default_forward_type: FLOAT16 engine: "MKLDNN"\n' + INPUT + layer("ReLU", "")).layers[1].name == "l"
    with pytest.raises(ModelError, match=r"a network has no parameters 'base_lr' \(line 1"):
        load("base_lr: 0.1\n" + INPUT)


def test_holes_are_dilation(load):
    spelled = {"hole: 2": [2, 2], "hole_h: 2 hole_w: 3": [2, 3], "hole_w: 4": [1, 4]}
    for text, dilation in spelled.items():
        found = load(INPUT + layer("Convolution", f"convolution_param {{ num_output: 1 kernel_size: 2 {text} }}"))
        assert list(found.layers[1].message.convolution_param.dilation) == dilation
        assert "hole" not in prototxt_text(found)


def v1(kind, text, top="y"):
    return f'layers {{ name: "l" type: {kind} bottom: "x" top: "{top}" {text} }}\n'


def test_v1_layers_of_forks(load):
    left_out = v1("SEG_ACCURACY", f"{TRAIN} seg_accuracy_param {{ ignore_label: 255 }}", top="a")
    slopes = load(V1_INPUT + left_out + v1("PRELU", "prelu_param { channel_shared: true }")).layers[1].message
    assert (slopes.type, slopes.prelu_param.channel_shared) == ("PReLU", True)
    with pytest.raises(ModelError, match="'l': type 'MultiStageMeanfield' is not supported; register_layer"):
        load(V1_INPUT + v1("MULTI_STAGE_MEANFIELD", "multi_stage_meanfield_param { num_iterations: 5 }"))
    pooled = v1("ROI_POOLING", 'bottom: "x" roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.5 }')
    with pytest.raises(ModelError, match="'l': the second input .* must hold rows of"):
        load(V1_INPUT + pooled)
    with pytest.raises(ModelError, match="'l': type 'BN' is not supported"):
        load(V1_INPUT + v1("BN", "bn_param { bn_mode: INFERENCE }"))
    with pytest.raises(ModelError, match="syntax error"):
        load(V1_INPUT + v1("PRELU", "prelu_param { shared: true }").replace("type", "tipe"))
    with pytest.raises(ModelError, match="'PReLU' has no parameters 'prelu_param'"):
        load(V1_INPUT + v1("PRELU", "prelu_param { shared: true }"))


def test_a_text_that_ends_in_a_field_is_a_syntax_error(load):
    for text in ("bn_param { a: }", "bn_param { a: 1", "x", "x:", "x: [1, 2", "a < b: 1 }"):
        with pytest.raises(ModelError, match="syntax error in line 2"):
            load(INPUT + 'layer { name: "l" type: "BN" ' + text)


def test_fields_know_where_they_stand():
    text = INPUT + layer("BN", "bn_param { a: 1 }; more: 2\n")
    assert [(one.layer, one.path, one.line, one.text) for one in find_foreign(text).fields] == [
        (1, ("bn_param",), 2, "bn_param { a: 1 }"),
        (1, ("more",), 2, "more: 2"),
    ]


DATA = 'layer { name: "data" type: "Data" top: "x" top: "label" RULE data_param { source: "a" } }\n'
TRAINING = {
    "data": (DATA.replace("RULE", "") + layer("ReLU", ""), "data", "'Data' reads a data set"),
    "data of a fork": (layer("ImageSegData", "").replace('bottom: "x"', ""), "l", "'ImageSegData' reads a data set"),
    "data in TRAIN": (
        DATA.replace("RULE", TRAIN) + layer("ReLU", ""),
        "l",
        "layer 'data' makes it in phase TRAIN only",
    ),
    "no input": (DATA.replace("RULE", TRAIN), None, "has no input.*makes it in phase TRAIN only"),
    "label": (INPUT + layer("SoftmaxWithLoss", 'bottom: "label"'), "l", "reads blob 'label'"),
    "accuracy": (INPUT + layer("Accuracy", 'bottom: "label"'), "l", "reads blob 'label'"),
    "loss of a fork": (INPUT + layer("SmoothL1Loss", "smooth_l1_loss_param { sigma: 3 }"), "l", "'SmoothL1Loss'"),
}


@pytest.mark.parametrize(("text", "name", "words"), TRAINING.values(), ids=TRAINING)
def test_training_prototxts_are_called_so(load, text, name, words):
    with pytest.raises(ModelError, match=f"{words}.*this is a training prototxt; use the deploy one") as caught:
        load(text)
    assert caught.value.layer == name


def test_what_another_stage_has_is_named(load):
    staged = INPUT.replace("top", 'include { stage: "deploy" } top')
    for first in ("", DATA.replace("RULE", 'exclude { stage: "deploy" }')):
        with pytest.raises(ModelError, match="'in' is left out by its include and exclude rules: .*such as 'deploy'"):
            load(first + staged + layer("ReLU", ""))


def test_stage_and_level_choose_layers_once(tmp_path):
    path = tmp_path / "net.prototxt"
    staged = INPUT.replace("top", 'include { stage: "deploy" min_level: 1 } top')
    path.write_text(
        staged + layer("ReLU", 'include { stage: "a" not_stage: "b" }') + layer("TanH", "", name="t", top="z")
    )
    assert [found.name for found in load_graph(path, level=1, stages=("deploy",)).layers] == ["in", "t"]
    net = nuq.Net(path, nuq.pycaffe.TEST, level=2, stages=["a", "deploy"])
    assert net._layer_names == ["in", "l", "t"]
    path.write_text(prototxt_text(load_graph(path, level=1, stages=("a", "deploy"))))
    assert [found.name for found in load_graph(path).layers] == ["in", "l", "t"]  # the rules are done with
