"""Which devices a merge runs on; the only place that knows accelerators by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import UsageError
from ..system import torch_startup
from ..units import DEVICES

torch_startup.restore()

OUT_OF_MEMORY: type[Exception] = torch.cuda.OutOfMemoryError
"""What torch raises for every kind of device; its other name is younger than torch 2.4."""

_KINDS = ("cuda", "xpu", "mps")


def select_devices(word: str) -> list[torch.device]:
    """The devices that `--device` names: `auto` is every visible accelerator, else the CPU."""
    if word == "auto":
        for kind in _KINDS:
            found = _visible(kind)
            if found:
                return found
        return [torch.device("cpu")]
    if word == "cpu":
        return [torch.device("cpu")]
    kind, _, number = word.partition(":")
    if kind not in _KINDS or (number and not number.isdecimal()):
        raise UsageError(f"--device {word}: one of {', '.join(DEVICES)}")
    found = _visible(kind)
    if number:
        found = [device for device in found if device.index == int(number)]
    if not found:
        raise UsageError(f"--device {word}: torch {torch.__version__} sees no such device here")
    return found


def devices_of_rank(word: str, number: int, count: int) -> list[torch.device]:
    """Those of one of `count` processes: one for each, or several, but none is left out."""
    found = select_devices(word)
    return found[number::count] or [found[number % len(found)]]


def load_linalg(found: Sequence[torch.device]) -> None:
    """What matrix methods need there, before several threads ask for it at once: torch's loader
    of it is not safe against that."""
    for device in found:
        if device.type != "cpu":
            torch.linalg.qr(torch.ones(1, 1, device=device))


def synchronize(device: torch.device) -> None:
    """Until the device has done all that this thread has given it."""
    if device.type == "cpu":
        return
    module = getattr(torch, device.type)
    if hasattr(module, "current_stream"):
        module.current_stream(device).synchronize()
    else:
        module.synchronize()


def free_cached(device: torch.device) -> None:
    """Give back the device's memory that torch keeps for later."""
    empty_cache = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty_cache is not None:
        empty_cache()


def _visible(kind: str) -> list[torch.device]:
    if kind == "mps":
        return [torch.device("mps")] if torch.backends.mps.is_available() else []
    module = getattr(torch, kind, None)
    if module is None or not module.is_available():
        return []
    return [torch.device(kind, index) for index in range(module.device_count())]
