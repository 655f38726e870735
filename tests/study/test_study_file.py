"""Study files: what is read, and what each mistake is answered with."""

from pathlib import Path

import pytest

from autonuq.errors import StudyError
from autonuq.storage.open import storage_file
from autonuq.study.engines import Workers
from autonuq.study.study_file import load_task

GOOD = """
name = "lenet"
[model]
prototxt = "a.prototxt"
weights = "sub/a.caffemodel"
[evaluator]
class = "evaluate.py:Top1"
evaluate_batch_num = 20
"""


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "study.toml"
        path.write_text(text)
        return path

    return make


def test_paths_are_relative_to_the_file(write, tmp_path):
    task = load_task(write(GOOD))
    assert task.source.model == tmp_path / "a.prototxt"
    assert task.source.weights == tmp_path / "sub/a.caffemodel"
    assert task.out == tmp_path / "out/lenet"
    assert task.storage == f"journal://{tmp_path}/out/lenet/study.journal"
    assert (task.batch_num, task.target.codec_name, task.n_trials, task.seed) == (1, "entropy", 40, 0)


def test_storage_file_is_relative_to_the_study_file(write, tmp_path):
    task = load_task(write(GOOD + '[search]\nstorage = "sqlite:///lenet.db"\n'))
    assert task.storage == f"sqlite:///{tmp_path}/lenet.db"


def test_a_database_may_have_options(write, tmp_path):
    task = load_task(write(GOOD + '[search]\nstorage = "sqlite:///lenet.db?timeout=9"\n'))
    assert task.storage == f"sqlite:///{tmp_path}/lenet.db?timeout=9"
    assert storage_file(task.storage) == tmp_path / "lenet.db"


def test_overrides_are_relative_to_the_working_directory(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = load_task(write(GOOD), out=Path("elsewhere"), storage="journal://j.log")
    assert task.out == tmp_path / "elsewhere"
    assert task.storage == f"journal://{tmp_path}/j.log"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "[search]\ntrails = 3\n", "unknown key of \\[search\\] 'trails'; did you mean 'trials'"),
        (GOOD + "[serach]\ntrials = 3\n", "unknown table 'serach'; did you mean 'search'"),
        ("nmae = 'x'\n" + GOOD, "unknown key 'nmae'; did you mean 'name'"),
        (GOOD + "[search]\ntrials = '3'\n", "'search.trials' must be a whole number. Got '3' instead"),
        (GOOD + "[search]\ntrials = true\n", "'search.trials' must be a whole number"),
        (GOOD + "[search]\ntrials = 0\n", "'search.trials' must be positive"),
        (GOOD + "[search]\nsampler = 'tp'\n", "'search.sampler' must be one of"),
        (GOOD + "[quantization]\ncodec = 'zip'\n", "'quantization.codec' must be one of"),
        (GOOD + "[quantization]\ncfg = 'a.cfg'\nbatch_num = 2\n", "'quantization.batch_num' comes from the cfg file"),
        (GOOD.replace("evaluate_batch_num = 20", ""), "'evaluator.evaluate_batch_num' is missing"),
        (GOOD.replace('name = "lenet"', ""), "'name' is missing"),
        ("name = ", "is no TOML"),
    ],
)
def test_mistakes(write, text, message):
    with pytest.raises(StudyError, match=message):
        load_task(write(text))


def test_levels_of_amct(write):
    assert not load_task(write(GOOD)).amct_levels
    assert load_task(write(GOOD + '[quantization]\nlevels = "amct"\n')).amct_levels
    with pytest.raises(StudyError, match="'quantization.levels' must be one of any, amct"):
        load_task(write(GOOD + '[quantization]\nlevels = "16"\n'))


def test_missing_file(tmp_path):
    with pytest.raises(StudyError, match="study file cannot be read"):
        load_task(tmp_path / "none.toml")


def test_confirm_changes_what_it_names(write):
    task = load_task(write(GOOD + "[confirm]\nevaluate_batch_num = 100\n"))
    assert (task.confirm.what, task.confirm.evaluate_batch_num) == ("evaluate.py:Top1", 100)
    assert task.evaluator.evaluate_batch_num == 20


def test_confirm_with_an_evaluator_of_its_own(write):
    task = load_task(write(GOOD + '[confirm]\nclass = "other.py:Top5"\nevaluate_batch_num = 7\n'))
    assert (task.confirm.what, task.confirm.evaluate_batch_num) == ("other.py:Top5", 7)


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_retired_key_is_ignored_with_one_warning(write, value):
    with pytest.warns(UserWarning, match="^'search.racing' was taken out, because it did not pay; it is") as warned:
        load_task(write(GOOD + f"[confirm]\nevaluate_batch_num = 9\n[search]\nracing = {value}\n"))
    assert [Path(each.filename).name for each in warned] == [Path(__file__).name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[confirm]\nclass = "other.py:Top5"\n', "in \\[confirm\\].*evaluate_batch_num' is missing"),
        ("[confirm]\nevaluate_batch_nmu = 7\n", "in \\[confirm\\].*did you mean 'evaluate_batch_num'"),
        ("[cofirm]\nevaluate_batch_num = 7\n", "did you mean 'confirm'"),
        ("[search]\nstop_gain = -1\n", "'search.stop_gain' must not be negative"),
        ("[search]\nracing = 1\n", "'search.racing' must be true or false"),
    ],
)
def test_mistakes_of_the_end_of_a_search(write, text, message):
    with pytest.raises(StudyError, match=message):
        load_task(write(GOOD + text))


def test_workers(write):
    assert load_task(write(GOOD)).workers == Workers()
    dask = write(GOOD + '[workers]\nbackend = "dask"\nscheduler = "tcp://host:8786"\njobs = 4\n')
    assert load_task(dask).workers == Workers("dask", "tcp://host:8786", 4)
    ray = write(GOOD + '[workers]\nbackend = "ray"\naddress = "host:6379"\n')
    assert load_task(ray).workers == Workers("ray", "host:6379")
    assert load_task(write(GOOD + "[workers]\njobs = 2\n")).workers == Workers(jobs=2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('backend = "slurm"', "'workers.backend' must be one of dask, ray. Got 'slurm'"),
        ('backend = "dask"', "backend dask needs the address of its scheduler"),
        ('address = "host:6379"', "an address needs a backend"),
        ('backend = "ray"\naddress = "a"\nscheduler = "b"', "are the same thing; remove one"),
        ("jobs = 0", "'workers.jobs' must be positive"),
        ("job = 2", "unknown key of .workers. 'job'; did you mean 'jobs'"),
    ],
)
def test_mistakes_of_workers(write, keys, message):
    with pytest.raises(StudyError, match=message):
        load_task(write(f"{GOOD}[workers]\n{keys}\n"))


DEEP = ".".join("a" * 20_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("evaluate.py:Top1", ""), "'evaluator.class' must name a class, e.g. 'evaluate.py:Top1'. Got ''"),
        (GOOD + "[search]\nseed = 0x" + "f" * 5000, "'search.seed' must be a whole number of 64 bits"),
        (GOOD + "[search]\nseed = " + "9" * 5000, "is no TOML: "),
        (GOOD + "[search]\nstop_gain = nan", "'search.stop_gain' must be finite"),
        (GOOD + "timeout = inf", "'evaluator.timeout' must be finite"),
        (GOOD.replace("lenet", "a\\u0000b"), "'name' must be text without control characters"),
        (GOOD + "[search]\nfloat_layers = ['a', \"b\\n\"]", "'search.float_layers' must be text without control"),
        (GOOD + "a = " + "[" * 5000, "study file is no TOML: it is nested too deeply"),
        (GOOD + "a = " + "{a = " * 5000, "study file is no TOML: it is nested too deeply"),
        (GOOD + DEEP + " = 1", "has a key of too many parts in line 9"),
        (GOOD + "[" + DEEP.replace("a", "'a'") + "]", "has a key of too many parts in line 9"),
        (GOOD + "# " + "x" * (1 << 20), "it must have at most 1,048,576"),
        (GOOD + "x" * 5000 + " = 1", "unknown key of \\[evaluator\\] 'xxx"),
        (GOOD + "[confirm]\nclass = 'a.py:A'", r"toml: in \[confirm\], .* 'evaluator.evaluate_batch_num' is missing"),
        (GOOD.replace("lenet", "x" * 4000), "study.toml|makes no folder"),
        ("out = '" + "x" * 5000 + "'" + GOOD, "what its keys name cannot be read: File name too long"),
    ],
    ids=lambda value: value[-30:],
)
def test_what_a_file_can_hold_is_refused_in_one_short_line(write, text, message):
    path = write(text)
    with pytest.raises(StudyError, match=message) as caught:
        load_task(path)
    assert len(str(caught.value)) < len(str(path)) + 600
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"\xff\xfea", GOOD.encode("utf-16"), b"name = '\xff'", b"\0"])
def test_what_is_no_text_is_refused(write, data):
    path = write("")
    path.write_bytes(data)
    with pytest.raises(StudyError, match=r"study\.toml: study file is no TOML"):
        load_task(path)
