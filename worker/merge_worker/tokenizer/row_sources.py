"""Which row of which model stands for a token: the rules of a recipe's `tokenizer`, as row maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from ..checkpoint.folder import Checkpoint
from ..errors import UsageError
from ..messages import printable
from ..recipe.schema import ModelRef, TokenizerChoice, TokenRule
from ..structure.embeddings import vocabulary_names
from ..tensors.row_gather import MEAN, OWN_MEAN, ZERO, Row, RowMap, gather_rows


@dataclass(frozen=True)
class Alignment:
    """Models by number: their tokens that have a row, and how many rows they have.

    `tokens` are those of the result; `base` is the model that speaks for tokens others lack.
    """

    choice: TokenizerChoice
    numbers: Mapping[ModelRef, int]
    vocabularies: Sequence[Mapping[str, int]]
    rows: Sequence[int]
    tokens: Mapping[str, int]
    base: int | None
    _maps: dict[tuple[int, tuple[int, ...]], RowMap] = field(default_factory=dict, repr=False)

    @cached_property
    def plain(self) -> bool:
        """Whether all have the tokens of the result: then rows beyond them stay what they are."""
        same = all(ids == self.tokens for ids in self.vocabularies)
        return same and not self.choice.tokens and not self.choice.multiple

    @cached_property
    def size(self) -> int:
        """Number of rows of the result."""
        count = max(self.tokens.values(), default=-1) + 1
        if self.plain:
            return max(self.rows[0], count)
        multiple = self.choice.multiple or 1
        return -(-count // multiple) * multiple

    def aligned(self, models: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
        """Return the models with the rows of the result in every vocabulary tensor."""
        names = [vocabulary_names(model) for model in models]
        aligned = [dict(model.tensors) for model in models]
        for name in dict.fromkeys(chain(*names)):
            parts = {n: model.tensors[name] for n, model in enumerate(models) if name in names[n]}
            for number, own in parts.items():
                alike = {n: p for n, p in parts.items() if p.shape[1:] == own.shape[1:]}
                rows = self.row_map(number, tuple(alike))
                aligned[number][name] = gather_rows(number, alike, rows)
        return tuple(
            replace(model, tensors=tensors) if tensors != model.tensors else model
            for model, tensors in zip(models, aligned, strict=True)
        )

    def row_map(self, model: int, having: tuple[int, ...]) -> RowMap:
        """Return the rows of `model`, of a tensor that the models `having` have."""
        key = (model, having)
        if key not in self._maps:
            by_id = {number: token for token, number in self.tokens.items()}
            means: list[tuple[Row, ...]] = []
            rows = []
            for number in range(self.size):
                row = self._row(by_id[number], model, having) if number in by_id else None
                if row is None:
                    spare = (model if number < self.rows[model] else 0, number)
                    row = spare if self.plain else (OWN_MEAN, 0)
                elif isinstance(row, list):
                    means.append(tuple(row))
                    row = (MEAN, len(means) - 1)
                rows.append(row)
            self._maps[key] = RowMap(rows, means)
        return self._maps[key]

    def _row(self, token: str, model: int, having: Sequence[int]) -> Row | list[Row]:
        rule, own = self.choice.tokens.get(token), self.vocabularies[model].get(token)
        if own is not None and not (rule and rule.force):
            return (model, own)
        owners = {n: self.vocabularies[n][token] for n in having if token in self.vocabularies[n]}
        if rule and (rule.zero or rule.model):
            return self._ruled(rule, token, having)
        if self.base is not None and self.base in owners:
            return (self.base, owners[self.base])
        rows = [*owners.items()] or [(ZERO, 0)]
        return rows[0] if len(rows) == 1 else rows

    def _ruled(self, rule: TokenRule, token: str, having: Sequence[int]) -> Row:
        if rule.model is None:
            return (ZERO, 0)
        place = f"{self.choice.place}.tokens.{printable(token)}"
        number = self.numbers.get(rule.model)
        if number is None or number not in having:
            raise UsageError(f"{place}: {rule.model} takes no part in this merge, so it has no row")
        if isinstance(rule.token, int):
            if not 0 <= rule.token < self.rows[number]:
                raise UsageError(f"{place}: {rule.model} has {self.rows[number]} rows")
            return (number, rule.token)
        wanted = token if rule.token is None else rule.token
        if wanted not in self.vocabularies[number]:
            raise UsageError(f"{place}: {rule.model} has no token '{printable(wanted)}'")
        return (number, self.vocabularies[number][wanted])
