"""Axes of charts: their ends, ticks and labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MARGIN = 0.05
"""Share of the span that is left free at both ends."""
LOG_RATIO, CROWDED = 50, 0.2
"""Positive values have a logarithmic axis if they span more than this ratio, and if half of them
lie below this share of the largest."""


@dataclass(frozen=True)
class Axis:
    """The scale of one direction of a chart. `ticks` are values and their labels."""

    label: str
    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def fraction(self, value: float) -> float:
        """Return the position of a value: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def number_axis(label: str, values: Iterable[float], most: int = 6) -> Axis:
    """Return an axis for numbers: logarithmic if they are positive and crowd at the low end."""
    found = sorted(values)
    low, high = (found[0], found[-1]) if found else (0.0, 1.0)
    # Of numbers that are spread evenly over a range, half lie above its middle.
    crowded = found and found[len(found) // 2] < CROWDED * high
    if crowded and low > 0 and high > LOG_RATIO * low:
        factor = (high / low) ** MARGIN
        ends = low / factor, high * factor
        return Axis(label, *ends, True, _labelled(_log_values(*ends, most)))
    spread = (high - low) or abs(high) or 1.0
    ends = low - MARGIN * spread, high + MARGIN * spread
    return Axis(label, *ends, False, _labelled(round_values(*ends, most)))


def choice_axis(label: str, choices: Sequence[str]) -> Axis:
    """Return an axis for choices, which stand at 0, 1, 2 and so on."""
    ticks = tuple((float(i), choice) for i, choice in enumerate(choices))
    return Axis(label, -0.5, len(choices) - 0.5, False, ticks)


def round_values(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` multiples of 1, 2 or 5 times a power of ten between the ends."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(s * power for s in (1, 2, 5, 10, 20) if span / (s * power) < most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _log_values(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**power for power in powers for s in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _labelled(values: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Return values with labels that have just the digits to tell them apart."""
    for digits in range(1, 17):
        labels = [f"{value:.{digits}g}" for value in values]
        exact = all(
            math.isclose(float(label), value, rel_tol=1e-9, abs_tol=1e-15)
            for label, value in zip(labels, values, strict=True)
        )
        if exact or digits == 16:
            break
    plain = all(1e-4 <= abs(value) < 1e6 or abs(value) < 1e-15 for value in values)
    texts = [f"{float(label):.10g}" if plain else label for label in labels]
    return tuple((v, "0" if abs(v) < 1e-15 else t) for v, t in zip(values, texts, strict=True))
