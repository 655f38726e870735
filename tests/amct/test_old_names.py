"""The names of AMCT's time: given back to the runner's scripts, and to nobody else."""

import subprocess
import sys

import numpy as np

from autonuq.amct.old_names import OLD_NAMES

EVERY_NAME = "\n".join(
    ["import importlib"]
    + [f"importlib.import_module('{module}').{name}" for module, names in OLD_NAMES.items() for name in names]
)


def run(folder, text, *launcher):
    (folder / "script.py").write_text(text)
    command = [sys.executable, *launcher, "script.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


USES = """
import collections, fractions, multiprocessing, time
import xml.etree.cElementTree as ElementTree
from collections import Mapping

import numpy as np
from PIL import Image

assert np.fromstring(b"\\1\\2\\3\\4", np.uint8).tolist() == [1, 2, 3, 4]
assert np.fromstring(b"\\1\\0\\2\\0", dtype="<u2", count=1).tolist() == [1]
assert np.fromstring("ab", np.int8).tolist() == [97, 98]
np.fromstring(bytes(8), np.uint8)[0] = 1  # it is a copy, and may be written
assert np.fromstring(np.arange(3.0).tobytes()).tolist() == [0, 1, 2]
assert np.fromstring("1 2", sep=" ").tolist() == [1, 2]
assert np.fromstring("1,2", np.int, sep=",").tolist() == [1, 2]
assert np.mean.__module__ == "numpy" and np.bool in (np.bool_, bool)  # what is there is left alone
assert np.zeros(2, np.bool).dtype == bool and np.dtype(np.long).kind == "i"
assert np.array([1], np.float).dtype == np.float_ == np.float64
assert np.asscalar(np.array([3])) == 3 and np.asfarray([1]).dtype == np.float64
assert np.in1d([[1, 2], [3, 4]], [2, 3]).tolist() == [False, True, True, False]
assert np.msort(np.array([[2], [1]])).tolist() == [[1], [2]]
assert np.isnan(np.NaN) and np.NINF < 0 < np.Inf and np.alltrue([1, 1]) and np.product([2, 3]) == 6
assert np.trapz([1, 1]) == 1 and np.row_stack([[1], [2]]).shape == (2, 1) and np.math.pi > 3
assert time.clock() >= 0 and fractions.gcd(4, 6) == 2 and isinstance({}, collections.Mapping)
assert Image.ANTIALIAS == Image.LANCZOS and ElementTree.fromstring("<a/>").tag == "a"


def sum_of(content):
    import amct_caffe, caffe
    return int(np.fromstring(content, np.uint8).sum()) + len(__file__) * 0


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(sum_of, [b"\\1\\2"]) == [3]
    print("done", __file__)
"""


def test_a_script_of_that_time_runs_its_processes_too(tmp_path):
    result = run(tmp_path, f"{EVERY_NAME}\n{USES}", "-m", "autonuq.amct")
    assert (result.returncode, result.stdout) == (0, f"done {tmp_path / 'script.py'}\n"), result.stderr


def test_only_the_runner_gives_them_back(tmp_path):
    text = "import autonuq.amct\nautonuq.amct.install()\nimport numpy as np, amct_caffe, caffe\n"
    probes = ["np.float", "np.asscalar", "np.NaN"]
    text += "".join(f"try:\n    {probe}\n    print('{probe}')\nexcept AttributeError:\n    pass\n" for probe in probes)
    result = run(tmp_path, text)
    there = [probe for probe in probes if hasattr(np, probe.removeprefix("np."))]
    assert (result.returncode, result.stdout.split()) == (0, there), result.stderr


def test_the_script_s_own_errors_are_python_s(tmp_path):
    result = run(tmp_path, "# a line\n1 / 0\n", "-m", "autonuq.amct")
    assert result.returncode == 1
    assert 'File "script.py", line 2, in <module>' in result.stderr
