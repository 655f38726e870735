"""Scripts in the shape of AMCT's samples run as they are, in a process of their own.

On ResNet-20 where the folder with real networks lies beside the checkout, on the example's LeNet elsewhere.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest

from autonuq import pycaffe
from autonuq.graph.caffemodel import load_caffemodel
from autonuq.graph.record import load_record

ROOT = Path(__file__).parents[2]
RESNET, LENET = ROOT.parent / "shared/models/resnet20-fashion", ROOT / "examples/fashion_lenet"
IS_RESNET = RESNET.is_dir()
MODEL = RESNET / "deploy.prototxt" if IS_RESNET else LENET / "lenet.prototxt"
WEIGHTS = RESNET / "weights.caffemodel" if IS_RESNET else LENET / "lenet.caffemodel"
MARKED = ["res4a_branch2b", "res4b_branch2a", "res4b_branch2b", "res4c_branch2a"] if IS_RESNET else ["conv2", "ip1"]


def write_database(path, images, labels):
    with lmdb.open(str(path), map_size=1 << 26) as database, database.begin(write=True) as transaction:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            datum = pycaffe.io.array_to_datum(image[np.newaxis], label)
            transaction.put(f"{index:08d}".encode(), datum.SerializeToString())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a working directory with databases, a mapping file and a configuration."""
    folder = tmp_path_factory.mktemp("scripts")
    with np.load(LENET / "fashion.npz") as data:
        for kind, count in (("test", 250), ("calibration", 100)):
            write_database(folder / kind, data[f"{kind}_images"][:count], data[f"{kind}_labels"][:count])
    operators = [
        {
            "name": f"{name}{name}_dequant_layer",
            "type": "Conv2D",
            "attr": [
                {"key": "_fe_weight_compress", "value": {"b": True}},
                {"key": "_datadump_original_op_names", "value": {"list": {"s": [name], "val_type": 1}}},
            ],
        }
        for name in MARKED
    ]
    (folder / "om.json").write_text(json.dumps({"graph": [{"name": "mergedGraph_0", "op": operators}]}))
    (folder / "quant.cfg").write_text(
        'batch_num: 2\nnuq_config { mapping_file: "./om.json" nuq_quantize: { num_steps: 16 num_of_iteration: 0 } }\n'
    )
    (folder / "caffe/python").mkdir(parents=True)
    return folder


def run(folder, script, *options, launcher=("-m", "autonuq.amct")):
    command = [sys.executable, *launcher, Path(__file__).parent / "scripts" / script]
    command += ["--model_file", MODEL, "--weights_file", WEIGHTS, "--caffe_dir", folder / "caffe"]
    command += ["--calibration_data", "calibration", "--test_data", "test", *options]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result


def top1(result):
    return float(re.search(r"final top1: ([\d.]+)", result.stdout)[1])


@pytest.fixture(scope="module")
def uniform(folder):
    return run(folder, "fashion_static.py")


@pytest.mark.slow
def test_uniform(folder, uniform):
    original = float(re.search(r"original top1: ([\d.]+)", uniform.stdout)[1])
    assert original > 0.85
    assert abs(top1(uniform) - original) <= 0.01
    assert (folder / "results/fashion__nuq_layer_record.txt").read_text() == ""


@pytest.mark.slow
def test_convert_model(folder, uniform):
    assert top1(run(folder, "fashion_convert_model.py")) == top1(uniform)


@pytest.mark.slow
def test_static_nuq(folder, uniform):
    result = run(folder, "fashion_static.py", "--cfg_define", "quant.cfg")
    assert abs(top1(result) - top1(uniform)) <= 0.03
    weights = load_caffemodel(folder / "results/fashion__deploy_weights.caffemodel")
    counts = {name: len(np.unique(weights[name][0].values)) for name in MARKED}
    assert max(counts.values()) <= 16
    assert (folder / "results/fashion__nuq_layer_record.txt").read_text().split(";") == MARKED


@pytest.mark.slow
def test_auto_nuq(folder):
    result = run(folder, "fashion_auto_nuq.py", "--cfg_define", "quant.cfg")
    assert top1(result) > 0.85
    chosen = (folder / "results/calibration_results/Fashion_nuq_layer_record.txt").read_text().split(";")
    assert set(chosen) <= set(MARKED)
    assert chosen != [""]
    log = (folder / "amct_log/amct_caffe.log").read_text()
    assert re.search(r"trial \d+/\d+: ratio .*satisfied; best .*x; about \d+ s left", log)


@pytest.mark.slow
def test_auto_calibration(folder):
    run(folder, "fashion_auto_calibration.py")
    log = (folder / "amct_log/amct_caffe.log").read_text()
    for phrase in ("original model is", "global quantized model is", "saved model is"):
        assert re.search(f"accuracy of the {phrase} 0\\.[89]", log)
    assert load_record(folder / "tmp/record.txt")
    assert (folder / "results/fashion_deploy_weights.caffemodel").is_file()


@pytest.mark.slow
def test_installed_by_hand(folder, uniform):
    code = "import sys, runpy, autonuq.amct; autonuq.amct.install(); del sys.argv[0];"
    code += "from autonuq.amct.old_names import restore_old_names; restore_old_names();"
    code += "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
    run(folder, "fashion_convert_model.py", launcher=("-c", code))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "usage: python -m autonuq.amct [--allow-python-layers] script.py"),
        (["none.py"], 2, "error: there is no script 'none.py'"),
        (["broken.py"], 3, "error: none.prototxt: cannot be read: No such file or directory (broken.py, line 2)"),
    ],
    ids=["nothing", "missing", "error"],
)
def test_errors_are_one_line_with_the_script_s_own(tmp_path, arguments, code, message):
    text = "import amct_caffe as amct\namct.create_quant_config('c.json', 'none.prototxt', 'none.caffemodel')\n"
    (tmp_path / "broken.py").write_text(text)
    command = [sys.executable, "-m", "autonuq.amct", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
