"""Does a changed tokenizer still say what it said? Text is encoded before and after the change.

Done before the first weight is read, so that a tokenizer that went wrong costs nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint.header import CONFIG
from ..errors import ResultError
from ..messages import counted, first_names
from .files import FULL, OLD_ADDED, SETTINGS, SideFiles
from .text_side import TokenizerResult
from .vocabulary import PLAIN

SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x ** 2  # 3.14159, 1_000_000\n\tpass\n\n",
    "Grüße, ça va? Здравствуйте! 你好世界。こんにちは 안녕 مرحبا नमस्ते 🙂👩‍🚀",
    "  leading,  double and trailing spaces  ",
    '{"key": [1, 2.5e-3, null], "url": "https://example.org/a?b=c&d=%20"}',
    "abcd efgh ABCD 0123 don't it's we've\r\nnext line",
)


def check_roundtrip(text: TokenizerResult) -> str | None:
    """ResultError if the tokenizer of a result is not what it should be; a note if unchecked."""
    before, after = text.before, text.beside
    changed = [n for n in (FULL, SETTINGS, OLD_ADDED) if n in after.made]
    if before is None or after.known is None or not changed:
        return None
    try:
        with _loaded(before) as old, _loaded(after) as new:
            faults = list(_faults(text, old, new))
    except ImportError as error:
        return f"the tokenizer was extended unchecked: pip install {error.name}"
    if faults:
        raise ResultError(
            f"{before.folder}: its tokenizer with {counted(len(text.appended), 'more tokens')} "
            f"is not what it was before:\n  " + "\n  ".join(faults[:4])
        )
    return None


def _faults(text: TokenizerResult, old: Any, new: Any) -> Iterator[str]:
    known = text.beside.known
    assert known is not None
    there = new.vocabulary
    other = [t for t in {**there, **known.ids} if there.get(t) != known.ids.get(t)]
    if other:
        yield (
            f"{counted(len(other), 'tokens have another id than row')}: "
            f"{first_names(sorted(other))}"
        )
    gone = {number for token, number in old.vocabulary.items() if token not in known.ids}
    for sample in SAMPLES:
        one, two = old.encode(sample), new.encode(sample)
        # A token that is new may well be found in a text, and one without a row be missed.
        excused = gone & set(one) or any(token in sample for token in text.appended)
        if one != two and not excused:
            yield f"{json.dumps(sample[:40])}: {first_names(map(str, two), 8)}"
    for token in text.appended:
        flags = known.added[token]
        plain = dict(flags) == PLAIN or flags.get("single_word")
        if not plain and known.ids[token] not in new.encode(f"a{token}b"):
            yield f"{token} is not found in a text"


class _Tokenizer:
    """A tokenizer behind the few calls needed here, whichever library reads it."""

    def __init__(self, vocabulary: dict[str, int], encode: Callable[[str], list[int]]) -> None:
        self.vocabulary = vocabulary
        self.encode = encode


@contextmanager
def _loaded(beside: SideFiles) -> Iterator[_Tokenizer]:
    raw = beside.read(FULL)
    if raw is not None:
        from tokenizers import Tokenizer

        full = Tokenizer.from_str(raw.decode())
        yield _Tokenizer(full.get_vocab(), lambda t: list(full.encode(t, None, False, False).ids))
        return
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name in beside.names():
            (Path(folder) / name).write_bytes(beside.read(name) or b"")
        config = beside.read(CONFIG)
        if config is not None:
            (Path(folder) / CONFIG).write_bytes(config)
        found = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        yield _Tokenizer(found.get_vocab(), lambda t: found.encode(t, add_special_tokens=False))
