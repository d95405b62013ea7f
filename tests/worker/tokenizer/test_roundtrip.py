"""A tokenizer that was extended is tried on text before anything is merged."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from merge_worker.tokenizer import merge as merge_module
from merge_worker.tokenizer.vocabulary import edited
from support.checkpoint_factory import write_checkpoint
from support.recipes import run
from support.tokenizer_factory import CHAT, bpe, llama, make_models, save_tokenizer

RECIPE = (
    "merge_method: linear\nparameters: {weight: 1}\ntokenizer_source: union\n"
    "models: [{model: a}, {model: b}]\n"
)
Capture = pytest.CaptureFixture[str]


def merge(place: Path) -> int:
    (place / "r.yml").write_text(RECIPE)
    words = ("--relative-to", place, "--progress", "off")
    return run("merge", place / "r.yml", place / "out", *words)


def test_a_tokenizer_that_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Other merges, a token at another id, an added token that is not found."""
    make_models(tmp_path)

    def wrong(*words: Any) -> dict[str, bytes]:
        full = json.loads(edited(*words)["tokenizer.json"])
        full["model"]["merges"] = full["model"]["merges"][:1]
        full["added_tokens"] = full["added_tokens"][:-1]
        return {"tokenizer.json": json.dumps(full).encode()}

    monkeypatch.setattr(merge_module, "edited", wrong)
    assert merge(tmp_path) == 5
    text = capsys.readouterr().err
    assert "its tokenizer with 1 more token is not what it was before" in text
    assert "1 token has another id than row: <tool>" in text
    assert '"abcd efgh' in text, "the text that is encoded in another way"
    assert not list(tmp_path.glob("out/*"))


def test_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    make_models(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert merge(tmp_path) == 0
    assert "was extended unchecked; to check it: " in capsys.readouterr().err


def test_ids_that_are_left_out(tmp_path: Path, capsys: Capture) -> None:
    """The library would give the next token an id that is taken."""
    for name, special in {"a": [], "b": CHAT}.items():
        tokenizer = bpe(["<unk>", "<s>", "</s>", *"abcd"], special=special)
        save_tokenizer(tmp_path / f"{name}-files", tokenizer)
        rows = 7 + len(special)
        write_checkpoint(tmp_path / name, llama(rows, name), config={"vocab_size": rows})
        for file in (tmp_path / f"{name}-files").iterdir():
            file.rename(tmp_path / name / file.name)
    path = tmp_path / "a" / "tokenizer.json"
    full = json.loads(path.read_text())
    del full["model"]["vocab"]["c"]
    path.write_text(json.dumps(full))
    assert merge(tmp_path) == 3
    assert "'c' would get the id 6 of another token" in capsys.readouterr().err
