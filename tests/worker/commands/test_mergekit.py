"""`merge-worker mergekit`: mergekit is found or installed, and its result checked."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from merge_worker.commands import mergekit
from merge_worker.output.checksums import file_sha256
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.paths import SOURCES
from support.recipes import manifest, run

ROOT = Path(__file__).resolve().parents[3]
PYTHON = sys.executable
FAKE = ROOT / "tests/fakes/mergekit_yaml.py"
RECIPE = "merge_method: linear\nmodels:\n" + "".join(
    f"- {{model: m{n}, parameters: {{weight: 1}}}}\n" for n in (0, 1)
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models and a recipe in the current folder; no mergekit."""
    for number in range(2):
        tensors = {"model.layers.0.weight": torch.full((4, 6), 1.0 + number), "norm": torch.ones(3)}
        write_checkpoint(tmp_path / f"m{number}", tensors, config={"model_type": "tiny"})
    (tmp_path / "r.yml").write_text(RECIPE)
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    # Else a mergekit beside the Python of the tests would be found.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    (tmp_path / "bin" / "python").symlink_to(PYTHON)
    return tmp_path


@pytest.fixture
def ready(work: Path) -> Path:
    program = work / "bin" / "mergekit-yaml"
    program.write_text(f"#!{PYTHON}\n{FAKE.read_text()}")
    program.chmod(0o755)
    return work


def test_a_merge(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--seed", "7", "--threads", "2", "--device", "cpu", "--trust-remote-code")
    assert run("mergekit", "r.yml", "out", *words) == 0
    out = ready / "out"
    flags = (out / "argv").read_text()
    assert flags.startswith("--random-seed 7 --quiet --no-write-model-card --device cpu")
    assert flags.endswith("--num-threads 2 --trust-remote-code")
    assert set(read_tensors(out)) == {"model.layers.0.weight", "norm"}
    assert (out / "mergekit_config.yml").read_text() == RECIPE
    value = json.loads((out / "merge_manifest.json").read_text())
    assert (value["engine"], value["seed"]) == ("mergekit", 7)
    sums = {entry["file"]: entry.get("sha256") for entry in value["outputs"]}
    assert sums["model.safetensors"] == file_sha256(out / "model.safetensors")
    assert list(sums)[-1] == "config.json"
    assert run("verify", "out") == 0
    mode = (ready / "r.yml").stat().st_mode
    assert {file.stat().st_mode for file in out.iterdir()} == {mode}
    assert run("mergekit", "r.yml", "out", *words) == 0
    assert "already there" in capsys.readouterr().out
    assert sorted(path.name for path in ready.iterdir()) == ["bin", "m0", "m1", "out", "r.yml"]


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    capsys.readouterr()
    assert run("mergekit", "r.yml", "out", *words) == code
    return capsys.readouterr().err


def test_lost_tensors_are_named(ready: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_MERGEKIT", "lose")
    assert "mergekit lost 1 of 2 tensors of m0: norm" in refused(capsys, 5)
    assert sorted(path.name for path in ready.iterdir()) == ["bin", "m0", "m1", "r.yml"]


def test_a_failure_of_mergekit(ready: Path, capfd, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_MERGEKIT", "fail")
    assert run("mergekit", "r.yml", "out") == 5
    text = capfd.readouterr().err
    assert "RuntimeError: mergekit's own words" in text
    assert "mergekit-yaml ended with status 1" in text
    assert not (ready / "out").exists()


def test_other_content_of_out_is_not_replaced(ready: Path, capsys) -> None:
    (ready / "out").mkdir()
    (ready / "out" / "precious").touch()
    assert "choose another OUT" in refused(capsys, 4, "--overwrite")
    (ready / "out" / "precious").unlink()
    assert run("mergekit", "r.yml", "out") == 0
    assert "--overwrite" in refused(capsys, 4, "--seed", "1")
    assert run("mergekit", "r.yml", "out", "--seed", "1", "--overwrite") == 0
    assert json.loads((ready / "out" / "merge_manifest.json").read_text())["seed"] == 1


def test_an_older_result_is_replaced_as_a_whole(ready: Path) -> None:
    assert run("mergekit", "r.yml", "out") == 0
    out = ready / "out"
    (out / "model.safetensors.index.json").write_text("{}")  # of shards that go away
    (out / "old").mkdir()
    assert run("mergekit", "r.yml", "out", "--seed", "1", "--overwrite") == 0
    names = {path.name for path in out.iterdir()}
    assert names == {entry["file"] for entry in manifest(out)["outputs"]} | {"merge_manifest.json"}
    assert "old" not in names and ".merge-partial" not in names


def test_a_commit_that_was_stopped_is_finished(ready: Path, capsys, monkeypatch) -> None:
    real = os.replace

    def replace(source: Path | str, target: Path | str, **folders: int) -> None:
        if Path(source).name == "model.safetensors":
            raise OSError(5, "Input/output error")
        real(source, target, **folders)

    monkeypatch.setattr(os, "replace", replace)
    assert "cannot write" in refused(capsys, 4)
    assert not (ready / "out" / "merge_manifest.json").exists()
    monkeypatch.setattr(os, "replace", real)
    monkeypatch.setenv("FAKE_MERGEKIT", "fail")  # mergekit does not run again
    assert run("mergekit", "r.yml", "out") == 0
    assert "committed the result of an earlier run" in capsys.readouterr().out
    assert run("verify", "out") == 0
    assert not (ready / "out" / ".merge-partial").exists()


def test_another_unfinished_merge_is_not_discarded(ready: Path, capsys) -> None:
    partial = ready / "out" / ".merge-partial"
    partial.mkdir(parents=True)
    (partial / "key.json").write_text('{"key": "another"}')
    (partial / "model.safetensors.partial").write_bytes(b"hours of work")
    assert "choose another OUT" in refused(capsys, 4, "--overwrite")
    assert (partial / "model.safetensors.partial").exists()
    (partial / "key.json").unlink()
    (partial / "model.safetensors.partial").unlink()
    assert run("mergekit", "r.yml", "out") == 0


def test_the_deadline(ready: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_MERGEKIT", "sleep")
    began = time.monotonic()
    assert "starts over" in refused(capsys, 75, "--deadline", "4s")
    assert time.monotonic() - began < 60
    assert not list(ready.glob(".out*"))


def test_a_signal_leaves_nothing_running(ready: Path, monkeypatch) -> None:
    env = {**os.environ, "FAKE_MERGEKIT": "sleep", "PYTHONPATH": SOURCES}
    argv = [PYTHON, "-m", "merge_worker", "mergekit", "r.yml", "out"]
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE) as process:
        limit = time.monotonic() + 60
        while not (ready / "asleep").exists():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75
    assert not list(ready.glob(".out*"))


@pytest.mark.slow
def test_without_it_and_without_an_index(work: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    text = refused(capsys, 3)
    assert f"mergekit {mergekit.PIN} is not on this node and cannot be installed" in text
    assert "--setup" in text


@pytest.mark.slow
def test_it_is_installed_for_the_run(work: Path, monkeypatch) -> None:
    wheel = work / "index" / f"mergekit-{mergekit.PIN}-py3-none-any.whl"
    wheel.parent.mkdir()
    info = f"mergekit-{mergekit.PIN}.dist-info"
    texts = {
        "mergekit_yaml.py": FAKE.read_text(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: mergekit\nVersion: {mergekit.PIN}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nmergekit-yaml = mergekit_yaml:main\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*texts]))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert run("mergekit", "r.yml", "out") == 0
    value = json.loads((work / "out" / "merge_manifest.json").read_text())
    assert value["mergekit"] == mergekit.PIN


def test_several_ranks_are_refused(ready: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in refused(capsys, 2, "--ranks", "auto")
