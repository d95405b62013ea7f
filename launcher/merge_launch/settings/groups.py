"""The options that all backends share: what is merged, how the job runs, what the worker does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from merge_worker.options import BY_NAME
from merge_worker.units import at_least_one

from .options import OptionSpec, option, options_of

DIRECT = "direct merge: "


def shared(name: str, before: str = "") -> Any:
    """Make a field of an option that merge-worker has too; `before` begins its help."""
    known = BY_NAME[name]
    shape = OptionSpec(
        before + known.help,
        metavar=known.metavar or "|".join(known.choices) or None,
        pattern=known.pattern or "|".join(known.choices) or None,
        expected=known.expected,
        minimum=1 if known.type is at_least_one else None,
    )
    return option(False if known.type is bool else None, shape)


@dataclass(frozen=True)
class MergeOptions:
    """What is merged, beside the SOURCE words."""

    out: str | None = option(None, OptionSpec("the folder of the merged model", "-o", "DIR"))
    method: str | None = shared("method", DIRECT)
    weights: str | None = shared("weights", DIRECT)
    schedule: str | None = shared("schedule", DIRECT)
    base_model: str | None = shared("base_model", DIRECT)


@dataclass(frozen=True)
class JobOptions:
    """How the job runs."""

    name: str | None = option(None, OptionSpec("the job's name; made of OUT when missing"))
    python: str | None = option(
        None, OptionSpec("the interpreter on the node (python3)", metavar="PROGRAM")
    )
    env: tuple[str, ...] = option(
        (),
        OptionSpec(
            "set a variable in the job (repeatable)",
            metavar="K=V",
            pattern=r"(?s)[A-Za-z_][A-Za-z0-9_]*=.*",
            expected="NAME=VALUE",
            accumulates=True,
        ),
    )
    setup: tuple[str, ...] = option(
        (),
        OptionSpec(
            "a shell line to run before the worker (repeatable)", metavar="LINE", accumulates=True
        ),
    )
    then: str | None = option(
        None, OptionSpec("a command to run in OUT after a successful merge", metavar="COMMAND")
    )
    notify: str | None = option(
        None,
        OptionSpec(
            "tell this address (Slack's webhooks and the like) when the job has ended",
            metavar="URL",
            pattern=r"https?://[\x21-\x7e]+",
            expected="an address that begins with https://",
        ),
    )
    engine: str = option(
        "merge-worker",
        OptionSpec(
            "what merges: merge-worker, or mergekit, found on the node or installed there",
            pattern="merge-worker|mergekit",
            expected="merge-worker or mergekit",
        ),
    )
    dry_run: bool = option(False, OptionSpec("print the job and do nothing else"))
    follow: bool = option(False, OptionSpec("show the log until the job ends", "-f"))

    def variables(self) -> dict[str, str]:
        """Later ones win."""
        return {key: value for key, _, value in (pair.partition("=") for pair in self.env)}


@dataclass(frozen=True)
class WorkerOptions:
    """Options handed to the worker as they are; None and False are not handed on."""

    device: str | None = shared("device")
    threads: int | None = shared("threads")
    memory: str | None = shared("memory")
    shard_size: str | None = shared("shard_size")
    dtype: str | None = shared("dtype")
    missing: str | None = shared("missing")
    surplus: str | None = shared("surplus")
    include: str | None = shared("include")
    exclude: str | None = shared("exclude")
    dequantize: bool = shared("dequantize")
    prune_downloads: bool = shared("prune_downloads")
    push: str | None = shared("push")
    overwrite: bool = shared("overwrite")
    no_resume: bool = shared("no_resume")
    sha256: bool = shared("sha256")
    seed: int | None = shared("seed")
    deadline: str | None = shared("deadline")
    progress: str | None = shared("progress")
    allow_nonfinite: bool = shared("allow_nonfinite")
    trust_remote_code: bool = shared("trust_remote_code")
    strict: bool = shared("strict")

    def argv(self) -> tuple[str, ...]:
        words: list[str] = []
        for each in options_of(type(self)):
            value = getattr(self, each.name)
            if value is True:
                words.append(each.flag)
            elif value is not None and value is not False:
                words.append(f"{each.flag}={value}")
        return tuple(words)


@dataclass(frozen=True)
class CheckOptions:
    """How `check` prints."""

    json: bool = shared("json")


@dataclass(frozen=True)
class SweepOptions:
    """How the members are made."""

    out: str | None = option(
        None, OptionSpec("the folder that gets a folder for each member", "-o", "DIR")
    )
    array: bool = option(False, OptionSpec("job arrays, as large as the site allows"))
    array_size: int | None = option(
        None, OptionSpec("with --array: members of one array at most", metavar="N", minimum=1)
    )
    at_once: int | None = option(
        None, OptionSpec("with --array: members that run at once", metavar="N", minimum=1)
    )
    one_pass: bool = option(
        False, OptionSpec("one job that reads the inputs once and writes every member")
    )
