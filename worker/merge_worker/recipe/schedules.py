"""Schedules of checkpoint averages: weights for checkpoints from the oldest to the newest.

Averaging checkpoints of a constant learning rate stands in for a decay of the rate (WSM,
arXiv:2507.17634): a decay s(x), x from 0 to 1, becomes weights that add up to 1.
"""

from __future__ import annotations

import math
from itertools import pairwise

from ..errors import UsageError
from ..messages import nearest, printable
from ..options import SCHEDULES

BETA = 0.9
_NAMES = ("uniform", "linear", "minus-sqrt", "ema", "last-k")


def schedule_weights(schedule: str, count: int) -> tuple[float, ...]:
    """Return the weights of `count` checkpoints, oldest first. Raises UsageError.

    `uniform`: equal weights. `linear`: those of a linear decay, which are equal, too.
    `minus-sqrt`: those of the decay 1 - √x; the oldest weighs most. `ema:BETA`: BETA^age, the
    newest weighs most. `last-k:N`: equal weights for the newest N, 0 for the others.
    """
    name, _, number = schedule.partition(":")
    takes_number = name in ("ema", "last-k")
    if name not in _NAMES or (number and not takes_number) or (name == "last-k" and not number):
        hint = nearest(name, _NAMES) if name not in _NAMES else ""
        raise UsageError(f"no schedule '{printable(schedule)}'{hint}; one of {SCHEDULES}")
    if count < 1:
        raise UsageError(f"schedule {schedule}: no checkpoints to weigh")
    if name == "ema":
        beta = _beta(schedule, number)
        powers = [beta**age for age in reversed(range(count))]
        total = math.fsum(powers)
        return tuple(power / total for power in powers)
    if name == "last-k":
        last = _last(schedule, number, count)
        return (0.0,) * (count - last) + (1 / last,) * last
    if name == "minus-sqrt":
        # c_i = s(i/n) - s((i+1)/n), with s(1) = 0; the oldest has what the others leave of 1.
        steps = [1 - math.sqrt(i / count) for i in range(1, count)] + [0.0]
        later = [a - b for a, b in pairwise(steps)]
        return (1 - math.fsum(later), *later)
    return (1 / count,) * count


def _beta(schedule: str, number: str) -> float:
    try:
        beta = float(number) if number else BETA
    except ValueError:
        beta = -1.0
    if not 0 < beta <= 1:
        raise UsageError(f"schedule {printable(schedule)}: BETA is a number above 0, at most 1")
    return beta


def _last(schedule: str, number: str, count: int) -> int:
    if not number.isdecimal() or len(number) > 9 or not 1 <= int(number) <= count:
        raise UsageError(
            f"schedule {printable(schedule)}: N is a whole number from 1 to {count}, "
            f"the number of checkpoints"
        )
    return int(number)
