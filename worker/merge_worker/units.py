"""Parse and format the sizes, durations, counts and devices of a command line."""

from __future__ import annotations

import argparse
import re

from .errors import UsageError
from .messages import counted, printable

GIB = 1 << 30
SIZE = r"(?i)(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]?)(i?)b?"
CLOCK = r"\d{1,9}(?::\d{1,9}){0,2}"
DURATION = rf"{CLOCK}|(?:\d{{1,9}}(?:\.\d{{1,9}})?[smhd])+"
DEVICE = r"auto|cpu|mps|(cuda|xpu)(:[0-9]{1,4})?"
RANKS = rf"auto(:({DURATION}))?"
DEVICES = ("auto", "cpu", "cuda", "cuda:N", "xpu", "mps")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(word: str, option: str = "") -> int:
    """Return the bytes of `4GiB`, `5GB`, `512M` or plain digits; a UsageError names `option`."""
    where = f"{option}: " if option else ""
    match = re.fullmatch(SIZE, word.strip())
    if match is None:
        raise UsageError(f"{where}'{printable(word)}' is not a size; write 5GB, 512MiB or bytes")
    power = " KMGT".index(match[2].upper() or " ")
    value = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if value <= 0:
        raise UsageError(f"{where}'{printable(word)}' is not a size above zero")
    return value


def parse_duration(word: str) -> float:
    """Return the seconds of `12:00:00`, `30:00`, `90s`, `30m`, `1h30m` or plain seconds."""
    if re.fullmatch(DURATION, word) is None:
        raise UsageError(f"'{printable(word)}' is not a duration; write 12:00:00, 90s, 30m or 2h")
    if re.fullmatch(CLOCK, word):
        return float(sum(int(part) * 60**i for i, part in enumerate(word.split(":")[::-1])))
    return sum(float(number) * SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(.)", word))


def parse_slurm_time(word: str) -> int:
    """Return the seconds of Slurm's M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = word.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash or len(parts) == 3:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def positive_integer(word: str) -> int:
    """Return an integer of at least 1; for argparse."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{printable(word)}' is not a number of at least 1")
    return int(word)


def device_word(word: str) -> str:
    """Check the form of `--device`; for argparse. Only torch knows whether the device exists."""
    if re.fullmatch(DEVICE, word) is None:
        raise argparse.ArgumentTypeError(f"'{printable(word)}' is not one of {', '.join(DEVICES)}")
    return word


def ranks_word(word: str) -> str:
    """Check the form of `--ranks`; for argparse."""
    if re.fullmatch(RANKS, word) is None:
        raise argparse.ArgumentTypeError(f"'{printable(word)}' is not auto, or auto:10m")
    return word


def size(count: int) -> str:
    """Return bytes in binary units: `2.05 GiB`, `640.00 KiB`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.2f} {unit}"
    return counted(count, "bytes")


def elapsed(seconds: float) -> str:
    """Return a time that was measured: `4.1 s`, or from a minute on as `duration`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else duration(seconds)


def duration(seconds: float) -> str:
    """Return `42 s`, `3:07 min` or `2:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def ago(seconds: float) -> str:
    """Return `3 min ago`, in the largest unit that fits."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"
