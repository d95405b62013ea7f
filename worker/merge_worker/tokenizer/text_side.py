"""The text side of a merge: tokenizer files, token ids and row counts, without tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..messages import counted
from ..recipe.schema import ModelRef
from .config_ids import with_token_ids, with_vocab_size
from .files import SideFiles


@dataclass(frozen=True)
class TokenizerResult:
    """The text side of a result: files, token ids, row counts and notes for the user.

    `beside` is where the tokenizer's files come from; `foreign` if that is not the first model.
    """

    beside: SideFiles
    foreign: bool = False
    rows: tuple[int, int] | None = None  # before and after
    appended: tuple[str, ...] = ()
    ids: Mapping[int, int | None] = field(default_factory=dict)
    donor: Mapping[str, Any] = field(default_factory=dict)  # config of a foreign tokenizer's model
    notes: tuple[str, ...] = ()
    before: SideFiles | None = None  # files of the tokenizer that was extended

    def with_made(self, made: Mapping[str, bytes]) -> TokenizerResult:
        return replace(self, beside=replace(self.beside, made={**self.beside.made, **made}))

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config with the ids and rows of the result."""
        changed = with_token_ids(config, self.ids, self.donor) if self.foreign else dict(config)
        return with_vocab_size(changed, self.rows[1]) if self.rows else changed

    @property
    def summary(self) -> str:
        """Describe the change of the number of rows; empty if nothing changes."""
        if self.rows is None or (self.rows[0] == self.rows[1] and not self.appended):
            return ""
        more = f", {counted(len(self.appended), 'tokens')} appended" if self.appended else ""
        return f"{self.rows[0]} rows become {self.rows[1]}{more}"

    @property
    def digest(self) -> str:
        """Identify the content that the files of the result depend on."""
        made = [(name, hashlib.sha256(raw).hexdigest()) for name, raw in self.beside.made.items()]
        return repr((self.foreign and str(self.beside.folder), sorted(made)))


@dataclass(frozen=True)
class TokenizerInputs:
    """The models of a recipe by number, with labels and side files.

    `find` returns the side files of a model that is not among them.
    """

    models: tuple[Checkpoint, ...]
    labels: Sequence[str]
    side_files: Sequence[SideFiles]
    numbers: Mapping[ModelRef, int]
    relative_to: Path
    find: Callable[[ModelRef], SideFiles]
