"""Findings from samples: wrong bases, copies, results that are an input. And inputs that change."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_worker.commands.check import describe
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import make_plan
from merge_worker.planning.read_speed import measure_read_speed, part_places
from merge_worker.recipe import parse
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.forked_process import Forks
from support.recipes import average, manifest, run, some_models
from support.staged_recipes import document, merge, several

Capture = pytest.CaptureFixture[str]
BASE = {f"layers.{n}.{kind}": torch.randn(40, 300) for n in range(3) for kind in ("q", "up")}


def model(folder: Path, name: str, scale: float = 0.01, only: str = "") -> Path:
    """Trained a little from BASE, everywhere or in some tensors only."""
    moved: dict[str, Tensor] = {
        tensor: values + (scale * torch.randn_like(values) if only in tensor else 0)
        for tensor, values in BASE.items()
    }
    return write_checkpoint(folder / name, moved)


def warnings(capsys: Capture, folder: Path, method: str, *words: object) -> str:
    """Return the warnings of a merge, which its manifest has too, without the folder."""
    capsys.readouterr()
    out = folder / f"out{os.urandom(4).hex()}"
    assert run("average", out, *words, "--progress", "off", "--method", method) == 0
    text = capsys.readouterr().err
    warned = [line.removeprefix("warning: ") for line in text.splitlines()]
    noted = manifest(out)["notes"]
    of_inputs = [line for line in warned if not line.startswith("the result is")]
    assert noted == [line.replace(f"{folder}/", "") for line in of_inputs]
    return text


def identical(folder: Path) -> list[str]:
    """Return `identical_to` in the manifest of the last merge."""
    last = max(folder.glob("out*"), key=lambda out: out.stat().st_mtime_ns)
    labels: list[str] = manifest(last)["identical_to"]
    return labels


def test_fine_tunes_of_one_base_need_no_word(tmp_path: Path, capsys: Capture) -> None:
    base = write_checkpoint(tmp_path / "base", BASE)
    models = [model(tmp_path, "a"), model(tmp_path, "b", 0.5), model(tmp_path, "c", only="2.q")]
    options = ("--base-model", base, "--weights", "1,1,1")
    assert warnings(capsys, tmp_path, "task_arithmetic", *models, *options) == ""
    assert warnings(capsys, tmp_path, "linear", *models) == ""


def test_a_base_that_is_none(tmp_path: Path, capsys: Capture) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b")]
    strange = write_checkpoint(
        tmp_path / "strange", {name: torch.randn_like(values) for name, values in BASE.items()}
    )
    options = ("--base-model", strange, "--weights", "1,1")
    text = warnings(capsys, tmp_path, "task_arithmetic", *models, *options)
    assert text.count("by 1.4 times what") == 2 and "of 4 tensors" in text
    assert "a differs from" in warnings(capsys, tmp_path, "linear", strange, models[0])


def test_copies_and_results_that_are_an_input(tmp_path: Path, capsys: Capture) -> None:
    a, b, same = (model(tmp_path, "a"), model(tmp_path, "b"), tmp_path / "same")
    write_checkpoint(same, read_tensors(a))
    assert "is identical to" in warnings(capsys, tmp_path, "linear", a, same)
    assert identical(tmp_path) == ["a", "same"]
    assert warnings(capsys, tmp_path, "linear", a, b, "--weights", "1,0") == (
        f"warning: the result is {a}, bit for bit; {b} had no effect\n"
    )
    assert identical(tmp_path) == ["a"]
    assert warnings(capsys, tmp_path, "linear", a, b) == "" and identical(tmp_path) == []
    assert "is identical to" in warnings(
        capsys, tmp_path, "task_arithmetic", same, b, "--base-model", a, "--weights", "1,1"
    )


def test_one_trace_is_enough(tmp_path: Path, capsys: Capture) -> None:
    """A model that differs in one value, which no sample has: the result is not the other one."""
    a = model(tmp_path, "a")
    tensors = read_tensors(a)
    tensors["layers.1.q"][39, 299] += 1
    other = write_checkpoint(tmp_path / "other", tensors)
    assert "is identical to" in warnings(capsys, tmp_path, "linear", a, other)
    assert identical(tmp_path) == []
    # In 32 bits the mean of such neighbours is one of them, or neither.
    assert "bit for bit" in warnings(capsys, tmp_path, "linear", a, other, "--weights", "0,1")
    assert identical(tmp_path) == ["other"]


def test_a_result_of_several_ranks(
    tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is last looks at the result, and knows what the first saw in the inputs."""
    a, strange = model(tmp_path, "a"), tmp_path / "strange"
    write_checkpoint(strange, {name: torch.randn_like(values) for name, values in BASE.items()})
    words = ("average", tmp_path / "out", a, strange, "--weights", "1,0", "--progress", "off")
    words = (*words, "--ranks", "auto")
    running = [forks.start(*words, env={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    ended = [fork.wait() for fork in running]
    assert [fork.code for fork in ended] == [0, 0], ended
    warned = "".join(fork.err for fork in ended)
    assert warned.count("bit for bit; ") == 1 and warned.count("the merge would be noise") == 1
    written = manifest(tmp_path / "out")
    assert written["identical_to"] == ["a"] and "the merge would be noise" in written["notes"][0]


def test_documents_that_are_made_on_the_way(tmp_path: Path, capsys: Capture) -> None:
    """Their models are looked at as well, and theirs are the files that a probe reads."""
    for name in ("a", "b"):
        model(tmp_path, name)
    strange = {name: torch.randn_like(values) for name, values in BASE.items()}
    write_checkpoint(tmp_path / "strange", strange)
    text = several(
        document("one", "a", "b"), document("two", "b", "strange"), document(None, "one", "two")
    )
    assert merge(tmp_path, text) == 0
    warned = capsys.readouterr().err
    assert warned.count("strange differs from b by 1.") == 1 and "a differs" not in warned
    assert "strange differs from b" in manifest(tmp_path / "out")["notes"][0]
    plan = make_plan(parse(text), PlanOptions(relative_to=tmp_path))
    assert len(plan.lazy) == 2
    speed = measure_read_speed(plan, part_bytes=1 << 10)
    places = {Path(path).parent.name for path, _ in part_places(plan, 1 << 10)}
    assert speed is not None and places == {"a", "b", "strange"}
    assert "time       about" in describe(plan, speed)


def test_documents_that_are_kept_meanwhile(tmp_path: Path, capsys: Capture) -> None:
    """Warnings about an intermediate result outlive it."""
    model(tmp_path, "a")
    strange = {name: torch.randn_like(values) for name, values in BASE.items()}
    write_checkpoint(tmp_path / "strange", strange)
    slerp = "merge_method: slerp\nbase_model: a\nmodels: [{model: strange}]\nparameters: {t: 0.5}\n"
    assert merge(tmp_path, several("name: two\n" + slerp, document(None, "a", "two"))) == 0
    assert capsys.readouterr().err.count("strange differs from a") == 1
    notes = manifest(tmp_path / "out")["notes"]
    assert sum("strange differs from a" in note for note in notes) == 1
    assert sum("intermediate result takes" in note for note in notes) == 1


@pytest.mark.parametrize("change", ["time", "size", "inode", "header", "gone"])
def test_an_input_that_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, change: str
) -> None:
    models = some_models(tmp_path, 2)
    file, real, calls = models[1] / "model.safetensors", os.preadv, 0
    before = file.stat()

    def preadv(*words: object) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raw = file.read_bytes()
            if change == "time":
                os.utime(file, ns=(1, 1))
            elif change == "gone":
                file.unlink()
            elif change == "inode":
                file.rename(tmp_path / "kept")  # else the number may be given again
                file.write_bytes(raw)
            elif change == "size":
                file.write_bytes(raw + b"x")
            else:
                file.write_bytes(raw[:48].replace(b"pt", b"tp") + raw[48:])
            if change != "gone":
                os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns - (change == "time")))
        return real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", preadv)
    assert average(tmp_path / "out", models) == 3
    text = capsys.readouterr().err
    assert str(file) in text and "Traceback" not in text
    words = {
        "time": "was written to",
        "size": "another size",
        "inode": "another file",
        "header": "its header is another",
        "gone": "No such file",
    }
    assert words[change] in text, text
    assert not (tmp_path / "out" / "merge_manifest.json").exists()


def test_sums_beyond_float32_that_come_back(tmp_path: Path) -> None:
    """Terms of 3e38 overflow a float32; their mean does not, and neighbours keep their bits."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 400_000, generator=generator).bfloat16()
    for n in range(3):
        write_checkpoint(tmp_path / f"s{n}", {"x": values[n].clone()})
    small = [tmp_path / f"s{n}" for n in range(3)]
    values[:, 150_000] = 3e38
    large = [write_checkpoint(tmp_path / f"l{n}", {"x": values[n].clone()}) for n in range(3)]
    assert average(tmp_path / "out", small) == 0
    assert average(tmp_path / "out2", large, "--threads", "1", "--memory", "3MB") == 0
    assert average(tmp_path / "out3", large, "--threads", "4") == 0
    outs = ("out", "out2", "out3")
    plain, small_pieces, large_pieces = (read_tensors(tmp_path / name)["x"] for name in outs)
    assert torch.equal(small_pieces, large_pieces), "whatever the pieces were"
    assert small_pieces[150_000] == torch.tensor(3e38).bfloat16()
    changed = (small_pieces != plain).nonzero().flatten().tolist()
    assert changed == [150_000]
