"""The command line: codes of the contract, words instead of tracebacks, nothing sent raw."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from merge_worker import __version__, cli
from merge_worker.messages import print_line
from support.checkpoint_factory import write_checkpoint
from support.recipes import average, run, some_models

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


def recipe_of(tmp_path: Path, models: list[Path], extra: str = "") -> Path:
    path = tmp_path / "recipe.yml"
    listed = "".join(f"- model: {model}\n" for model in models)
    path.write_text(f"merge_method: linear\nparameters: {{weight: 1}}\n{extra}models:\n{listed}")
    return path


def refused(capsys: Capture, code: int, *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert all(line.isprintable() for line in text.splitlines())
    return text


def test_merge_check_verify_methods(tmp_path: Path, models: list[Path], capsys: Capture) -> None:
    recipe = recipe_of(tmp_path, models)
    assert run("check", recipe) == 0
    assert "6 merged" in capsys.readouterr().out
    assert run("check", recipe, "--json") == 0
    assert json.loads(capsys.readouterr().out)["method"] == "linear"
    assert not (tmp_path / "out").exists()
    assert run("merge", recipe, tmp_path / "out") == 0
    assert "6 tensors merged, 2 copied" in capsys.readouterr().out
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == recipe.read_text()
    assert run("verify", tmp_path / "out") == 0
    assert run("methods") == 0 and run("methods", "linear") == 0
    assert "linear" in capsys.readouterr().out


def test_relative_models_start_where_told(
    tmp_path: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, [Path("m0"), Path("m1")])
    monkeypatch.chdir("/")
    words = ("merge", recipe, tmp_path / "out", "--progress", "off")
    assert run(*words) == 3
    assert run(*words, "--relative-to", tmp_path) == 0
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 0


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("frobnicate",),
        ("merge",),
        ("average", "out"),
        ("average", "out", "m0", "--threads", "0"),
        ("average", "out", "m0", "--threads", "-1"),
        ("average", "out", "m0", "--threads", "x"),
        ("average", "out", "m0", "--memory", "lots"),
        ("average", "out", "m0", "--shard-size", "0"),
        ("average", "out", "m0", "--dtype", "int8"),
        ("average", "out", "m0", "--weights", "a,b"),
        ("average", "out", "m0", "m1", "--weights", "1"),
        ("average", "out", "m0", "m1", "--weights", "1,nan"),
        ("average", "out", "m0", "m1", "--weights", "1,inf"),
        ("average", "out", "m0", "m1", "--weights", "1,-1"),
        ("average", "out", "m0", "--method", "liner"),
        ("average", "out", "m0", "--device", "toaster"),
        ("average", "out", "m0", "--deadline", "soon"),
        ("average", "out", "m0", "--mem", "1GB"),
        ("average", "out", "m0", "--progress", "fancy"),
        ("methods", "liner"),
    ],
)
def test_wrong_commands(
    tmp_path: Path,
    models: list[Path],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert refused(capsys, 2, *words)
    assert sorted(tmp_path.iterdir()) == before, "nothing was touched"


def test_near_names_are_offered(capsys: Capture) -> None:
    assert "did you mean 'linear'?" in refused(capsys, 2, "methods", "liner")


def test_negative_weights_need_no_equals_sign(tmp_path: Path, models: list[Path]) -> None:
    assert average(tmp_path / "out", models, "--weights", "-1,2,1") == 0
    assert average(tmp_path / "out2", models, "--weights=-.5,2,1") == 0
    assert average(tmp_path / "out3", models, "--weights", "-.5,2,1") == 0


def test_recipes_that_cannot_be_read(tmp_path: Path, capsys: Capture) -> None:
    assert "give the path of a recipe" in refused(capsys, 3, "check", tmp_path / "gone.yml")
    assert "directory" in refused(capsys, 3, "check", tmp_path)
    (tmp_path / "x.yml").write_bytes(b"\xff\xfe\x00")
    assert "not text" in refused(capsys, 2, "check", tmp_path / "x.yml")
    (tmp_path / "x.yml").write_text("")
    assert "empty" in refused(capsys, 2, "check", tmp_path / "x.yml")


def test_models_that_are_none(tmp_path: Path, models: list[Path], capsys: Capture) -> None:
    out = tmp_path / "out"
    for word in (tmp_path / "gone", "n" * 300, "~nobody-of-this-name/x", "org/name", "a@b"):
        assert refused(capsys, 3, "average", out, models[0], word)
    both = refused(capsys, 3, "average", out, tmp_path / "gone1", tmp_path / "gone2")
    assert "gone1" in both and "gone2" in both, "all faults at once"
    assert not out.exists()


def test_models_that_do_not_fit(tmp_path: Path, models: list[Path], capsys: Capture) -> None:
    def other(name: str, **changes: torch.Tensor | None) -> Path:
        from support.recipes import some_tensors

        tensors: dict[str, Any] = {**some_tensors(5), **changes}
        return write_checkpoint(
            tmp_path / name, {n: t for n, t in tensors.items() if t is not None}
        )

    out = tmp_path / "out"
    lost = other("lost", **{"norm.weight": None})
    text = refused(capsys, 3, "average", out, models[0], lost)
    assert "1 tensor of" in text and "is missing: norm.weight" in text and "--missing" in text
    flat = other("flat", **{"layers.1.weight": None, "norm.weight": None})
    text = refused(capsys, 3, "average", out, models[0], flat)
    assert "flat has 1 layer" in text and "has 2: see slices" in text and "--missing" not in text
    more = other("more", **{"extra\x1b": torch.ones(3, dtype=torch.bfloat16)})
    text = refused(capsys, 3, "average", out, models[0], more)
    assert "extra\\x1b" in text and "--surplus drop" in text
    shape = other("shape", **{"norm.weight": torch.ones(49, dtype=torch.bfloat16)})
    text = refused(capsys, 3, "average", out, models[0], shape)
    assert "norm.weight is [48]" in text and "[49]" in text
    kind = other("kind", **{"norm.weight": torch.ones(48, dtype=torch.int32)})
    assert "norm.weight" in refused(capsys, 3, "average", out, models[0], kind)


def test_escapes_in_names_never_reach_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    evil = "\x1b]0;pwned\x07.0.w\u202e"
    for number, size in enumerate((3, 4)):
        write_checkpoint(tmp_path / f"m{number}", {evil: torch.ones(size)})
    refused(capsys, 3, "average", tmp_path / "out", tmp_path / "m0", tmp_path / "m1")
    nan = torch.tensor([float("nan")])
    write_checkpoint(tmp_path / "nan", {evil: nan})
    refused(capsys, 5, "average", tmp_path / "out2", tmp_path / "nan")
    recipe = recipe_of(tmp_path, [tmp_path / "m0"])
    assert run("check", recipe) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
    out = tmp_path / "out\x1b[31m"
    assert run("average", out, tmp_path / "m0", "--progress", "plain") == 0
    captured = capsys.readouterr()
    assert all(line.isprintable() for line in (captured.out + captured.err).splitlines())


def test_a_bug_keeps_its_traceback(
    tmp_path: Path, models: list[Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("merge_worker.commands.merge.make_plan", broken)
    assert run("average", tmp_path / "out", models[0]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text and "oops" in text and "please report it" in text


def test_interrupted_while_planning(
    tmp_path: Path, models: list[Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("merge_worker.commands.merge.make_plan", slow)
    assert "stopped by SIGTERM" in refused(capsys, 75, "average", tmp_path / "out", models[0])
    monkeypatch.setattr(
        "merge_worker.commands.merge.make_plan", lambda *_: signal.raise_signal(signal.SIGINT)
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    message = refused(capsys, 75, "average", tmp_path / "out", models[0])
    signal.signal(signal.SIGINT, before)
    assert "interrupted" in message


def test_version_and_help(capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"merge-worker {__version__}\n"
    for words in (("--help",), ("merge", "--help"), ("average", "--help")):
        assert run(*words) == 0


def worker(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "merge_worker", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_as_a_process(tmp_path: Path) -> None:
    models = some_models(tmp_path / "größe", 2)
    out = tmp_path / "größe" / "模型"
    done = worker("average", out, *models, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\u6a21" in done.stdout, "a locale that cannot show it is no reason to fail"
    assert all("the merge would be noise" in line for line in done.stderr.splitlines())
    assert (out / "merge_manifest.json").exists()
    done = worker("check", tmp_path / "gone.yml")
    assert done.returncode == 3 and done.stderr.count("\n") == 1


def test_a_reader_that_stops_reading(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "merge_worker", "methods"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert done.stderr == b"" and done.returncode == 0


FORBID = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from merge_worker.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without(absent: set[str], *words: object) -> subprocess.CompletedProcess[str]:
    code = FORBID.format(absent=absent)
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_node_with_torch_and_yaml_alone(tmp_path: Path, models: list[Path]) -> None:
    absent = {"safetensors", "transformers", "tokenizers", "numpy", "huggingface_hub", "typer"}
    absent |= {"merge_launch", "jinja2"}
    done = without(absent, "average", tmp_path / "out", *models)
    assert done.returncode == 0, done.stderr
    assert "NumPy" not in done.stderr
    assert average(tmp_path / "with", models) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "with" / "model.safetensors"
    ).read_bytes()


def test_check_without_torch_and_merge_with_words(tmp_path: Path, models: list[Path]) -> None:
    recipe = recipe_of(tmp_path, models)
    assert without({"torch", "numpy"}, "check", recipe).returncode == 0
    assert without({"torch", "numpy"}, "methods").returncode == 0
    # Each needs torch, some at the top of a module: told in words, with the way out.
    for words in (
        ("compare", *models, "--plot", tmp_path / "look.png"),
        ("perplexity", models[0], "--data", recipe),
        ("try", models[0]),
        ("extract-lora", *models[:2], tmp_path / "lora"),
        ("average", tmp_path / "out", *models),
    ):
        done = without({"torch"}, *words)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "torch is missing in" in done.stderr and "install torch" in done.stderr
    done = without({"yaml"}, "check", recipe)
    assert done.returncode == 2 and "pyyaml is missing" in done.stderr


def test_streams_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert run("methods") == 0


def test_a_signal_while_an_error_is_printed(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread may take signals")
    signals = [signal.SIGTERM]

    def late(text: str, stream: TextIO) -> None:
        if signals:
            signal.raise_signal(signals.pop())
        print_line(text, stream)

    monkeypatch.setattr("merge_worker.system.progress.print_line", late)
    assert "stopped by SIGTERM" in refused(capsys, 75, "average", tmp_path / "out", tmp_path / "no")


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        (("perplexity", "m", "--data", "d"), "run the same command again; it begins anew"),
        (("verify", "m"), "run the same command again; it begins anew"),
        (("average", "out", "m", "m"), "run the same command to resume"),
    ],
)
def test_what_a_signal_leaves_to_do(
    words: tuple[str, ...], way_out: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return ""

    monkeypatch.setattr(cli.Command, "run", stopped)
    assert refused(capsys, 75, *words) == f"merge-worker: stopped by SIGTERM; {way_out}\n"
