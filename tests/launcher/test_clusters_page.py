"""docs/clusters.md: every command of it runs as it stands, in the order of the page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clusters.md"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def on_path(fakes, models, work: Path, tmp_path: Path, monkeypatch) -> None:
    """merge-launch on PATH, the models of the page, jobs that run at once."""
    program = tmp_path / "bin" / "merge-launch"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/bash\nPYTHONPATH={PAGE.parents[1]} exec {sys.executable} -m launcher "$@"\n'
    )
    program.chmod(0o755)
    (program.parent / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_RUN", "1")
    monkeypatch.setenv("MERGE_LAUNCH_PYTHON", sys.executable)
    (work / "models").mkdir()
    for source, name in zip(models, ("math", "code", "chat"), strict=True):
        source.rename(work / "models" / name)
    shutil.copytree(work / "models" / "chat", work / "models" / "base")


def run(command: str) -> subprocess.CompletedProcess[str]:
    # No Beaker is there: its job is printed.
    dry = {"MERGE_LAUNCH_DRY_RUN": "1"} if command.startswith("merge-launch beaker") else {}
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, **dry},
        timeout=120,
    )


@pytest.mark.usefixtures("on_path")
def test_every_command(work: Path) -> None:
    said: dict[str, str] = {}
    for kind, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if name:
            (work / name).write_text(text)
        for command in text.splitlines() if kind == "bash" else []:
            done = run(command)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            said[command] = done.stdout
    assert len(said) > 20
    assert "soup" in said["merge-launch jobs"]
    assert "2 tensors merged" in said["merge-launch logs soup"]
    table = said["merge-launch sweep sweep.yml results --sort loss"]
    assert table.count(" done ") == 4 and table.count(" 0.5 ") >= 4
    assert "gpuvolta" in said["merge-launch profile show gadi"]
    (gadi,) = (text for command, text in said.items() if command.endswith("--profile gadi"))
    assert "#PBS -P ab12\n" in gadi and "#PBS -q gpuvolta\n" in gadi


def test_flags_of_the_page_are_flags(launch) -> None:
    """Also those of the running text."""
    helps = "".join(launch(name, "--help").out for name in ("slurm", "pbs", "beaker", "local"))
    helps += launch("sweep", "s.yml", "slurm", "--help").out
    helps += launch("sweep", "s.yml", "results", "--help").out
    # What a profile hands to the scheduler is not ours.
    text = re.sub(r"^directive = .*$", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    words = set(re.findall(r"(?<![\w'=-])--[a-z][a-z-]+", text)) - {"--help"}
    assert [word for word in sorted(words) if f"{word} " not in helps] == []
