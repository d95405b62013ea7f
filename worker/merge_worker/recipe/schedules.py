"""Schedules of checkpoint averages: weights for checkpoints from the oldest to the newest.

Averaging checkpoints of a constant learning rate stands in for a decay of the rate (WSM,
arXiv:2507.17634): a decay s(x), x from 0 to 1, becomes weights that add up to 1. Controls put the
same weights in another order, to see what the order is worth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

from ..errors import UsageError
from ..messages import nearest, printable
from ..options import SCHEDULES

BETA = 0.9
FLOOR = 0.1
_DECAYS: dict[str, Callable[[float, float], float]] = {
    "minus-sqrt": lambda x, _: 1 - math.sqrt(x),
    "cosine": lambda x, _: (1 + math.cos(math.pi * x)) / 2,
    # WSD-S (arXiv:2410.05192, section 5): 1/rate grows linearly, up to 1/FLOOR.
    "inverse": lambda x, floor: 1 / (1 + x * (1 / floor - 1)),
}
_NAMES = ("uniform", "linear", *_DECAYS, "ema", "last-k")
_CONTROLS = ("reverse", "scramble")


def schedule_weights(schedule: str, count: int) -> tuple[float, ...]:
    """Return the weights of `count` checkpoints, oldest first. Raises UsageError.

    `uniform`: equal weights. `linear`: those of a linear decay, which are equal, too.
    `minus-sqrt`: those of the decay 1 - √x; the oldest weighs most. `cosine`: of
    (1 + cos πx)/2; the middle weighs most. `inverse:FLOOR`: of 1/(1 + x (1/FLOOR - 1)), which ends
    at FLOOR of the rate, default 0.1. `ema:BETA`: BETA^age, the newest weighs most. `last-k:N`:
    equal weights for the newest N, 0 for the others.

    `NAME__reverse`: the weights of NAME, the newest first. `NAME__scramble:SEED`: the same weights
    in a random order, that of Python's `random.Random(SEED).shuffle`, default 0. Decays and
    controls give the coefficients of Megatron-LM's tools/checkpoint/weighted_merge.py.
    """
    base, mark, control = schedule.partition("__")
    order, _, seed = control.partition(":")
    if mark and (order not in _CONTROLS or (seed and order != "scramble")):
        raise _unknown(schedule, nearest(order, _CONTROLS) if order not in _CONTROLS else "")
    if seed and not (seed.isdecimal() and seed.isascii() and len(seed) <= 18):
        raise UsageError(f"schedule {printable(schedule)}: SEED is a whole number, 0 or more")
    weights = _weights(base, count, schedule)
    if order == "reverse":
        weights.reverse()
    elif order == "scramble":
        random.Random(int(seed or 0)).shuffle(weights)
    return tuple(weights)


def _weights(schedule: str, count: int, whole: str) -> list[float]:
    """Return the weights of a schedule without control; `whole` is how messages call it."""
    name, colon, number = schedule.partition(":")
    takes_number = name in ("ema", "last-k", "inverse")
    if name not in _NAMES or (colon and not takes_number) or (name == "last-k" and not number):
        raise _unknown(whole, nearest(name, _NAMES) if name not in _NAMES else "")
    if count < 1:
        raise UsageError(f"schedule {whole}: no checkpoints to weigh")
    if name == "ema":
        beta = _fraction(whole, "BETA", number, BETA)
        powers = [beta**age for age in reversed(range(count))]
        total = math.fsum(powers)
        return [power / total for power in powers]
    if name == "last-k":
        last = _last(whole, number, count)
        return [0.0] * (count - last) + [1 / last] * last
    if name in _DECAYS:
        decay, floor = _DECAYS[name], _fraction(whole, "FLOOR", number, FLOOR)
        # c_i = s(i/n) - s((i+1)/n); the newest has s of its own place, the oldest the rest of 1.
        steps = [decay(i / count, floor) for i in range(1, count)] + [0.0]
        later = [a - b for a, b in pairwise(steps)]
        return [1 - math.fsum(later), *later]
    return [1 / count] * count


def _unknown(schedule: str, hint: str) -> UsageError:
    return UsageError(f"no schedule '{printable(schedule)}'{hint}; one of {SCHEDULES}")


def _fraction(schedule: str, name: str, number: str, default: float) -> float:
    try:
        value = float(number) if number else default
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise UsageError(f"schedule {printable(schedule)}: {name} is a number above 0, at most 1")
    return value


def _last(schedule: str, number: str, count: int) -> int:
    if not number.isdecimal() or len(number) > 9 or not 1 <= int(number) <= count:
        raise UsageError(
            f"schedule {printable(schedule)}: N is a whole number from 1 to {count}, "
            f"the number of checkpoints"
        )
    return int(number)
