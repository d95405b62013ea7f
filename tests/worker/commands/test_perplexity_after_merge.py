"""`--perplexity FILE` after a merge: measured in the same run, recorded, not repeated."""

import json
from pathlib import Path
from typing import Any

import pytest

from merge_worker.evaluation.perplexity import Settings, measure
from support.language_models import make, write_tokenizer
from support.recipes import average, manifest, run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    found = []
    for seed, name in enumerate(("a", "b"), 1):
        found.append(make(tmp_path / name, "LlamaForCausalLM", "llama", seed=seed))
        write_tokenizer(found[-1])
    (tmp_path / "held.txt").write_text("the cat sat.\n\non a mat of the dog")
    return found


def recorded(out: Path) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = json.loads((out / "evaluation.json").read_text())
    return value


def test_a_merge_is_measured_and_that_is_recorded(
    tmp_path: Path, models: list[Path], capsys: Capture
) -> None:
    out, words = tmp_path / "out", ["--perplexity", tmp_path / "held.txt", "--device", "cpu"]
    assert average(out, models, *words) == 0
    printed = capsys.readouterr().out
    assert printed.index("tensors merged") < printed.index("perplexity")
    (one,) = recorded(out)
    want = measure([str(out)], tmp_path / "held.txt", Settings(device="cpu")).models[0]
    assert [score["metric"] for score in one["scores"]] == ["perplexity", "bits_per_byte"]
    assert one["scores"][0]["value"] == pytest.approx(want.perplexity)
    assert one["scores"][1]["value"] == pytest.approx(want.bits_per_byte.value)
    assert one["settings"]["data"] == "held.txt" and one["settings"]["length"] == 1024
    assert "on held.txt: " in (out / "README.md").read_text()
    assert manifest(out)["evaluations"][0]["kind"] == "perplexity"
    assert str(tmp_path) not in (out / "evaluation.json").read_text()
    assert run("verify", out) == 0
    capsys.readouterr()
    assert average(out, models, *words) == 0
    assert "--perplexity is recorded already; nothing to do" in capsys.readouterr().out
    (tmp_path / "held.txt").write_text("another text")
    assert average(out, models, *words) == 0
    assert len(recorded(out)) == 2, "another text is another measurement"


def test_a_missing_text_is_told_before_the_merge(
    tmp_path: Path, models: list[Path], capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert average(out, models, "--perplexity", tmp_path / "none.txt") == 3
    assert "none.txt: No such file" in capsys.readouterr().err
    assert average(out, models, "--perplexity", tmp_path) == 2
    assert f"--perplexity {tmp_path}: a folder" in capsys.readouterr().err
    assert not out.exists()


def test_a_merge_without_a_tokenizer_stays(
    tmp_path: Path, models: list[Path], capsys: Capture
) -> None:
    for model in models:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (model / name).unlink()
    out = tmp_path / "out"
    assert average(out, models, "--perplexity", tmp_path / "held.txt", "--device", "cpu") == 3
    assert "no tokenizer beside the weights" in capsys.readouterr().err
    assert run("verify", out) == 0 and not (out / "evaluation.json").exists()
