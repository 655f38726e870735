"""Every command sees every key of a study file, because one function makes one description of it.

Two files, because some keys exclude each other, set all keys of the schema to something unusual.
"""

import tomllib
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from autonuq.evaluate.builtin import BuiltinSettings, DataSettings, Drop, TransformSettings
from autonuq.evaluate.builtin.boxes import DetectionSettings
from autonuq.evaluate.recipe import EvaluatorRecipe
from autonuq.graph import caffe_pb2
from autonuq.graph.files import ModelPair, load_graph, write_caffemodel
from autonuq.study import rehearsal, run, study_file, workers
from autonuq.study.engines import Workers
from autonuq.study.study_file import load_task
from autonuq.study.task import Task

NETWORK = """
name: "rgb"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 6 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
EVALUATOR = """
from pathlib import Path

import numpy as np

import autonuq as nuq
from autonuq.graph.files import load_graph


class Logging(nuq.Evaluator):
    def eval_model(self, model_file, weights_file, batch_num):
        types = sorted({layer.type for layer in load_graph(model_file).layers})
        with (Path(__file__).parent / "types.log").open("a") as log:
            log.write(f"{type(self).__name__} {batch_num} {' '.join(types)}\\n")
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        for _ in range(batch_num):
            net.forward(data=np.ones((2, 3, 8, 8)))
        return 1.0

    def is_satisfied(self, original_metric, new_metric):
        return True


class Confirming(Logging):
    pass
"""
OF_A_CLASS = """
name = "unusual"
out = "results"
[model]
prototxt = "net.prototxt"
weights = "net.caffemodel"
allow_python_layers = true
[evaluator]
class = "evaluate.py:Logging"
evaluate_batch_num = 3
timeout = 99.5
[quantization]
batch_num = 2
activation_offset = false
python_layers = true
codec = "fixed"
levels = "amct"
[search]
trials = 3
sampler = "random"
storage = "sqlite:///unusual.db"
seed = 7
artifacts = "shared"
stop_gain = 0.25
confidence = 0.25
confirm = true
float_layers = ["fc"]
[workers]
jobs = 1
[confirm]
class = "evaluate.py:Confirming"
evaluate_batch_num = 4
"""
BUILT_IN = """
name = "built-in"
[model]
prototxt = "net.prototxt"
weights = "net.caffemodel"
[evaluator]
kind = "top5"
drop = "90 %"
evaluate_batch_num = 2
batch_size = 3
input = "data"
output = "prob"
data = { npz = "images.npz", images = "x", labels = "y", layout = "NCHW", start = 1, count = 6 }
calibration = { folder = "pictures", labels = "pictures.txt" }
transform = { resize = [10, 9], crop = 8, channels = "BGR", mean_file = "means.npy", scale = 0.5 }
[quantization]
cfg = "quant.cfg"
chip = "ascend310"
marks = "all"
[search]
trials = 3
[confirm]
kind = "top1"
drop = 99
data = { lmdb = "images.lmdb" }
transform = { mean = [1, 2, 3] }
"""

COMPARED = """
name = "compared"
[model]
prototxt = "net.prototxt"
weights = "net.caffemodel"
[evaluator]
kind = "outputs"
outputs = ["fc", "prob"]
snr = 12
data = { folder = "pictures" }
[confirm]
kind = "outputs"
measure = "cosine"
cosine = 0.75
data = { npz = "images.npz", images = "x" }
"""
DETECTED = """
name = "detected"
[model]
prototxt = "net.prototxt"
weights = "net.caffemodel"
[evaluator]
kind = "miou"
axis = -3
classes = [1, 3]
ignore = 0
data = { folder = "pictures", labels = "masks" }
[confirm]
kind = "map"
data = { folder = "others" }
[confirm.detections]
annotations = "boxes.json"
layout = "pairs"
outputs = ["a"]
threshold = 0.25
min_score = 0
iou = 0.75
nms = 1
max_boxes = 7
background = "none"
classes = ["cat", "dog"]
boxes = "b"
scores = ["s", "t"]
box_format = "centre"
box_unit = "pixels"
priors = "p"
strides = [8, 16]
sides = [[10, [20, 30]], [40]]
variances = [1, 2]
version = "v5"
anchors = [[[1, 2]]]
activated = true
"""


def write_network(folder):
    (folder / "net.prototxt").write_text(NETWORK)
    graph, rng = load_graph(folder / "net.prototxt"), np.random.default_rng(1)
    shapes = {"conv": [(6, 3, 3, 3), (6,)], "fc": [(10, 216), (10,)]}
    blobs = {name: [rng.normal(size=s).astype(np.float32) for s in own] for name, own in shapes.items()}
    layers = [layer.with_(blobs=blobs.get(layer.name, ())) for layer in graph.layers]
    write_caffemodel(graph.with_layers(layers), folder / "net.caffemodel")


def write_data(folder):
    rng = np.random.default_rng(2)
    images, labels = rng.integers(0, 256, (7, 3, 12, 12), np.uint8), np.arange(7)
    np.savez(folder / "images.npz", x=images, y=labels)
    np.save(folder / "means.npy", np.array([5.0, 6.0, 7.0], np.float32))
    (folder / "pictures").mkdir()
    for number in range(6):
        Image.fromarray(images[number].transpose(1, 2, 0)).save(folder / f"pictures/{number}.png")
    (folder / "pictures.txt").write_text("".join(f"{number}.png {number}\n" for number in range(6)))
    with lmdb.open(str(folder / "images.lmdb")) as database, database.begin(write=True) as transaction:
        for number, image in enumerate(images[:, :, :8, :8]):
            datum = caffe_pb2.Datum(channels=3, height=8, width=8, data=image.tobytes(), label=number)
            transaction.put(f"{number:08}".encode(), datum.SerializeToString())
    (folder / "quant.cfg").write_text(
        "batch_num: 2\ncommon_config { nuq_quantize { num_steps: 32 num_of_iteration: 0 } }\n"
    )


@pytest.fixture
def folder(tmp_path):
    write_network(tmp_path)
    write_data(tmp_path)
    (tmp_path / "evaluate.py").write_text(EVALUATOR)
    (tmp_path / "class.toml").write_text(OF_A_CLASS)
    (tmp_path / "kind.toml").write_text(BUILT_IN)
    (tmp_path / "compared.toml").write_text(COMPARED)
    (tmp_path / "detected.toml").write_text(DETECTED)
    return tmp_path


def expected_of_a_class(folder):
    return Task(
        name="unusual",
        source=ModelPair(folder / "net.prototxt", folder / "net.caffemodel"),
        evaluator=EvaluatorRecipe("evaluate.py:Logging", folder, 3, 99.5),
        out=folder / "results",
        storage=f"sqlite:///{folder}/unusual.db",
        batch_num=2,
        activation_offset=False,
        amct_levels=True,
        python_layers=True,
        codec="fixed",
        sampler="random",
        seed=7,
        n_trials=3,
        artifacts=str(folder / "shared"),
        provenance={"study file": OF_A_CLASS},
        confirm=EvaluatorRecipe("evaluate.py:Confirming", folder, 4),
        stop_gain=0.25,
        confidence=0.25,
        float_layers=["fc"],
        study_file=folder / "class.toml",
        allow_python_layers=True,
        workers=Workers(jobs=1),
    )


def expected_built_in(folder):
    scored = DataSettings("npz", folder / "images.npz", "x", "y", "NCHW", 1, 6)
    pictures = DataSettings("folder", folder / "pictures", labels=str(folder / "pictures.txt"))
    transform = TransformSettings((10, 9), (8, 8), "BGR", (), str(folder / "means.npy"), 0.5)
    top5 = BuiltinSettings("top5", scored, pictures, transform, Drop(90.0, "%"), 2, 3, "data", "prob")
    database = DataSettings("lmdb", folder / "images.lmdb")
    top1 = BuiltinSettings("top1", database, database, TransformSettings(mean=(1, 2, 3)), Drop(99.0))
    return Task(
        name="built-in",
        source=ModelPair(folder / "net.prototxt", folder / "net.caffemodel"),
        evaluator=EvaluatorRecipe(top5, folder, 2),
        out=folder / "out/built-in",
        storage=f"journal://{folder}/out/built-in/study.journal",
        cfg=folder / "quant.cfg",
        chip="ascend310",
        marks="all",
        n_trials=3,
        provenance={"study file": BUILT_IN},
        confirm=EvaluatorRecipe(top1, folder),
        study_file=folder / "kind.toml",
    )


def expected_of_kinds(folder, name, text, evaluator, confirm):
    return Task(
        name=name,
        source=ModelPair(folder / "net.prototxt", folder / "net.caffemodel"),
        evaluator=EvaluatorRecipe(evaluator, folder),
        out=folder / "out" / name,
        storage=f"journal://{folder}/out/{name}/study.journal",
        provenance={"study file": text},
        confirm=EvaluatorRecipe(confirm, folder),
        study_file=folder / f"{name}.toml",
    )


def expected_compared(folder):
    pictures = DataSettings("folder", folder / "pictures", labels=str(folder / "pictures/labels.txt"))
    arrays = DataSettings("npz", folder / "images.npz", "x")
    outputs = BuiltinSettings("outputs", pictures, pictures, outputs=("fc", "prob"), snr=12)
    cosine = BuiltinSettings("outputs", arrays, arrays, measure="cosine", cosine=0.75)
    return expected_of_kinds(folder, "compared", COMPARED, outputs, cosine)


def expected_detected(folder):
    masks = DataSettings("folder", folder / "pictures", labels=str(folder / "masks"))
    miou = BuiltinSettings("miou", masks, masks, axis=-3, classes=(1, 3), ignore=0)
    others = DataSettings("folder", folder / "others", labels=str(folder / "others/labels.txt"))
    detections = DetectionSettings(
        **{"annotations": folder / "boxes.json", "layout": "pairs", "outputs": ("a",), "threshold": 0.25},
        **{"min_score": 0, "iou": 0.75, "nms": 1, "max_boxes": 7, "background": "none", "classes": ("cat", "dog")},
        **{"boxes": ("b",), "scores": ("s", "t"), "box_format": "centre", "box_unit": "pixels", "priors": "p"},
        **{"strides": (8, 16), "sides": (((10, 10), (20, 30)), ((40, 40),)), "variances": (1, 2)},
        **{"version": "v5", "anchors": (((1, 2),),), "activated": True},
    )
    precision = BuiltinSettings("map", others, others, detections=detections)
    return expected_of_kinds(folder, "detected", DETECTED, miou, precision)


COMMANDED = {"class.toml": expected_of_a_class, "kind.toml": expected_built_in}
EXPECTED = {**COMMANDED, "compared.toml": expected_compared, "detected.toml": expected_detected}


def keys_of(tables, parent=""):
    """Yield (table, key) of every key that a file sets; [confirm] has the keys of [evaluator], calibration of data."""
    for key, value in tables.items():
        table = {"confirm": "evaluator", "calibration": "evaluator.data"}.get(key, f"{parent}.{key}".lstrip("."))
        if isinstance(value, dict):
            yield from keys_of(value, table)
        else:
            yield parent, key


def test_the_files_set_every_key_and_every_field(folder):
    keys = {key for text in (OF_A_CLASS, BUILT_IN, COMPARED, DETECTED) for key in keys_of(tomllib.loads(text))}
    schema = study_file._KEYS
    assert schema["evaluator.calibration"] == schema["evaluator.data"]
    assert keys >= {("workers", "jobs")}  # its other keys need a cluster: see test_engines
    shown = [table for table in schema if table != "workers" and "calibration" not in table]
    assert keys - {("workers", "jobs")} == {(table, key) for table in shown for key in schema[table]}
    tasks = [make(folder) for make in EXPECTED.values()]
    for field in fields(Task):
        # A config is AMCT's, files a cfg; `counts_chip` is the studies' of earlier versions; a pruner is an object.
        if field.name not in ("config", "counts_chip", "pruner") and field.default is not MISSING:
            assert any(getattr(task, field.name) != field.default for task in tasks), field.name


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_is_read_as_it_is_meant(folder, name):
    assert load_task(folder / name) == EXPECTED[name](folder)


@pytest.fixture
def seen(monkeypatch):
    """Record the tasks that networks are quantized for, and the recipes that evaluators are made from."""
    tasks, recipes, make = [], [], EvaluatorRecipe.make
    for module in (run, workers, rehearsal):

        def quantized_model(task, graph=None, own=module.quantized_model):
            tasks.append(task)
            return own(task, graph)

        monkeypatch.setattr(module, "quantized_model", quantized_model)

    @wraps(make)  # a process of its own finds it by this name
    def recorded(recipe, original):
        recipes.append(recipe)
        return make(recipe, original)

    monkeypatch.setattr(EvaluatorRecipe, "make", recorded)
    return tasks, recipes


def plain(task, **changes):
    """Return a task's fields without what commands add or make."""
    own = {field.name: getattr(task, field.name) for field in fields(Task)}
    own["provenance"] = {key: text for key, text in own["provenance"].items() if key != "command"}
    return {key: value for key, value in (own | changes).items() if key not in ("evaluator", "confirm")}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDED)
def test_every_command_sees_every_key(folder, run_in, seen, name):
    expected, (tasks, recipes) = EXPECTED[name](folder), seen
    # The trials of the last three: none, which leaves one to the worker; that one; one more.
    commands = (
        (("check",), 3),
        (("tune",), 3),
        (("resume", "--trials", 4, "--timeout", 0), 4),
        (("work",), 3),
        (("resume", "--trials", 5), 5),
    )
    for (command, *options), trials in commands:
        tasks.clear()
        recipes.clear()
        done = run_in(folder, command, folder / name, *options)
        assert done.returncode == 0, done.stderr
        assert tasks, command
        for task in tasks:
            assert plain(task) == plain(expected, n_trials=trials), command
        wanted = [expected.evaluator] if command == "work" else [expected.evaluator, expected.confirm]
        assert [recipe for recipe in wanted if recipe not in recipes] == [], command
        assert command != "work" or expected.confirm not in recipes
    log = Path(folder / "types.log")
    if log.exists():
        check_types(log.read_text().splitlines())


def check_types(lines):
    """The evaluator ran the float network, and Python layers in place of AMCT's, with its numbers of batches."""
    calls = [line.split() for line in lines]
    types = {tuple(found) for _, _, *found in calls}
    assert types == {
        ("Convolution", "InnerProduct", "Input", "ReLU", "Softmax"),
        ("Convolution", "InnerProduct", "Input", "Python", "ReLU", "Softmax"),
    }
    assert {(evaluator, batches) for evaluator, batches, *_ in calls} == {
        ("Logging", "1"),  # check
        ("Logging", "2"),  # the calibration
        ("Logging", "3"),
        ("Confirming", "1"),
        ("Confirming", "4"),
    }
