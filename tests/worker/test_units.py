"""Sizes and durations as people and schedulers write them."""

import argparse

import pytest

from merge_worker.errors import UsageError
from merge_worker.recipe.shorthand import parse_number
from merge_worker.units import (
    ago,
    device_word,
    duration,
    elapsed,
    parse_duration,
    parse_size,
    parse_slurm_time,
    positive_integer,
    size,
)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1", 1),
        ("5GB", 5_000_000_000),
        ("5 GB", 5_000_000_000),
        ("4GiB", 4 << 30),
        ("512M", 512_000_000),
        ("512MiB", 512 << 20),
        *(("1.5k", 1500), ("1.5g", 1_500_000_000), ("7kb", 7000)),
        ("2TiB", 2 << 40),
        (" 7b ", 7),
    ],
)
def test_sizes(word: str, value: int) -> None:
    assert parse_size(word) == value


@pytest.mark.parametrize(
    "word", ["", "0", "0GB", "-1", "GB", "5XB", "5GBB", "0.1", "x", "²", "1e9", "9" * 400 + "GB"]
)
def test_what_is_no_size(word: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(word)


@pytest.mark.parametrize(
    ("word", "seconds"),
    [
        *(("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 172_800)),
        *(("10:30", 630), ("12:00:00", 43_200), ("0", 0), ("1h30m", 5400), ("1d12h", 129_600)),
    ],
)
def test_durations(word: str, seconds: float) -> None:
    assert parse_duration(word) == seconds


@pytest.mark.parametrize(
    "word", ["", "x", "1h30", "1:2:3:4", "-5", "5w", ":", "1::2", "²", "9" * 400]
)
def test_what_is_no_duration(word: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration(word)


def test_weights() -> None:
    assert [parse_number(word) for word in ["2", "-1", "0.5", "1e-3"]] == [2.0, -1.0, 0.5, 0.001]
    with pytest.raises(UsageError, match="--weights: 'x' is not a number"):
        parse_number("x")


def test_devices() -> None:
    for word in ("auto", "cpu", "cuda", "cuda:0", "cuda:12", "xpu:1", "mps"):
        assert device_word(word) == word
    for word in ("", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:²", "CUDA"):
        with pytest.raises(argparse.ArgumentTypeError):
            device_word(word)


def test_counts() -> None:
    assert positive_integer("12") == 12
    for word in ("0", "-1", "1.5", "", "²"):
        with pytest.raises(argparse.ArgumentTypeError):
            positive_integer(word)


@pytest.mark.parametrize(
    ("word", "seconds"),
    [
        *(("90", 5400), ("10:30", 630), ("1:02:03", 3723), ("0", 0)),
        *(("2-1", 176_400), ("1-02:03", 93_780), ("1-02:03:04", 93_784)),
    ],
)
def test_times_of_slurm(word: str, seconds: int) -> None:
    assert parse_slurm_time(word) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (187, "3:07 min"), (7500, "2:05 h")],
)
def test_durations_as_text(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ages_and_sizes_as_text() -> None:
    assert [ago(s) for s in (-1, 59.9, 60, 7300, 200_000)] == [
        *("0 s ago", "59 s ago", "1 min ago", "2 h ago", "2 d ago"),
    ]
    assert [size(n) for n in (1, 2048, 3 << 30)] == ["1 byte", "2.00 KiB", "3.00 GiB"]
    assert (elapsed(4.14), elapsed(59.9), elapsed(59.96)) == ("4.1 s", "59.9 s", "1:00 min")
