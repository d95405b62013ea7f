"""Heads that are the embedding, stored or not: the result is what its config says, and loads."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.structure.embeddings import (
    is_vocabulary,
    rows_of,
    tied,
    unify_tied_heads,
    vocabulary_names,
)
from support.checkpoint_factory import load, read_tensors, write_checkpoint
from support.recipes import run
from support.tokenizer_factory import CHAT, CONFIG, HIDDEN, SPECIAL, bpe, llama, save_tokenizer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# How a model has its head: what its config says of it, and whether it is stored.
KINDS = {
    "tied": (True, False),
    "tied and stored": (True, True),
    "own": (False, True),
    "silent": (None, False),  # older configs leave out what is the default of their type
    "silent and stored": (None, True),
}
TOKENS = [*SPECIAL, *"abcdefgh"]


def make(folder: Path, kind: str, special: list[str]) -> dict[str, Tensor]:
    """A model of that kind; its tensors, with the head that it works with."""
    tie, stored = KINDS[kind]
    tokenizer = bpe(TOKENS, special=special)
    rows = len(tokenizer.get_vocab())
    tensors = llama(rows, f"{folder.name} {kind}")
    if tie or not stored:
        tensors[HEAD] = tensors[EMBEDDING]
    settings: dict[str, Any] = {**CONFIG, "vocab_size": rows}
    del settings["tie_word_embeddings"]
    if tie is None:
        # Of Llama the default would be untied.
        settings |= {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "head_dim": 4}
        settings |= {"hidden_act": "gelu"}
    settings |= {} if tie is None else {"tie_word_embeddings": tie}
    kept = {n: t.clone() for n, t in tensors.items() if stored or n != HEAD}
    write_checkpoint(folder, kept, config=settings)
    save_tokenizer(folder, tokenizer)
    return tensors


def is_tied(kind: str) -> bool:
    return kind not in ("own", "silent and stored")


PAIRS = [pair for pair in product(KINDS, KINDS) if "silent" not in pair[0] + pair[1]]
PAIRS += [pair for pair in product(KINDS, KINDS) if "silent" in pair[0] and "silent" in pair[1]]


@pytest.mark.parametrize("vocabulary", ["same", "union", "base"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_pair(first: str, second: str, vocabulary: str, tmp_path: Path) -> None:
    a = make(tmp_path / "a", first, CHAT)
    b = make(tmp_path / "b", second, CHAT if vocabulary == "same" else [CHAT[1], "<c>"])
    text = "" if vocabulary == "same" else f"tokenizer_source: {vocabulary}\n"
    (tmp_path / "r.yml").write_text(
        f"{text}merge_method: linear\nparameters: {{weight: 1}}\n"
        "models: [{model: a}, {model: b}]\n"
    )
    words = ("--relative-to", tmp_path, "--progress", "off")
    assert run("merge", tmp_path / "r.yml", tmp_path / "out", *words) == 0
    merged = read_tensors(tmp_path / "out")
    assert (HEAD in merged) is not is_tied(first), "never a copied head, never a lost one"
    rows = {"same": 13, "union": 14, "base": 13}[vocabulary]
    for name in {EMBEDDING, HEAD} & merged.keys():
        assert merged[name].shape == (rows, HIDDEN)
        mean = ((a[name].double() + b[name].double()) / 2).float()
        assert torch.equal(merged[name][: len(TOKENS)], mean[: len(TOKENS)]), name
        if vocabulary != "same":
            assert torch.equal(merged[name][11], a[name][11]), "<|im_start|> is of a alone"
            end = (a[name][12].double() + b[name][11].double()) / 2
            assert torch.equal(merged[name][12], end.float()), "<|im_end|> is of both"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == rows
    if "silent and stored" in (first, second) and is_tied(first) is False:
        return  # what a silent config means is for the model type; the head is kept as it was
    model, info = load(tmp_path / "out")
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    head = model.get_output_embeddings().weight
    assert torch.equal(head.data, merged.get(HEAD, merged[EMBEDDING]))


def test_slices_of_tied_and_untied_models(tmp_path: Path) -> None:
    """The head of the last slice's models, whatever they store."""
    a, b = make(tmp_path / "a", "own", CHAT), make(tmp_path / "b", "tied", CHAT)
    for first, last in (("a", "b"), ("b", "a")):
        (tmp_path / "r.yml").write_text(
            "merge_method: passthrough\nslices:\n"
            f"- {{sources: [{{model: {first}, layer_range: [0, 1]}}]}}\n"
            f"- {{sources: [{{model: {last}, layer_range: [0, 1]}}]}}\n"
        )
        words = ("--relative-to", tmp_path, "--progress", "off")
        out = tmp_path / f"{first}-{last}"
        assert run("merge", tmp_path / "r.yml", out, *words) == 0
        merged = read_tensors(out)
        if first == "a":
            assert torch.equal(merged[EMBEDDING], a[EMBEDDING])
            assert torch.equal(merged[HEAD], b[EMBEDDING])
        else:
            assert HEAD not in merged, "the config is that of b"
        _, info = load(out)
        assert {kind: keys for kind, keys in info.items() if keys} == {}


def test_what_has_rows_for_tokens(tmp_path: Path) -> None:
    shape = {
        "model.embed_tokens.weight": (12, 4),
        "lm_head.weight": (12, 4),
        "lm_head.bias": (12,),
        "model.layers.0.mlp.up_proj.weight": (12, 4),
        "model.norm.weight": (4,),
        "model.layers.1.embed_tokens.weight": (12, 4),
        "model.embed_positions.weight": (12, 4),
        "vision_tower.embeddings.weight": (9, 4),
        "cls.predictions.bias": (12,),
    }
    tensors = {name: torch.zeros(extents) for name, extents in shape.items()}
    model = open_checkpoint(write_checkpoint(tmp_path / "m", tensors, config={"vocab_size": 12}))
    assert rows_of(model) == 12
    assert sorted(vocabulary_names(model)) == [
        *("cls.predictions.bias", "lm_head.bias", "lm_head.weight", "model.embed_tokens.weight"),
        "model.layers.1.embed_tokens.weight",
    ]
    assert is_vocabulary("transformer.wte.weight") and not is_vocabulary("transformer.wpe.weight")


def test_a_head_whose_embedding_is_not_found_stays(tmp_path: Path) -> None:
    tensors = {"lm_head.weight": torch.zeros(3, 2), "unheard.of.weight": torch.zeros(3, 2)}
    path = write_checkpoint(tmp_path / "m", tensors, config={"tie_word_embeddings": True})
    model = open_checkpoint(path)
    assert tied(model)
    (settled,), notes = unify_tied_heads([model], ["m"])
    assert settled is model and notes == []


def test_a_head_that_is_not_the_embedding_stays_whatever_the_config_says(tmp_path: Path) -> None:
    for value, name in enumerate("ab", start=1):
        tensors = {
            EMBEDDING: torch.full((8, 4), 1.0 * value),
            HEAD: torch.full((8, 4), 3.0 * value),
        }
        write_checkpoint(tmp_path / name, tensors, config={"tie_word_embeddings": True})
    out = tmp_path / "out"
    assert run("average", out, tmp_path / "a", tmp_path / "b", "--progress", "off") == 0
    merged = read_tensors(out)
    assert torch.equal(merged[HEAD], torch.full((8, 4), 4.5))
    assert torch.equal(merged[EMBEDDING], torch.full((8, 4), 1.5))


def test_a_copy_of_the_embedding_is_not_a_head_of_its_own(tmp_path: Path) -> None:
    tensors = {EMBEDDING: torch.arange(32.0).view(8, 4), HEAD: torch.arange(32.0).view(8, 4)}
    path = write_checkpoint(tmp_path / "m", tensors, config={"tie_word_embeddings": True})
    assert tied(open_checkpoint(path))
    tensors[HEAD][7, 3] = -1.0
    path = write_checkpoint(tmp_path / "n", tensors, config={"tie_word_embeddings": True})
    assert not tied(open_checkpoint(path))
