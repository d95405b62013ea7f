"""Text to run models on: files -> samples -> tokens -> windows -> batches without padding.

A `.txt` file holds samples with blank lines between them, a `.jsonl` file one sample in each line:
`text`; `messages`, which the chat template of a tokenizer makes text of; or `prompt` and
`completion`, of which the loss counts for the completion only.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, input_errors
from ..messages import printable
from ..system.packages import missing_package
from ..tokenizer.files import SideFiles, has_vocabulary

IGNORED = -100
"""Label of a token whose loss does not count, as in transformers."""
FORMS = "'text', 'messages', or 'prompt' and 'completion'"


@dataclass(frozen=True)
class Sample:
    """A text, or a conversation; `where` is its file and line.

    The loss counts for `text`, not for `prompt`, which stands before it. Both are texts or lists of
    messages (`role`, `content`).
    """

    where: str
    text: str | tuple[Mapping[str, Any], ...]
    prompt: str | tuple[Mapping[str, Any], ...] = ""

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.text, str)


@dataclass(frozen=True)
class Encoded:
    """The tokens of a sample: ids, whether the loss of each counts, and where each begins.

    `starts` are positions in `text` in characters; `exact` is false if the tokenizer does not tell
    them (those of Python alone), so that they are spread evenly.
    """

    text: str
    ids: tuple[int, ...]
    counted: tuple[bool, ...]
    starts: tuple[int, ...]
    exact: bool = True

    def nbytes(self, first: int, stop: int) -> int:
        """Return the bytes of UTF-8 of tokens [first, stop), up to where the next one begins."""
        end = self.starts[stop] if stop < len(self.starts) else len(self.text)
        return len(self.text[self.starts[first] : end].encode(errors="surrogatepass"))


@dataclass(frozen=True)
class Window:
    """Tokens of a sample that a model sees together; the loss of some of them counts.

    `labels` are the ids of those, IGNORED elsewhere; `nbytes` the bytes of text that they stand
    for. `begin`, `first` and `stop` are the characters at which its context, the part that is new
    in it and the next window begin.
    """

    sample: int
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    nbytes: int
    begin: int = 0
    first: int = 0
    stop: int = 0

    @property
    def counted(self) -> int:
        """Number of tokens whose loss counts."""
        return sum(label != IGNORED for label in self.labels[1:])


class Batch(NamedTuple):
    """Windows of one length: their numbers, tokens and labels, int64 (windows, length)."""

    windows: tuple[int, ...]
    ids: Tensor
    labels: Tensor


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of a file in its order. Raises InputError with the line of a fault."""
    with input_errors(path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is not UTF-8; convert the file to it") from None
    samples = _of_lines(path, text) if path.suffix in (".jsonl", ".json") else _of_text(path, text)
    if not samples:
        raise InputError(f"{path}: no text in it")
    return samples


def _of_text(path: Path, text: str) -> list[Sample]:
    samples, line = list[Sample](), 1
    for part in re.split(r"(\n[^\S\n]*(?:\n[^\S\n]*)+)", text.replace("\r\n", "\n")):
        if part.strip():
            before = part[: len(part) - len(part.lstrip("\n"))]
            samples.append(Sample(f"{path}:{line + len(before)}", part.strip("\n")))
        line += part.count("\n")
    return samples


def _of_lines(path: Path, text: str) -> list[Sample]:
    samples = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise InputError(f"{where}: not JSON: {reason}; each line holds one object") from None
        samples.append(_sample(where, value))
    return samples


def _sample(where: str, value: object) -> Sample:
    if not isinstance(value, dict):
        raise InputError(f"{where}: not a JSON object with {FORMS}")
    if "prompt" in value and "completion" in value:
        prompt, text = (_content(where, key, value[key]) for key in ("prompt", "completion"))
        if isinstance(prompt, str) != isinstance(text, str):
            raise InputError(f"{where}: 'prompt' and 'completion' are not both texts or messages")
        return Sample(where, text, prompt)
    for key in ("text", "messages", "conversations"):
        if key in value:
            return Sample(where, _content(where, key, value[key]))
    raise InputError(f"{where}: has none of {FORMS}")


def _content(where: str, key: str, value: object) -> str | tuple[Mapping[str, Any], ...]:
    if isinstance(value, str) and key not in ("messages", "conversations"):
        return value
    if isinstance(value, list) and value and key != "text":
        messages = [_message(item) for item in value]
        if None not in messages:
            return tuple(message for message in messages if message is not None)
    form = "a text" if key == "text" else "a list of messages with 'role' and 'content'"
    raise InputError(f"{where}: '{key}' is not {form}")


def _message(value: object) -> Mapping[str, Any] | None:
    """Return a message; also of the form with `from` and `value`."""
    if not isinstance(value, dict):
        return None
    if "from" in value and "value" in value and "role" not in value:
        roles = {"human": "user", "gpt": "assistant"}
        sender = str(value["from"])
        return {"role": roles.get(sender, sender), "content": value["value"]}
    return value if isinstance(value.get("role"), str) else None


def read_tokenizer(files: SideFiles, label: str, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of transformers. InputError without one or if it cannot be read."""
    if not has_vocabulary(files):
        raise InputError(
            f"{label}: no tokenizer beside the weights; copy tokenizer.json and "
            f"tokenizer_config.json of its base into the folder"
        )
    return loaded_tokenizer(files, label, trust_remote_code)


def loaded_tokenizer(files: SideFiles, label: str, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of transformers. UsageError without transformers, InputError."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_package(label, "transformers", "sentencepiece") from None
    try:
        with files.on_disk() as folder:
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:
        reason = printable(str(error).strip().split("\n")[0])[:200]
        raise InputError(f"{label}: transformers cannot read its tokenizer: {reason}") from None


def encode(sample: Sample, tokenizer: Any, template: Any = None) -> Encoded:
    """Return the tokens of a sample, with the special ones that the tokenizer adds to text.

    Conversations are made text by the chat template of the tokenizer `template`, by default the
    same one; its special tokens are all there are. InputError without or for a failing template.
    """
    before, text = map(_whole_characters, _rendered(sample, template or tokenizer))
    special = not sample.is_chat
    if not getattr(tokenizer, "is_fast", False):
        return _encoded_apart(tokenizer, before, text, special)
    whole = before + text
    found = tokenizer(whole, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    spans = [(int(start), int(stop)) for start, stop in found["offset_mapping"]]
    starts = _starts(spans, len(whole))
    # A token that begins in the prompt belongs to it; an end of text belongs to the completion.
    counted = tuple(start >= len(before) for start in starts)
    return Encoded(whole, tuple(map(int, found["input_ids"])), counted, starts)


def _whole_characters(text: str) -> str:
    """Return text with halves of characters, which JSON may hold, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _rendered(sample: Sample, tokenizer: Any) -> tuple[str, str]:
    """Return the text whose loss does not count, and the text after it."""
    if isinstance(sample.text, str):
        assert isinstance(sample.prompt, str)
        return sample.prompt, sample.text
    prompt = [] if isinstance(sample.prompt, str) else list(sample.prompt)
    whole = _chat(sample, tokenizer, [*prompt, *sample.text], False)
    if not prompt:
        return "", whole
    for begins in (True, False):
        before = _chat(sample, tokenizer, prompt, begins)
        if whole.startswith(before):
            return before, whole[len(before) :]
    raise InputError(
        f"{sample.where}: the chat template changes the prompt when the completion follows, so "
        f"that its loss cannot be told apart; give 'messages'"
    )


def _chat(sample: Sample, tokenizer: Any, messages: list[Any], begins_reply: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{sample.where}: a conversation, but the tokenizer has no chat template; give 'text', "
            f"or a model with a template"
        )
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=begins_reply
        )
    except Exception as error:
        reason = printable(str(error).strip().split("\n")[0])[:200]
        raise InputError(f"{sample.where}: the chat template refuses it: {reason}") from None
    return str(text)


def _starts(spans: Sequence[tuple[int, int]], end: int) -> tuple[int, ...]:
    """Return where tokens begin, in rising order; added ones have empty spans at 0."""
    starts, at = list[int](), 0
    last = max((place for place, (a, b) in enumerate(spans) if b > a), default=-1)
    for place, (start, stop) in enumerate(spans):
        if stop > start:
            at = max(at, start)
        elif place > last:
            at = end
        starts.append(at)
    return tuple(starts)


def _encoded_apart(tokenizer: Any, before: str, text: str, special: bool) -> Encoded:
    """Encode with a tokenizer that tells no positions: prompt and text one after the other."""
    whole = list(tokenizer(before + text, add_special_tokens=special)["input_ids"])
    head = list(tokenizer(before, add_special_tokens=special)["input_ids"]) if before else []
    while head and whole[: len(head)] != head:  # an end of text, or a token across the border
        head.pop()
    length, size = len(whole), len(before) + len(text)
    starts = [place * size // max(1, length) for place in range(length)]
    counted = tuple(place >= len(head) for place in range(length))
    return Encoded(before + text, tuple(map(int, whole)), counted, tuple(starts), exact=False)


def cut(sample: int, encoded: Encoded, length: int, stride: int | None = None) -> list[Window]:
    """Return windows of at most `length` tokens, each beginning `stride` after the one before.

    A window counts the tokens that no earlier one has seen; those before give context only. The
    first token of a window without context is not predicted, and counts nowhere. Windows in which
    no token counts are left out.
    """
    stride = length if stride is None else stride
    windows, seen, size = list[Window](), 0, len(encoded.ids)
    for begin in range(0, size, stride):
        stop = min(size, begin + length)
        window = _window(sample, encoded, begin, max(seen, begin), stop)
        if window.counted:
            windows.append(window)
        seen = stop
        if stop == size:
            break
    return windows


def cut_at(sample: int, encoded: Encoded, other: Window) -> Window:
    """Return the window of the same characters as one of another tokenizer."""
    starts, size = encoded.starts, len(encoded.ids)

    def at(character: int) -> int:
        return bisect_left(starts, character)

    begin = 0 if other.begin == 0 else at(other.begin)
    first = begin if other.first == other.begin else at(other.first)
    stop = size if other.stop >= len(encoded.text) else at(other.stop)
    return _window(sample, encoded, begin, first, max(first, stop))


def _window(sample: int, encoded: Encoded, begin: int, first: int, stop: int) -> Window:
    """Return tokens [begin, stop), of which those from `first` on count if they have context."""
    ids = encoded.ids[begin:stop]
    counts = [
        place >= first and place > begin and encoded.counted[place] for place in range(begin, stop)
    ]
    pairs = zip(ids, counts, strict=True)
    labels = tuple(token if count else IGNORED for token, count in pairs)
    nbytes = sum(
        encoded.nbytes(begin + place, begin + place + 1)
        for place, count in enumerate(counts)
        if count
    )
    size = len(encoded.ids)
    starts = [encoded.starts[n] if n < size else len(encoded.text) for n in (begin, first, stop)]
    return Window(sample, ids, labels, nbytes, *starts)


def batches(windows: Iterable[Window], tokens: int) -> list[Batch]:
    """Return windows of equal length together, up to about `tokens` tokens in each batch."""
    by_length: dict[int, list[tuple[int, Window]]] = {}
    for number, window in enumerate(windows):
        by_length.setdefault(len(window.ids), []).append((number, window))
    found = []
    for length, listed in sorted(by_length.items(), reverse=True):
        count = max(1, tokens // length)
        for first in range(0, len(listed), count):
            some = listed[first : first + count]
            ids = torch.tensor([window.ids for _, window in some], dtype=torch.int64)
            labels = torch.tensor([window.labels for _, window in some], dtype=torch.int64)
            found.append(Batch(tuple(number for number, _ in some), ids, labels))
    return found
