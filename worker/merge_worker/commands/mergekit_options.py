"""mergekit's options as ours, so that old habits work: one table, for both commands and the docs.

What needs no option here is taken with a word on why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """An option of mergekit 0.1.5: what it is here, and what to know. `value`: it takes one."""

    option: str
    ours: str
    note: str
    value: bool = False


TABLE = (
    Row("--cuda", "", "every visible GPU is used without being asked; --device cuda insists"),
    Row("--gpu-rich", "", "every visible GPU is used without being asked"),
    Row("--multi-gpu", "", "every visible GPU is used without being asked"),
    Row("--low-cpu-memory", "", "memory is bounded on host and device: see --memory"),
    Row("--read-to-gpu", "", "tensors stream through the device in pieces"),
    Row("--lazy-unpickle", "", "nothing is unpickled: .bin files are read as byte ranges"),
    Row("--async-write", "", "reading, maths and writing always overlap"),
    Row("--write-threads", "", "reading, maths and writing always overlap", True),
    Row("--clone-tensors", "", "the same layer may stand in a result any number of times"),
    Row("--copy-tokenizer", "", "the tokenizer is always copied, or made as the recipe says"),
    Row("--write-model-card", "", "the card is always written"),
    Row("--safe-serialization", "", "results are always safetensors"),
    Row("--allow-crimes", "", "tensors are matched by name and shape, whatever the architecture; "
        "for names that differ: --missing copy, --surplus drop, or key_map in the recipe"),
    Row("--unsafe-truncate-embeddings", "", "rows are never cut off unseen; 'tokenizer: {source: "
        "base}' in the recipe leaves out the tokens that the base lacks"),
    Row("--out-shard-size", "--shard-size", "in bytes, as in mergekit: 5B is 5GB", True),
    Row("--random-seed", "--seed", "random masks depend on it alone, not on threads", True),
    Row("--num-threads", "--threads", "", True),
    Row("-j", "--threads", "", True),
    Row("--quiet", "--progress=off", ""),
    Row("--verbose", "", "warnings and progress are always told"),
    Row("-v", "", "warnings and progress are always told"),
    Row("--transformers-cache", "", "set HF_HUB_CACHE for models of the hub", True),
    Row("--lora-merge-cache", "", "adapters are applied while they stream", True),
    Row("--lora-merge-dtype", "", "adapters are applied in float32 and rounded once", True),
    Row("--lazy", "", "what is there already is never done again"),
    Row("--intermediate-dir", "", "intermediate results are kept beside OUT meanwhile", True),
    Row("-I", "", "intermediate results are kept beside OUT meanwhile", True),
    Row("--out-path", "--out", "", True),
)  # fmt: skip
BY_OPTION = {row.option: row for row in TABLE}


def translated(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words of a command with mergekit's options as ours, and a note for each."""
    ours, notes = list[str](), list[str]()
    left = iter(words)
    for word in left:
        name, given, value = word.partition("=")
        positive = re.sub("^--no-", "--", name)
        row = BY_OPTION.get(name) or BY_OPTION.get(positive)
        if row is None or (row.value and name != positive):
            ours.append(word)
            continue
        if row.value and not given:
            value = next(left, "")
        if row.ours and name == row.option:
            ours.append(f"{row.ours}={_size(value)}" if row.value else row.ours)
        said = f"{row.ours}{f'={_size(value)}' if row.value else ''} here" if row.ours else ""
        notes.append(f"{name}: " + "; ".join(part for part in (said, row.note) if part))
    return ours, notes


def _size(value: str) -> str:
    """5B, a billion of bytes, as 5GB; 500M as 500MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbB])", value)
    return f"{found[1]}{found[2].upper().replace('B', 'G')}B" if found else value


def join_negative_weights(words: Sequence[str]) -> list[str]:
    """`--weights -1,2` as one word, since argparse takes the second for an option."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--weights" and re.match(r"-[\d.]", word):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found
