"""PlanOptions: options that add to a recipe; MatchOptions: names that only some models have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..options import DEFAULTS, with_defaults
from ..structure.selection import is_selected
from ..units import parse_size
from .step import CPU_BLOCK, block_for


@dataclass(frozen=True)
class MatchOptions:
    """What to do with names that only some models have: `error` unless the user says otherwise."""

    missing: str = "error"  # or "copy": take the tensor of the base as it is
    surplus: str = "error"  # or "drop"
    include: tuple[str, ...] = ()  # patterns of what is merged; the rest is the base's
    exclude: tuple[str, ...] = ()

    def merges(self, name: str) -> bool:
        return is_selected(name, self.include, self.exclude)


@dataclass(frozen=True)
class PlanOptions:
    """Options of the command line that add to a recipe; all have defaults."""

    relative_to: Path = field(default_factory=Path.cwd)
    dtype: str | None = None  # None: the recipe decides; "same": that of the first model
    shard_bytes: int = parse_size(DEFAULTS["shard_size"])
    memory_bytes: int | None = None
    threads: int | None = None
    seed: int = DEFAULTS["seed"]
    strict: bool = False
    dequantize: bool = False  # FP8 weights with scales are read as what they stand for
    matching: MatchOptions = field(default_factory=MatchOptions)
    block: int = CPU_BLOCK
    stages_folder: Path = Path(
        ".merge-stages"
    )  # where results of other documents are kept meanwhile

    @classmethod
    def from_values(cls, values: Mapping[str, Any], out: str | None) -> PlanOptions:
        """Make the plan options of a merge into `out` from values of `option_table`, by name.

        None and absence mean the default. Raises UsageError for a size that is not one.
        """
        given = with_defaults(values)
        include, exclude = _patterns(given["include"]), _patterns(given["exclude"])
        return cls(
            relative_to=Path(given["relative_to"]),
            dtype=given["dtype"],
            shard_bytes=parse_size(given["shard_size"], "--shard-size"),
            memory_bytes=parse_size(given["memory"], "--memory") if given["memory"] else None,
            threads=given["threads"],
            seed=given["seed"],
            strict=given["strict"],
            dequantize=given["dequantize"],
            matching=MatchOptions(given["missing"], given["surplus"], include, exclude),
            block=block_for(given["device"]),
            stages_folder=stage_folder(out),
        )

    def recorded(self) -> dict[str, Any]:
        """Return the options that a result depends on, under their names in the manifest."""
        return {
            "dtype": self.dtype,
            "shard_bytes": self.shard_bytes,
            "seed": self.seed,
            "dequantize": self.dequantize,
            "rules": asdict(self.matching),
            "block": self.block,
        }

    def with_recorded(self, recorded: Mapping[str, Any]) -> PlanOptions:
        """Return these options with the recorded ones of a manifest in place of their own."""
        values = {name: recorded[name] for name in self.recorded() if name in recorded}
        if "rules" in values:
            values["matching"] = MatchOptions(**values.pop("rules"))
        return replace(self, **values)

    @property
    def accelerated(self) -> bool:
        """Whether blocks are those of an accelerator."""
        return self.block > CPU_BLOCK


def stage_folder(out: str | None) -> Path:
    """Return the hidden folder beside `out` that holds intermediate results of the merge."""
    place = Path(out or "merge")
    return place.parent / f".{place.name or 'merge'}.stages"


def _patterns(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Split one text with commas, or several."""
    texts = [given] if isinstance(given, str) else given or ()
    return tuple(pattern for text in texts for pattern in text.split(",") if pattern)
