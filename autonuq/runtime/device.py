"""Which device the sessions of this process run on: the CPU, or one accelerator.

An accelerator is an execution provider that the installed build of onnxruntime brings along. AMCT quantizes on one
device only, so the process stays with the first accelerator that it ran on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autonuq.errors import RuntimeFailure

if TYPE_CHECKING:
    import onnxruntime

PACKAGES = {"CUDAExecutionProvider": "onnxruntime-gpu", "CANNExecutionProvider": "onnxruntime-cann"}
_CPU_PROVIDER = "CPUExecutionProvider"


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
    def providers(self) -> list[str | tuple[str, dict[str, int]]]:
        """What onnxruntime is told; operators that an accelerator lacks run on the CPU."""
        return [_CPU_PROVIDER] if self.is_cpu else [(self.provider, {"device_id": self.number}), _CPU_PROVIDER]


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
    global _selected
    _selected = _checked(Device(find_accelerator(), _card))


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
