"""Job: all that a template or a backend may ask about one merge. Cannot be built wrong."""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass
from pathlib import Path

from merge_worker.messages import printable
from merge_worker.options import options_of

from ..errors import refuse
from ..settings.groups import JobOptions, WorkerOptions
from .payload import EmbeddedFile, Payload
from .source import Merge, safe_name

# What PBS, Torque and Slurm all take; Torque stops at 15 characters, and qstat shows no more.
NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,62}"
SHORT_NAME = 15
THEN = "-then"
SECRET = r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)$"
"""Names of variables that hold one."""
MERGEKIT_TAKES = tuple(option.flag for option in options_of("mergekit") if option.launch)


class Part(enum.Enum):
    """What of a merge one job does: `--then` is a job of its own where the scheduler has such."""

    ALL = "all"
    MERGE = "merge"
    THEN = "then"


@dataclass(frozen=True)
class Job:
    """A checked merge job. UsageError lists every fault of it."""

    merge: Merge
    options: JobOptions
    worker: WorkerOptions
    payload: Payload
    python: str
    part: Part = Part.ALL
    further: tuple[Merge, ...] = ()
    """Further merges, made in the same pass over the inputs."""

    def __post_init__(self) -> None:
        faults = []
        if self.options.name is not None and not re.fullmatch(NAME, self.options.name):
            faults.append(
                f"--name '{printable(self.options.name)}' must be letters, digits, '_', '.', '-', "
                f"begin with a letter and have at most 63 characters"
            )
        for flag, texts in (("--setup", self.options.setup), ("--then", [self.options.then or ""])):
            faults += [
                f"{flag} '{printable(text)}' holds a control character; was it pasted?"
                for text in texts
                if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
            ]
        faults += [
            f"--env {name}: everybody who sees the job's text would read it; on Beaker say "
            f"--secret {name}=SECRET, else have the job read it: "
            f"--setup 'export {name}=$(cat FILE)'"
            for name in self.options.variables()
            if re.search(SECRET, name, re.IGNORECASE)
        ]
        if not self.python or "\n" in self.python:
            faults.append("--python must name one program")
        if self.options.engine == "mergekit":
            faults += self._beyond_mergekit()
        refuse(faults)

    def _beyond_mergekit(self) -> list[str]:
        given = [word.partition("=")[0] for word in self.worker.argv()]
        faults = [
            f"{flag}: not with --engine mergekit; it takes {', '.join(MERGEKIT_TAKES)}"
            for flag in given
            if flag not in MERGEKIT_TAKES
        ]
        return faults + ["--engine mergekit: one merge at a time"] * bool(self.further)

    @property
    def command(self) -> str:
        """The worker's, which takes RECIPE OUT and the options."""
        return "mergekit" if self.options.engine == "mergekit" else "merge"

    @property
    def name(self) -> str:
        short = safe_name(Path(self.merge.out).name)[:SHORT_NAME].rstrip("-.")
        name = self.options.name or short
        return name if self.part is not Part.THEN else name[: SHORT_NAME - len(THEN)] + THEN

    def split(self) -> tuple[Job, ...]:
        """The merge and, as a job that waits for it, what `--then` asks for."""
        if self.options.then is None:
            return (self,)
        parts = (Part.MERGE, Part.THEN)
        return tuple(dataclasses.replace(self, part=part) for part in parts)

    @property
    def runs_merge(self) -> bool:
        return self.part is not Part.THEN

    @property
    def then(self) -> str | None:
        """What this very job runs in OUT."""
        return self.options.then if self.part is not Part.MERGE else None

    @property
    def folder(self) -> str:
        """Beside OUT: the job's text, its log and its exit code."""
        out = Path(self.merge.out)
        return str(out.with_name(f"{safe_name(out.name)}.job"))

    @property
    def log(self) -> str:
        return str(Path(self.folder) / f"{self.name}.log")

    @property
    def notify_file(self) -> str:
        """Holds the address, which may be a secret: the job's text does not."""
        return str(Path(self.folder) / f"{self.name}.notify")

    def recipes(self) -> list[tuple[str, Merge]]:
        """Each merge by the name that its recipe has on the node."""
        further = ((f"recipe-{number}.yml", merge) for number, merge in enumerate(self.further, 2))
        return [("recipe.yml", self.merge), *further]

    def embedded_files(self) -> list[EmbeddedFile]:
        """The worker, then every recipe."""
        recipes = (EmbeddedFile(name, merge.text) for name, merge in self.recipes())
        return [self.payload.embedded, *recipes]
