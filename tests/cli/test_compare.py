"""`compare`, and the first screens of `status`, as a user types them."""

import json
import re

import jsonschema
import pytest

from autonuq.cli.documents import SCHEMAS


@pytest.fixture
def two(run, tiny_study):
    """Two studies of the tiny network, of three and of two trials, that cannot be taken for each other."""
    other = tiny_study.with_name("other.toml")
    other.write_text(tiny_study.read_text().replace('name = "tiny"', 'name = "other"'))
    assert run("tune", tiny_study, "--trials", "3").returncode == 0
    assert run("tune", other, "--trials", "2").returncode == 0
    return tiny_study, other


def test_studies_side_by_side(run, two):
    said = run("compare", *two, "-o", "fronts.html")
    assert said.returncode == 0, said.stderr
    lines = {line.split()[0]: line.split()[1:] for line in said.stdout.splitlines() if line.strip()}
    assert lines["tiny"] == ["other"]
    for word in ("ratio", "bytes", "loss", "limit", "confirmed", "trials", "time", "codec"):
        assert word in lines, word
    assert "3 of 3" in said.stdout and "2 of 2" in said.stdout
    assert {"conv", "fc"} <= lines.keys()
    assert "plotly" in (two[0].parent / "fronts.html").read_text().lower()

    document = json.loads(run("compare", *two, "--json").stdout)
    jsonschema.validate(document, SCHEMAS["compare"])
    for study, path in zip(document["studies"], two, strict=True):
        best = json.loads(run("status", path, "--json").stdout)["best"]
        assert [study[key] for key in ("trial", "ratio", "bytes", "loss")] == [
            best[key] for key in ("trial", "ratio", "bytes", "loss")
        ]

    folder = run("compare", "out/tiny", two[1])
    assert folder.stdout == run("compare", *two).stdout

    trials = json.loads(run("compare", two[0], "--trial", "0", "--trial", "best", "--json").stdout)
    assert [study["trial"] for study in trials["studies"]] == [0, document["studies"][0]["trial"]]
    assert trials["studies"][0]["label"] == "tiny #0"


def test_what_compare_refuses(run, tiny_study):
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    two = (tiny_study, tiny_study)
    alone = run("compare", tiny_study)
    assert alone.returncode == 2 and "two trials of one by --trial" in " ".join(alone.stderr.replace("│", " ").split())
    assert run("compare", *two, "--trial", "first").returncode == 2
    missing = run("compare", *two, "--trial", "77")
    assert missing.returncode == 6 and "trial 77 is not a finished trial" in missing.stderr
    wrong = run("compare", *two, "-o", "fronts.gif")
    assert wrong.returncode == 2 and ".svg" in wrong.stderr


def test_status_says_what_to_do_next_and_which_layers_hurt(run, tiny_study):
    evaluator = tiny_study.parent / "evaluate.py"
    lines = '    limit = 0.1\n    meaning = "share of decisions that stay"\n    random_data = True\n'
    evaluator.write_text(evaluator.read_text().replace("    limit = 0.1\n", lines))
    tuned = run("tune", tiny_study, "--trials", "3")
    assert "next    score real data first" in tuned.stdout
    assert "on random data" in tuned.stdout
    said = run("status", tiny_study).stdout
    assert re.match("warning +on random data: this says nothing about the network's task", said)
    words = [line.split()[0] for line in said.splitlines() if line[:1].isalpha()]
    assert words[:9] == ["warning", "study", "meaning", "ratio", "loss", "confirmed", "next", "layers", "layer"]
    assert words[-2:] == ["trials", "metric"]
    assert {"conv", "fc"} & set(words[9:-2])
    document = json.loads(run("status", tiny_study, "--json").stdout)
    jsonschema.validate(document, SCHEMAS["status"])
    assert document["meaning"] == "share of decisions that stay"
    assert [step["kind"] for step in document["next"]] == ["data"]
    parts = document["layer_losses"]["parts"]
    assert {part["layer"] for part in parts} == {"conv", "fc", None}
    assert sum(part["share"] for part in parts) == pytest.approx(1)
    compared = run("compare", tiny_study, "--trial", "0", "--trial", "1")
    assert "note: tiny: on random data" in compared.stdout
