"""Every kind of architecture with its tokenizer: a merge of equal models answers as they do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoint_factory import ARCHITECTURES, load, make_model
from support.recipes import run
from support.tokenizer_formats import make

ADDED = ("<|x|>", "<|y|>")
PROMPT = "the quick brown fox"


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def save(folder: Path, model: Any, added: tuple[str, ...] = ()) -> Path:
    """Save a model with its tokenizer; rows for `added` tokens are random."""
    make("unigram", folder, added)
    torch.manual_seed(9)
    if added:
        model.resize_token_embeddings(len(tokenizer(folder)), mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def says(folder: Path) -> str:
    model, info = load(folder)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    words = tokenizer(folder)
    # The cache of some hybrids is not tested here.
    made = model.generate(
        **words(PROMPT, return_tensors="pt", return_token_type_ids=False),
        max_new_tokens=12,
        do_sample=False,
        use_cache=False,
        pad_token_id=0,
    )
    return str(words.decode(made[0]))


def logits(folder: Path) -> torch.Tensor:
    model, info = load(folder)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    ids = tokenizer(folder)(PROMPT, return_tensors="pt")["input_ids"]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, **more).logits
    return result


def merge(place: Path, text: str, out: str) -> None:
    (place / "r.yml").write_text(f"merge_method: linear\nparameters: {{weight: 1}}\n{text}")
    words = ("--relative-to", place, "--progress", "off")
    assert run("merge", place / "r.yml", place / out, *words) == 0


QUICK = ("llama", "olmo_hybrid", "jamba", "t5")
TYPES = [pytest.param(t, marks=() if t in QUICK else pytest.mark.slow) for t in ARCHITECTURES]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_equal_models_give_equal_answers(model_type: str, tmp_path: Path) -> None:
    rows = len(tokenizer(make("unigram", tmp_path / "tokens")))
    model = make_model(model_type, vocab_size=rows)
    save(tmp_path / "a", model)
    save(tmp_path / "b", model)
    for out, text in {"plain": "", "united": "tokenizer_source: union\n"}.items():
        merge(tmp_path, f"{text}models: [{{model: a}}, {{model: b}}]\n", out)
        assert says(tmp_path / out) == says(tmp_path / "a")
    # The same model with two more tokens: logits of common tokens stay, the others are new.
    save(tmp_path / "more", model, ADDED)
    text = "base_model: a\ntokenizer_source: union\nmodels: [{model: a}, {model: more}]\n"
    merge(tmp_path, text, "out")
    assert tokenizer(tmp_path / "out").get_vocab() == tokenizer(tmp_path / "more").get_vocab()
    merged, before = logits(tmp_path / "out"), logits(tmp_path / "a")
    assert merged.shape[-1] == rows + len(ADDED)
    assert torch.equal(merged[..., :rows], before)
    assert torch.equal(merged, logits(tmp_path / "more"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == rows + len(ADDED)
