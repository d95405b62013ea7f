"""Adapters that were trained with tokens or a chat template of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from merge_worker.tokenizer.adapter_files import with_tokenizer_of
from merge_worker.tokenizer.chat_template import own_template
from merge_worker.tokenizer.files import SideFiles, vocabulary
from support.adapter_factory import write_adapter
from support.checkpoint_factory import read_tensors
from support.golden_models import bells
from support.recipes import average, digest, run
from support.tokenizer_factory import (
    CHAT,
    ECHO,
    LOUD,
    by_token,
    make_models,
    save_model,
    save_tokenizer,
    tokenizers,
    write_json,
)
from support.tokenizer_formats import KINDS, make

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZER = "tokenizer.json"
Capture = pytest.CaptureFixture[str]


def trained(rows: int, tensor: str) -> Tensor:
    return (bells((rows, 8), f"trained {tensor}") / 2**18).float()


def save_adapter(folder: Path, rows: int) -> Path:
    """Write an adapter as PEFT does after it resized the vocabulary; no rows if `rows` is 0."""
    tensors = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(1, 8),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(8, 1),
    }
    for name in (EMBEDDING, HEAD) if rows else ():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        for part in ("", ".modules_to_save"):
            tensors[f"{module}{part}.weight"] = trained(rows, name)
        tensors[f"{module}.original_module.weight"] = torch.zeros(rows, 8)
    words = ["embed_tokens", "lm_head"] if rows else None
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "modules_to_save": words}
    return write_adapter(folder, config, tensors)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base of 27 tokens, also with tied heads, and an adapter with two chat tokens more."""
    monkeypatch.chdir(tmp_path)
    make_models(tmp_path)
    adapter = save_adapter(tmp_path / "chat", 29)
    save_tokenizer(adapter, tokenizers()["a"])
    (adapter / "chat_template.jinja").write_text(ECHO)
    return tmp_path


def merge(text: str, *models: str) -> int:
    listed = "".join(f"- model: {model}\n" for model in models)
    method = "merge_method: linear\nparameters: {weight: 1}\n"
    Path("r.yml").write_text(f"{method}models:\n{listed}{text}\n")
    return run("merge", "r.yml", "out", "--progress", "off", "--overwrite")


def config(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return value


@pytest.mark.parametrize("base", ["base", "tied-base"])
@pytest.mark.parametrize("source", ["", "chat", "{base}+chat", "base", "union"])
def test_the_result_has_the_tokens_of_the_adapter(
    base: str, source: str, place: Path, capsys: Capture
) -> None:
    source = source.format(base=base)
    assert merge(f"tokenizer: {{source: {source}}}" if source else "", f"{base}+chat") == 0
    out = place / "out"
    assert (out / TOKENIZER).read_bytes() == (place / "chat" / TOKENIZER).read_bytes()
    assert (out / "chat_template.jinja").read_text() == ECHO
    assert config(out)["vocab_size"] == 29
    assert not config(out)["tie_word_embeddings"], "the head was trained on its own"
    tensors = read_tensors(out)
    for name in (EMBEDDING, HEAD):
        assert torch.equal(tensors[name], trained(29, name))
    generation = "generation_config.json"
    assert (out / generation).read_bytes() == (place / base / generation).read_bytes()
    assert "token" not in capsys.readouterr().err


def test_a_union_keeps_the_rows_that_were_trained(place: Path, capsys: Capture) -> None:
    assert merge("tokenizer: {source: union}", "base", "base+chat", "b") == 0
    tensors = read_tensors(place / "out")
    base, b = read_tensors(place / "base"), read_tensors(place / "b")
    for name in (EMBEDDING, HEAD):
        rows = by_token(place / "out", tensors[name])
        wanted = by_token(place / "chat", trained(29, name))
        assert torch.equal(rows[CHAT[0]], wanted[CHAT[0]]), "no other model has it"
        own = by_token(place / "base", base[name]), wanted, by_token(place / "b", b[name])
        mean = sum(each["ab"].double() for each in own) / 3
        assert torch.equal(rows["ab"], torch.as_tensor(mean).float())
    text = capsys.readouterr().err
    assert "the result: no chat template, since base has none, unlike base+chat" in text


def test_a_donor_of_tokens_that_takes_no_part(place: Path) -> None:
    assert merge("tokenizer: {source: base+chat}", "base", "a") == 0
    assert (place / "out" / TOKENIZER).read_bytes() == (place / "chat" / TOKENIZER).read_bytes()
    assert (place / "out" / "chat_template.jinja").read_text() == ECHO


def test_other_files_of_the_old_vocabulary_are_left_out(place: Path) -> None:
    for name in ("vocab.json", "tekken.json", "tokenization_own.py", "preprocessor_config.json"):
        (place / "base" / name).write_text("{}")
    assert average(place / "out", [Path("base+chat")]) == 0
    names = {path.name for path in (place / "out").iterdir()}
    assert not names & {"vocab.json", "tekken.json"}
    assert {"tokenization_own.py", "preprocessor_config.json"} <= names


def test_other_tokens_in_the_same_rows(place: Path) -> None:
    """The base has spare rows, which the adapter uses without an embedding of its own."""
    save_model(place / "wide", tokenizers()["base"], spare=5)
    save_adapter(place / "reserved", 0)
    save_tokenizer(place / "reserved", tokenizers()["a"])
    assert average(place / "out", [Path("wide+reserved")]) == 0
    ids = Tokenizer.from_file(str(place / "out" / TOKENIZER)).get_vocab()
    assert ids[CHAT[0]] == 27 and config(place / "out")["vocab_size"] == 32
    before, after = (read_tensors(place / name)[EMBEDDING] for name in ("wide", "out"))
    assert torch.equal(before, after)


def test_the_same_tokens_leave_the_files_of_the_base(place: Path) -> None:
    save_adapter(place / "same", 0)
    assert average(place / "plain", [Path("base+same")]) == 0
    save_tokenizer(place / "same", tokenizers()["base"], padding_side="left")
    assert average(place / "out", [Path("base+same")]) == 0
    assert digest(place / "out") == digest(place / "plain")
    # A template that it was trained with comes along all the same.
    settings = json.loads((place / "same" / "tokenizer_config.json").read_text())
    write_json(place / "same" / "tokenizer_config.json", {**settings, "chat_template": LOUD})
    assert average(place / "spoken", [Path("base+same")]) == 0
    changed = digest(place / "spoken")
    assert own_template(SideFiles(place / "spoken")) == LOUD
    assert {n for n in changed if changed[n] != digest(place / "plain").get(n)} == {
        "chat_template.jinja"
    }


def test_tokens_whose_rows_were_not_saved(place: Path, capsys: Capture) -> None:
    save_adapter(place / "bare", 0)
    save_tokenizer(place / "bare", tokenizers()["a"])
    assert average(place / "out", [Path("base+bare")]) == 0
    assert (
        "bare: 2 tokens of its tokenizer have no row in the weights (<|im_start|>, <|im_end|>), "
        "so the tokenizer of the base is kept" in capsys.readouterr().err
    )
    assert (place / "out" / TOKENIZER).read_bytes() == (place / "base" / TOKENIZER).read_bytes()


def test_rows_whose_tokens_are_named_elsewhere(place: Path, capsys: Capture) -> None:
    save_adapter(place / "mute", 29)
    save_tokenizer(place / "words", tokenizers()["a"])
    assert average(place / "alone", [Path("base+mute")]) == 0
    text = capsys.readouterr().err
    assert "mute: 2 rows are new, and named in no tokenizer\n" in text
    assert "tokenizer: {source: FOLDER}" in text
    assert merge("tokenizer: {source: union}", "base", "base+mute") == 0
    assert "mute: 2 rows are new" in capsys.readouterr().err, "they are left out"
    assert merge("tokenizer: {source: words}", "base+mute") == 0
    assert "rows are new" not in capsys.readouterr().err
    assert torch.equal(read_tensors(place / "out")[HEAD], trained(29, HEAD))


def test_a_damaged_tokenizer_beside_an_adapter(place: Path, capsys: Capture) -> None:
    (place / "chat" / TOKENIZER).write_text("{")
    assert average(place / "out", [Path("base+chat")]) == 0
    text = capsys.readouterr().err
    assert "chat/tokenizer.json: not valid JSON\n  the tokenizer of the base is kept" in text
    assert (place / "out" / TOKENIZER).read_bytes() == (place / "base" / TOKENIZER).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_in_place_of_another(kind: str, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "base", tokenizers()["base"])
    write_json(tmp_path / "base" / "config.json", {"model_type": "llama"})
    donor = SideFiles(make(kind, tmp_path / "donor", CHAT))
    files = with_tokenizer_of(SideFiles(tmp_path / "base"), donor)
    expected, found = vocabulary(donor), vocabulary(files)
    assert expected is not None and found is not None
    assert (found.ids, found.added) == (expected.ids, expected.added)
