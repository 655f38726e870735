"""A small study to do harm to: its commands run in children of this process, which has imported everything once."""

from __future__ import annotations

import errno
import gc
import importlib.util
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent.parent.parent
LONGEST_S = 120.0

PROTOTXT = """
name: "victim"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 8 dim: 2 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""

EVALUATOR = """
import hashlib, os, time
from pathlib import Path
import numpy as np
import autonuq as nuq

HERE = Path(__file__).parent


class Likeness(nuq.Evaluator):
    seed = 0

    def eval_model(self, model_file, weights_file, batch_num):
        plan = hashlib.sha256(Path(weights_file).read_bytes()).hexdigest()[:12]
        log = os.open(HERE / "calls.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{type(self).__name__} {Path(model_file).name} {plan}\\n".encode())
        os.close(log)
        images = np.random.default_rng(self.seed).standard_normal((batch_num, 8, 2, 6, 6), np.float32)
        own = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        whole = nuq.Net(str(HERE / "net.prototxt"), str(HERE / "net.caffemodel"), nuq.pycaffe.TEST)
        pairs = [(own.forward(data=one)["prob"].copy(), whole.forward(data=one)["prob"].copy()) for one in images]
        time.sleep(float(os.environ.get("VICTIM_PAUSE_S", 0)))
        return 1 - float(np.mean([np.abs(a - b).mean() for a, b in pairs]))

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 0.01


class Other(Likeness):
    seed = 1
"""

AMCT_SCRIPT = """
import sys
sys.path.insert(0, ".")
import amct_caffe as amct
from evaluate import Likeness

amct.create_quant_config("config.json", "net.prototxt", "net.caffemodel")
amct.auto_nuq("net.prototxt", "net.caffemodel", Likeness(evaluate_batch_num=2), "config.json", "record.txt", "res/net",
              n_trials={trials})
"""


def loaded(name: str, path: Path) -> ModuleType:
    """Import a module by its file, under a name that is free."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def warm(folder: Path) -> None:
    """Run a study in this process, so that its children have everything loaded; no thread may be left of it."""
    from autonuq import tune_file
    from autonuq.report import write_report

    for name in ("cli.studies", "cli.looking", "amct", "storage.sql", "storage.exclusion"):
        importlib.import_module(f"autonuq.{name}")
    victim = Victim(folder / "warm", trials=2)
    write_report(tune_file(victim.folder / "study.toml"), victim.folder / "report.html")
    if threading.active_count() > 1:
        raise RuntimeError(f"children would lack these threads: {threading.enumerate()}")
    gc.collect()
    gc.freeze()


@dataclass
class Ended:
    """How a child ended: its exit code, negative for a signal, None where it had to be stopped; what it printed."""

    code: int | None
    output: str
    errors: str

    @property
    def is_uncaught(self) -> bool:
        """Whether an exception reached the top, or what is no error of ours ended it."""
        return "Traceback" in self.errors or self.code in (1, None) or (self.code or 0) < 0


@dataclass
class Child:
    """A function in a process of its own, forked from this one."""

    pid: int
    folder: Path

    @classmethod
    def start(cls, function: Callable[[], object], folder: Path) -> Child:
        """Fork, with the output in files of the folder."""
        names = [folder / f"{time.monotonic_ns()}.{stream}" for stream in ("out", "err")]
        pid = os.fork()
        if pid:
            child = cls(pid, folder)
            child.files = names
            return child
        code = 1
        try:
            os.setsid()
            for descriptor, name in enumerate(names, 1):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(folder)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler)
            function()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def wait(self, longest_s: float = LONGEST_S) -> Ended:
        """Wait for its end; what lasts too long is killed."""
        deadline, code, pause = time.monotonic() + longest_s, None, 0.002
        while code is None and time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(pause)
                pause = min(0.05, 2 * pause)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if code is None:
            os.waitpid(self.pid, 0)
        return Ended(code, *(name.read_text(errors="replace") for name in self.files))

    def kill(self) -> None:
        """Kill it, and it alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    files: list[Path] = field(default_factory=list)


@dataclass
class Victim:
    """The study, in a folder of its own.

    Parameters
    ----------
    folder : Path
    url : str
    name : str
    trials : int
    more : str
        Lines of the study file.
    """

    folder: Path
    url: str = ""
    name: str = "victim"
    trials: int = 6
    more: str = ""
    evaluator_more: str = ""
    mounted: Path | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        (self.folder / "net.prototxt").write_text(PROTOTXT)
        (self.folder / "evaluate.py").write_text(EVALUATOR)
        (self.folder / "script.py").write_text(AMCT_SCRIPT.format(trials=self.trials))
        self._write_weights()
        storage = f'storage = "{self.url}"\n' if self.url else ""
        (self.folder / "study.toml").write_text(
            f'name = "{self.name}"\n[model]\nprototxt = "net.prototxt"\nweights = "net.caffemodel"\n'
            f'[evaluator]\nclass = "evaluate.py:Likeness"\nevaluate_batch_num = 2\n{self.evaluator_more}'
            f"[quantization]\nbatch_num = 1\n[search]\ntrials = {self.trials}\n{storage}{self.more}"
        )

    def _write_weights(self) -> None:
        import numpy as np

        from autonuq.graph.files import load_graph, write_caffemodel

        rng = np.random.default_rng(3)
        graph = load_graph(self.folder / "net.prototxt")
        shapes = {"conv": [(4, 2, 3, 3), (4,)], "fc": [(5, 144), (5,)]}
        blobs = {
            name: [rng.laplace(scale=0.3, size=one).astype(np.float32) for one in own] for name, own in shapes.items()
        }
        layers = [layer.with_(blobs=blobs.get(layer.name, [])) for layer in graph.layers]
        write_caffemodel(graph.with_layers(layers), self.folder / "net.caffemodel")

    @property
    def out(self) -> Path:
        """The study's folder."""
        return self.folder / "out" / self.name

    def start(self, *arguments: str, before: Callable[[], object] | None = None, **environment: str) -> Child:
        """Start a command in a child, after something that it does before."""

        def command() -> None:
            os.environ.update(environment, TMPDIR=str(self.folder / "tmp"))
            import tempfile

            tempfile.tempdir = None
            from autonuq.cli import main

            sys.argv = ["autonuq", *arguments]
            if before is not None:
                before()
            main()

        return Child.start(command, self.folder)

    def script(self, before: Callable[[], object] | None = None) -> Child:
        """Start the script of AMCT's."""

        def run() -> None:
            import tempfile

            os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder / "tmp")
            from autonuq.amct.runner import run_script

            sys.argv = ["script.py"]
            if before is not None:
                before()
            run_script(Path("script.py"))

        return Child.start(run, self.folder)

    def read(self, place: str = "study.toml") -> dict[str, Any] | None:
        """Return the study's trials and its best, None if there is no study."""

        def read() -> None:
            from autonuq.errors import StudyError
            from autonuq.study.locate import load_study

            try:
                record = load_study(place).record()
            except StudyError as error:
                sys.stderr.write(str(error))
                return
            trials = {one.number: [one.state, one.points, one.metric, one.ratio, one.origin] for one in record.trials}
            best = record.best and [record.best.points, record.best.metric, record.best.ratio]
            sys.stdout.write(json.dumps({"trials": trials, "best": best, "original": record.original_metric}))

        found = Child.start(read, self.folder).wait()
        return json.loads(found.output) if found.output else None

    def calls(self) -> list[str]:
        """Return the networks that trials scored, in their order: the digests of their weights."""
        log = self.folder / "calls.log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [plan for kind, name, plan in lines if (kind, name) == ("Likeness", "model.prototxt")]

    def left_behind(self) -> list[str]:
        """Return what no finished run may leave."""
        import re

        mark = re.compile(r"[0-9a-f]{8}-[0-9a-f]+-[0-9a-f]{8}-[0-9a-f]{8}$")
        places = [path for path in self.folder.rglob("*") if "artifacts" not in path.parts]
        bad = ("modified_model.prototxt", "modified_weights.caffemodel", "scratch")
        found = [path for path in places if mark.search(path.name) or path.name in bad or path.suffix == ".rows"]
        found += [path for path in places if path.is_dir() and re.fullmatch(r"trial\d+", path.name)]
        return [str(path.relative_to(self.folder)) for path in found]


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_NEEDS_ROOM = ("open", "fsync", "os.rename", "os.mkdir", "os.link", "os.symlink")
_NAMES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.symlink")


class FileEvents:
    """Counts what a process does to files and to its storage, and does something at one of these events.

    Events are: a file is opened to be written, renamed, deleted, linked, flushed to the disk; a folder is made or
    deleted; a statement is sent to a database; an operation of the storage begins or ends.

    Parameters
    ----------
    at : int
        The number of the event; -1 only counts, to a file.
    act : callable
        Takes what happened.
    """

    def __init__(self, at: int, act: Callable[[str], object] = lambda _: os.kill(os.getpid(), signal.SIGKILL)) -> None:
        self.count, self._at, self._act, self._owner = 0, at, act, 0

    def act_from(self, act: Callable[[str], object], is_lasting: bool = True) -> None:
        """Do something at what needs room: at the event, or at all from there on."""

        def acting(what: str) -> None:
            if is_lasting:
                self._at += 1
            if what.partition(" ")[0] in _NEEDS_ROOM:
                act(what)

        self._act = acting

    def install(self, counts: Path | None = None) -> None:
        """Begin; where only counting is wanted, the number is written to a file with each event."""
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        from autonuq.storage import retries

        self._owner, self._counts = os.getpid(), counts
        fsync, retry = os.fsync, retries.retry

        def flushed(descriptor: int) -> None:
            self.happened("fsync")
            fsync(descriptor)

        def tried(operation: Callable[[], object], *patience: float) -> object:
            self.happened("storage")
            found = retry(operation, *patience)
            self.happened("storage done")
            return found

        os.fsync, retries.retry = flushed, tried
        event.listen(Engine, "before_cursor_execute", lambda *_: self.happened("statement"))
        event.listen(Engine, "commit", lambda *_: self.happened("commit"))
        sys.addaudithook(self._heard)

    def _heard(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and isinstance(path, (str, bytes)):
                text = os.fsdecode(path)
                if not text.startswith("/dev") and "__pycache__" not in text and not text.endswith((".log", ".nbi")):
                    self.happened(f"open {text}")
        elif name in _NAMES:
            self.happened(f"{name} {arguments[0]}")

    def happened(self, what: str) -> None:
        """Count an event of this process."""
        if os.getpid() != self._owner:
            return
        number, self.count = self.count, self.count + 1
        if number == self._at:
            self._act(what)
        elif self._counts is not None:
            owner, self._owner = self._owner, 0
            self._counts.write_text(str(self.count))
            self._owner = owner


def counted(start: Callable[[Callable[[], object]], Child], file: Path) -> tuple[int, Ended]:
    """Run something undisturbed, and return how many events it has."""
    ended = start(lambda: FileEvents(-1).install(file)).wait()
    return int(file.read_text()), ended


def no_room(what: str) -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what.partition(" ")[2] or None)


def limit_files(size_bytes: int) -> Callable[[], None]:
    """Let no file of the process become larger."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    return limit


class Places(ExitStack):
    """URLs of new storages, by their kind; a server is started when it is first asked for, and ends with the context.

    Parameters
    ----------
    folder : Path
        Where servers have their data.
    """

    _FILES: ClassVar = {"journal": "journal://{}/study.journal", "sqlite": "sqlite:///{}/study.db"}

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._servers: dict[str, str | None] = {}

    def url(self, kind: str, folder: Path) -> str | None:
        """Return a URL, None if such a server is not installed here."""
        if kind in self._FILES:
            return self._FILES[kind].format(folder)
        if kind not in self._servers:
            self._servers[kind] = self._started(kind)
        return self._servers[kind]

    def _started(self, kind: str) -> str | None:
        bench = loaded("bench_storages", ROOT / "studies/bench/storages.py")
        context = next(one for name, one in bench.STORAGES.items() if name.partition(" ")[0] == kind)
        own = self._folder / f"server-{kind}"
        own.mkdir(parents=True)
        try:
            return self.enter_context(context(own))
        except (OSError, IndexError, bench.pytest.skip.Exception):
            return None
