"""This machine: bash runs the very job text that the other backends carry, in this terminal."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._base import Here, Resources

if TYPE_CHECKING:
    from launcher.job import Job


@dataclass(frozen=True)
class LocalResources(Resources):
    """The machine is what it is."""


class Local(Here[LocalResources]):
    name = "local"
    template = "local.sh.j2"
    help = "Merge here and now."
    resources = LocalResources

    def context(self, job: Job, resources: LocalResources) -> dict[str, object]:
        return {}

    def run_argv(self, path: str) -> list[str]:
        return ["bash", path]

    def python(self) -> str:
        """Our own interpreter if it can merge: an environment need not be activated to be used."""
        able = sys.executable and importlib.util.find_spec("torch") is not None
        return sys.executable if able else super().python()


BACKEND = Local()
