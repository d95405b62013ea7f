"""`merge-worker perplexity` on tiny models, against transformers and by hand."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from merge_worker.cli import main
from merge_worker.evaluation import perplexity
from merge_worker.evaluation.perplexity import Settings, measure
from merge_worker.evaluation.perplexity_table import as_json
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.language_models import WORDS, loaded, make, reference_losses, write_tokenizer

TEXT = "the cat sat on the mat.\nab the th cab.\n\nthis is a second sample of some letters\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fine-tunes of a Llama with a tokenizer, and a text."""
    top = tmp_path_factory.mktemp("perplexity")
    for seed, name in enumerate(("a", "b"), 1):
        make(top / name, "LlamaForCausalLM", "llama", seed=seed)
        write_tokenizer(top / name)
    (top / "text.txt").write_text(TEXT)
    return top


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["perplexity", *map(str, words), "--progress", "off", "--device", "cpu"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def as_text(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def figures(out: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(out)
    return value


def test_one_window_has_the_loss_of_transformers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the cat sat on the mat."
    (tmp_path / "one.txt").write_text(text)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder / "a")(text)["input_ids"]])
    with torch.no_grad():
        want = loaded(folder / "a")(input_ids=ids, labels=ids).loss.item()
    code, out, _ = run(capsys, folder / "a", "--data", tmp_path / "one.txt", "--json")
    found = figures(out)
    assert code == 0
    assert found["nats"] == pytest.approx(want, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(want), rel=1e-6)
    assert found["bytes"] == len(text.encode()) == 23
    assert found["bits_per_byte"] == pytest.approx(
        want * (ids.shape[1] - 1) / math.log(2) / 23, rel=1e-6
    )


def test_windows_with_a_stride_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    text = "abc the def ghi the jkl mno pqr the stu vwx yz"
    (tmp_path / "one.txt").write_text(text)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder / "a")(text)["input_ids"]])
    model, total, count, seen = loaded(folder / "a"), 0.0, 0, 0
    for begin in range(0, ids.shape[1], 5):
        stop = min(begin + 12, ids.shape[1])
        losses = reference_losses(model, ids[:, begin:stop])[0]
        new = max(seen, begin + 1) - begin - 1
        total, count, seen = total + losses[new:].sum().item(), count + len(losses[new:]), stop
        if stop == ids.shape[1]:
            break
    assert count == ids.shape[1] - 1
    settings = Settings(length=12, stride=5, device="cpu")
    found = measure([str(folder / "a")], tmp_path / "one.txt", settings)
    assert found.models[0].tokens == count
    assert found.models[0].nats.value == pytest.approx(total / count, rel=1e-5)


def test_a_head_of_zeros_gives_the_size_of_the_vocabulary(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read_tensors(folder / "a")
    tensors["lm_head.weight"] = torch.zeros_like(tensors["lm_head.weight"])
    config = json.loads((folder / "a/config.json").read_text())
    write_checkpoint(tmp_path / "flat", tensors, config=config)
    write_tokenizer(tmp_path / "flat")
    _, out, _ = run(capsys, tmp_path / "flat", "--data", folder / "text.txt", "--json")
    assert figures(out)["perplexity"] == pytest.approx(config["vocab_size"], rel=1e-6)


def test_a_table_shows_paired_differences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [folder / "a", folder / "b", "--data", folder / "text.txt", "--length", "8"]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "2 samples" in out and "nats to a" in out and "bits/byte" in out and "(best)" in out
    value = figures(run(capsys, *words, "--json")[1])
    a, b = value["models"]
    pairs = zip(a["windows"], b["windows"], strict=True)
    losses = [(one["nats"], other["nats"], one["tokens"]) for one, other in pairs]
    tokens = sum(n for *_, n in losses)
    gap = sum((y - x) * n for x, y, n in losses) / tokens
    assert b["to_first"]["value"] == pytest.approx(gap)
    parts = [((y - x) - gap) ** 2 * n**2 for x, y, n in losses]
    error = math.sqrt(sum(parts) * len(parts) / (len(parts) - 1)) / tokens
    assert b["to_first"]["stderr"] == pytest.approx(error)
    assert a["to_first"]["value"] == 0 and value["same_tokens"] is True
    assert [w["where"] for w in a["windows"]][-1].endswith("text.txt:4")


def test_memory_bounds_make_more_passes_and_change_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    plain = measure([str(folder / "a")], folder / "text.txt", Settings(length=8, device="cpu"))
    monkeypatch.setattr(perplexity, "STATES_BYTES", 1)
    settings = Settings(length=8, device="cpu")
    small = measure([str(folder / "a")], folder / "text.txt", settings, tell=lines.append)
    assert "passes" in lines[1] and "memory at most" in lines[1]
    for one, other in zip(plain.models[0].windows, small.models[0].windows, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-6)


def test_other_tokenizers_see_the_same_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "c", "LlamaForCausalLM", "llama", seed=3)
    letters = [word for word in WORDS if len(word) == 1 or word[0] == "<"]
    write_tokenizer(tmp_path / "c", words=letters)
    words = [folder / "a", tmp_path / "c", "--data", folder / "text.txt", "--length", "8"]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "compare bits per byte" in out and "bits/byte to a" in out
    value = figures(run(capsys, *words, "--json")[1])
    one, other = value["models"]
    assert value["same_tokens"] is False and other["tokens"] > one["tokens"]
    assert len(one["windows"]) == len(other["windows"])
    assert value["models"][1]["to_first"]["unit"] == "bits_per_byte"


def test_completions_and_chats(folder: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}<s>{{ m.content }}{% endfor %}"
    make(tmp_path / "chat", "LlamaForCausalLM", "llama")
    write_tokenizer(tmp_path / "chat", template=template)
    data = as_text(
        tmp_path / "data.jsonl",
        {"messages": [{"role": "user", "content": "the cat"}]},
        {"prompt": "ab ", "completion": "the"},
    )
    found = measure([str(tmp_path / "chat")], data, Settings(device="cpu")).models[0]
    # <s> t-h-e ␣ c a t: the template's token is no part of the text that is predicted
    assert [window.nbytes for window in found.windows] == [7, 3]


@pytest.mark.parametrize(
    ("words", "code", "fault"),
    [
        (["--length", "1"], 2, "--length 1: at least 2 tokens"),
        (["--length", "8", "--stride", "9"], 2, "--stride 9: between 1 and --length 8"),
        (["--memory", "1MiB"], 2, "--memory 1.00 MiB: .* needs"),
        (["--plot", "x.gif"], 2, "--plot x.gif: the name must end in"),
        (["--device", "cuda:99"], 2, "--device cuda:99"),
        (["--data", "."], 2, "--data .: a folder"),
        (["--data", "none.txt"], 3, "none.txt: No such file"),
    ],
)
def test_wrong_commands_are_told(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    fault: str,
) -> None:
    given = ["--device", "cpu", *words]
    found = main(["perplexity", str(folder / "a"), "--data", str(folder / "text.txt"), *given])
    err = capsys.readouterr().err
    assert found == code and re.search(fault, err), err
    assert len(err.splitlines()) <= 4


def test_texts_and_models_that_do_not_fit_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(model: Path, data: Path, code: int) -> str:
        found, out, err = run(capsys, model, "--data", data)
        assert (found, out) == (code, "") and "Traceback" not in err
        return err

    (tmp_path / "empty.txt").write_text("")
    assert "no text in it" in fault(folder / "a", tmp_path / "empty.txt", 3)
    short = as_text(tmp_path / "short.jsonl", {"text": ""})
    assert "no sample has two tokens" in fault(folder / "a", short, 3)
    chat = as_text(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "x"}]})
    assert "no chat template" in fault(folder / "a", chat, 3)
    make(tmp_path / "bare", "LlamaForCausalLM", "llama")
    assert "no tokenizer beside" in fault(tmp_path / "bare", folder / "text.txt", 3)
    many = [*WORDS[:3], *(f"w{n}" for n in range(200)), *WORDS[3:]]
    write_tokenizer(tmp_path / "bare", words=many)
    err = fault(tmp_path / "bare", folder / "text.txt", 3)
    assert "its tokenizer has token 2" in err and "only 128 rows" in err
    (tmp_path / "long.txt").write_text("a" * 80)
    assert "has 64 positions, but a window has 81" in fault(folder / "a", tmp_path / "long.txt", 2)
    make(tmp_path / "bert", "BertForMaskedLM", "bert")
    assert "does not predict the next token" in fault(tmp_path / "bert", folder / "text.txt", 3)
    tensors = read_tensors(folder / "a")
    config = json.loads((folder / "a/config.json").read_text())
    del tensors["lm_head.weight"]
    write_checkpoint(tmp_path / "headless", tensors, config=config)
    write_tokenizer(tmp_path / "headless")
    assert "output head is missing" in fault(tmp_path / "headless", folder / "text.txt", 3)


def test_losses_that_are_no_numbers_end_with_5(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read_tensors(folder / "a")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    config = json.loads((folder / "a/config.json").read_text())
    write_checkpoint(tmp_path / "broken", tensors, config=config)
    write_tokenizer(tmp_path / "broken")
    code, out, err = run(capsys, tmp_path / "broken", "--data", folder / "text.txt")
    assert (code, out) == (5, "")
    assert "broken: the loss of 2 windows of 2 is not a finite number" in err


@pytest.mark.parametrize("ending", ["svg", "png", "pdf", "html"])
def test_pictures_and_pages(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    file = tmp_path / f"x.{ending}"
    words = [folder / "a", folder / "b", "--data", folder / "text.txt", "--length", "8"]
    code, out, err = run(capsys, *words, "--plot", file)
    assert (code, err) == (0, "") and f"picture    {file}" in out
    raw = file.read_bytes()
    begin = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF", "html": b"<!doctype html>"}
    assert raw.startswith(begin[ending])
    if ending in ("svg", "html"):
        text = raw.decode()
        assert "Loss of each window" in text and "perplexity" in text
        assert "@body@" not in text


def test_everything_is_in_the_json(folder: Path) -> None:
    found = measure([str(folder / "a")], folder / "text.txt", Settings(device="cpu"))
    value = as_json(found)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["models"][0]["dtype"] == "float32" and value["windows"] == 2
