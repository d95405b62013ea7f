"""Table of the options that merge-worker and merge-launch share: names, types, choices and help.

Both command lines are built from it: merge-worker's in `commands.options`, merge-launch's in
`merge_launch.settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import units

AVERAGE = ("average",)
CHECKS = ("check",)
MERGES = ("merge", *AVERAGE)
RUNS = (*MERGES, "convert")
RULES = (*MERGES, *CHECKS)
PLANS = (*RUNS, *CHECKS)
MERGEKIT = ("mergekit",)
RECIPES = (*RULES, *MERGEKIT)
EXTRACTS = ("extract-lora",)
LOOKS = ("compare", "report")
LOSSES = ("perplexity",)
MEASURES = ("importance", *LOSSES)
TRAINS = ("train-routers",)
ROUTES = ("routing",)

SAFETENSORS = "safetensors"

SCHEDULES = (
    "uniform, linear, minus-sqrt, cosine, inverse[:FLOOR], ema[:BETA], last-k:N; with __reverse or "
    "__scramble[:SEED] behind for a control"
)
_SCHEDULE = r"[a-z-]+(:[0-9.]+)?(__[a-z]+(:[0-9]+)?)?"
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"


@dataclass(frozen=True)
class SharedOption:
    """An option of one or several commands of merge-worker.

    `type` converts a word, as in argparse; `bool` marks a switch. merge-launch passes words on
    unchanged after matching them against `pattern`, which `form` describes.
    """

    name: str
    commands: tuple[str, ...]
    help: str
    metavar: str | None = None
    type: Callable[[str], Any] = str
    default: Any = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    form: str = ""
    repeatable: bool = False  # in merge-worker only; both accept commas
    launch: bool = True  # whether merge-launch offers it

    @property
    def expected(self) -> str:
        """Accepted values, in words."""
        return _one_of(self.choices) if self.choices else self.form

    @property
    def flag(self) -> str:
        # A word of Python names no field: such an option ends with an underscore in the table.
        return "--" + self.name.rstrip("_").replace("_", "-")


def _one_of(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _size(name: str, example: str, help: str, default: str | None = None) -> SharedOption:
    form = f"a size such as {example}"
    return SharedOption(name, PLANS, help, example, default=default, pattern=units.SIZE, form=form)


def _switch(name: str, commands: tuple[str, ...], help: str, launch: bool = True) -> SharedOption:
    return SharedOption(name, commands, help, type=bool, default=False, launch=launch)


def _step(name: str, help: str, example: str) -> SharedOption:
    form = f"a number such as {example}"
    return SharedOption(name, AVERAGE, help, "N", pattern=r"\d{1,15}", form=form)


def _steps(name: str, help: str, example: str) -> SharedOption:
    pattern, form = r"\d{1,15}(,\d{1,15})*", f"numbers such as {example}"
    return SharedOption(name, AVERAGE, help, "N", pattern=pattern, form=form)


OPTIONS = (
    SharedOption(
        "method",
        AVERAGE,
        "the merge method; default: linear, the weighted average",
        "METHOD",
        default="linear",
    ),
    SharedOption(
        "weights",
        AVERAGE,
        "one weight for each model; default: equal weights",
        "2,1,1",
        pattern=f"{NUMBER}(,{NUMBER})*",
        form="numbers with commas between, such as 2,1,1",
    ),
    SharedOption(
        "schedule",
        AVERAGE,
        f"weights of checkpoints, given from the oldest to the newest: {SCHEDULES}; several with "
        f"commas between make a result each",
        "NAME",
        pattern=f"{_SCHEDULE}(,{_SCHEDULE})*",
        form="a schedule such as minus-sqrt, ema:0.9 or last-k:4; several with commas between",
    ),
    _step("from_", "of the one MODEL, a folder of checkpoints: those from this step on", "840000"),
    _step("to", "checkpoints up to this step, which is included", "880000"),
    _step("every", "checkpoints this many steps apart, counted from --from or 0", "5000"),
    _step("last", "the last N of these checkpoints", "8"),
    _step("min", "stop if there are fewer checkpoints", "5"),
    _steps("steps", "checkpoints of exactly these steps, with commas between", "1000,2000,5000"),
    _steps(
        "windows",
        "one result for each N: the last N of the checkpoints; OUT gets a folder for each window "
        "and schedule, all made in one pass",
        "5,10,20",
    ),
    _switch("skip_incomplete", AVERAGE, "leave out checkpoints that are not whole, older ones too"),
    SharedOption("base_model", AVERAGE, "the base, for methods that need one", "MODEL"),
    SharedOption(
        "param",
        AVERAGE,
        "a value of the method (repeatable); several with commas between are one for each model",
        "NAME=VALUE",
        default=(),
        pattern=r"[A-Za-z_]\w*=.+",
        form="NAME=VALUE, such as t=0.5 or density=0.5,0.3",
        repeatable=True,
    ),
    _switch("no_normalize", AVERAGE, "do not divide by the sum of the weights", launch=False),
    SharedOption(
        "device",
        (*RUNS, *MERGEKIT, *EXTRACTS, *MEASURES, *TRAINS, *ROUTES),
        "where the mathematics runs; default: auto, every visible GPU, else the CPU",
        "|".join(units.DEVICES),
        type=units.device_word,
        default="auto",
        pattern=units.DEVICE,
        form=_one_of(units.DEVICES),
    ),
    SharedOption(
        "expect_gpus",
        MERGES,
        "GPUs that the job asked for: a warning and a note in the manifest if torch sees fewer",
        "N",
        type=units.positive_integer,
        launch=False,
    ),
    SharedOption(
        "threads",
        (*PLANS, *MERGEKIT, *EXTRACTS, *LOOKS, *LOSSES, *TRAINS),
        "threads that compute; default: as many as there are usable CPUs",
        "N",
        type=units.positive_integer,
    ),
    _size("memory", "4GiB", "bound on buffers, on the host and on each device"),
    SharedOption(
        "reads_in_flight",
        PLANS,
        "reads that wait for the storage at a time; default: as many as its latency asks for",
        "N",
        type=units.positive_integer,
        pattern=r"[1-9]\d*",
        form="a whole number from 1 on",
    ),
    _size("shard_size", "5GB", "size of an output file; default: 5GB", default="5GB"),
    SharedOption(
        "dtype",
        PLANS,
        "dtype of the result; default: the recipe's, else that of the first model",
        choices=("same", "bfloat16", "float16", "float32", "float64"),
    ),
    SharedOption(
        "missing",
        RULES,
        "tensors missing from some of the models: stop, or copy from the base",
        default="error",
        choices=("error", "copy"),
    ),
    SharedOption(
        "surplus",
        RULES,
        "tensors missing from the base: stop, or drop them",
        default="error",
        choices=("error", "drop"),
    ),
    SharedOption(
        "include",
        RULES,
        "merge only these tensors and copy the rest from the base: words of names, or patterns "
        "with *",
        "A,B",
        repeatable=True,
    ),
    SharedOption(
        "exclude",
        RULES,
        "copy these tensors from the base unchanged: words of names, or patterns with *",
        "A,B",
        repeatable=True,
    ),
    _switch("dequantize", PLANS, "read FP8 weights with their scales"),
    SharedOption(
        "config",
        PLANS,
        "the model whose config.json describes the inputs: names of a trainer become those that "
        "transformers loads for it",
        "DIR|ORG/NAME",
    ),
    SharedOption(
        "format",
        PLANS,
        "the files of the result; default: safetensors; dcp: a checkpoint that "
        "torch.distributed.checkpoint loads",
        default=SAFETENSORS,
        choices=(SAFETENSORS, "dcp"),
    ),
    _switch("prune_downloads", RUNS, "remove weights downloaded from the Hub after use"),
    SharedOption("push", RUNS, "upload the finished OUT to the Hub", "ORG/NAME"),
    _switch("private", RUNS, "the model that --push makes is private"),
    _switch("overwrite", (*RUNS, *MERGEKIT), "replace another merge in OUT"),
    _switch("no_resume", RUNS, "discard an unfinished merge in OUT"),
    _switch("sha256", RUNS, "SHA-256 of the output files in the manifest"),
    SharedOption(
        "seed",
        (*RECIPES, "importance", *TRAINS, "merge-adapters"),
        "seed of what is random; default: 0",
        "N",
        type=int,
        default=0,
    ),
    SharedOption(
        "deadline",
        (*RUNS, *MERGEKIT),
        "stop cleanly this long after the start",
        "12:00:00",
        pattern=units.DURATION,
        form="such as 12:00:00, 30m or 2h",
    ),
    SharedOption(
        "ranks",
        (*RUNS, *MERGEKIT),
        "share the merge with other processes, by variables of torchrun, srun, PMI, Open MPI or "
        "Beaker; wait TIME (10s) for the others to begin",
        "auto[:TIME]",
        type=units.ranks_word,
        launch=False,
    ),
    SharedOption(
        "progress",
        (*RUNS, *LOOKS, *MEASURES, *TRAINS),
        "how progress is shown; default: auto, a bar in a terminal and lines in a log",
        default="auto",
        choices=("auto", "plain", "json", "off"),
    ),
    _switch("allow_nonfinite", RUNS, "write NaN and Inf instead of stopping"),
    _switch(
        "trust_remote_code",
        (*RUNS, *MERGEKIT, *MEASURES, *TRAINS, "try"),
        "run code from the folders of models, where models run; merges by our engine run none",
    ),
    _switch("try_", RUNS, "load the finished merge in transformers, let it speak, and record that"),
    SharedOption(
        "perplexity",
        RUNS,
        "measure the finished merge on a text (.txt or .jsonl), and record that",
        "FILE",
    ),
    _switch("strict", RULES, "warnings about the recipe are errors"),
    SharedOption(
        "methods",
        (*RULES, "methods"),
        "files with more merge methods; default: those in MERGE_WORKER_METHODS",
        "FILE.py",
        repeatable=True,
    ),
    _switch("json", (*CHECKS, *LOOKS, *LOSSES, *EXTRACTS, *ROUTES, "try"), "print JSON"),
    SharedOption(
        "recipe_name",
        ("merge",),
        "what messages call the recipe, where the file is a copy of another (repeatable: one for "
        "each recipe)",
        "NAME",
        default=(),
        repeatable=True,
        launch=False,
    ),
    SharedOption(
        "relative_to",
        (*PLANS, *MERGEKIT),
        "where relative model paths start; default: the current folder",
        "DIR",
        default=".",
        launch=False,
    ),
)
GROUPS = {
    "merge": "method weights schedule from_ to every last min steps windows skip_incomplete "
    "base_model param no_normalize missing surplus include "
    "exclude dequantize config seed strict methods recipe_name relative_to",
    "output": "format shard_size dtype push private overwrite no_resume sha256 allow_nonfinite "
    "try_ perplexity json",
    "machine": "device expect_gpus threads memory reads_in_flight prune_downloads deadline ranks "
    "progress trust_remote_code",
}
"""Names of the options in each group of the help."""
GROUP_OF = {name: title for title, names in GROUPS.items() for name in names.split()}
BY_NAME: Mapping[str, SharedOption] = {option.name: option for option in OPTIONS}
DEFAULTS: Mapping[str, Any] = {option.name: option.default for option in OPTIONS}


def options_of(command: str) -> tuple[SharedOption, ...]:
    """Return the shared options of a command of merge-worker."""
    return tuple(option for option in OPTIONS if command in option.commands)


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for every option of the table; None and absence mean the default."""
    return {**DEFAULTS, **{name: value for name, value in values.items() if value is not None}}
