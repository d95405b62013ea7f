"""The options that all backends share: what is merged, how the job runs, what the worker does."""

from __future__ import annotations

from dataclasses import dataclass

from .options import Shape, option, options_of

SIZE = r"\d+(\.\d+)?([kKmMgGtT]i?)?[bB]?"
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"


@dataclass(frozen=True)
class MergeOptions:
    """What is merged, beside the SOURCE words."""

    out: str | None = option(None, Shape("the folder of the merged model", "-o", "DIR"))
    method: str | None = option(
        None, Shape("direct merge: the method (linear, the weighted average)", metavar="NAME")
    )
    weights: str | None = option(
        None,
        Shape(
            "direct merge: one weight for each model",
            metavar="2,1,1",
            pattern=f"{NUMBER}(,{NUMBER})*",
            form="numbers with commas between, such as 2,1,1",
        ),
    )
    schedule: str | None = option(
        None,
        Shape(
            "direct merge of checkpoints from the oldest to the newest: weights by a schedule",
            metavar="uniform|minus-sqrt|ema:BETA|last-k:N",
            pattern=r"[a-z-]+(:[0-9.]+)?",
            form="a schedule such as minus-sqrt, ema:0.9 or last-k:4",
        ),
    )
    base_model: str | None = option(
        None, Shape("direct merge: the base of methods that need one", metavar="MODEL")
    )


@dataclass(frozen=True)
class JobOptions:
    """How the job runs."""

    name: str | None = option(None, Shape("the job's name; made of OUT when missing"))
    python: str | None = option(
        None, Shape("the interpreter on the node (python3)", metavar="PROGRAM")
    )
    env: tuple[str, ...] = option(
        (),
        Shape(
            "set a variable in the job (repeatable)",
            metavar="K=V",
            pattern=r"(?s)[A-Za-z_][A-Za-z0-9_]*=.*",
            form="NAME=VALUE",
            adds_up=True,
        ),
    )
    setup: tuple[str, ...] = option(
        (),
        Shape("a shell line to run before the worker (repeatable)", metavar="LINE", adds_up=True),
    )
    then: str | None = option(
        None, Shape("a command to run in OUT after a successful merge", metavar="COMMAND")
    )
    notify: str | None = option(
        None,
        Shape(
            "tell this address (Slack's webhooks and the like) when the job has ended",
            metavar="URL",
            pattern=r"https?://[\x21-\x7e]+",
            form="an address that begins with https://",
        ),
    )
    engine: str = option(
        "merge-worker",
        Shape(
            "what merges: merge-worker, or mergekit, found on the node or installed there",
            pattern="merge-worker|mergekit",
            form="merge-worker or mergekit",
        ),
    )
    dry_run: bool = option(False, Shape("print the job and do nothing else"))
    follow: bool = option(False, Shape("show the log until the job ends", "-f"))

    def variables(self) -> dict[str, str]:
        """Later ones win."""
        return {key: value for key, _, value in (pair.partition("=") for pair in self.env)}


@dataclass(frozen=True)
class WorkerOptions:
    """What is handed to the worker, word for word; nothing where nothing was said."""

    device: str | None = option(
        None,
        Shape(
            "auto, cpu, cuda, cuda:N, xpu or mps",
            pattern=r"auto|cpu|mps|(cuda|xpu)(:\d+)?",
            form="auto, cpu, cuda, cuda:N, xpu or mps",
        ),
    )
    threads: int | None = option(None, Shape("threads of the worker", metavar="N", minimum=1))
    memory: str | None = option(
        None,
        Shape(
            "bound on the worker's buffers",
            metavar="4GiB",
            pattern=SIZE,
            form="a size such as 4GiB",
        ),
    )
    shard_size: str | None = option(
        None,
        Shape("size of an output file", metavar="5GB", pattern=SIZE, form="a size such as 5GB"),
    )
    dtype: str | None = option(
        None,
        Shape(
            "same, bfloat16, float16, float32 or float64",
            pattern="same|bfloat16|float16|float32|float64",
            form="same, bfloat16, float16, float32 or float64",
        ),
    )
    missing: str | None = option(
        None,
        Shape(
            "tensors that not every model has: error or copy",
            pattern="error|copy",
            form="error or copy",
        ),
    )
    surplus: str | None = option(
        None,
        Shape(
            "tensors that the first model has not: error or drop",
            pattern="error|drop",
            form="error or drop",
        ),
    )
    include: str | None = option(
        None, Shape("merge only these tensors: words of names, or patterns", metavar="A,B")
    )
    exclude: str | None = option(
        None, Shape("leave these tensors to the base: words of names, or patterns", metavar="A,B")
    )
    dequantize: bool = option(False, Shape("read FP8 weights with their scales"))
    prune_downloads: bool = option(False, Shape("remove weights of the hub after use"))
    push: str | None = option(None, Shape("upload the finished OUT to the hub", metavar="ORG/NAME"))
    overwrite: bool = option(False, Shape("replace another merge in OUT"))
    no_resume: bool = option(False, Shape("start afresh, even if OUT holds a part of this merge"))
    sha256: bool = option(False, Shape("SHA-256 of the output in its manifest"))
    seed: int | None = option(None, Shape("seed of the random methods", metavar="N"))
    deadline: str | None = option(
        None,
        Shape(
            "stop in good order this long after the start",
            metavar="12:00:00",
            pattern=r"\d+(:\d\d){0,2}|\d+(\.\d+)?[smhd]",
            form="such as 12:00:00, 30m or 2h",
        ),
    )
    progress: str | None = option(
        None,
        Shape(
            "auto, plain, json or off",
            pattern="auto|plain|json|off",
            form="auto, plain, json or off",
        ),
    )
    allow_nonfinite: bool = option(False, Shape("let NaN and Inf through"))
    trust_remote_code: bool = option(False, Shape("let the tokenizer run code of the models"))
    strict: bool = option(False, Shape("unread keys of a recipe are errors"))

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

    json: bool = option(False, Shape("the plan as JSON"))


@dataclass(frozen=True)
class SweepOptions:
    """How the members are made."""

    out: str | None = option(
        None, Shape("the folder that gets a folder for each member", "-o", "DIR")
    )
    array: bool = option(False, Shape("job arrays, as large as the site allows"))
    array_size: int | None = option(
        None, Shape("with --array: members of one array at most", metavar="N", minimum=1)
    )
    at_once: int | None = option(
        None, Shape("with --array: members that run at once", metavar="N", minimum=1)
    )
    one_pass: bool = option(
        False, Shape("one job that reads the inputs once and writes every member")
    )
