"""Text encoded by a tokenizer before and after it was changed.

Done before the first weight is read, so that a tokenizer that went wrong costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import ResultError
from ..messages import counted, first_names
from ..system.packages import how_to_install
from .files import FULL, OLD_ADDED, SETTINGS, SideFiles, Vocabulary
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
    """Raise ResultError if the tokenizer of a result is damaged; return a note if unchecked."""
    before, after = text.before, text.side_files
    if before is None or after.vocabulary is None:
        return None
    names = (FULL, SETTINGS, OLD_ADDED)
    if all(after.overrides.get(name) == before.overrides.get(name) for name in names):
        return None
    try:
        faults = list(_faults(text, after.vocabulary, _load(before), _load(after)))
    except ImportError as error:
        how = how_to_install(str(error.name))
        return f"the tokenizer was extended unchecked; to check it: {how}"
    if faults:
        raise ResultError(
            f"{before.folder}: its tokenizer with {counted(len(text.appended), 'more tokens')} "
            f"is not what it was before:\n  " + "\n  ".join(faults[:4])
        )
    return None


class _Tokenizer(NamedTuple):
    """The calls of a tokenizer that are needed here, whichever library reads it."""

    ids: dict[str, int]
    encode: Callable[[str], list[int]]


def _load(files: SideFiles) -> _Tokenizer:
    raw = files.read(FULL)
    if raw is not None:
        from tokenizers import Tokenizer

        full = Tokenizer.from_str(raw.decode())
        return _Tokenizer(full.get_vocab(), lambda t: list(full.encode(t, None, False, False).ids))
    from transformers import AutoTokenizer

    with files.on_disk() as folder:
        loaded = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return _Tokenizer(loaded.get_vocab(), lambda t: loaded.encode(t, add_special_tokens=False))


def _faults(
    text: TokenizerResult, wanted: Vocabulary, old: _Tokenizer, new: _Tokenizer
) -> Iterator[str]:
    other = [t for t in {**new.ids, **wanted.ids} if new.ids.get(t) != wanted.ids.get(t)]
    if other:
        yield (
            f"{counted(len(other), 'tokens have another id than row')}: "
            f"{first_names(sorted(other))}"
        )
    removed = {number for token, number in old.ids.items() if token not in wanted.ids}
    for sample in SAMPLES:
        before, after = old.encode(sample), new.encode(sample)
        # A token that is new may well be found in a text, and one without a row be missed.
        excused = removed & set(before) or any(token in sample for token in text.appended)
        if before != after and not excused:
            yield f"{json.dumps(sample[:40])}: {first_names(map(str, after), 8)}"
    for token in text.appended:
        flags = wanted.added[token]
        plain = dict(flags) == PLAIN or flags.get("single_word")
        if not plain and wanted.ids[token] not in new.encode(f"a{token}b"):
            yield f"{token} is not found in a text"
