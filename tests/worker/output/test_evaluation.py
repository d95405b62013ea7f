"""Evaluations in a finished merge: card and manifest fit together at every moment."""

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_worker.errors import InputError, OutputError
from merge_worker.output import evaluation as module
from merge_worker.output.evaluation import record
from merge_worker.output.files import PARTIAL
from merge_worker.output.manifest import files_to_upload
from merge_worker.output.model_card import public_model
from merge_worker.output.scores import Evaluation, Number, Score
from support.recipes import average, manifest, run

Capture = pytest.CaptureFixture[str]


class Crash(BaseException):
    """The end of a process at a write."""


@pytest.fixture
def out(tmp_path: Path, models: list[Path]) -> Path:
    assert average(tmp_path / "out", models) == 0
    return tmp_path / "out"


def accuracy(value: float = 0.612, task: str = "mine", **settings: Any) -> Evaluation:
    score = Score(
        task,
        "acc",
        Number(value, 0.003),
        {"m0": Number(0.5, 0.004), "m1": Number(0.55, 0.004), "base": Number(0.4)},
        higher_is_better=True,
        dataset={"split": "test"},
    )
    source = {"name": "lm-evaluation-harness 0.4.13", "url": "https://example.org"}
    return Evaluation("lm-eval", {"tasks": [task], **settings}, [score], source=source)


def front_matter(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((out / "README.md").read_text().split("---\n", 2)[1])
    return value


def runs(out: Path) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = json.loads((out / "evaluation.json").read_text())
    return value


def test_everything_is_recorded_and_verified(out: Path) -> None:
    before = (out / "README.md").read_text()
    record(out, [accuracy()])
    head, text = front_matter(out), (out / "README.md").read_text()
    assert head["model-index"] == [
        {
            "name": "out",
            "results": [
                {
                    "task": {"type": "text-generation", "name": "Text Generation"},
                    "dataset": {"name": "mine", "type": "mine", "split": "test"},
                    "metrics": [{"type": "acc", "value": 0.612, "name": "acc", "verified": False}],
                    "source": {
                        "name": "lm-evaluation-harness 0.4.13",
                        "url": "https://example.org",
                    },
                }
            ],
        }
    ]
    assert head["tags"] == ["merge", "merge-launch"], "the rest of the front matter stays"
    # 0.612 - 0.55 = 0.062 with a standard error of sqrt(0.003² + 0.004²) = 0.005: 12 of them.
    row = (
        "| mine | acc | 0.6120 ± 0.0030 | 0.5000 ± 0.0040 | 0.5500 ± 0.0040 | 0.4000 | "
        "**+0.0620 ± 0.0050** |"
    )
    assert row in text.splitlines()
    assert text.index("## Evaluation") < text.index("Everything else about this merge")
    added = re.sub(r"(?s)<!-- evaluation.*end of evaluation -->\n\n", "", text)
    assert re.sub(r"(?s)model-index:.*?\n---\n", "---\n", added) == before
    assert run("verify", out) == 0
    entries = {entry["file"]: entry["bytes"] for entry in manifest(out)["outputs"]}
    for name in ("README.md", "evaluation.json"):
        assert entries[name] == (out / name).stat().st_size
    assert manifest(out)["evaluations"][0]["scores"][0]["value"] == 0.612
    assert {name for name, _ in files_to_upload(out, "me/merged")} == {
        path.name for path in out.iterdir()
    }
    assert not (out / PARTIAL).exists()


def test_huggingface_hub_reads_the_card(out: Path) -> None:
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard_data import EvalResult, model_index_to_eval_results

    record(out, [accuracy()])
    head = front_matter(out)
    _, results = model_index_to_eval_results(head["model-index"])
    assert results[0] == EvalResult(
        task_type="text-generation",
        task_name="Text Generation",
        dataset_type="mine",
        dataset_name="mine",
        dataset_split="test",
        metric_type="acc",
        metric_name="acc",
        metric_value=0.612,
        verified=False,
        source_name="lm-evaluation-harness 0.4.13",
        source_url="https://example.org",
    )
    assert ModelCardData(**head).eval_results == results


def test_the_same_kind_with_the_same_settings_is_replaced(out: Path) -> None:
    record(out, [accuracy(0.1)])
    record(out, [accuracy(0.2, "other")])
    record(out, [accuracy(0.3)])
    record(out, [accuracy(0.4, limit=3)])
    assert [(one["scores"][0]["task"], one["scores"][0]["value"]) for one in runs(out)] == [
        ("other", 0.2),
        ("mine", 0.3),
        ("mine", 0.4),
    ]
    text = (out / "README.md").read_text()
    assert "0.1000" not in text and text.count("## Evaluation") == 1
    assert [entry["file"] for entry in manifest(out)["outputs"]].count("evaluation.json") == 1
    assert run("verify", out) == 0


def test_without_the_card_only_the_file_is_written(out: Path) -> None:
    before = (out / "README.md").read_bytes()
    record(out, [Evaluation("lm-eval", {}, accuracy().scores, in_card=False)])
    assert (out / "README.md").read_bytes() == before
    assert len(runs(out)) == 1 and run("verify", out) == 0


def test_the_same_merge_is_still_there_and_overwrite_removes_it(
    out: Path, models: list[Path], capsys: Capture
) -> None:
    record(out, [accuracy()])
    assert average(out, models) == 0
    assert "already there" in capsys.readouterr().out
    assert average(out, models, "--overwrite") == 0
    assert not (out / "evaluation.json").exists()
    assert "## Evaluation" not in (out / "README.md").read_text()
    assert run("verify", out) == 0


def test_a_merge_of_evaluated_merges_has_no_evaluation(
    tmp_path: Path, out: Path, models: list[Path]
) -> None:
    record(out, [accuracy()])
    assert average(tmp_path / "next", [out, models[0]]) == 0
    assert not (tmp_path / "next" / "evaluation.json").exists()
    assert "model-index" not in front_matter(tmp_path / "next")


def crash_at(number: int, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """Let the process end at a write of a file, before or after it."""
    real, count = module.write_file, iter(range(100))

    def write_file(path: Path, content: str | bytes, *, durable: bool = False) -> None:
        crash = next(count) == number
        if crash and not after:
            raise Crash
        real(path, content, durable=durable)
        if crash:
            raise Crash

    monkeypatch.setattr(module, "write_file", write_file)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("again", [False, True])
def test_a_crash_at_every_write(
    out: Path,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    after: bool,
    again: bool,
) -> None:
    if again:
        record(out, [accuracy(0.1)])
    with monkeypatch.context() as patch:
        crash_at(number, patch, after)
        with pytest.raises(Crash):
            record(out, [accuracy(0.7)])
    assert run("verify", out) == 0
    assert average(out, models) == 0, "the merge is there"
    published = {name for name, _ in files_to_upload(out, "me/merged")}
    assert published == {path.name for path in out.iterdir() if path.name != PARTIAL}
    record(out, [accuracy(0.8, "other")])
    assert run("verify", out) == 0
    assert "recording" not in manifest(out)
    values = [one["scores"][0]["value"] for one in runs(out)]
    written = number > 1 or (number == 1 and after)
    assert values == [0.7 if written else 0.1, 0.8] if again or written else values == [0.8]
    names = {entry["file"] for entry in manifest(out)["outputs"]} | {"merge_manifest.json"}
    assert names == {path.name for path in out.iterdir()}
    assert average(out, models, "--overwrite") == 0
    assert not (out / "evaluation.json").exists()


@pytest.mark.parametrize("number", range(4))
def test_overwrite_after_a_crash(
    out: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        crash_at(number, patch, after=True)
        with pytest.raises(Crash):
            record(out, [accuracy()])
    assert average(out, models, "--overwrite") == 0
    assert not (out / "evaluation.json").exists() and run("verify", out) == 0


def _record_and_die(out: Path, number: int) -> None:
    count, real = iter(range(100)), module.write_file

    def write_file(path: Path, content: str | bytes, *, durable: bool = False) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, content, durable=durable)

    module.write_file = write_file
    record(out, [accuracy(0.9)])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_a_killed_process_leaves_its_lock(out: Path, models: list[Path], number: int) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_record_and_die, args=(out, number))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and (out / PARTIAL / module.LOCK).exists()
    assert run("verify", out) == 0 and average(out, models) == 0
    record(out, [accuracy()])
    assert run("verify", out) == 0 and not (out / PARTIAL).exists()
    assert [one["scores"][0]["value"] for one in runs(out)] == [0.612]


def _record_many(out: Path, name: str) -> None:
    for number in range(3):
        record(out, [accuracy(0.5, f"{name}{number}")])


@pytest.mark.slow
def test_records_at_the_same_time_lose_nothing(out: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_record_many, args=(out, name)) for name in "ab"]
    for process in processes:
        process.start()
    _record_many(out, "c")
    for process in processes:
        process.join()
        assert process.exitcode == 0
    tasks = {one["scores"][0]["task"] for one in runs(out)}
    assert tasks == {f"{name}{number}" for name in "abc" for number in range(3)}
    assert run("verify", out) == 0 and not (out / PARTIAL).exists()


def test_no_path_of_this_machine(out: Path, models: list[Path]) -> None:
    scores = [
        Score(f"{out}/held.txt", "perplexity", Number(9.5), {str(models[0]): Number(9.0)}),
    ]
    record(out, [Evaluation("perplexity", {"data": str(out / "held.txt")}, scores)])
    for name in ("README.md", "evaluation.json"):
        text = (out / name).read_text()
        assert str(out.parent) not in text and "held.txt" in text and "m0" in text
    assert public_model(f"{models[0]}+{models[1]}") == "m0+m1"
    assert public_model("a+b+c") == "a+b+c"


def test_numbers_that_json_does_not_have(out: Path) -> None:
    scores = [Score("a", "acc", Number(float("nan"), float("inf")), {"m0": Number(0.5)}, True)]
    record(out, [Evaluation("lm-eval", {}, scores, facts={"loss": float("inf")})])
    assert runs(out)[0]["scores"][0]["value"] is None and runs(out)[0]["facts"] == {"loss": None}
    assert "model-index" not in front_matter(out)
    assert "| a | acc | NaN | 0.5000 | NaN |" in (out / "README.md").read_text()


def _edited(text: str) -> str:
    return text.replace("# out", "# My *own* title\n\nWritten by hand, ünïcode.")


@pytest.mark.parametrize(
    "change",
    [
        _edited,
        lambda text: text.replace("tags:", "model-index:\n- name: old\n  results: []\ntags:"),
        lambda text: text.split("---\n", 2)[2],
        lambda text: "",
        lambda text: text.replace("\n", "\r\n"),
    ],
)
def test_a_card_changed_by_hand(out: Path, change: Callable[[str], str]) -> None:
    (out / "README.md").write_bytes(change((out / "README.md").read_text()).encode())
    record(out, [accuracy(0.1)])
    record(out, [accuracy()])
    text = (out / "README.md").read_bytes().decode()
    front = yaml.safe_load(re.split(r"(?m)^---\s*$", text)[1])
    assert [one["name"] for one in front["model-index"]] == ["out"]
    assert text.count("## Evaluation") == 1 and "0.1000" not in text
    assert "Written by hand, ünïcode." in text or change is not _edited
    assert run("verify", out) == 0


def test_a_merge_without_a_card(out: Path) -> None:
    (out / "README.md").unlink()
    record(out, [accuracy()])
    assert not (out / "README.md").exists() and len(runs(out)) == 1


def test_refusals(tmp_path: Path, out: Path) -> None:
    with pytest.raises(InputError, match="not a finished merge"):
        record(tmp_path, [accuracy()])
    (out / "evaluation.json").write_text("[]")
    with pytest.raises(OutputError, match="not written by merge-launch"):
        record(out, [accuracy()])
    (out / "evaluation.json").unlink()
    record(out, [accuracy()])
    for text in ("{", '{"a": 1}', '[{"kind": 3}]', "[null]"):
        (out / "evaluation.json").write_text(text)
        with pytest.raises(InputError, match=r"evaluation\.json"):
            record(out, [accuracy()])
    assert not (out / PARTIAL).exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(out: Path) -> None:
    out.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="cannot write"):
            record(out, [accuracy()])
    finally:
        out.chmod(0o755)


def test_more_inputs_than_columns(out: Path) -> None:
    parents = {f"m{number}": Number(number / 10) for number in range(6)}
    score = Score("a", "loss", Number(0.05), parents, higher_is_better=False)
    record(out, [Evaluation("lm-eval", {}, [score])])
    text = (out / "README.md").read_text()
    assert "| a | loss | 0.0500 | m0: 0.0000 | +0.0500 |" in text


def test_the_best_input_and_the_gain() -> None:
    parents = {"a": Number(2.0, 0.3), "b": Number(3.0, 0.4), "c": Number(float("nan"))}
    higher = Score("t", "m", Number(3.5, 0.3), parents, True)
    assert higher.best_parent() == "b"
    gain = higher.gain()
    assert gain and gain.value == 0.5 and gain.stderr == pytest.approx(0.5)
    assert not higher.is_told()
    lower = Score("t", "m", Number(3.5, 0.3), parents, False, paired={"a": 0.1})
    assert lower.best_parent() == "a" and lower.gain() == Number(1.5, 0.1) and lower.is_told()
    assert Score("t", "m", Number(1.0), parents).gain() is None
    assert Score("t", "m", Number(1.0), {}, True).gain() is None
    assert not Score("t", "m", Number(9.0), {"a": Number(1.0)}, True).is_told()
