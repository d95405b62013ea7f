"""Devices that a merge runs on; the only module that names kinds of accelerators."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import UsageError
from ..messages import counted
from ..system import torch_startup
from ..units import DEVICES

torch_startup.restore()

OUT_OF_MEMORY: type[Exception] = torch.cuda.OutOfMemoryError
"""Raised by torch for every kind of device; its other name needs torch 2.5."""

_KINDS = ("cuda", "xpu", "mps")


def select_devices(word: str) -> list[torch.device]:
    """Return the devices that `--device` names: `auto` is every visible accelerator, or the CPU."""
    if word in ("auto", "cpu"):
        kinds = _KINDS if word == "auto" else ()
        return next(filter(None, map(_visible, kinds)), [torch.device("cpu")])
    kind, _, number = word.partition(":")
    if kind not in _KINDS or (number and not number.isdecimal()):
        raise UsageError(f"--device {word}: one of {', '.join(DEVICES)}")
    devices = _visible(kind)
    if number:
        devices = [device for device in devices if device.index == int(number)]
    if not devices:
        raise UsageError(f"--device {word}: torch {torch.__version__} sees no such device here")
    return devices


def devices_of_rank(word: str, number: int, count: int) -> list[torch.device]:
    """Return the devices of process `number` of `count`: at least one, and every device is used."""
    devices = select_devices(word)
    return devices[number::count] or [devices[number % len(devices)]]


def missing_gpus(word: str, expected: int) -> list[str]:
    """Return a note if `--device auto` finds fewer accelerators than the job asked for."""
    devices = [device for device in select_devices("auto") if device.type != "cpu"]
    if word != "auto" or len(devices) >= expected:
        return []
    asked = counted(expected, "GPUs")
    used = "" if devices else "; the CPU merges"
    return [f"the job asked for {asked}, torch {torch.__version__} sees {len(devices)}{used}"]


def load_linalg(devices: Sequence[torch.device]) -> None:
    """Load the linear algebra of accelerators, which torch cannot load from several threads."""
    for device in devices:
        if device.type != "cpu":
            torch.linalg.qr(torch.ones(1, 1, device=device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work of this thread."""
    if device.type == "cpu":
        return
    module = getattr(torch, device.type)
    if hasattr(module, "current_stream"):
        module.current_stream(device).synchronize()
    else:
        module.synchronize()


def free_cached(device: torch.device) -> None:
    """Release the device memory that torch caches."""
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
