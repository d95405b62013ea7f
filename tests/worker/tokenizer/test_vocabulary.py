"""Other forms of a vocabulary beside tokenizer.json, when tokens are added to it or taken out."""

import json
from pathlib import Path

import pytest

from merge_worker.tokenizer.files import SideFiles, vocabulary
from support.checkpoint_factory import write_checkpoint
from support.recipes import run
from support.tokenizer_factory import (
    CHAT,
    bpe,
    llama,
    make_models,
    save_tokenizer,
    tokenizers,
    write_json,
)

FORMS = ("merges.txt", "tekken.json", "tokenizer.model", "vocab.json")
Capture = pytest.CaptureFixture[str]


def union(place: Path, *models: str) -> int:
    listed = ", ".join(f"{{model: {model}}}" for model in models)
    (place / "r.yml").write_text(
        f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{listed}]\n"
        "tokenizer_source: union\n"
    )
    words = ("--relative-to", place, "--progress", "off", "--overwrite")
    return run("merge", place / "r.yml", place / "out", *words)


def add_older_forms(folder: Path, ids: dict[str, int]) -> None:
    for name in ("merges.txt", "tekken.json", "tokenizer.model"):
        (folder / name).write_text(f"the old {name}")
    write_json(folder / "vocab.json", ids)


def kept(place: Path, base: str) -> list[str]:
    """Return the forms that are in the result as they were."""
    paths = [(place / "out" / name, place / base / name) for name in FORMS]
    return [new.name for new, old in paths if new.exists() and new.read_bytes() == old.read_bytes()]


def test_forms_that_cannot_take_the_new_tokens(tmp_path: Path, capsys: Capture) -> None:
    make_models(tmp_path)
    add_older_forms(tmp_path / "base", tokenizers()["base"].get_vocab(with_added_tokens=False))
    assert union(tmp_path, "base", "a") == 0
    text = capsys.readouterr().err
    assert "tekken.json: left out, since the tokens differ from tokenizer.json now" in text
    assert (
        "merges.txt, tokenizer.model, vocab.json: as before; added tokens are in "
        "tokenizer_config.json" in text
    )
    assert kept(tmp_path, "base") == ["merges.txt", "tokenizer.model", "vocab.json"]
    assert not (tmp_path / "out" / "tekken.json").exists()
    # A program that reads vocab.json finds all tokens.
    wanted = vocabulary(SideFiles(tmp_path / "out"))
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / "out" / name).unlink()
    found = vocabulary(SideFiles(tmp_path / "out"))
    assert wanted and found and found.ids == wanted.ids
    assert set(CHAT) <= found.added.keys()


def test_the_same_tokens_keep_every_form(tmp_path: Path, capsys: Capture) -> None:
    make_models(tmp_path)
    add_older_forms(tmp_path / "base", {})
    assert union(tmp_path, "base", "tied-base") == 0
    assert kept(tmp_path, "base") == list(FORMS)
    assert "tekken" not in capsys.readouterr().err


def test_regular_tokens_are_taken_out_of_every_form(tmp_path: Path, capsys: Capture) -> None:
    """The tokenizer has more regular tokens than the embedding rows."""
    for name in ("cut", "cut2"):
        write_checkpoint(tmp_path / name, llama(7, name), config={"vocab_size": 7})
        save_tokenizer(tmp_path / name, bpe(["<unk>", "<s>", "</s>", *"abcd", "ab"]))
        add_older_forms(tmp_path / name, {})
    assert union(tmp_path, "cut", "cut2") == 0
    assert f"{', '.join(FORMS)}: left out" in capsys.readouterr().err
    assert kept(tmp_path, "cut") == []
    full = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert "ab" not in full["model"]["vocab"]
