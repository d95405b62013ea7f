"""Use of a result: task and library, by its config and files, and the Python that loads it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ..checkpoint.json_files import read_object
from ..planning.dcp_layout import DCP
from ..planning.plan import Plan


class Use(NamedTuple):
    """A library that loads a model, the task that the Hub knows, and lines of Python that load it.

    `task` is "" where the config does not tell it.
    """

    library: str
    task: str
    code: tuple[str, ...]


TASKS = (
    ("CausalLM|LMHeadModel", "text-generation", "AutoModelForCausalLM"),
    ("MaskedLM", "fill-mask", "AutoModelForMaskedLM"),
    ("SequenceClassification", "text-classification", "AutoModelForSequenceClassification"),
    ("TokenClassification", "token-classification", "AutoModelForTokenClassification"),
    ("QuestionAnswering", "question-answering", "AutoModelForQuestionAnswering"),
    ("ImageClassification", "image-classification", "AutoModelForImageClassification"),
)
"""Endings of class names in a config, the task of the Hub, and the class that loads it."""
EMBEDDER = "config_sentence_transformers.json"
EMBEDDERS = {
    "SentenceTransformer": "sentence-similarity",
    "SparseEncoder": "feature-extraction",
    "CrossEncoder": "text-ranking",
}
"""Classes of sentence-transformers, which its config names, and the task of each."""
LONGEST = 1000
"""Characters of a list of languages."""


def use_of(plan: Plan, name: str) -> Use:
    """Return how the result of a plan, a folder of that name, is used."""
    config, place = plan.config, _quoted(name)
    if plan.options.format == DCP:
        line = f"dcp.load(state, checkpoint_id={place})  # state: that of the module, by name"
        return Use("pytorch", "", ("import torch.distributed.checkpoint as dcp", "", line))
    model = plan.models[0]
    copied = model.files.copied
    if "modules.json" in copied:
        settings = read_object(model.path / EMBEDDER) if EMBEDDER in copied else {}
        kind = str(settings.get("model_type"))
        kind = kind if kind in EMBEDDERS else "SentenceTransformer"
        code = (f"from sentence_transformers import {kind}", "", f"model = {kind}({place})")
        return Use("sentence-transformers", EMBEDDERS[kind], code)
    if isinstance(part := config.get("_class_name"), str) and part.isidentifier():
        load = [f"model = {part}.from_pretrained({place})"]
        return Use("diffusers", "", (f"from diffusers import {part}", "", *load))
    task, loader, reader = _transformers(config, copied)
    load = [f"model = {loader}.from_pretrained({place})"]
    load += [f"{variable} = {kind}.from_pretrained({place})" for variable, kind in reader]
    names = ", ".join(sorted({loader, *(kind for _, kind in reader)}))
    return Use("transformers", task, (f"from transformers import {names}", "", *load))


def published(card: str, folder: str, name: str) -> str:
    """Return a card whose Python loads a model of the Hub by its name, not a folder."""
    return card.replace(f"({_quoted(folder)})", f"({_quoted(name)})")


def _quoted(name: str) -> str:
    """Return a string of Python that cannot end a block of Markdown."""
    return json.dumps(name).replace("`", r"\x60")


def _transformers(
    config: Mapping[str, Any], copied: Collection[str]
) -> tuple[str, str, list[tuple[str, str]]]:
    """Return the task, the class that loads the model, and those of its tokenizer or processor."""
    classes = config.get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    tokenizer, processor = ("tokenizer", "AutoTokenizer"), ("processor", "AutoProcessor")
    for pattern, task, loader in TASKS:
        if re.search(f"({pattern})$", name):
            return task, loader, [] if task.startswith("image") else [tokenizer]
    if name.endswith("ForConditionalGeneration"):
        if "vision_config" in config:
            return "image-text-to-text", "AutoModelForImageTextToText", [processor]
        if "num_mel_bins" in config:
            speech = "automatic-speech-recognition"
            return speech, "AutoModelForSpeechSeq2Seq", [processor]
        if config.get("is_encoder_decoder") or "encoder" in config or "d_kv" in config:
            return "text2text-generation", "AutoModelForSeq2SeqLM", [tokenizer]
    # AutoModel drops heads, and gives an encoder a decoder; code in the folder needs it.
    named = re.fullmatch(r"[A-Z]\w*", name, re.ASCII) and "auto_map" not in config
    loader = name if named else "AutoModel"
    if "preprocessor_config.json" in copied:
        return "", loader, [processor]
    if "tokenizer_config.json" not in copied:
        return "", loader, []
    return "feature-extraction" if name.endswith("Model") else "", loader, [tokenizer]


def languages(fronts: Iterable[str]) -> list[str]:
    """Return the languages in the front matter of cards, each once; none if a card has none."""
    found: list[str] = []
    for text in fronts:
        match = re.search(r"^languages?:[ \t]*(.*(?:\n[ \t]*- .*)*)", text, re.MULTILINE)
        words = re.findall(r"\b[A-Za-z][\w-]{1,15}\b", match[1][:LONGEST]) if match else []
        if not words:
            return []
        found += words
    return list(dict.fromkeys(found))
