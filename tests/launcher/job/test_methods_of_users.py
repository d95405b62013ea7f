"""Merge methods of users: jobs carry their files, or ask for their packages."""

import json
import os
import sys
from pathlib import Path

import pytest

import merge_worker as mw
from support.outside_methods import CLOSE, SCALED, recipe, write_methods, write_package
from support.paths import SOURCES


def bytes_of(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_local_a_job_in_an_empty_environment_and_python_give_the_same_bytes(
    work: Path, models: list[Path], launch_process, bare_bash, tmp_path: Path
) -> None:
    file = write_methods(work)
    (work / "r.yml").write_text(recipe(models))
    done = launch_process("local", "r.yml", "here", "--methods", "my.py")
    assert done.code == 0, done.err
    words = ["render", "slurm", "r.yml", "there", "--methods", "my.py", "--python", sys.executable]
    text = launch_process(*words).out
    file.rename(work / "away.py")
    (work / "there.job").mkdir()
    (tmp_path / "job.sh").write_text(text)
    done = bare_bash(str(tmp_path / "job.sh"), cwd=tmp_path)
    assert done.code == 0, done.err
    plan = mw.plan(work / "r.yml", methods=work / "away.py")
    result = mw.merge(plan, work / "python")
    outs = [work / name for name in ("here", "there", "python")]
    assert len({bytes_of(out) for out in outs}) == 1
    manifests = [json.loads((out / "merge_manifest.json").read_text()) for out in outs]
    assert {made["key"] for made in manifests} == {plan.key}
    assert {made["methods"][0]["sha256"] for made in manifests} == {
        result.manifest["methods"][0]["sha256"]
    }


def test_the_environment_and_a_profile_name_files(
    work: Path, models: list[Path], launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "r.yml").write_text(recipe(models))
    write_methods(work)
    assert launch("check", "r.yml", "out").code == 2
    for name in ("MERGE_WORKER_METHODS", "MERGE_LAUNCH_METHODS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "my.py")
            assert launch("check", "r.yml", "out").code == 0
    (work / "merge-launch.toml").write_text('methods = "my.py"\n')
    assert "method     scaled_sum" in launch("check", "r.yml", "out").out
    assert "--methods" in launch("render", "local", "r.yml", "out").out


def test_a_direct_merge_and_a_sweep(work: Path, models: list[Path], launch) -> None:
    write_methods(work)
    words = ["out", *models, "--method", "scaled_sum", "--methods", "my.py"]
    assert '--methods "$merge_folder/my.py"' in launch("render", "slurm", *words).out
    (work / "s.yml").write_text(
        f"recipe: r.yml\ngrid: {{parameters.scale: [1, 2]}}\nname: 's{{scale}}'\nout: {work}/runs\n"
    )
    (work / "r.yml").write_text(recipe(models))
    done = launch("sweep", "s.yml", "local", "--methods", "my.py", "--python", sys.executable)
    assert done.code == 0, done.err
    assert launch("sweep", "s.yml", "results", "--methods", "my.py").out.count("done") == 2


def test_names_of_files_on_the_node(make_job, work: Path) -> None:
    from merge_launch.job.source import known_methods, read_sources
    from merge_launch.settings.groups import MergeOptions

    (work / "a").mkdir()
    one = write_methods(work, SCALED, "my methods.py")
    two = write_methods(work / "a", "from merge_worker import merge_method" + CLOSE, one.name)
    methods = known_methods(f"{one},{two}", {})
    options = MergeOptions(method="close", base_model="m2")
    merge = read_sources(["o", "m1", "m2"], options, None, str(work), methods)[0]
    job = make_job()
    files = type(job)(merge, job.options, job.worker, job.payload, "python3").methods_files()
    assert [file.name for file in files] == ["my-methods.py", "my-methods-2.py"]


def test_a_package_is_required_by_name(
    work: Path, models: list[Path], launch_process, bare_bash, tmp_path: Path
) -> None:
    site = write_package(tmp_path / "site")
    (work / "r.yml").write_text(recipe(models))

    path = f"{site}{os.pathsep}{SOURCES}"
    words = ["render", "slurm", "r.yml", "out", "--python", sys.executable]
    text = launch_process(*words, PYTHONPATH=path).out
    assert "--methods soups==1.2" in text
    (work / "out.job").mkdir()
    (tmp_path / "job.sh").write_text(text)
    done = bare_bash(str(tmp_path / "job.sh"), cwd=tmp_path)
    assert done.code == 2
    assert "soups: the package with methods of the recipe is not installed" in done.err
    done = bare_bash(str(tmp_path / "job.sh"), cwd=tmp_path, PYTHONPATH=str(site))
    assert done.code == 0, done.err
    made = json.loads((work / "out" / "merge_manifest.json").read_text())
    assert made["methods"][0]["from"] == "soups==1.2"


def test_mergekit_gets_no_files(work: Path, models: list[Path], launch) -> None:
    write_methods(work)
    words = ["out", *models, "--methods", "my.py", "--engine", "mergekit"]
    assert "--methods" not in launch("render", "slurm", *words).out
