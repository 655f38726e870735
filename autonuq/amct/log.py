"""AMCT's log: what is done, what is left out and why, on the screen and in ``amct_log/amct_caffe.log``.

Levels come from the environment, as AMCT has them: `AMCT_LOG_LEVEL` for the screen, `AMCT_LOG_FILE_LEVEL` for the file;
DEBUG, INFO, WARNING or ERROR, INFO by default. The folder is made in the working directory of the process.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

from autonuq.atomic import writing
from autonuq.errors import QuantizationError
from autonuq.graph.capability import Capability
from autonuq.masking import masked_text
from autonuq.quant.config import QuantizationConfig
from autonuq.settings.config_json import QUANTIZABLE_TYPES
from autonuq.study.task import Progress
from autonuq.visible import visible

FOLDER = "amct_log"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_logger = logging.getLogger("amct_caffe")
_calibration = logging.getLogger("autonuq.calibration")  # what calibration layers find goes to the file only
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def open_log() -> logging.Logger:
    """Return the log; it is opened anew where the working directory or a level has changed.

    Raises
    ------
    QuantizationError
        A level in the environment is none.
    OSError
        The folder cannot be written.
    """
    screen, file = _level("AMCT_LOG_LEVEL"), _level("AMCT_LOG_FILE_LEVEL")
    path = Path(FOLDER).resolve() / "amct_caffe.log"
    present = [handler for handler in _logger.handlers if isinstance(handler, logging.FileHandler)]
    if not present or Path(present[0].baseFilename) != path or not path.exists():
        path.parent.mkdir(exist_ok=True)
        for handler in tuple(_logger.handlers):
            handler.close()
        opened = [_File(path, encoding="utf-8"), _Screen()]
        for handler in opened:
            handler.setFormatter(_OneLine(_FORMAT))
        _logger.handlers, _calibration.handlers = opened, opened[:1]
        for source in (_logger, _calibration):
            source.propagate = False
            source.setLevel(logging.DEBUG)
    for handler in _logger.handlers:
        handler.setLevel(file if isinstance(handler, logging.FileHandler) else screen)
    return _logger


class _OneLine(logging.Formatter):
    """Names of layers may hold line breaks, and a terminal's commands."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return visible(masked_text(super().formatMessage(record)))


class _File(logging.FileHandler):
    """Fails with the file's name where it cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's name
        """Raise what went wrong; logging itself would print a traceback and go on."""
        with writing(self.baseFilename):
            raise


class _Screen(logging.Handler):
    """Writes to what is standard error at that moment; warnings are left to Python's own, which show them."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno != logging.WARNING and sys.stderr is not None:  # a closed one is None
            sys.stderr.write(f"{self.format(record)}\n")


def _level(variable: str) -> str:
    value = os.environ.get(variable, "INFO").upper()
    if value not in LEVELS:
        raise QuantizationError(
            f"The environment variable {variable} must be one of {', '.join(LEVELS)}. Got '{value}' instead."
        )
    return value


def warn_of(messages: Iterable[str]) -> None:
    """Warn, and keep the warnings in the log."""
    log = open_log()
    for message in messages:
        log.warning(message)
        warnings.warn(message, stacklevel=3)


def log_layers(able: Iterable[Capability], config: QuantizationConfig) -> None:
    """Say of each layer of a type that can be quantized how it is, or why it is not."""
    log = open_log()
    for capability in able:
        settings = config.layers.get(capability.name)
        if settings is not None:
            is_nuq = settings.weights.algorithm == "nuq"
            weights = f"non-uniform weights (num_steps {settings.weights.num_steps})" if is_nuq else "uniform weights"
            log.info("layer '%s': %s, inputs by %s", capability.name, weights, settings.activation.algorithm)
        elif capability.type in QUANTIZABLE_TYPES:
            reason = capability.reason or "left out by the configuration"
            log.info("layer '%s' (%s) stays float: %s", capability.name, capability.type, reason)


class ProgressLog:
    """Writes each step of a study, with the time that is left."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: int | None = None

    def __call__(self, step: Progress) -> None:
        """Log one step."""
        message = f"{step.stage} {step.done}/{step.total}: {step.message}"
        if step.trial is None:
            self._started, self._first = time.monotonic(), None
            open_log().info(message)
            return
        if self._first is None:
            self._first = step.done - 1
        spent = time.monotonic() - self._started
        left = spent / max(1, step.done - self._first) * (step.total - step.done)
        best = f"best {step.best.ratio:.2f}x" if step.best is not None else "none satisfied yet"
        open_log().info("%s, %s; %s; about %.0f s left", message, step.trial.outcome, best, left)
