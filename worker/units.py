"""Words of the command line that are numbers with units, and the like."""

from __future__ import annotations

import argparse
import re

from .errors import UsageError, counted, printable


def parse_size(word: str, option: str = "") -> int:
    """Bytes of `4GiB`, `5GB`, `512M` or plain digits. UsageError otherwise, of `option`."""
    where = f"{option}: " if option else ""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([KMGT]?)(i?)B?", word.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{where}'{printable(word)}' is not a size; write 5GB, 512MiB or bytes")
    power = " KMGT".index(found[2].upper() or " ")
    value = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if value <= 0:
        raise UsageError(f"{where}'{printable(word)}' is not a size above zero")
    return value


def parse_duration(word: str) -> float:
    """Seconds of `12:00:00`, `30:00`, `90s`, `30m`, `2h` or plain seconds. UsageError otherwise."""
    parts = word.split(":")
    if all(part.isdecimal() and len(part) < 10 for part in parts) and len(parts) <= 3:
        return float(sum(int(part) * 60**i for i, part in enumerate(reversed(parts))))
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", word)
    if found is None:
        raise UsageError(f"'{printable(word)}' is not a duration; write 12:00:00, 90s, 30m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def at_least_one(word: str) -> int:
    """A count, for argparse."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{printable(word)}' is not a number of at least 1")
    return int(word)


def device_word(word: str) -> str:
    """The form of `--device`, for argparse; whether there is such a device, torch must tell."""
    if re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]{1,4})?", word) is None:
        choices = "auto, cpu, cuda, cuda:N, xpu, mps"
        raise argparse.ArgumentTypeError(f"'{printable(word)}' is none of {choices}")
    return word


def size(count: int) -> str:
    """Bytes as people write them: `2.05 GiB`, `640 KiB`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.2f} {unit}"
    return counted(count, "bytes")
