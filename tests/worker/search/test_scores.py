"""Scores in the output of evaluations: printed, in files, weighted, missing."""

import json
import os
from pathlib import Path

import pytest

from merge_worker.search.definition import Measure
from merge_worker.search.scores import NoScore, look, read_score

LM_EVAL = {"results": {"mine": {"acc,none": 0.5, "acc_stderr,none": 0.03, "alias": "mine"}}}


def measure(**score: float) -> Measure:
    return Measure("x", None, tuple((key.replace("__", "."), v) for key, v in score.items()))


def at(path: str) -> Measure:
    return Measure("x", None, ((path, 1.0),))


@pytest.mark.parametrize(
    ("printed", "value"),
    [
        ("0.25\n", 0.25),
        ("epoch 1\n-3e-2\n\n", -0.03),
        ('loading…\n{"acc": 0.5}\n', 0.5),
        ('{"acc": 1, "acc_stderr": 0.1}', 1),
        ('{"score": 2, "other": 3}', 2),
        ('{"event": "progress", "percent": 3}\n{"a": {"b": 4}}\n', 4),
    ],
)
def test_the_only_number(tmp_path: Path, printed: str, value: float) -> None:
    assert read_score(Measure("x", None), printed, tmp_path, {}).value == value


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("", "no JSON object, and the last line is not a number: nothing"),
        ("done\n", "'done'"),
        ("nan\n", "'score' is nan"),
        ("1_000\n", "1_000"),
        ('{"a": 1, "b": 2}', "several numbers; choose one by 'score': a, b"),
        ('{"score": NaN}', "'score' is nan"),
        ('{"score": true}', "'score' is not a number: True"),
    ],
)
def test_no_only_number(tmp_path: Path, printed: str, words: str) -> None:
    with pytest.raises(NoScore, match=r".") as caught:
        read_score(Measure("x", None), printed, tmp_path, {})
    assert words in str(caught.value)


def test_a_path_in_a_file_that_was_written_now(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"results": {"mine": {"acc,none": 0.9}}}))
    before = look(tmp_path)
    path = "results.mine.acc,none"
    with pytest.raises(NoScore, match="nothing: it printed and wrote no JSON object"):
        read_score(at(path), "", tmp_path, before)
    (tmp_path / "eval" / "deep").mkdir(parents=True)
    (tmp_path / "eval" / "deep" / "results_1.json").write_text(json.dumps(LM_EVAL))
    (tmp_path / "eval" / "broken.json").write_text("{")
    found = read_score(at(path), "", tmp_path, before)
    assert (found.value, found.stderr) == (0.5, 0.03)
    # A file that was overwritten is new too.
    old.write_text(json.dumps({"results": {"mine": {"acc,none": 0.7}}}))
    os.utime(old, (2e9, 2e9))
    assert read_score(at(path), "", tmp_path, before).value == 0.7


def test_keys_with_dots_and_printed_before_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"v1.5": {"acc": 1}}')
    assert read_score(at("v1.5.acc"), '{"v1.5": {"acc": 2}}', tmp_path, {}).value == 2
    assert read_score(at("v1.5.acc"), "", tmp_path, {}).value == 1


def test_a_weighted_sum_and_its_error(tmp_path: Path) -> None:
    printed = json.dumps({"a": 0.5, "a_stderr": 0.03, "b": 2.0, "b_stderr": 0.02})
    found = read_score(measure(a=2, b=-0.5), printed, tmp_path, {})
    assert found.value == pytest.approx(0.0)
    # √((2 · 0.03)² + (0.5 · 0.02)²)
    assert found.stderr == pytest.approx(0.0608276)
    assert found.parts == {"a": 0.5, "b": 2.0}
    assert (
        read_score(measure(a=1, c=1), '{"a": 1, "a_stderr": 1, "c": 1}', tmp_path, {}).stderr
        is None
    )


def test_a_missing_path_names_the_keys_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(NoScore, match=r".") as caught:
        read_score(at("results.mine.acc"), json.dumps(LM_EVAL), tmp_path, {})
    text = str(caught.value)
    assert "no value 'results.mine.acc' (did you mean 'results.mine.acc,none'?)" in text
    assert "there is results.mine.acc,none, results.mine.acc_stderr,none" in text


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"0.5"', "null", "true", "[1]"])
def test_values_that_are_no_score(tmp_path: Path, value: str) -> None:
    with pytest.raises(NoScore, match="'a' is"):
        read_score(at("a"), f'{{"a": {value}}}', tmp_path, {})
