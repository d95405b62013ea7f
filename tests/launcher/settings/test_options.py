"""Options derive from dataclass fields: flags, values of every origin, messages of faults."""

import dataclasses
import datetime

import pytest

from merge_launch import backends
from merge_launch.settings.groups import CheckOptions, JobOptions, MergeOptions, WorkerOptions
from merge_launch.settings.options import Fault, add_options, option, options_of, read
from merge_worker.command_line.parser import Parser


@dataclasses.dataclass(frozen=True)
class Group:
    size: int = option(1, "a number", minimum=1)
    word: str | None = option(None, "a word", pattern="a+", expected="some a", short="-w")
    lines: tuple[str, ...] = option((), "lines")
    deep_switch: bool = option(False, "a switch")
    plain: int = 0


SIZE, WORD, LINES, SWITCH = options_of(Group)


def test_names() -> None:
    assert [each.flag for each in options_of(Group)] == [
        "--size",
        "--word",
        "--lines",
        "--deep-switch",
    ]
    assert SWITCH.variable == "MERGE_LAUNCH_DEEP_SWITCH"


@pytest.mark.parametrize(
    ("which", "given", "value"),
    [
        (SIZE, "3", 3),
        (SIZE, 3, 3),
        (WORD, "aa", "aa"),
        (LINES, ["x", "y z"], ("x", "y z")),
        (LINES, "x\ny z\n", ("x", "y z")),
        (SWITCH, True, True),
        (SWITCH, "no", False),
        (SWITCH, "1", True),
    ],
)
def test_values(which, given, value) -> None:
    assert read(which, given) == value


@pytest.mark.parametrize(
    ("which", "given", "words"),
    [
        (SIZE, "three", "must be a whole number"),
        (SIZE, "1.5", "must be a whole number"),
        (SIZE, True, "must be a whole number"),
        (SIZE, 0, "must be at least 1"),
        (WORD, "b", "must be some a"),
        (WORD, "aa\n", "must be some a"),
        (WORD, ["a"], "must be text"),
        (LINES, 3, "must be a list of texts"),
        (LINES, [1], "must be a list of texts"),
        (LINES, ["\0"], "must not contain a NUL"),
        (SWITCH, "perhaps", "must be true or false"),
    ],
)
def test_faults(which, given, words) -> None:
    with pytest.raises(Fault, match=words):
        read(which, given)


def test_a_time_of_day_in_toml_is_a_walltime() -> None:
    resources = backends.get("pbs").resources
    walltime = next(each for each in options_of(resources) if each.name == "walltime")
    assert read(walltime, datetime.time(12, 30)) == "12:30:00"


def test_a_type_that_no_option_has_fails_loudly() -> None:
    @dataclasses.dataclass
    class Wrong:
        ratio: float = option(0.5, "no such thing")

    with pytest.raises(TypeError, match="float"):
        options_of(Wrong)


def test_options_are_not_given_unless_typed() -> None:
    parser = Parser("program", "")
    add_options(parser, [Group])
    assert set(vars(parser.read([]))) == {"size", "word", "lines", "deep_switch"}
    assert {value for value in vars(parser.read([])).values()} == {None}


@pytest.mark.parametrize("name", backends.names())
def test_no_option_of_a_backend_hides_a_shared_one(name: str) -> None:
    shared = [
        each.name
        for group in (MergeOptions, JobOptions, WorkerOptions, CheckOptions)
        for each in options_of(group)
    ]
    own = [each.name for each in options_of(backends.get(name).resources)]
    assert len(shared) == len(set(shared))
    assert not set(shared) & set(own)


def test_help_has_no_names_of_types(launch) -> None:
    for name in (*backends.names(), "check"):
        options = launch(name, "--help").out
        assert "--dtype same|bfloat16|" in options and "<str>" not in options


def test_the_worker_accepts_every_option_that_is_passed_on() -> None:
    from merge_worker.cli import parse_arguments

    given = WorkerOptions(
        device="cuda:1",
        threads=2,
        reads_in_flight=4,
        memory="4GiB",
        shard_size="5GB",
        dtype="float32",
        missing="copy",
        surplus="drop",
        include="mlp,lm_head",
        exclude="mlp.gate",
        dequantize=True,
        config="org/model",
        format="dcp",
        prune_downloads=True,
        push="org/merged",
        private=True,
        overwrite=True,
        no_resume=True,
        sha256=True,
        seed=3,
        deadline="12:00:00",
        progress="plain",
        allow_nonfinite=True,
        trust_remote_code=True,
        strict=True,
        methods="my.py",
        try_=True,
        perplexity="heldout.txt",
    )
    assert all(getattr(given, each.name) for each in options_of(WorkerOptions)), "set each of them"
    words = ["merge", "recipe.yml", "out", *given.argv()]
    parsed = vars(parse_arguments(words))
    assert not any("methods" in word for word in words), "files of methods travel with the job"
    for passed in options_of(WorkerOptions):
        value = getattr(given, passed.name) if passed.name != "methods" else []
        assert parsed[passed.name] in (value, [value]), passed.flag


def test_options_that_are_not_given_are_not_passed_on() -> None:
    assert WorkerOptions().argv() == ()
    assert WorkerOptions(seed=0).argv() == ("--seed=0",)
