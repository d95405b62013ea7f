"""Options of mergekit-yaml and mergekit-moe, accepted by `merge` and `average`, with notes.

One table serves the command line and the documentation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..planning.step import has_accelerator


class Row(NamedTuple):
    """An option of mergekit 0.1.5, its replacement here (empty: not needed), and a note."""

    option: str
    replacement: str
    note: str
    takes_value: bool = False


TABLE = (
    Row("--cuda", "", "every visible GPU is used by default; --device cuda requires one"),
    Row("--gpu-rich", "", "every visible GPU is used by default"),
    Row("--multi-gpu", "", "every visible GPU is used by default"),
    Row("--low-cpu-memory", "", "memory is bounded on host and device: see --memory"),
    Row("--read-to-gpu", "", "tensors stream through the device in pieces"),
    Row("--lazy-unpickle", "", "nothing is unpickled: .bin files are read as byte ranges"),
    Row("--async-write", "", "reading, computing and writing always overlap"),
    Row("--write-threads", "", "reading, computing and writing always overlap", True),
    Row("--clone-tensors", "", "a layer may occur in a result any number of times"),
    Row("--copy-tokenizer", "", "the tokenizer is always copied, or made as the recipe says"),
    Row("--write-model-card", "", "the card is always written"),
    Row("--safe-serialization", "", "results are always safetensors"),
    Row(
        "--allow-crimes",
        "",
        "tensors are matched by name and shape, whatever the architecture; "
        "for names that differ: --missing copy, --surplus drop, or key_map in the recipe",
    ),
    Row(
        "--unsafe-truncate-embeddings",
        "",
        "rows are never cut off silently; 'tokenizer: "
        "{source: base}' in the recipe drops the tokens that the base does not have",
    ),
    Row("--out-shard-size", "--shard-size", "in bytes, as in mergekit: 5B is 5GB", True),
    Row("--random-seed", "--seed", "random masks depend on it alone, not on threads", True),
    Row("--num-threads", "--threads", "", True),
    Row("-j", "--threads", "", True),
    Row("--quiet", "--progress=off", ""),
    Row("--verbose", "", "warnings and progress are always shown"),
    Row("-v", "", "warnings and progress are always shown"),
    Row("--transformers-cache", "", "set HF_HUB_CACHE for models of the Hub", True),
    Row("--lora-merge-cache", "", "adapters are applied while they stream", True),
    Row("--lora-merge-dtype", "", "adapters are applied in float32 and rounded once", True),
    Row("--lazy", "", "a finished merge is never repeated"),
    Row("--intermediate-dir", "", "intermediate results stay beside OUT during the merge", True),
    Row("-I", "", "intermediate results stay beside OUT during the merge", True),
    Row("--out-path", "--out", "", True),
    Row("--load-in-4bit", "", "gates read the base layer by layer, in bounded memory"),
    Row("--load-in-8bit", "", "gates read the base layer by layer, in bounded memory"),
    Row(
        "--i-understand-this-is-not-useful-without-training",
        "",
        "a mixture of equal experts is built with a warning",
    ),
)
GPU = ("--cuda", "--gpu-rich", "--multi-gpu", "--read-to-gpu")
BY_OPTION = {row.option: row for row in TABLE}


NO_GPU = "no GPU is visible here: the CPU merges"


def translated(words: Sequence[str], merges_here: bool = True) -> tuple[list[str], str]:
    """Replace options of mergekit in the words of a command; return them and a note of one line.

    The note is "" if there is none. It says if a GPU is asked for that this machine lacks, where
    it is this machine that merges.
    """
    translation, notes = list[str](), dict[str, tuple[str, str]]()
    remaining = iter(words)
    for word in remaining:
        name, given, value = word.partition("=")
        positive = re.sub("^--no-", "--", name)
        row = BY_OPTION.get(name) or BY_OPTION.get(positive)
        if row is None or (row.takes_value and name != positive):
            translation.append(word)
            continue
        if row.takes_value and not given:
            value = next(remaining, "")
        replacement = row.replacement
        if replacement and row.takes_value:
            replacement += f"={_size(value)}"
        if replacement and name == row.option:
            translation.append(replacement)
        notes[name] = replacement, row.note
    lacks_gpu = merges_here and any(name in GPU for name in notes) and not has_accelerator()
    return translation, _note(notes, lacks_gpu)


def _note(notes: Mapping[str, tuple[str, str]], lacks_gpu: bool) -> str:
    """Return what was made of options, by name: each replacement, and the note if it is one."""
    if len(notes) == 1:
        ((name, (new, more)),) = notes.items()
        facts = [f"{new} here" if new else "", NO_GPU if lacks_gpu else more]
        return f"{name}: " + "; ".join(filter(None, facts))
    facts = [f"{name} is {new} here" for name, (new, _) in notes.items() if new]
    if unneeded := [name for name, (new, _) in notes.items() if not new]:
        verb = "are" if len(unneeded) > 1 else "is"
        facts.append(f"{', '.join(unneeded)} {verb} not needed")
    facts += [NO_GPU] if lacks_gpu else []
    return f"options of mergekit: {'; '.join(facts)}" if facts else ""


def _size(value: str) -> str:
    """Convert 5B, a billion bytes, to 5GB, and 500M to 500MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbB])", value)
    return f"{match[1]}{match[2].upper().replace('B', 'G')}B" if match else value
