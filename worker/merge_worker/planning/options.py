"""Options of a merge that are not in its recipe: PlanOptions and MatchOptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint.hub import Hub
from ..options import DEFAULTS, SAFETENSORS, with_defaults
from ..recipe.recipe_file import PARTIAL, RECIPE
from ..recipe.schema import Recipe
from ..structure.selection import is_selected
from ..system.machine import usable_cpus
from ..units import parse_size
from .latency import reads_to_keep_up
from .memory import Memory, budget
from .step import CPU_BLOCK, Step, block_for


@dataclass(frozen=True)
class MatchOptions:
    """Rules for tensors that only some models have, and patterns of those to merge."""

    missing: str = "error"  # from a model; or "copy": take the tensor of the base unchanged
    surplus: str = "error"  # in a model, but not in the base; or "drop"
    include: tuple[str, ...] = ()  # patterns of tensors to merge; the rest is the base's
    exclude: tuple[str, ...] = ()

    def merges(self, name: str) -> bool:
        """Return whether the patterns select a tensor for merging."""
        return is_selected(name, self.include, self.exclude)

    def allows(self, *, surplus: bool) -> bool:
        """Return whether tensors may be in a model only (`surplus`), or missing from it."""
        return self.surplus == "drop" if surplus else self.missing == "copy"


@dataclass(frozen=True)
class PlanOptions:
    """Options that a plan depends on beside its recipe; all have defaults."""

    relative_to: Path = field(default_factory=Path.cwd)
    dtype: str | None = None  # None: the recipe decides; "same": that of the first model
    shard_bytes: int = parse_size(DEFAULTS["shard_size"])
    memory_bytes: int | None = None
    threads: int | None = None
    reads_in_flight: int | None = None
    seed: int = DEFAULTS["seed"]
    strict: bool = False
    dequantize: bool = False  # read FP8 weights with scales as the values they represent
    config: str | None = None  # the model that has the config and names for the result
    format: str = SAFETENSORS  # of the files of the result; or "dcp"
    matching: MatchOptions = field(default_factory=MatchOptions)
    block: int = CPU_BLOCK
    stages_folder: Path = Path(".merge-stages")  # holds intermediate results
    earlier_recipes: tuple[Path, ...] = field(default=(), compare=False)  # of this very merge
    hub: Hub = field(default_factory=Hub, compare=False)  # Hub files of the inputs

    @classmethod
    def from_values(cls, values: Mapping[str, Any], out: str | None) -> PlanOptions:
        """Make the plan options of a merge into `out` from values of `option_table`, by name.

        None and absence mean the default. Raises UsageError for a malformed size.
        """
        given = with_defaults(values)
        include, exclude = _patterns(given["include"]), _patterns(given["exclude"])
        return cls(
            relative_to=Path(given["relative_to"]),
            dtype=given["dtype"],
            shard_bytes=parse_size(given["shard_size"], "--shard-size"),
            memory_bytes=parse_size(given["memory"], "--memory") if given["memory"] else None,
            threads=given["threads"],
            reads_in_flight=given["reads_in_flight"],
            seed=given["seed"],
            strict=given["strict"],
            dequantize=given["dequantize"],
            config=given["config"],
            format=given["format"],
            matching=MatchOptions(given["missing"], given["surplus"], include, exclude),
            block=block_for(given["device"]),
            stages_folder=stage_folder(out),
            earlier_recipes=earlier_recipes(out, given),
        )

    def matching_of(self, recipe: Recipe) -> MatchOptions:
        """Return the rules of the command line with the patterns of a recipe added."""
        rules = self.matching
        include, exclude = (*recipe.include, *rules.include), (*recipe.exclude, *rules.exclude)
        return replace(rules, include=include, exclude=exclude)

    def recorded(self) -> dict[str, Any]:
        """Return the options that a result depends on, under their names in the manifest."""
        return {
            "dtype": self.dtype,
            "shard_bytes": self.shard_bytes,
            "seed": self.seed,
            "dequantize": self.dequantize,
            "format": self.format,
            "rules": asdict(self.matching),
            "block": self.block,
        }

    def with_recorded(self, recorded: Mapping[str, Any]) -> PlanOptions:
        """Return these options with the recorded ones of a manifest in place of their own."""
        values = {n: recorded[n] for n in self.recorded() if recorded.get(n) is not None}
        if rules := values.pop("rules", None):
            known = {n: rules[n] for n in asdict(self.matching) if rules.get(n) is not None}
            values["matching"] = MatchOptions(**known)
        return replace(self, **values)

    @property
    def thread_count(self) -> int:
        """Threads that compute: those asked for, or one for each processor."""
        return self.threads or usable_cpus()

    def budget(self, steps: Sequence[Step]) -> Memory:
        """Share the memory of these options among the lanes that work on `steps`.

        Reads a few samples of inputs that are on network file systems, to see how they answer.
        """
        threads, reads = self.thread_count, self.reads_in_flight
        memory = budget(steps, self.memory_bytes, threads, self.accelerated, reads)
        if reads is None and (reads := reads_to_keep_up(steps, threads)) > memory.lanes:
            return budget(steps, self.memory_bytes, threads, self.accelerated, reads)
        return memory

    @property
    def accelerated(self) -> bool:
        """Whether blocks have the size for an accelerator."""
        return self.block > CPU_BLOCK


def stage_folder(out: str | None) -> Path:
    """Return the hidden folder beside `out` that holds intermediate results of the merge."""
    path = Path(out or "merge")
    return path.parent / f".{path.name or 'merge'}.stages"


def earlier_recipes(out: str | None, values: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return where earlier runs of a merge into `out` may have left its recipe.

    Those of an unfinished merge count unless `no_resume`, of a finished one unless `overwrite`.
    """
    if out is None:
        return ()
    unfinished = () if values.get("no_resume") else (Path(out, PARTIAL, RECIPE),)
    return unfinished if values.get("overwrite") else (*unfinished, Path(out, RECIPE))


def _patterns(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Split texts with patterns at commas."""
    texts = [given] if isinstance(given, str) else given or ()
    return tuple(pattern for text in texts for pattern in text.split(",") if pattern)
