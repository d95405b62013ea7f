"""Heads that an adapter brings along: the class of the model that results. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..tensors.source import StoredTensor

_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
_CLASS = re.compile(
    r"(For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining)|LMHeadModel|(?<!LMHead)Model)$"
)
_HEAD = re.compile(
    r"(.+\.)?(lm_head|embed_out|cls\.predictions|vocab_\w+|generator_\w+|output_projection)\..+"
    r"|(decoder|head|predictions)\.(weight|bias)"
)


def is_language_head(name: str) -> bool:
    """Return whether a tensor predicts tokens, for which a classifier has no use."""
    return bool(_HEAD.fullmatch(name))


def class_with_head(
    base: Mapping[str, Any], adapter: Mapping[str, Any], heads: Sequence[StoredTensor]
) -> dict[str, Any] | None:
    """Return what the config of a classifier says differently; None if its class is unknown."""
    named = adapter.get("auto_mapping")
    given = str(named.get("base_model_class") or "") if isinstance(named, dict) else ""
    suffix = _CLASSES.get(str(adapter.get("task_type")), "")
    classes = base.get("architectures")
    language = str(classes[0]) if isinstance(classes, list) and classes else ""
    architecture = given or (_CLASS.sub(suffix, language) if suffix else "")
    if not architecture or architecture == language:
        return None
    # The last layer of a head has a row for each label.
    labels = next((head.shape[0] for head in reversed(heads) if len(head.shape) == 2), 0)
    changes: dict[str, Any] = {"architectures": [architecture]}
    if suffix != _CLASSES["QUESTION_ANS"]:
        names = [f"LABEL_{n}" for n in range(labels)]
        changes["id2label"] = {str(n): name for n, name in enumerate(names)}
        changes["label2id"] = {name: n for n, name in enumerate(names)}
    return changes
