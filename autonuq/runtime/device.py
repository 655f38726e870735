"""Which device the sessions of this process run on: the CPU, or one accelerator.

An accelerator is an execution provider that the installed build of onnxruntime brings along. AMCT quantizes on one
device only, so the process stays with the first accelerator that it ran on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from autonuq.errors import RuntimeFailure

if TYPE_CHECKING:
    import onnxruntime

PACKAGES = {"CUDAExecutionProvider": "onnxruntime-gpu", "CANNExecutionProvider": "onnxruntime-cann"}
_CPU_PROVIDER = "CPUExecutionProvider"
# Products keep the digits of float32, as on the CPU; TF32 would leave 10 bits. Every trial has a session of its own for
# a few passes: to time all algorithms of its convolutions takes longer than these do, and chooses by the clock.
_SETTINGS: dict[str, dict[str, int | str]] = {
    "CUDAExecutionProvider": {"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
}


@dataclass(frozen=True)
class Device:
    """Where a session runs.

    Attributes
    ----------
    provider : str
        onnxruntime's name of the execution provider.
    number : int
        Which card.
    """

    provider: str = _CPU_PROVIDER
    number: int = 0

    @property
    def is_cpu(self) -> bool:
        """No accelerator."""
        return self.provider == _CPU_PROVIDER

    @property
    def providers(self) -> list[str | tuple[str, dict[str, int | str]]]:
        """What onnxruntime is told; operators that an accelerator lacks run on the CPU."""
        if self.is_cpu:
            return [_CPU_PROVIDER]
        return [(self.provider, {"device_id": self.number, **_SETTINGS.get(self.provider, {})}), _CPU_PROVIDER]


_selected = Device()
_card = 0  # what `select_accelerator` means
_ran_on: Device | None = None  # the accelerator that this process stays with


def selected_device() -> Device:
    """Return the device that new sessions run on."""
    return _selected


def select_cpu() -> None:
    """Run on the CPU from now on."""
    global _selected
    _selected = Device()


def select_accelerator() -> None:
    """Run on the GPU or NPU from now on, on the card of `select_card`.

    Raises
    ------
    RuntimeFailure
        The installed onnxruntime has no provider for one, or the process ran on another card already.
    """
    _select(Device(find_accelerator(), _card), _card)


def selection() -> Callable[[], None]:
    """Return what selects in another process, which it can be sent to, the mode and the card of this one.

    It raises a `RuntimeFailure` where the installed onnxruntime has no provider for an accelerator.
    """
    return partial(_select, _selected, _card)


def _select(device: Device, card: int) -> None:
    global _selected, _card
    if not device.is_cpu:
        find_accelerator()
        _write_errors_only()
    _selected, _card = _checked(device), card


def select_card(number: int) -> None:
    """Choose the card that `select_accelerator` means, 0 by default; the mode stays.

    Raises
    ------
    RuntimeFailure
        The process ran on another card already, or a card other than 0 is wanted where there is no accelerator.
    TypeError, ValueError
        The number is no int, or negative.
    """
    global _selected, _card
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"set_device takes one card, an int: quantization runs on one device only. Got {number!r}.")
    card = number.__index__()
    if card < 0:
        raise ValueError(f"set_device takes the number of a card, 0 or more. Got {number!r}.")
    if card:
        find_accelerator()
    if not _selected.is_cpu:
        _selected = _checked(replace(_selected, number=card))
    _card = card


def find_accelerator() -> str:
    """Return the execution provider of the GPU or NPU.

    Raises
    ------
    RuntimeFailure
        The installed onnxruntime has none.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    for provider in PACKAGES:
        if provider in available:
            return provider
    raise RuntimeFailure(
        f"a GPU is asked for, but the installed onnxruntime has only {', '.join(available)}: install onnxruntime-gpu "
        "(NVIDIA) or onnxruntime-cann (Ascend) in place of onnxruntime, or run on the CPU (set_mode_cpu)"
    )


@cache
def _write_errors_only() -> None:
    """Spare the user a warning that onnxruntime writes for every session on a GPU; which library is missing stays."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)


def engine_version() -> str:
    """Return onnxruntime's version; it says it itself, for the names of its packages differ (`PACKAGES`)."""
    import onnxruntime

    return str(onnxruntime.__version__)


def _checked(device: Device) -> Device:
    if _ran_on not in (None, device):
        raise RuntimeFailure(
            f"device {device.number} is asked for, but this process ran on device {_ran_on.number} already, and "
            "quantization runs on one device only: start another process"
        )
    return device


def check_session(session: onnxruntime.InferenceSession, device: Device) -> None:
    """Refuse a session that onnxruntime moved to the CPU without an error.

    Raises
    ------
    RuntimeFailure
        The accelerator's libraries do not load, or the card is not there.
    """
    global _ran_on
    if device.is_cpu:
        return
    if device.provider not in session.get_providers():
        raise RuntimeFailure(
            f"onnxruntime does not run on {device.provider} {device.number}: the card is not there, or the libraries "
            f"that {PACKAGES[device.provider]} needs do not load; run on the CPU (set_mode_cpu) or mend them"
        )
    _ran_on = device
