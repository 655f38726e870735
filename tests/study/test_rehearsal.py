"""What a rehearsal says besides that all is well."""

import pytest

from autonuq.graph.batch import MixesItems
from autonuq.study import rehearsal
from autonuq.study.rehearsal import FEW_IMAGES, Rehearsal
from autonuq.study.study_file import load_task


def calibration(study, batch_num, images=4):
    """Rehearse a study whose batches have so many images, and return what its calibration says."""
    evaluator, prototxt = study.parent / "evaluate.py", study.parent / "tiny.prototxt"
    evaluator.write_text(evaluator.read_text().replace("(8, 4, 2, 8, 8)", f"(8, {images}, 2, 8, 8)"))
    prototxt.write_text(prototxt.read_text().replace("dim: 4 dim: 2", f"dim: {images} dim: 2"))
    study.write_text(study.read_text() + f"[quantization]\nbatch_num = {batch_num}\n")
    checks = {check.name: check for check in Rehearsal(load_task(study)).run()}
    assert {check.state for check in checks.values()} == {"passed"}
    return checks["calibration"].detail


@pytest.mark.parametrize("batch_num", [1, 3])
def test_few_images_are_said_with_what_more_would_bring(tiny_study, batch_num):
    said = calibration(tiny_study, batch_num)
    assert said.startswith("ranges of 3 layers from one batch; ")
    assert f"; {4 * batch_num} images (batch_num {batch_num}) are few: " in said
    assert said.endswith("with 1,000 in place of 200 two networks became 8 % smaller, and no worse")


@pytest.mark.parametrize(("images", "is_few"), [(FEW_IMAGES // 4, False), (FEW_IMAGES // 4 - 1, True)])
def test_all_batches_count(tiny_study, images, is_few):
    assert ("are few" in calibration(tiny_study, 4, images)) == is_few


def test_nothing_is_said_where_another_caffe_saw_the_images(tiny_study, monkeypatch):
    monkeypatch.setattr(rehearsal, "request_inputs", lambda record_file: None)
    assert "few" not in calibration(tiny_study, 1)


def test_nothing_is_said_where_images_are_not_counted(tiny_study, monkeypatch):
    def mixes(graph):
        raise MixesItems("a time axis comes first")

    monkeypatch.setattr(rehearsal, "find_batch", mixes)
    assert "few" not in calibration(tiny_study, 1)


def test_check_and_tune_agree_where_nothing_can_be_searched(tiny_study, run):
    prototxt = tiny_study.parent / "tiny.prototxt"
    text = prototxt.read_text().replace("kernel_size: 3 pad: 1", "kernel_size: 3 pad: 2 dilation: 2")
    prototxt.write_text(text)
    tiny_study.write_text(tiny_study.read_text() + 'float_layers = ["fc"]\n')
    why = "nothing to search: 'conv' a codebook needs dilation 1, not 2x2"
    for command in ("check", "tune"):
        ended = run(command, "study.toml")
        assert ended.returncode == 0, ended.stderr
        assert why in ended.stderr
    assert ended.stderr.index(why) < ended.stderr.index("calibration")


def test_a_network_whose_weights_stay_float_is_refused_at_once(tiny_study, run):
    tiny_study.write_text(tiny_study.read_text() + 'float_layers = ["conv", "fc"]\n')
    for command in ("check", "tune"):
        ended = run(command, "study.toml")
        assert ended.returncode == 6
        assert "no layer's weights are quantized: 'conv' is named in float_layers; 'fc' is named" in ended.stderr
    assert not (tiny_study.parent / "out/tiny/study.journal").exists()
