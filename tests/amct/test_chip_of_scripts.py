"""What an unchanged script's bytes are counted with: its keywords, its configuration, the environment."""

import json
from pathlib import Path

import pytest

import autonuq.amct as amct
from autonuq.errors import QuantizationError, StudyError
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.storage.open import default_url
from autonuq.study.locate import load_study

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*the configuration names no nuq_quantize layer"),
    pytest.mark.filterwarnings("ignore:.*differs from the prediction", "ignore:.*nuq_config changes nothing"),
    pytest.mark.filterwarnings("ignore:.*keeps uniform int8", "ignore:.*gains nothing", "ignore:.*ATC"),
]
CHIP = 'nuq_config { chip: "ascend310" nuq_quantize { num_steps: 32 } }'


@pytest.fixture
def script(chip_network):
    """Run a script of AMCT's kind: (text of the .cfg, keywords of auto_nuq) -> (record of its study, log)."""
    files = [str(chip_network / f"tiny.{suffix}") for suffix in ("prototxt", "caffemodel")]

    def call(cfg="", **keywords):
        (chip_network / "quant.cfg").write_text(f"batch_num: 2\n{cfg}")
        config, prefix = str(chip_network / "config.json"), str(chip_network / "T")
        amct.create_quant_config(config, *files, config_defination=str(chip_network / "quant.cfg"))
        evaluator = load_evaluator("evaluate.py:Agreement", chip_network, 8)
        amct.auto_nuq(*files, evaluator, config, str(chip_network / "r.txt"), prefix, n_trials=2, **keywords)
        return left_of(chip_network)

    return call


def left_of(folder):
    """Return the record of a script's study, and the log."""
    log = Path("amct_log/amct_caffe.log").read_text()
    return load_study("T", default_url(folder / "T_study")).record(), log


def end_early(*_):
    raise StudyError("that is enough")


MARKED = "ascend on ascend310, its compiler compresses the layers that it marks"
UNREAD = "; no chip reads it"
CASES = {
    "nothing said": ("", {}, "", f"entropy{UNREAD}"),
    "environment": ("", {}, "fixed", f"fixed{UNREAD}"),
    "environment, of a chip": ("", {}, "ascend", "ascend\n"),
    "nuq_config over environment": (
        'nuq_config { mapping_file: "om.json" codec: "fixed" nuq_quantize { } }',
        {},
        "ascend",
        f"fixed{UNREAD}",
    ),
    "chip over environment": (CHIP, {}, "entropy", f"{MARKED}\n"),
    "keyword over environment": ("", {"codec": "ascend"}, "entropy", "ascend\n"),
    "keyword over nuq_config": (
        'nuq_config { mapping_file: "om.json" codec: "fixed" nuq_quantize { } }',
        {"codec": "ascend"},
        "entropy",
        "ascend\n",
    ),
    "keyword for a chip": ("", {"chip": "ascend310"}, "zip", f"{MARKED}\n"),
    "marks over nuq_config": (
        CHIP,
        {"marks": "all"},
        "",
        "ascend on ascend310, its compiler compresses all layers\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_who_says_it_first_and_what_the_log_says(case, script, monkeypatch, chip_network):
    cfg, keywords, variable, said = CASES[case]
    monkeypatch.setenv("AUTONUQ_CODEC", variable)
    monkeypatch.setattr("autonuq.study.run.score_original", end_early)
    write_marks(chip_network, ["large"])
    with pytest.raises(StudyError, match="that is enough"):
        script(cfg, **keywords)
    record, log = left_of(chip_network)
    assert f"weights are counted with {said}" in log
    assert record.codec == said.split()[0].rstrip(";")
    assert (record.chip is None) == ("on ascend310" not in said)


def write_marks(folder, marked):
    attributes = [{"key": "_fe_weight_compress", "value": {"b": True}}]
    operators = [{"name": name, "attr": attributes} for name in marked]
    (folder / "om.json").write_text(json.dumps({"graph": [{"op": operators}]}))


def test_the_log_tells_the_three_numbers_and_the_layers(script, chip_network):
    record, log = script(CHIP)
    assert record.say_transfer() in log
    assert f"ascend310 loads {record.best.size_bytes:,} bytes of weights; with int8 only {record.int8_bytes:,}" in log
    assert "layer 'large': non-uniform weights" in log and "layer 'small': uniform weights" in log
    assert (chip_network / "T_nuq_layer_record.txt").read_text() == "large"


def test_a_keyword_s_chip_says_which_layers_are_searched(script):
    with pytest.warns(UserWarning, match="every layer that can carry a codebook and that ascend910 compresses is sear"):
        record, log = script(chip="ascend910")
    assert {layer.name: layer.treatment for layer in record.layers}["small"] == "uniform"
    assert "layer 'small': uniform weights" in log and "layer 'large': non-uniform weights" in log


def test_marks_of_a_mapping_file_come_through_config_json(script, chip_network):
    write_marks(chip_network, ["small"])
    record, log = script('nuq_config { chip: "ascend310" mapping_file: "om.json" nuq_quantize { } }')
    document = json.loads((chip_network / "config.json").read_text())
    assert (document["chip"], document["marked_layers"]) == ("ascend310", ["small"])
    assert [layer.layer for layer in record.chip.layers if layer.is_compressed] == ["small"]
    assert [layer.name for layer in record.layers if layer.treatment == "nuq"] == ["small"]
    assert "layer 'large': uniform weights" in log


def test_without_a_mark_int8_is_written_and_the_log_says_why(script, chip_network, monkeypatch):
    monkeypatch.setattr("autonuq.quant.atc.chips.MARK_BYTES", 10**9)
    record, log = script(CHIP)
    assert "stopped: ascend310 loads every layer as int8, so there is nothing to search" in log
    assert record.best.size_bytes == record.int8_bytes
    assert (chip_network / "T_nuq_layer_record.txt").read_text() == ""
    assert (chip_network / "T_deploy_model.prototxt").exists()


@pytest.mark.parametrize(
    ("cfg", "keywords", "variable", "error", "words"),
    [
        ("", {}, "asend", StudyError, "AUTONUQ_CODEC must be one of fixed, entropy, ascend. Got 'asend'.*'ascend'"),
        ("", {"chip": "ascend31"}, "", StudyError, "chip must be one of ascend310, .*Did you mean 'ascend310'"),
        ("", {"chip": "ascend310", "codec": "entropy"}, "", StudyError, "codec must be 'ascend' or left out"),
        (CHIP, {"codec": "entropy"}, "", StudyError, "codec must be 'ascend' or left out for ascend310"),
        ("", {"marks": "all"}, "", StudyError, "marks must be left out without a chip"),
        (CHIP, {"marks": "al"}, "", StudyError, "marks must be one of compiler, all.*Did you mean 'all'"),
        (CHIP.replace("310", "320"), {}, "", QuantizationError, "quant.cfg: The 'nuq_config.chip' key must be one of"),
    ],
)
def test_bad_words(cfg, keywords, variable, error, words, script, chip_network, monkeypatch):
    monkeypatch.setenv("AUTONUQ_CODEC", variable)
    with pytest.raises(error, match=words):
        script(cfg, **keywords)
    assert not (chip_network / "T_study").exists()


def test_static_codebooks_that_are_asked_for_are_listed(chip_network):
    """The list is what the call gave codebooks, whatever the chip marks: AMCT's list is."""
    override = 'override_layer_configs { layer_name: "fc" calibration_config { nuq_quantize { num_steps: 16 } } }'
    (chip_network / "quant.cfg").write_text(f"batch_num: 1 {CHIP} {override}")
    files = [str(chip_network / f"tiny.{suffix}") for suffix in ("prototxt", "caffemodel")]
    config, record = str(chip_network / "config.json"), str(chip_network / "r.txt")
    amct.create_quant_config(config, *files, config_defination=str(chip_network / "quant.cfg"))
    graph = amct.init(config, *files, record)
    modified = [str(chip_network / f"modified.{suffix}") for suffix in ("prototxt", "caffemodel")]
    amct.quantize_model(graph, *modified)
    load_evaluator("evaluate.py:Agreement", chip_network, 8).eval_model(*modified, 1)
    amct.save_model(graph, "Both", str(chip_network / "S"))
    assert (chip_network / "S_nuq_layer_record.txt").read_text() == "large;fc"
