"""The command `importance`: its file, what it says beforehand, and what it refuses."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from merge_worker.cli import main
from support.language_models import make, write_tokenizer
from support.stopped_measurements import run, run_until

TEXT = "the cat.\n\nab the\n\nthe the the ab\n\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama")
    write_tokenizer(folder)
    (tmp_path / "texts.txt").write_text(TEXT)
    return folder


def importance(model: Path, *more: object, out: str = "out.safetensors") -> int:
    folder = model.parent
    words = [model, folder / out, "--data", folder / "texts.txt", "--progress", "off", *more]
    return main(["importance", *map(str, words)])


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def test_the_file_and_its_header(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert importance(model) == 0
    out = model.parent / "out.safetensors"
    said = capsys.readouterr()
    assert re.search(r"model: 3 samples of \d+ tokens; 2 passes over .* of weights", said.err)
    assert "of memory" in said.err and "scratch files" in said.err and "operations on" in said.err
    assert "fewer than --samples 256" in said.err
    assert said.out.startswith(f"{out}: fisher of {model}")
    tensors, weights = load_file(out), load_file(model / "model.safetensors")
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in weights.items()}
    assert all(bool((values >= 0).all()) and bool(values.any()) for values in tensors.values())
    facts = metadata(out)
    assert facts["kind"] == "fisher" and facts["labels"] == "model" and facts["samples"] == "3"
    assert len(facts["model"]) == len(facts["data"]) == 64
    assert [path.name for path in model.parent.iterdir() if path.name.startswith(".")] == []


def test_the_same_again_and_something_else(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert importance(model) == 0
    before = (model.parent / "out.safetensors").read_bytes()
    assert importance(model) == 0
    assert "already there; nothing to do" in capsys.readouterr().out
    assert importance(model, "--seed", 1) == 4
    assert "another file is there; give another OUT, or --overwrite" in capsys.readouterr().err
    assert (model.parent / "out.safetensors").read_bytes() == before
    assert importance(model, "--seed", 1, "--overwrite") == 0
    assert (model.parent / "out.safetensors").read_bytes() != before


@pytest.mark.parametrize("kind", ["activation", "gram-diagonal"])
def test_other_kinds(model: Path, kind: str) -> None:
    assert importance(model, "--kind", kind) == 0
    out = model.parent / "out.safetensors"
    assert metadata(out)["kind"] == {"activation": "activation", "gram-diagonal": "gram"}[kind]
    weights = load_file(model / "model.safetensors")
    for name, values in load_file(out).items():
        assert values.shape == weights[name].shape[-1:]


def test_memory_scratch_and_dtype(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert importance(model, "--memory", "1KiB") == 2
    assert "--memory: measuring takes about" in capsys.readouterr().err
    assert importance(model, out="a.safetensors") == 0
    scratch = model.parent / "scratch"
    assert importance(model, "--scratch", scratch, out="b.safetensors") == 4
    assert "no such folder for scratch files" in capsys.readouterr().err
    scratch.mkdir()
    assert importance(model, "--memory", "4GiB", "--scratch", scratch, out="b.safetensors") == 0
    assert list(scratch.iterdir()) == []
    folder = model.parent
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()
    assert importance(model, "--dtype", "bfloat16", out="c.safetensors") == 0
    exact, rounded = (load_file(folder / f"{n}.safetensors") for n in "ac")
    total = [sum(float(t.double().sum()) for t in some.values()) for some in (exact, rounded)]
    assert total[1] == pytest.approx(total[0], rel=0.3)


def test_only_completions_count(model: Path) -> None:
    lines = [{"prompt": "the cat", "completion": " ab."}, {"text": "the the"}]
    (model.parent / "texts.txt").write_text("")
    data = model.parent / "texts.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    for count, samples in enumerate((2, 1)):
        words = ["--data", data, "--labels", "data", "--samples", samples]
        assert importance(model, *words, out=f"{count}.safetensors") == 0
    both, one = (load_file(model.parent / f"{n}.safetensors") for n in range(2))
    assert not torch.equal(both["lm_head.weight"], one["lm_head.weight"])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "none.txt"], 3, "none.txt: No such file"),
        (["--data", "empty.txt"], 3, "no text in it"),
        (["--data", "short.txt", "--length", "1"], 3, "no sample of two tokens or more"),
        (["--samples", "0"], 2, "--samples"),
        (["--kind", "gram"], 2, "one of fisher, activation, gram-diagonal"),
        (["--labels", "truth"], 2, "unknown value 'truth'"),
    ],
)
def test_faults(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(model.parent)
    Path("empty.txt").write_text(" \n\n")
    Path("short.txt").write_text("the")
    assert importance(model, *words) == code
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not Path("out.safetensors").exists()


def test_names_of_the_output(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert importance(model, out="out.bin") == 2
    assert "a file that ends in .safetensors" in capsys.readouterr().err
    assert importance(model, out="none/out.safetensors") == 4
    assert "does not exist" in capsys.readouterr().err
    (model.parent / "f.safetensors").mkdir()
    assert importance(model, "--overwrite", out="f.safetensors") == 4
    assert "a folder" in capsys.readouterr().err


def test_layers_that_share_state_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "model", "Gemma3nForCausalLM", "gemma3n_text")
    write_tokenizer(folder)
    (tmp_path / "texts.txt").write_text(TEXT)
    assert importance(folder) == 3
    assert "its layers cannot run one at a time" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "at"), [("fisher", 25), ("activation", 8), ("activation", 11)])
def test_a_signal_stops_it_and_the_same_command_continues(model: Path, kind: str, at: int) -> None:
    folder = model.parent
    words = ["importance", model, folder / "out.safetensors", "--data", folder / "texts.txt"]
    words += ["--kind", kind]
    done = run_until(at, *words)
    assert done.returncode == 75, done.stderr
    assert f"stopped by {signal.SIGTERM.name}" in done.stderr
    assert "run the same command to resume" in done.stderr
    assert not (folder / "out.safetensors").exists()
    assert run("-m", "merge_worker", *words).returncode == 0
    words[2] = folder / "whole.safetensors"
    assert run("-m", "merge_worker", *words).returncode == 0
    whole = (folder / "whole.safetensors").read_bytes()
    assert (folder / "out.safetensors").read_bytes() == whole


def test_what_another_run_left_is_not_mixed_in(model: Path) -> None:
    """A stopped run wrote some of its tensors; the next one has other options."""
    folder = model.parent
    left = folder / ".out.safetensors.tensors"
    left.write_bytes(b"\xff" * 10_000_000)
    assert importance(model) == 0
    assert importance(model, out="whole.safetensors") == 0
    got, want = ((folder / n).read_bytes() for n in ("out.safetensors", "whole.safetensors"))
    assert got == want and not left.exists()


@pytest.mark.parametrize("kind", ["fisher", "activation"])
def test_weights_that_are_not_finite(
    model: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert importance(model, "--kind", kind) == 5
    assert "NaN or Inf in" in capsys.readouterr().err
    assert not (model.parent / "out.safetensors").exists()
