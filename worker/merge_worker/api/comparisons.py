"""`compare`: how models differ, layer by layer, and how to merge them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, input_errors
from ..system.machine import usable_cpus
from .plans import StrPath
from .torch_state import one_torch_thread

if TYPE_CHECKING:
    from ..comparison.advice import Advice
    from ..comparison.figures import Comparison as Measured


@dataclass(frozen=True)
class Comparison:
    """Distances, angles and conflicts of models. `str(comparison)` is the table of the command.

    `figures` is what `merge-worker compare --json` prints; `warnings`, `findings`, `recipe` and
    `search` (the text of a search file; None if the models cannot be merged) are its advice.
    """

    figures: dict[str, Any] = field(repr=False)
    warnings: tuple[str, ...]
    findings: tuple[str, ...]
    recipe: str | None
    measured: Measured = field(repr=False)
    advice: Advice = field(repr=False)

    @property
    def search(self) -> str | None:
        """The text of a search over values of `recipe`, which `merge-launch search` takes."""
        return self.advice.search

    def save_plot(self, file: StrPath) -> None:
        """Draw heat maps by layer and component to FILE.png or FILE.html. Raises UsageError."""
        from ..comparison.metrics import metrics
        from ..comparison.plot import check_plot, draw

        check_plot(os.fspath(file))
        draw(self.measured, metrics(self.measured.models), self.advice, os.fspath(file))

    def __str__(self) -> str:
        from ..comparison.metrics import metrics
        from ..comparison.table import heading, table

        chosen = metrics(self.measured.models, 2)
        return "\n\n".join([heading(self.measured), table(self.measured, chosen, False)])


def compare(
    models: Sequence[StrPath], *, base: StrPath | None = None, threads: int | None = None
) -> Comparison:
    """Compare models, each read once, with each other and with the `base` they were trained from.

    Raises InputError if they cannot be opened or have no tensor in common.
    """
    if len(models) < 2 and base is None:
        raise UsageError("compare: only one model given; add another, or its base")
    words = [os.fspath(model) for model in models]
    first = None if base is None else os.fspath(base)
    with one_torch_thread(), input_errors("compare"):
        from ..comparison.advice import advise
        from ..comparison.figures import compare as measure
        from ..comparison.models import open_models
        from ..comparison.stream import stream
        from ..comparison.table import as_json

        opened = open_models(words, first)
        measured = measure(opened, stream(opened, threads or usable_cpus(), "off"))
        advice = advise(measured, [*([first] if first else []), *words])
    figures = as_json(measured)
    return Comparison(figures, advice.warnings, advice.findings, advice.recipe, measured, advice)
