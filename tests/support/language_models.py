"""Tiny language models of many families, saved as users have them, and what transformers makes of
them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.inference.model import Model, ModelOptions, open_model
from merge_worker.tokenizer.files import SideFiles
from support.tiny_models import retrain, tiny_model

WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", " ", ".", "\n", "the", "ab", "th"]


def make(folder: Path, class_name: str, model_type: str, seed: int = 1, **fields: Any) -> Path:
    """Save a tiny float32 model of a class, with some `fields` of its config changed."""
    model_class = getattr(transformers, class_name)
    model = tiny_model(model_class, CONFIG_MAPPING[model_type])
    if fields:
        config = type(model.config)(**{**model.config.to_dict(), **fields})
        model = model_class(config).float().eval()
    retrain(model, seed).save_pretrained(folder)
    return folder


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the model as transformers loads it."""
    names = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(transformers, names[0]).from_pretrained(folder, dtype=dtype).eval()


def opened(folder: Path, **options: Any) -> Model:
    """Return the model as `inference` opens it."""
    return open_model(
        open_checkpoint(folder), SideFiles(folder), folder.name, ModelOptions(**options)
    )


def reference_losses(model: Any, ids: Tensor) -> Tensor:
    """Return the losses of all tokens but the first (sequences, tokens - 1), in float32."""
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none"
    )
    return flat.view(ids.shape[0], -1)


def write_tokenizer(
    folder: Path, words: list[str] | None = None, bos: bool = True, template: str | None = None
) -> Path:
    """Write a tokenizer of single letters and some words, with a token at the begin of a text."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = WORDS if words is None else words
    vocabulary = {word: number for number, word in enumerate(listed)}
    merges = [(w[0], w[1:]) for w in listed if len(w) == 2 and w.isalpha()]
    if "the" in listed:
        merges.append(("th", "e"))
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    settings: dict[str, Any] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **settings)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder
