"""Studies that count what a chip stores: searched, said everywhere alike, resumed, refused where they must be."""

import json
from dataclasses import replace

import jsonschema
import pytest

from autonuq import load_study, tune
from autonuq.cli.documents import SCHEMAS
from autonuq.compress.packed_file import load_packed
from autonuq.compress.quantized import default_config
from autonuq.errors import StudyError
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.graph.files import load_graph
from autonuq.quant.config import Target
from autonuq.records import CHIP, FINGERPRINT, TARGET_TRIALS, TASK, FloatLayers
from autonuq.report.page import build_page
from autonuq.study.locate import load_stored_task
from autonuq.study.run import StudyRun, resume
from autonuq.study.study_file import load_task
from autonuq.study.task import quantized_model
from autonuq.study.workers import work

CFG = "nuq_config {{ {} nuq_quantize {{ num_steps: 32 }} }}"


@pytest.fixture
def chip_task(task, chip_network):
    return replace(task, chip="ascend310")


@pytest.fixture
def chip_file(tiny_study, chip_network):
    """Return the study file of the network, and let it be given other keys of [quantization]."""
    text = tiny_study.read_text().replace("trials = 8", "trials = 3")

    def write(quantization):
        tiny_study.write_text(f"{text}[quantization]\n{quantization}\n")
        return tiny_study

    return write


def loaded_bytes(record):
    """Return what the chip loads of each layer under the best plan, in network order."""
    return {row.layer.name: row.size_bytes for row in record.layer_rows(record.best)}


@pytest.mark.parametrize("marks", ["compiler", "all"])
def test_the_three_numbers_are_the_sums_of_the_layers(marks, chip_file, run):
    path = chip_file(f'chip = "ascend310"\nmarks = "{marks}"')
    ended = run("tune", "study.toml")
    assert ended.returncode == 0, ended.stderr
    record, folder = load_study(path).record(), path.parent
    layers, plain = loaded_bytes(record), {layer.layer: layer.device_bytes for layer in record.chip.layers}
    now, int8 = sum(layers.values()), sum(plain.values())
    weights = sum(layer.blobs[0].size for layer in load_graph(*model_files(folder)).layers if layer.blobs)
    assert (record.int8_bytes, record.original_bytes) == (int8, 4 * weights)
    assert layers["large"] < plain["large"]
    assert record.best.size_bytes == now < int8
    said = f"ascend310 loads {now:,} bytes of weights; with int8 only {int8:,}, with float32 {4 * weights:,}"
    assert record.say_transfer().startswith(said)
    assert said in " ".join(ended.stdout.split())
    packed = load_packed(folder / "out/tiny/tiny.nuq").layers
    assert {name: len(packed[name].stream) for name in layers} == layers
    status = json.loads(run("status", "study.toml", "--json").stdout)
    jsonschema.validate(status, SCHEMAS["status"])
    assert (status["best"]["bytes"], status["best"]["original_bytes"]) == (now, 4 * weights)
    assert (status["chip"]["chip"], status["chip"]["int8_bytes"]) == ("ascend310", int8)
    assert said in " ".join(run("status", "study.toml").stdout.replace("│", " ").split())
    page = build_page(record)
    assert said in page and "What ascend310 loads" in page
    for name, size in layers.items():
        assert f"{size:,}" in page[page.index("What ascend310 loads") :], name
    assert (folder / "out/tiny/tiny_nuq_layer_record.txt").read_text().split(";") == [
        name for name, size in layers.items() if size < plain[name]
    ]


def model_files(folder):
    return folder / "tiny.prototxt", folder / "tiny.caffemodel"


@pytest.mark.parametrize("found_by", ["user", "study"])
def test_layers_left_float_are_float_in_both_numbers(found_by, chip_task, monkeypatch):
    floats = ["small", "grouped"]
    if found_by == "study":  # it decides after it was made, with all layers at int8
        found = FloatLayers(tuple(floats), "int8 costs too much")
        monkeypatch.setattr("autonuq.study.run.decide_float_layers", lambda *rest: found)
        monkeypatch.setattr("autonuq.study.preparation.stored_float_layers", lambda study: found)
    task = replace(chip_task, float_layers=floats if found_by == "user" else "auto")
    record = StudyRun(task).run(exists=False).record()
    layers = loaded_bytes(record)
    assert (layers["small"], layers["grouped"]) == (4 * 288, 4 * 512)
    assert record.int8_bytes == 4 * (288 + 512) + 9 * 32 * 32 + 16 * 128
    assert record.best.size_bytes == sum(layers.values())
    assert record.int8_bytes - record.best.size_bytes == 9 * 32 * 32 - layers["large"] > 0
    loaded = {layer.layer: layer for layer in record.chip.layers}
    assert sum(layer.device_bytes for layer in loaded.values()) == record.int8_bytes
    assert loaded.keys() == layers.keys() and [name for name in loaded if loaded[name].is_compressed] == ["large"]
    page = build_page(record)
    assert f"<td>{loaded['small'].reason}</td>" in page[page.index("What ascend310 loads") :]


def test_layers_that_the_chip_leaves_alone_are_not_searched(chip_task):
    study = StudyRun(chip_task).run(exists=False)
    for trial in study.optuna.get_trials():
        assert trial.params.keys() <= {"ratio/large"}
    described = {layer.name: layer for layer in study.record().layers}
    assert described["small"].reason.startswith("not compressed on ascend310: 288 bytes")
    assert (described["small"].treatment, described["large"].treatment) == ("uniform", "nuq")


def test_without_a_mark_the_study_ends_after_int8(chip_file, run, monkeypatch):
    monkeypatch.setattr("autonuq.quant.atc.chips.MARK_BYTES", 10**9)
    path = chip_file('chip = "ascend910"')
    ended = run("tune", "study.toml")
    assert ended.returncode == 0, ended.stderr
    why = "ascend910 loads every layer as int8, so there is nothing to search"
    assert why in " ".join(ended.stdout.split())
    record = load_study(path).record()
    assert [trial.origin for trial in record.trials] == ["int8"]
    assert record.stopped.startswith(why) and record.best.size_bytes == record.int8_bytes
    assert (path.parent / "out/tiny/tiny_nuq_layer_record.txt").read_text() == ""
    status = run("status", "study.toml", "--json")
    assert json.loads(status.stdout)["stopped"] == record.stopped
    assert why in " ".join(run("status", "study.toml").stdout.replace("│", " ").split())
    assert why in build_page(record)
    checked = run("check", "study.toml")
    assert why in " ".join(checked.stdout.split() + checked.stderr.split())
    again = run("resume", "study.toml", "--trials", 5)
    assert again.returncode == 0 and load_study(path).record().counts.complete == 1


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampler", ["rate-distortion", "tpe"])
@pytest.mark.parametrize("float_layers", ["never", ["small"]])
def test_where_int8_was_not_scored_before_it_is_the_one_trial(sampler, float_layers, jobs, chip_task, monkeypatch):
    """AMCT's call asks for no float layers, so that nothing scores int8 before the trials."""
    task = replace(chip_task, sampler=sampler, float_layers=float_layers, chip="", codec="fixed")
    config = default_config(load_graph(task.source.model, task.source.weights))
    layers = {name: replace(own, weights=replace(own.weights, algorithm="arq")) for name, own in config.layers.items()}
    task = replace(task, config=replace(config, layers=layers))  # other processes know the real size of marks
    record = StudyRun(task).run(exists=False, jobs=jobs).record()
    assert record.best is not None and record.counts.complete in range(1, 1 + jobs)
    assert "nothing to search" in record.stopped
    again = StudyRun(replace(task, n_trials=9)).run(exists=True).record()
    assert again.trials == record.trials and again.stopped == record.stopped


def test_check_says_what_is_counted(chip_file, run):
    chip_file('chip = "ascend310"')
    ended = run("check", "study.toml", "--json")
    assert ended.returncode == 0, ended.stderr
    said = "1 of them searched; codec ascend on ascend310, its compiler compresses the layers that it marks"
    assert said in ended.stdout


def test_it_resumes_as_it_was_and_not_with_other_bytes(chip_task):
    first = StudyRun(chip_task).run(exists=False).record()
    more = replace(chip_task, n_trials=5)
    record = StudyRun(more).run(exists=True).record()
    found = [[(trial.points, trial.size_bytes) for trial in one.trials] for one in (first, record)]
    assert found[1][:3] == found[0]
    assert (record.counts.complete, record.chip) == (5, first.chip)
    for other in ({"chip": "ascend910"}, {"marks": "all"}, {"chip": "", "codec": "ascend"}, {"chip": ""}):
        with pytest.raises(StudyError, match="was started with another.* codec"):
            StudyRun(replace(more, **other)).run(exists=True)


def test_it_resumes_from_its_folder(chip_network, working_directory):
    evaluator = load_evaluator("evaluate.py:Agreement", chip_network, 8)
    arguments = {"chip": "ascend310", "marks": "all", "out": "out", "n_trials": 2}
    study = tune("tiny.prototxt", "tiny.caffemodel", evaluator, **arguments)
    assert study.optuna.user_attrs[TASK]["chip"] == "ascend310"
    record = resume("out", evaluator=evaluator, trials=3).record()
    assert record.counts.complete == 3 and record.chip == study.record().chip


def test_a_worker_elsewhere_counts_the_same(chip_network, chip_task, tmp_path):
    """What arrives with the artifacts has the chip, and the file's marks, with nothing else at hand."""
    write_marks(chip_network, ["small"])
    (chip_network / "quant.cfg").write_text(CFG.format('chip: "ascend310" mapping_file: "om.json"'))
    task = replace(chip_task, chip="", cfg=chip_network / "quant.cfg")
    with pytest.warns(UserWarning, match="The file counts"):
        study = StudyRun(task).run(exists=False)
    assert [name for name in study.record().layer_levels(study.record().best)] == ["small", "large", "grouped", "fc"]
    for name in ("quant.cfg", "om.json", "tiny.prototxt", "tiny.caffemodel"):
        (chip_network / name).unlink()
    evaluator = load_evaluator("evaluate.py:Agreement", chip_network, 8)
    there = load_stored_task(
        study.name, task.storage, evaluator=evaluator, out=tmp_path / "there", artifacts=task.artifacts_location
    )
    model = quantized_model(there)
    assert model.config.target == Target(chip="ascend310", marked=("small",))
    assert model.nuq_layers == ("small",)
    assert StudyRun(there).fingerprint == study.optuna.user_attrs[FINGERPRINT]


def test_a_worker_joins_and_one_of_another_chip_does_not(chip_task, tmp_path):
    study = StudyRun(chip_task).run(exists=False)
    study.optuna.set_user_attr(TARGET_TRIALS, 5)
    there = replace(chip_task, out=tmp_path / "there", artifacts=chip_task.artifacts_location)
    with pytest.raises(StudyError, match="was started with another codec"):
        work(replace(there, chip="ascend910"))
    record = work(replace(there, chip="")).record()  # what it does not say, the study does
    assert record.counts.complete == 5
    large = next(layer for layer in record.layers if layer.name == "large")
    for trial in record.trials:
        sizes = {row.layer.name: row.size_bytes for row in record.layer_rows(trial)}
        assert trial.size_bytes == sum(sizes.values())
        assert sizes["large"] <= large.rates_bytes[0]


def write_marks(folder, marked):
    attributes = [{"key": "_fe_weight_compress", "value": {"b": True}}]
    operators = [{"name": name, "attr": attributes} for name in marked]
    (folder / "om.json").write_text(json.dumps({"graph": [{"op": operators}]}))


@pytest.mark.filterwarnings("ignore:.*differs from the prediction", "ignore:.*mapping_file is of")
@pytest.mark.parametrize(
    ("block", "keys", "searched"),
    [
        ('chip: "ascend310"', "", ["large"]),
        ('chip: "ascend310"', 'marks = "all"', ["small", "large", "fc"]),
        ('chip: "ascend310" marks: "all"', "", ["small", "large", "fc"]),
        ('chip: "ascend310" marks: "all"', 'marks = "compiler"', ["large"]),
        ('chip: "ascend310" mapping_file: "om.json"', "", ["fc"]),
        ('mapping_file: "om.json"', 'chip = "ascend910"', ["fc"]),
        ('chip: "ascend310" mapping_file: "om.json"', 'chip = "ascend910"', ["large"]),
        ("", 'chip = "ascend310"', ["large"]),
    ],
)
def test_the_study_s_own_word_comes_before_the_cfg_s(block, keys, searched, chip_file):
    path = chip_file(f'cfg = "quant.cfg"\n{keys}')
    write_marks(path.parent, ["fc"])
    (path.parent / "quant.cfg").write_text(CFG.format(block))
    model = quantized_model(load_task(path))
    assert list(model.nuq_layers) == searched
    assert model.config.target.codec_name == "ascend"


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["entropy", "fixed"])
def test_an_older_study_whose_cfg_has_a_chip_goes_on(codec, chip_network, task, monkeypatch):
    """There a chip only said which layers to search; what was counted is counted still, on every resumption."""
    (chip_network / "quant.cfg").write_text(CFG.format('chip: "ascend310"'))
    task = replace(task, codec=codec, cfg=chip_network / "quant.cfg", counts_chip=False)
    monkeypatch.setattr("autonuq.study.run.store_chip", lambda study, found: None)  # as that version did
    before = StudyRun(task).run(exists=False)
    assert CHIP not in before.optuna.user_attrs and before.record().chip is None
    for trials in (4, 5):
        again = StudyRun(replace(task, counts_chip=True, n_trials=trials)).run(exists=True).record()
        assert again.counts.complete == trials and again.codec == codec and again.chip is None
    stored = replace(load_stored_task(before.name, task.storage, evaluator=task.evaluator), n_trials=6)
    assert StudyRun(stored).run(exists=True).record().counts.complete == 6


def test_a_study_without_a_chip_is_not_taken_for_an_older_one(chip_network, task):
    (chip_network / "quant.cfg").write_text(CFG.format('mapping_file: "om.json"'))
    write_marks(chip_network, ["large"])
    task = replace(task, cfg=chip_network / "quant.cfg")
    StudyRun(task).run(exists=False)
    (chip_network / "quant.cfg").write_text(CFG.format('mapping_file: "om.json" chip: "ascend310"'))
    with pytest.raises(StudyError, match="was started with another codec"):
        StudyRun(replace(task, n_trials=4)).run(exists=True)


BAD = {
    'chip = "ascend31"': "'quantization.chip' must be one of ascend310, ascend310b, ascend310p, ascend910. Got "
    "'ascend31' instead. Did you mean 'ascend310'",
    'chip = "ascend310"\nmarks = "compilers"': "'quantization.marks' must be one of compiler, all. Got 'compilers' "
    "instead. Did you mean 'compiler'",
    'marks = "all"': "'quantization.marks' must be left out without a chip",
    'chip = "ascend310"\ncodec = "entropy"': "'quantization.codec' must be 'ascend' or left out for ascend310, which "
    "reads no other. Got 'entropy' instead",
    "chip = 310": "'quantization.chip' must be text",
}


@pytest.mark.parametrize("keys", BAD)
@pytest.mark.parametrize("command", ["tune", "check"])
def test_bad_words_in_a_study_file(keys, command, chip_file, run):
    path = chip_file(keys)
    ended = run(command, "study.toml")
    assert ended.returncode == 6
    assert BAD[keys] in " ".join((ended.stdout + ended.stderr).split())
    assert not (path.parent / "out").exists()


def test_a_codec_beside_a_chip_of_the_cfg_is_refused(chip_file, run):
    path = chip_file('cfg = "quant.cfg"\ncodec = "entropy"')
    (path.parent / "quant.cfg").write_text(CFG.format('chip: "ascend310"'))
    ended = run("tune", "study.toml")
    assert ended.returncode == 6
    assert "codec must be 'ascend' or left out for ascend310" in " ".join(ended.stderr.split())
    (path.parent / "quant.cfg").write_text(CFG.format('chip: "ascend3100"'))
    ended = run("tune", "study.toml")
    assert ended.returncode == 4
    assert "quant.cfg: The 'nuq_config.chip' key must be one of ascend310" in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"chip": "ascend"}, "chip must be one of ascend310, .*Did you mean"),
        ({"chip": "ascend310", "codec": "fixed"}, "codec must be 'ascend' or left out for ascend310"),
        ({"chip": "ascend310", "marks": "some"}, "marks must be one of compiler, all"),
        ({"marks": "all"}, "marks must be left out without a chip"),
        ({"codec": "asend"}, "codec must be one of fixed, entropy, ascend.*Did you mean 'ascend'"),
    ],
)
def test_bad_arguments_of_tune(arguments, words, chip_network, working_directory):
    evaluator = load_evaluator("evaluate.py:Agreement", chip_network, 8)
    with pytest.raises(StudyError, match=words):
        tune("tiny.prototxt", "tiny.caffemodel", evaluator, out="out", **arguments)


def test_the_lines_of_a_new_study_file_hold_when_uncommented(chip_network, run):
    made = run("new", "mine", "--model", "tiny.prototxt", "--weights", "tiny.caffemodel")
    assert made.returncode == 0, made.stderr
    path = chip_network / "mine/study.toml"
    text = path.read_text().replace("# chip", "chip").replace("# marks", "marks")
    path.write_text(text.replace('codec = "entropy"', '# codec = "entropy"', 1))
    task = load_task(path)
    assert task.target == Target(chip="ascend310", marks="all")
    path.write_text(text)
    ended = run("tune", "mine/study.toml")
    assert ended.returncode == 6 and "left out for ascend310" in " ".join(ended.stderr.split())
