"""Option groups that all backends share: the merge, its job, the worker, `check` and sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from merge_worker.options import BY_NAME, GROUP_OF
from merge_worker.units import positive_integer

from .options import option, options_of

DIRECT = "direct merge: "


def shared(name: str, prefix: str = "", default: Any = None) -> Any:
    """Return a field for an option of merge-worker; `prefix` is put before its help."""
    known = BY_NAME[name]
    choices = "|".join(known.choices) or None
    return option(
        False if known.type is bool else default,
        prefix + known.help,
        known.metavar or choices,
        known.pattern or choices,
        known.expected,
        minimum=1 if known.type is positive_integer else None,
        title=GROUP_OF[name],
    )


@dataclass(frozen=True)
class MergeOptions:
    """Options of a merge besides the SOURCE words."""

    out: str | None = option(
        None, "the folder of the merged model", "OUT", short="-o", title="output"
    )
    method: str | None = shared("method", DIRECT)
    weights: str | None = shared("weights", DIRECT)
    schedule: str | None = shared("schedule", DIRECT)
    from_: str | None = shared("from_", DIRECT)
    to: str | None = shared("to", DIRECT)
    every: str | None = shared("every", DIRECT)
    last: str | None = shared("last", DIRECT)
    min: str | None = shared("min", DIRECT)
    steps: str | None = shared("steps", DIRECT)
    windows: str | None = shared("windows", DIRECT)
    skip_incomplete: bool = shared("skip_incomplete", DIRECT)
    base_model: str | None = shared("base_model", DIRECT)
    param: tuple[str, ...] = shared("param", DIRECT, ())


@dataclass(frozen=True)
class JobOptions:
    """Options of a job."""

    TITLE: ClassVar[str] = "job"

    name: str | None = option(None, "the job's name; default: made from OUT", "NAME")
    python: str | None = option(
        None, "the interpreter on the node; default: python3", "PROGRAM", title="site"
    )
    env: tuple[str, ...] = option(
        (),
        "set a variable in the job (repeatable)",
        "NAME=VALUE",
        r"(?s)[A-Za-z_][A-Za-z0-9_]*=.*",
        "NAME=VALUE",
        accumulates=True,
        title="site",
    )
    setup: tuple[str, ...] = option(
        (),
        "a shell line to run before the worker (repeatable); one that fails ends the job",
        "LINE",
        accumulates=True,
        title="site",
    )
    then: str | None = option(
        None,
        "a command to run in OUT after a successful merge, by bash with -e and pipefail",
        "COMMAND",
    )
    notify: str | None = option(
        None,
        "send a message to this address (such as a Slack webhook) when the job ends",
        "URL",
        r"https?://[\x21-\x7e]+",
        "an address that begins with https://",
    )
    engine: str = option(
        "merge-worker",
        "the program that merges; mergekit is found or installed on the node",
        pattern="merge-worker|mergekit",
        expected="merge-worker or mergekit",
    )
    dry_run: bool = option(False, "print the job, do nothing else")
    follow: bool = option(False, "show the log until the job ends", short="-f")

    def variables(self) -> dict[str, str]:
        """Return the variables of --env; later ones win."""
        return {key: value for key, _, value in (pair.partition("=") for pair in self.env)}


@dataclass(frozen=True)
class WorkerOptions:
    """Options passed to the worker unchanged; None and False are not passed."""

    device: str | None = shared("device")
    threads: int | None = shared("threads")
    memory: str | None = shared("memory")
    reads_in_flight: int | None = shared("reads_in_flight")
    shard_size: str | None = shared("shard_size")
    dtype: str | None = shared("dtype")
    missing: str | None = shared("missing")
    surplus: str | None = shared("surplus")
    include: str | None = shared("include")
    exclude: str | None = shared("exclude")
    dequantize: bool = shared("dequantize")
    config: str | None = shared("config")
    format: str | None = shared("format")
    prune_downloads: bool = shared("prune_downloads")
    push: str | None = shared("push")
    private: bool = shared("private")
    overwrite: bool = shared("overwrite")
    no_resume: bool = shared("no_resume")
    sha256: bool = shared("sha256")
    seed: int | None = shared("seed")
    deadline: str | None = shared("deadline")
    progress: str | None = shared("progress")
    allow_nonfinite: bool = shared("allow_nonfinite")
    trust_remote_code: bool = shared("trust_remote_code")
    strict: bool = shared("strict")
    methods: str | None = shared("methods")
    try_: bool = shared("try_")
    perplexity: str | None = shared("perplexity")

    @property
    def runs_models(self) -> bool:
        """Whether the job runs the merged model, for which the node needs transformers."""
        return self.try_ or self.perplexity is not None

    def argv(self) -> tuple[str, ...]:
        """Return the options as words of a command line; files of methods travel with the job."""
        known = [option for option in options_of(WorkerOptions) if option.name != "methods"]
        values = {option.flag: getattr(self, option.name) for option in known}
        return tuple(
            flag if value is True else f"{flag}={value}"
            for flag, value in values.items()
            if value is not None and value is not False
        )


@dataclass(frozen=True)
class CheckOptions:
    """Options of the report of `check`."""

    json: bool = shared("json")


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search."""

    out: str | None = option(
        None, "the folder that gets a folder for each candidate", "OUT", short="-o"
    )
    workers: int | None = option(
        None, "jobs that search together; more can be added later", "N", minimum=1
    )
    batch: int | None = option(
        None, "candidates that a worker merges in one pass over the inputs", "N", minimum=1
    )


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep."""

    out: str | None = option(
        None, "the folder that gets a folder for each member", "OUT", short="-o"
    )
    array: bool = option(False, "submit job arrays, as large as the site allows")
    array_size: int | None = option(None, "with --array: most members of one array", "N", minimum=1)
    at_once: int | None = option(
        None, "with --array: most members that run at once", "N", minimum=1
    )
    one_pass: bool = option(False, "one job that reads the inputs once and writes every member")
