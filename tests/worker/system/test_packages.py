"""Hints about missing packages: the tool of the environment, and the extra that has the package."""

import json
import sys
from pathlib import Path

import pytest

from merge_worker.errors import UsageError
from merge_worker.system import packages
from merge_worker.system.packages import EXTRAS, explained, how_to_install, missing_package

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


def test_extras_are_those_of_the_project() -> None:
    text = PROJECT.read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert [one for extra in EXTRAS.values() for one in extra if f'"{one}"' not in section] == []


def test_pipx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "merge-launch"))
    (tmp_path / "merge-launch").mkdir()
    (tmp_path / "merge-launch" / "pipx_metadata.json").touch()
    assert how_to_install("torch") == "pipx inject merge-launch torch (the extra worker)"


def test_uv_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "uv-receipt.toml").touch()
    monkeypatch.setattr(packages, "_source", lambda: "/home/me/merge-launch")
    hint = "uv tool install --with transformers --with accelerate /home/me/merge-launch"
    assert how_to_install("transformers", "accelerate") == f"{hint} (the extra transformers)"


@pytest.mark.parametrize(
    ("recorded", "source"),
    [
        ({"url": "file:///home/me/merge%20launch", "dir_info": {}}, "/home/me/merge launch"),
        ({"url": "https://host/m.git", "vcs_info": {"vcs": "git"}}, "git+https://host/m.git"),
    ],
)
def test_source(recorded: object, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        def read_text(self, name: str) -> str:
            return json.dumps(recorded)

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Distribution())
    assert packages._source() == source


def test_a_plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = tmp_path / "pip"
    pip.write_text("")
    pip.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/opt/python")
    assert how_to_install("timm") == "/opt/python -m pip install timm"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert how_to_install("optuna") == "pip install 'optuna>=4.2,<6' (the extra search)"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert how_to_install("timm") == f"uv pip install --python {tmp_path}/python timm"


def test_the_node_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_is_in_zip", lambda: True)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    hint = "--setup '/usr/bin/python3 -m pip install pyyaml' (the extra worker)"
    assert how_to_install("pyyaml") == hint


def test_errors() -> None:
    error = missing_package("compare", "torch", otherwise="or wait")
    assert str(error).startswith(f"compare: torch is missing in {sys.executable}\n  ")
    assert str(error).endswith(" (the extra worker), or wait")
    known = explained(ModuleNotFoundError(name="yaml.nodes"), "check")
    assert isinstance(known, UsageError) and "pyyaml is missing" in str(known)
    unknown = ModuleNotFoundError(name="left_pad")
    assert explained(unknown, "check") is unknown
