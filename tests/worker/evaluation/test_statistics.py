"""Totals and differences of losses, by hand."""

import math

import pytest

from merge_worker.evaluation.statistics import Loss, Losses, best, difference, ratio


def losses(*windows: tuple[float, int, int]) -> Losses:
    return Losses("m", tuple(Loss(*window) for window in windows))


def test_totals_by_hand() -> None:
    found = losses((4.0, 2, 8), (2.0, 2, 8))
    assert found.nats.value == pytest.approx(1.5)
    assert found.perplexity == pytest.approx(math.exp(1.5))
    assert found.bits_per_byte.value == pytest.approx(6 / math.log(2) / 16)
    # means 2 and 1: standard deviation sqrt(0.5), of a mean of two 0.5
    assert found.nats.error == pytest.approx(0.5)


def test_long_windows_weigh_more() -> None:
    assert losses((4.0, 1, 1), (1.0, 3, 3)).nats.value == pytest.approx(5 / 4)


def test_one_window_has_no_standard_error() -> None:
    assert losses((4.0, 2, 8)).nats.error is None
    assert ratio([], []).error is None
    assert math.isnan(ratio([], []).value)


def test_differences_are_paired() -> None:
    one = losses((4.0, 2, 8), (2.0, 2, 8), (9.0, 2, 8))
    other = losses((3.8, 2, 8), (1.8, 2, 8), (8.8, 2, 8))
    gap = difference(one, other, same_tokens=True)
    assert gap.value == pytest.approx(0.1)
    assert gap.error == pytest.approx(0.0, abs=1e-12)
    by_bytes = difference(one, other, same_tokens=False)
    assert by_bytes.value == pytest.approx(0.6 / math.log(2) / 24)


def test_other_tokens_are_compared_by_bytes() -> None:
    one = losses((4.0, 2, 8), (2.0, 2, 8))
    other = losses((4.0, 4, 8), (2.0, 4, 7))
    gap = difference(one, other, same_tokens=False)
    assert gap.value == pytest.approx(one.bits_per_byte.value - other.bits_per_byte.value)
    assert gap.error is not None and gap.error > 0


def test_the_best_has_the_least_loss() -> None:
    models = [losses((4.0, 2, 1)), losses((3.0, 2, 2)), losses((3.0, 2, 1))]
    assert best(models, same_tokens=True) == 1
    assert best([losses((math.nan, 2, 1)), losses((1.0, 2, 1))], same_tokens=True) == 1


def test_an_infinite_perplexity_is_no_error() -> None:
    assert losses((1e6, 1, 1)).perplexity == math.inf
