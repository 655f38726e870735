"""An evaluator in a process of its own, which is killed when it takes too long.

Python cannot stop a thread that hangs, so a limit on the time of an evaluation needs a process. It makes its own
evaluator, keeps it from one evaluation to the next, and is made anew after it was killed or died. It runs on the device
that was selected here when it was made.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as TookTooLong
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor

from autonuq.errors import EvaluatorError
from autonuq.evaluate.evaluator import evaluator_fingerprint, evaluator_name, run_evaluator_call
from autonuq.graph.hosted.permission import allow_python_layers, python_layers_allowed
from autonuq.runtime.device import selection

_LOOK_S = 0.5
_kept: list[Any] = []  # in the process: its evaluator


def _is_there(process: int) -> bool:
    import psutil  # Windows tells for ever who the parent was

    return bool(psutil.pid_exists(process))


@cache
def end_with_parent() -> None:
    """Let this process end when the one that started it does, even by SIGKILL, rather than by what a terminal sends.

    To be called in the main thread.
    """
    for name in ("SIGINT", "SIGHUP"):  # Windows has no SIGHUP
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and (os.name != "nt" or _is_there(parent)):
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, name="autonuq parent", daemon=True).start()


def _keep(make: Callable[[], Any], select: Callable[[], None], allowed: bool) -> None:
    end_with_parent()
    select()
    if allowed:
        allow_python_layers()
    _kept.append(make())


def _call(method: str, model_file: str, weights_file: str, batch_num: int) -> object:
    return run_evaluator_call(_kept[0], method, model_file, weights_file, batch_num)


class IsolatedEvaluator:
    """Stands for an evaluator whose networks run in a process that can be killed.

    Parameters
    ----------
    here : object
        The evaluator that is asked for the verdicts.
    make : callable
        Makes the evaluator of each process. It must be picklable.
    timeout_s : float
        Seconds for one call of `eval_model`; the calibration may take as long.

    Notes
    -----
    Everything else is asked of the evaluator here: what `eval_model` changes about itself stays in the process.
    """

    def __init__(self, here: Any, make: Callable[[], Any], timeout_s: float) -> None:
        self._here, self._make, self._timeout_s = here, make, timeout_s
        self._process: ProcessPoolExecutor | None = None
        self.name = evaluator_name(self._here)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._here, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def here(self) -> Any:
        """The evaluator that it stands for."""
        return self._here

    def fingerprint(self) -> str:
        """Return the digest of the evaluator that runs."""
        return evaluator_fingerprint(self._here)

    def eval_model(self, model_file: str, weights_file: str, batch_num: int) -> object:
        """Run the evaluator's `eval_model` in the process.

        Raises
        ------
        EvaluatorError
            It raised, took longer than it may, or its process died.
        """
        if self._process is None:
            self._process = ProcessPoolExecutor(
                1, initializer=_keep, initargs=(self._make, selection(), python_layers_allowed())
            )
            self._wait(self._process.submit(int), None)  # making the evaluator does not count
        future = self._process.submit(_call, "eval_model", model_file, weights_file, batch_num)
        return self._wait(future, self._timeout_s)

    def _wait(self, future: Any, timeout_s: float | None) -> object:
        try:
            return future.result(timeout_s)
        except TookTooLong as error:
            raise EvaluatorError(f"eval_model took longer than {timeout_s:g} s; its process was killed") from error
        except BrokenProcessPool as error:
            raise EvaluatorError(f"the process of eval_model died: {str(error).splitlines()[0]}") from error
        finally:
            if not future.done() or future.exception() is not None:
                self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(Exception):
                self._process.shutdown(kill_workers=True)
            self._process = None
