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

    `side_files` are those the tokenizer comes from, `foreign` if not those of the first model.
    """

    side_files: SideFiles
    foreign: bool = False
    rows: tuple[int, int] | None = None  # before and after
    appended: tuple[str, ...] = ()
    ids: Mapping[int, int | None] = field(default_factory=dict)
    donor: Mapping[str, Any] = field(default_factory=dict)  # config of a foreign tokenizer's model
    notes: tuple[str, ...] = ()
    before: SideFiles | None = None  # files of the tokenizer that was extended

    def with_overrides(self, overrides: Mapping[str, bytes]) -> TokenizerResult:
        both = {**self.side_files.overrides, **overrides}
        return replace(self, side_files=replace(self.side_files, overrides=both))

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config with the ids and rows of the result."""
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
        files = self.side_files
        hashes = [(name, hashlib.sha256(raw).hexdigest()) for name, raw in files.overrides.items()]
        return repr((self.foreign and str(files.folder), sorted(hashes)))


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
