"""Tokenizers of every kind of file: read, extended, and read again by transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.errors import InputError
from merge_worker.tokenizer.files import SideFiles, pieces, vocabulary
from merge_worker.tokenizer.roundtrip import SAMPLES
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.golden_models import bells
from support.recipes import run
from support.tokenizer_factory import write_json
from support.tokenizer_formats import KINDS, LINES, make

ADDED = ("<|x|>", "<|y|>")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def model(kind: str, folder: Path, added: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """A model of nothing but rows for its tokens; those rows by token."""
    files = make(kind, folder.with_name(f"{folder.name}-tokenizer"), added)
    ids = load(files).get_vocab()
    rows = bells((len(ids), 4), folder.name).float()
    write_checkpoint(folder, {"model.embed_tokens.weight": rows})
    for file in files.iterdir():
        file.rename(folder / file.name)
    return {token: rows[number] for token, number in ids.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("added", [(), ADDED])
def test_read_as_transformers_reads_it(kind: str, added: tuple[str, ...], tmp_path: Path) -> None:
    files = make(kind, tmp_path / "m", added)
    own, loaded = vocabulary(SideFiles(files)), load(files)
    assert own is not None and own.ids == loaded.get_vocab()
    assert own.size == len(loaded)
    assert all(own.added[token]["special"] for token in added)


@pytest.mark.parametrize("kind", KINDS)
def test_a_union_of_every_kind(kind: str, tmp_path: Path) -> None:
    one, two = model(kind, tmp_path / "one"), model(kind, tmp_path / "two", ADDED)
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        "merge_method: linear\nbase_model: one\nparameters: {weight: 1}\ntokenizer_source: union\n"
        "models: [{model: one}, {model: two}]\n"
    )
    out = tmp_path / "out"
    assert run("merge", recipe, out, "--relative-to", tmp_path, "--progress", "off") == 0
    before, after = load(tmp_path / "one"), load(out)
    ids = after.get_vocab()
    assert ids.keys() == two.keys()
    assert {token: ids[token] for token in one} == before.get_vocab(), "the base's ids stay"
    rows = read_tensors(out)["model.embed_tokens.weight"]
    assert len(rows) == len(ids) == len(two)
    for token, number in ids.items():
        expected = two[token] if token in ADDED else (one[token] + two[token]) / 2
        assert torch.equal(rows[number], expected), token
    for text in (*SAMPLES, *LINES):
        assert before.encode(text) == after.encode(text)
    chat = f"{ADDED[0]}the fox{ADDED[1]}of text"
    assert after.tokenize(chat) == load(tmp_path / "two").tokenize(chat)


def test_the_same_tokenizer_is_copied(tmp_path: Path) -> None:
    for kind in KINDS:
        place = tmp_path / kind
        place.mkdir()
        model(kind, place / "one", ADDED)
        model(kind, place / "two", ADDED)
        recipe = place / "r.yml"
        recipe.write_text(
            "merge_method: linear\nparameters: {weight: 1}\ntokenizer_source: union\n"
            "models: [{model: one}, {model: two}]\n"
        )
        out = place / "out"
        assert run("merge", recipe, out, "--relative-to", place, "--progress", "off") == 0
        for file in (place / "one").iterdir():
            if file.name not in ("model.safetensors", "config.json"):
                assert (out / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(
    "text",
    [
        *("{", "{}", "[]", '{"model": {}}', '{"model": {"vocab": {"a": "b"}}}', '{"model": 1}'),
        *('{"model": {"vocab": {"a": 1000000000}}}', '{"model": {"vocab": {"a": -1}}}'),
        '{"model": {"vocab": {}}, "added_tokens": [{"id": 4194304, "content": "x"}]}',
    ],
)
def test_damaged_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match="tokenizer"):
        vocabulary(SideFiles(tmp_path))


def test_pieces_of_no_sentencepiece_model(tmp_path: Path) -> None:
    # A length that never ends, a piece without its text.
    for raw in (b"\n\xff\xff", b"\n" + b"\xff" * 1_000_000, b"\n\x02\x15\x00\n\x00"):
        (tmp_path / "tokenizer.model").write_bytes(raw)
        with pytest.raises(InputError, match="damaged"):
            vocabulary(SideFiles(tmp_path))
    assert list(pieces(b"")) == []


def test_no_tokenizer(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    assert vocabulary(SideFiles(tmp_path)) is None and vocabulary(SideFiles(None)) is None
