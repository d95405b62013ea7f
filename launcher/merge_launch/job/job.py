"""Job: everything that a template or a backend needs to know of one merge, checked."""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass
from pathlib import Path

from merge_worker.messages import printable
from merge_worker.options import options_of
from merge_worker.output.files import MANIFEST

from ..errors import refuse
from ..settings.groups import JobOptions, WorkerOptions
from .payload import EmbeddedFile, Payload
from .source import Merge, absolute, is_on_hub, job_folder, safe_name

# Accepted by PBS, Torque and Slurm. Torque cuts names at 15 characters, and qstat shows no more.
NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,62}"
SHORT_NAME = 15
KEPT_OF_NAME = SHORT_NAME - len("-then")
"""The characters of OUT that are in the names of all of its jobs."""
SECRET = r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)$"
"""Names of variables that hold a secret."""
MODEL_PACKAGES = ("transformers", "tokenizers")
"""Packages of the worker that a merged model runs with."""
MERGEKIT_OPTIONS = tuple(option.flag for option in options_of("mergekit") if option.launch)


SEARCH = "search"
SEARCH_PROOF = "study/search.json"
SEARCH_PACKAGES = {"optuna": "optuna~=5.0", "cmaes": "cmaes", "scipy": "scipy"}


class Part(enum.Enum):
    """The part of a merge that a job does: `--then` is a job of its own if jobs can wait.

    EVAL is a later job for a merge that is finished by then; its command is that of `then`.
    """

    ALL = "all"
    MERGE = "merge"
    THEN = "then"
    EVAL = "eval"


@dataclass(frozen=True)
class Job:
    """A checked job of one merge. Raises UsageError with every fault."""

    merge: Merge
    options: JobOptions
    worker: WorkerOptions
    payload: Payload
    python: str
    part: Part = Part.ALL
    further: tuple[Merge, ...] = ()
    """Further merges, made in the same pass over the inputs."""
    worker_file: str | None = None
    """File with the packed worker, which members of an array share; else the job carries it."""
    work: str = "merge"
    """Command of the worker. A `search` carries its file as the recipe; OUT is its folder."""

    def __post_init__(self) -> None:
        faults = []
        name = self.options.name
        usable = name is None or re.search("[A-Za-z0-9]", name)
        if not usable or not re.fullmatch(NAME, self.name):
            faults.append(
                f"--name '{printable(name or '')}' must have a letter or digit, and at most 63 "
                f"characters"
            )
        for flag, texts in (("--setup", self.options.setup), ("--then", [self.options.then or ""])):
            faults += [
                f"{flag} '{printable(text)}' holds a control character; was it pasted?"
                for text in texts
                if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
            ]
        faults += [
            f"--env {name}: a secret must not be in the job's text; on Beaker use "
            f"--secret {name}=SECRET, else let the job read it from a file: "
            f"--setup 'export {name}=$(cat FILE)'"
            for name in self.options.variables()
            if re.search(SECRET, name, re.IGNORECASE)
        ]
        if not self.python or "\n" in self.python:
            faults.append("--python must name one program")
        if self.options.engine == "mergekit":
            faults += self._mergekit_faults()
        refuse(faults)

    def _mergekit_faults(self) -> list[str]:
        given = [word.partition("=")[0] for word in self.worker.argv()]
        faults = [
            f"{flag} conflicts with --engine mergekit, which takes {', '.join(MERGEKIT_OPTIONS)}"
            for flag in given
            if flag not in MERGEKIT_OPTIONS
        ]
        if self.further:
            faults.append("--engine mergekit: cannot make several merges in one pass")
        return faults

    @property
    def command(self) -> str:
        """Command of the worker, which takes RECIPE, OUT and the options."""
        return "mergekit" if self.options.engine == "mergekit" else self.work

    @property
    def proof(self) -> str:
        """File in OUT that shows that the worker has done its part."""
        return SEARCH_PROOF if self.work == SEARCH else MANIFEST

    @property
    def shares_merge(self) -> bool:
        """Whether the ranks of the job share one merge; workers of a search are on their own."""
        return self.work != SEARCH

    @property
    def name(self) -> str:
        stem = safe_name(self.merge.job_name or Path(self.merge.out).name)[:SHORT_NAME].rstrip("-.")
        name = stem if self.options.name is None else safe_name(self.options.name)
        return name if self.runs_merge else f"{name[:KEPT_OF_NAME]}-{self.part.value}"

    def notes(self) -> list[str]:
        """Return what of the options is changed in the job."""
        given = self.options.name
        if given is None or given == safe_name(given):
            return []
        safe = safe_name(given)
        return [f"--name '{printable(given)}': schedulers refuse it; the job is called '{safe}'"]

    def split(self) -> tuple[Job, ...]:
        """Return the merge and, with `--then`, a job for it that waits for the merge."""
        if self.options.then is None:
            return (self,)
        return tuple(dataclasses.replace(self, part=part) for part in (Part.MERGE, Part.THEN))

    @property
    def runs_merge(self) -> bool:
        return self.part in (Part.ALL, Part.MERGE)

    @property
    def then(self) -> str | None:
        """Command that this job runs in OUT."""
        return self.options.then if self.part is not Part.MERGE else None

    @property
    def folder(self) -> str:
        return str(job_folder(self.merge.out))

    @property
    def log(self) -> str:
        return str(Path(self.folder) / f"{self.name}.log")

    @property
    def notify_file(self) -> str:
        """File that holds the notify address, which may be a secret, instead of the job's text."""
        return str(Path(self.folder) / f"{self.name}.notify")

    @property
    def merges(self) -> tuple[Merge, ...]:
        return (self.merge, *self.further)

    def local_inputs(self) -> list[str]:
        """Return the paths that the job reads: of models and their config, files beside them, a
        text to measure."""
        config = None if self._config_on_hub else self.worker.config
        texts = [absolute(w, self.merge.folder) for w in (config, self.worker.perplexity) if w]
        return [*(path for merge in self.merges for path in merge.local_models()), *texts]

    @property
    def _config_on_hub(self) -> bool:
        return self.worker.config is not None and is_on_hub(self.worker.config)

    @property
    def packages(self) -> dict[str, str]:
        """Packages that the worker needs besides torch, by the module that it imports."""
        on_hub = self.worker.push is not None or self._config_on_hub
        on_hub = on_hub or any(merge.hub_models() for merge in self.merges)
        hub = {"huggingface_hub": "huggingface_hub"} if on_hub else {}
        runs = {name: name for name in MODEL_PACKAGES} if self.worker.runs_models else {}
        return {"yaml": "pyyaml", **hub, **runs, **(SEARCH_PACKAGES if self.work == SEARCH else {})}

    @property
    def bytes_on_node(self) -> int:
        """Bytes of the temporary files of a job: the worker, packed and unpacked, and recipes."""
        return len(self.payload.archive) + sum(len(file.data) for file in self.embedded_files())

    def recipes(self) -> list[tuple[str, Merge]]:
        """Return each merge with the name of its recipe file on the node."""
        further = [(f"recipe-{number}.yml", merge) for number, merge in enumerate(self.further, 2)]
        return [("recipe.yml", self.merge), *further]

    def methods_files(self) -> list[EmbeddedFile]:
        """Return the files of merge methods, under the names that they have on the node."""
        if self.command == "mergekit":
            return []
        files = dict.fromkeys(f for _, merge in self.recipes() for f in merge.recipe.methods.files)
        names = [safe_name(Path(file.name).stem) for file in files]
        again = [names[:number].count(name) for number, name in enumerate(names)]
        return [
            EmbeddedFile(f"{name}-{count + 1}.py" if count else f"{name}.py", file.data)
            for file, name, count in zip(files, names, again, strict=True)
        ]

    def methods_packages(self) -> list[str]:
        """Return the installed packages whose methods the recipes name, as `PACKAGE==VERSION`."""
        if self.command == "mergekit":
            return []
        recipes = [r for _, merge in self.recipes() for r in (*merge.recipe.stages, merge.recipe)]
        origins = [recipe.methods.get(recipe.method).origin for recipe in recipes]
        return list(dict.fromkeys(o.package for o in origins if o is not None and o.package))

    def embedded_files(self) -> list[EmbeddedFile]:
        """Return the worker, then every recipe, then every file of methods."""
        recipes = [EmbeddedFile(name, merge.text) for name, merge in self.recipes()]
        return [self.payload.embedded, *recipes, *self.methods_files()]
