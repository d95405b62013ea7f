"""Prompts of the experts of a mixture: those in the recipe, and those of their files."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import InputError
from ..messages import printable
from ..recipe.schema import Expert

LARGEST = 64 << 20
"""Bytes of a file of prompts; a larger one is data for training, not prompts."""

Prompt = str | tuple[tuple[str, str], ...]
"""A text, or messages as pairs of role and content, which the chat template makes a text."""


def positive_prompts(expert: Expert, folder: Path) -> tuple[Prompt, ...]:
    """Return the positive prompts of an expert, those of its file last. InputError."""
    if expert.prompts_file is None:
        return expert.positive
    return (*expert.positive, *read_prompts(folder / expert.prompts_file, expert.place))


def read_prompts(path: Path, place: str) -> tuple[Prompt, ...]:
    """Read a file of prompts: one a line, or JSON lines with `text`, `prompt` or `messages`.

    Raises InputError with the line that is no prompt.
    """
    shown = f"{place}.prompts_file: {printable(str(path))}"
    try:
        path = path.expanduser()
        if path.is_file() and path.stat().st_size > LARGEST:
            raise InputError(f"{shown}: {path.stat().st_size} bytes are no list of prompts")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{shown}: not text in UTF-8") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{shown}: {getattr(error, 'strerror', None) or error}; it must be there where the "
            f"merge runs, or write the prompts into the recipe"
        ) from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{shown}: no prompts in it")
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        return tuple(line for _, line in lines)
    return tuple(_prompt(line, f"{shown}:{number}") for number, line in lines)


def _prompt(line: str, place: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{place}: not a line of JSON") from None
    fields = value if isinstance(value, dict) else {}
    for key in ("text", "prompt"):
        if isinstance(fields.get(key), str) and fields[key].strip():
            return str(fields[key])
    messages = fields.get("messages")
    if isinstance(messages, list) and messages:
        pairs = [
            (m["role"], m["content"])
            for m in messages
            if isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
        ]
        if len(pairs) == len(messages):
            return tuple(pairs)
    raise InputError(f"{place}: neither 'text', 'prompt' nor 'messages' with role and content")
