"""The tokens of the result: whose they are, which are new, and the tokenizer's files with them.

Ids of the tokenizer that is extended never move; new tokens follow it in the order of the recipe's
models and of their ids there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, UsageError
from ..messages import counted, first_names, printable
from .files import (
    FLAGS,
    FULL,
    OLD_ADDED,
    SETTINGS,
    TEKKEN,
    SideFiles,
    Vocabulary,
    holds_vocabulary,
    to_json,
)

PLAIN = {**dict.fromkeys(FLAGS, False), "normalized": True}
"""Flags of a token that was a regular one: its text is found wherever it stands."""


@dataclass(frozen=True)
class Tokens:
    """The vocabulary of the result, and how it differs from the one that it was made from."""

    ids: Mapping[str, int]
    appended: Mapping[str, Mapping[str, Any]]  # flags by token
    removed: frozenset[str]
    notes: tuple[str, ...]

    def vocabulary(self, start: Vocabulary) -> Vocabulary:
        kept = {token: flags for token, flags in start.added.items() if token in self.ids}
        return Vocabulary(self.ids, {**kept, **self.appended}, start.regular)


def joined(
    start: Vocabulary, models: Sequence[tuple[str, Vocabulary]], extra: Iterable[str]
) -> Tokens:
    """Append the tokens of `models` (by label) that `start` lacks, then `extra`."""
    appended: dict[str, Mapping[str, Any]] = {}
    clashes = []
    for _, own in models:
        regular = (t for t in own.ids if t not in own.added and t not in start.ids)
        appended |= dict.fromkeys(sorted(regular, key=own.ids.__getitem__), PLAIN)
    plain = len(appended)
    for label, own in models:
        for token in sorted(own.added, key=own.ids.__getitem__):
            # Regular there and added here: one token, which takes the flags of the added one.
            flags = start.added.get(token) or appended.get(token)
            if flags is None or flags is PLAIN:
                appended[token] = own.added[token]
            elif dict(flags) != dict(own.added[token]):
                clashes.append(f"{token} of {label}")
    for token in extra:
        if token not in start.ids:
            appended.setdefault(token, PLAIN)
    notes = []
    if plain:
        notes.append(
            f"{counted(plain, 'regular tokens are appended')} in the way of added tokens, which "
            f"match their text wherever it stands: "
            f"{first_names(t for t, flags in appended.items() if flags is PLAIN)}"
        )
    if clashes:
        notes.append(
            f"{counted(len(clashes), 'added tokens are defined')} in different ways, the first "
            f"definition counts: {first_names(clashes)}"
        )
    return Tokens(_numbered(start, appended), appended, frozenset(), tuple(notes))


def _numbered(start: Vocabulary, appended: Iterable[str]) -> dict[str, int]:
    """Return ids as the tokenizers library gives them when it reads the files again."""
    ids = dict(start.ids)
    following = max((start.regular, *(ids[token] + 1 for token in start.added)))
    taken = set(ids.values())
    for token in appended:
        if token not in ids:
            if following in taken:
                raise InputError(
                    f"the tokenizer leaves ids out, so that '{printable(token)}' would get the id "
                    f"{following} of another token; 'tokenizer_source: base' adds none"
                )
            ids[token] = following
            following += 1
    return ids


def edited(files: SideFiles, start: Vocabulary, tokens: Tokens) -> dict[str, bytes | None]:
    """Return the tokenizer's files that change from `start`; None for those to leave out.

    Raises UsageError if a token cannot be taken out.
    """
    if not tokens.appended and not tokens.removed:
        return {}
    older = older_forms(files)
    result: dict[str, bytes | None] = dict.fromkeys(name for name in older if name == TEKKEN)
    new = [{"id": tokens.ids[t], "content": t, **flags} for t, flags in tokens.appended.items()]
    full = files.json(FULL)
    if full:
        full["added_tokens"] = _changed(full.get("added_tokens") or [], new, tokens)
        if _take_out(full["model"], tokens.removed, files):
            result |= dict.fromkeys(older)
        result[FULL] = to_json(full)
    settings = files.json(SETTINGS)
    listed = settings.get("added_tokens_decoder") or {}
    # Programs that read an older form know new tokens from this list.
    if listed or not full or set(older) - result.keys():
        old = [{"id": int(number), **token} for number, token in listed.items()]
        if not listed:  # the older file is not read beside this list
            kept = {t: flags for t, flags in start.added.items() if t in tokens.ids}
            old = [{"id": tokens.ids[t], "content": t, **flags} for t, flags in kept.items()]
        changed = _changed(old, new, tokens)
        decoder = {str(t["id"]): {k: t[k] for k in t if k != "id"} for t in changed}
        result[SETTINGS] = to_json({**settings, "added_tokens_decoder": decoder})
    if files.read(OLD_ADDED) is not None:
        old_ids = {t: n for t, n in files.json(OLD_ADDED).items() if t not in tokens.removed}
        result[OLD_ADDED] = to_json(old_ids | {t: tokens.ids[t] for t in tokens.appended})
    return result


def older_forms(files: SideFiles) -> list[str]:
    """Return the files that list the tokens of tokenizer.json, too, for programs without it."""
    names = [name for name in files.names() if holds_vocabulary(name)]
    return [name for name in names if name != FULL] if FULL in names else []


def notes_on_older_forms(files: SideFiles, changed: Mapping[str, bytes | None]) -> list[str]:
    """Return what becomes of other forms of a vocabulary that changes."""
    older = older_forms(files) if changed else []
    left_out = [name for name in older if name in changed]
    kept = [name for name in older if name not in changed]
    notes = []
    if left_out:
        notes.append(f"{', '.join(left_out)}: left out, since the tokens differ from {FULL} now")
    if kept:
        notes.append(f"{', '.join(kept)}: as before; added tokens are in {SETTINGS}")
    return notes


def _changed(
    listed: list[dict[str, Any]], new: list[dict[str, Any]], tokens: Tokens
) -> list[dict[str, Any]]:
    replaced = {token["content"] for token in new} | tokens.removed
    kept = [token for token in listed if token["content"] not in replaced]
    return sorted([*kept, *new], key=lambda token: int(token["id"]))


def _take_out(model: dict[str, Any], removed: frozenset[str], files: SideFiles) -> bool:
    """Take regular tokens without a row out of a BPE model, with the merges that make them.

    Return whether there were any.
    """
    listed = model["vocab"] if isinstance(model["vocab"], dict) else (t for t, *_ in model["vocab"])
    gone = removed & set(listed)
    if not gone:
        return False
    if model.get("type") != "BPE":
        raise UsageError(
            f"{files.folder}: {counted(len(gone), 'tokens have no row')}, and cannot be taken "
            f"out of a {model.get('type')} tokenizer: {first_names(sorted(gone))}"
        )
    model["vocab"] = {t: n for t, n in model["vocab"].items() if t not in gone}
    pairs = [(m, m.split(" ") if isinstance(m, str) else m) for m in model.get("merges") or ()]
    model["merges"] = [m for m, pair in pairs if not gone & {*pair, "".join(pair)}]
    return True
