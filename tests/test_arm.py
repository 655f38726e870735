"""A study on an emulated ARM Debian: what it writes is what this machine writes, and each reads the other's.

Neither root nor a registered emulator is needed: only Python itself is emulated, on the libraries of a Debian for ARM,
with the packages that pip finds for it.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny_network import write_tiny, write_tiny_study

from autonuq.compress.packed_file import load_packed
from autonuq.study.locate import load_study

pytestmark = pytest.mark.arm

CHECKOUT = Path(__file__).parent.parent
EMULATOR, BOOTSTRAP = "qemu-aarch64-static", "mmdebstrap"
DEBIAN, PYTHON = "bookworm", "3.11"
GLIBC = ("2_17", "2_26", "2_27", "2_28", "2_31", "2_34")
PACKED = "out/tiny/tiny.nuq"
MAIN = "from autonuq.cli import main; main()"
# onnxruntime looks at the machine's processor, and must find the one that is emulated.
PROCESSOR = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


def called(*command, **settings):
    """Run a program; what it said comes with its failure."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}\n{done.stderr}"
    return done.stdout


class Machine:
    """Runs Python on one of the two machines, its own folder the working directory."""

    def __init__(self, folder, python, environment):
        self.folder, self._python = folder, python
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", **environment}

    def python(self, *arguments, **environment):
        return called(*self._python, *arguments, cwd=self.folder, env=self._environment | environment)

    def autonuq(self, *arguments):
        return self.python("-c", MAIN, *arguments)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return Machine(tmp_path_factory.mktemp("here"), [sys.executable], {"PYTHONPATH": str(CHECKOUT)})


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    if missing := [name for name in (EMULATOR, BOOTSTRAP) if shutil.which(name) is None]:
        pytest.skip(f"an ARM Debian needs {' and '.join(missing)}")
    folder = tmp_path_factory.mktemp("arm")
    root, packages = folder / "root", folder / "packages"
    packages_of_debian = "--include=python3-minimal,python3,libstdc++6"
    settings = ("--quiet", "--architectures=arm64", "--variant=extract", "--skip=check/qemu")
    called(BOOTSTRAP, *settings, packages_of_debian, DEBIAN, root)
    install(packages)
    describe_processor(root)
    python = root / "usr" / "bin" / f"python{PYTHON}"
    environment = {"QEMU_CPU": "cortex-a72", "PYTHONPATH": str(packages), "NUMBA_CACHE_DIR": str(folder / "compiled")}
    machine = Machine(folder / "home", [EMULATOR, "-L", root, python], environment)
    machine.folder.mkdir()
    return machine


def install(packages):
    """Let this machine's pip install what a plain install has on ARM, and the checkout."""
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    platforms = [f"--platform=manylinux_{version}_aarch64" for version in GLIBC]
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", packages)
    of_arm = ("--platform=manylinux2014_aarch64", *platforms, "--implementation=cp", f"--python-version={PYTHON}")
    called(*pip, *of_arm, "--only-binary=:all:", *wanted)
    called(*pip, "--no-deps", CHECKOUT)


def describe_processor(root):
    for name, text in {
        "proc/cpuinfo": PROCESSOR,
        "sys/devices/system/cpu/possible": "0\n",
        "sys/devices/system/cpu/present": "0\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture(scope="module")
def studies(arm, here):
    """Let both machines run the same study; return the folders."""
    for machine in (here, arm):
        write_tiny(machine.folder)
        write_tiny_study(machine.folder)
        machine.autonuq("tune", "study.toml", "--trials", "3")
    return here.folder, arm.folder


def test_it_is_an_arm(arm):
    assert arm.python("-c", "import platform; print(platform.machine())") == "aarch64\n"


def test_every_codec_writes_the_same_bytes(arm, here):
    script = Path(__file__).with_name("both_machines.py")
    found = json.loads(arm.python(script))
    assert found and found == json.loads(here.python(script))


def test_second_moments_where_blas_gets_them_wrong(arm):
    """The emulator's own processor has SME, for which OpenBLAS's `ssyrk` is wrong: see `second_moments`."""
    script = (
        "import numpy as np; from autonuq.quant.inputs import second_moments;"
        "x = np.random.default_rng(0).random((300, 72), np.float32); exact = x.astype(float);"
        "print(np.abs(second_moments(x) - exact.T @ exact.copy()).max())"
    )
    assert float(arm.python("-c", script, QEMU_CPU="max")) < 1e-2


def test_commands(arm, here, studies):
    assert "tune" in arm.autonuq("--help")
    inspected = ("inspect", "tiny.prototxt", "tiny.caffemodel", "--json")
    assert json.loads(arm.autonuq(*inspected))["layers"] == json.loads(here.autonuq(*inspected))["layers"]


def test_trials_are_counted_the_same(studies):
    ours, theirs = ([trial.value for trial in load_study(folder / "study.toml").optuna.trials] for folder in studies)
    assert len(ours) == 3 and ours == theirs


def test_what_one_machine_packed_the_other_packs_and_unpacks(arm, here, studies):
    """Scales differ in the last bits of float32, as sums do on another processor; the bytes of the codes do not."""
    ours, theirs = (load_packed(folder / PACKED).layers for folder in studies)
    assert [layer.stream for layer in ours.values()] == [layer.stream for layer in theirs.values()]
    for packer, unpacker in ((here, arm), (arm, here)):
        unpacker.autonuq("unpack", packer.folder / PACKED, "-o", "unpacked")
        for end in ("model.prototxt", "weights.caffemodel"):
            (unpacked,) = unpacker.folder.glob(f"unpacked*_{end}")
            assert unpacked.read_bytes() == (packer.folder / f"out/tiny/tiny_fake_quant_{end}").read_bytes()
