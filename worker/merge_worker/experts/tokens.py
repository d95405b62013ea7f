"""Token ids of prompts, by the tokenizer of the base; no model code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from ..errors import InputError
from ..inference.texts import loaded_tokenizer
from ..messages import printable
from ..planning.prompts import Prompt
from ..system.packages import missing_package
from ..tokenizer.files import FULL, SETTINGS, SideFiles, vocabulary

Encode = Callable[[str], list[int]]


def prompt_ids(files: SideFiles, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the ids of each prompt, with the token of the beginning once where there is one.

    Raises UsageError without a library that reads the tokenizer, InputError for a damaged one.
    """
    encode, begin = _encoder(files), bos_id(files)
    found = []
    for prompt in prompts:
        ids = encode(prompt if isinstance(prompt, str) else _as_text(files, prompt))
        if begin is not None and ids[:1] != [begin]:
            ids = [begin, *ids]
        if not ids:
            shown = printable(str(prompt))[:40]
            raise InputError(f"{files.folder}: the prompt '{shown}' has no tokens")
        found.append(ids)
    return found


def bos_id(files: SideFiles) -> int | None:
    """Return the id of the token that begins a text; None if the tokenizer has none."""
    for name in (SETTINGS, "special_tokens_map.json"):
        given = files.json(name).get("bos_token")
        token = given.get("content") if isinstance(given, dict) else given
        if isinstance(token, str):
            known = vocabulary(files)
            return known.ids.get(token) if known else None
    return None


def _encoder(files: SideFiles) -> Encode:
    """Return the function that encodes a text without adding special tokens."""
    raw = files.read(FULL)
    if raw is not None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise missing_package("prompts", "tokenizers") from None
        try:
            full = Tokenizer.from_str(raw.decode())
            full.no_truncation()
            full.no_padding()
        except Exception as error:
            reason = printable(str(error))[:200]
            raise InputError(f"{files.folder}/{FULL}: {reason}") from None
        return lambda text: list(full.encode(text, add_special_tokens=False).ids)
    loaded = loaded_tokenizer(files, str(files.folder))
    return lambda text: list(loaded.encode(text, add_special_tokens=False))


def _as_text(files: SideFiles, messages: Sequence[tuple[str, str]]) -> str:
    """Return messages as the chat template of the base writes them."""
    loaded = loaded_tokenizer(files, str(files.folder))
    given = [{"role": role, "content": content} for role, content in messages]
    try:
        return str(loaded.apply_chat_template(given, tokenize=False))
    except Exception as error:
        reason = printable(str(error).strip().split("\n")[0])[:200]
        shown = printable(json.dumps(given, ensure_ascii=False))[:60]
        raise InputError(
            f"{files.folder}: its chat template cannot write the prompt {shown}: {reason}"
        ) from None
