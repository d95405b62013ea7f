"""Beaker: what arguments do not hold goes up as a dataset, once, and what arrived merges."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import backends
from launcher.backends import _beaker_dataset
from launcher.backends._beaker_dataset import storage_url

RECIPE = """merge_method: linear
models: [{model: m1}, {model: m3}]
parameters: {weight: 1}
"""
# Long lines, which a reader of YAML is through with at once.
LONG = f"# {'of no use ' * 1000}\n" * 120 + RECIPE


@pytest.fixture
def beaker(launch_process, beaker_server, models, work: Path):
    Path("long.yml").write_text(LONG)

    def run(*words: object):
        return launch_process(*words, **beaker_server.environment())

    return run


@pytest.fixture
def words(work: Path) -> list[str]:
    words = ["beaker", "long.yml", "out", "--image", "ada/torch", "--weka", f"bucket:{work}"]
    return [*words, "--python", sys.executable]


def specs(server) -> list[dict[str, Any]]:
    return [each["spec"]["tasks"][0] for each in server.requests("POST")]


def in_a_container(task: dict[str, Any], server, folder: Path) -> list[str]:
    """What it would run there, for a machine where datasets are mounted below a folder."""
    text = task["arguments"][0]
    for mount in task["datasets"]:
        source = mount["source"].get("beaker")
        if source is not None:
            shutil.copytree(server.folder / "datasets" / source, folder / mount["mountPath"][1:])
            text = text.replace(f"{mount['mountPath']}/", f"{folder}{mount['mountPath']}/")
    return [*task["command"][1:], text, *task["arguments"][1:]]


def test_what_arrived_merges(beaker, beaker_server, words, bare_bash, work, tmp_path) -> None:
    done = beaker(*words)
    assert done.code == 0, done.err
    (task,) = specs(beaker_server)
    assert len(json.dumps(task)) < 30_000 and task["arguments"][1:] == ["merge-launch"]
    assert {"mountPath": "/merge-launch", "source": {"beaker": "01DATA0"}} in task["datasets"]
    assert (beaker_server.folder / "datasets" / "01DATA0.committed").exists()
    argv = in_a_container(task, beaker_server, tmp_path / "container")
    done = bare_bash(*argv, cwd=tmp_path)
    assert done.code == 0, done.err
    assert (work / "out" / "mergekit_config.yml").read_text() == LONG


@pytest.mark.parametrize("name", ["recipe.yml", "merge-worker.pyz.bz2"])
def test_a_flipped_bit_of_it(
    name: str, beaker, beaker_server, words, bare_bash, work: Path, tmp_path: Path
) -> None:
    assert beaker(*words).code == 0
    (task,) = specs(beaker_server)
    argv = in_a_container(task, beaker_server, tmp_path / "container")
    path = tmp_path / "container" / "merge-launch" / name
    data = path.read_bytes()
    path.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    done = bare_bash(*argv, cwd=tmp_path)
    assert done.code == 3 and "SHA-256 differs" in done.err
    path.unlink()
    assert bare_bash(*argv, cwd=tmp_path).code == 3
    assert not (work / "out").exists()


def test_the_same_is_not_sent_twice(beaker, beaker_server, words) -> None:
    assert [beaker(*words).code, beaker(*words).code] == [0, 0]
    assert len(beaker_server.requests("POST dataset")) == 1
    assert [len(beaker_server.requests(kind)) for kind in ("PUT", "PATCH")] == [2, 1]
    first, second = specs(beaker_server)
    assert first["datasets"] == second["datasets"]


def test_a_retry_finds_it_again(beaker, beaker_server, words) -> None:
    assert beaker(*words).code == 0
    beaker_server.proceed("01ABC0", 9, {"exit_code": 75})
    done = beaker("retry", "01ABC0")
    assert done.code == 0, done.err
    assert len({json.dumps(task) for task in specs(beaker_server)}) == 1
    beaker_server.proceed("01ABC1", 9, {"exit_code": 75})
    shutil.rmtree(beaker_server.folder / "datasets")
    gone = beaker("retry", "01ABC1")
    assert (gone.code, gone.out) == (6, "")
    assert "of this job is gone; submit the merge anew" in gone.err


def test_one_that_was_never_finished_is_not_taken(beaker, beaker_server, words) -> None:
    beaker_server.mishap("storage full")
    done = beaker(*words)
    assert (done.code, done.out) == (6, ""), done.err
    assert "no space" in done.err.splitlines()[-1]
    assert beaker_server.experiments() == {}
    assert beaker(*words).code == 0
    (task,) = specs(beaker_server)
    assert task["datasets"][-1]["source"] == {"beaker": "01DATA1"}


def test_it_can_be_looked_at_without_a_server(launch, models, work: Path, words) -> None:
    Path("long.yml").write_text(LONG)
    done = launch(*words, "--dry-run")
    assert done.code == 0, done.err
    (task,) = yaml.safe_load(done.out)["tasks"]
    source = task["datasets"][-1]["source"]["beaker"]
    assert source.startswith("merge-launch-")
    assert launch(*words, "--dry-run").out == done.out
    Path("long.yml").write_text(LONG + "# another\n")
    assert source not in launch(*words, "--dry-run").out


def test_many_recipes_of_one_pass_do_not_fill_the_script(
    launch, beaker_server, beaker, models, work: Path
) -> None:
    members = ", ".join(str(number / 100) for number in range(1, 61))
    (work / "s.yml").write_text(
        f"recipe:\n  note: {'x' * 1500}\n"
        + "".join(f"  {line}\n" for line in RECIPE.splitlines())
        + f"name: 'w{{weight}}'\ngrid: {{parameters.weight: [{members}]}}\nout: {work}/runs\n"
    )
    words = ["sweep", "s.yml", "beaker", "--one-pass", "--image", "ada/torch"]
    done = beaker(*words, "--weka", f"bucket:{work}")
    assert done.code == 0, done.err
    (task,) = specs(beaker_server)
    assert max(map(len, task["arguments"])) < 64_000
    held = {path.name for path in (beaker_server.folder / "datasets" / "01DATA0").iterdir()}
    assert {"recipe.yml", "recipe-2.yml", "recipe-60.yml"} < held


def test_what_does_not_go_up_in_one_request_is_refused(make_job, monkeypatch) -> None:
    monkeypatch.setattr(_beaker_dataset, "IN_ARGUMENTS", 0)
    monkeypatch.setattr(_beaker_dataset, "LARGEST", 20)
    beaker = backends.get("beaker")
    faults = beaker.faults(make_job(), beaker.resources())
    assert len(faults) == 1 and re.match(r"recipe.yml: \d+ bytes, at most 20 travel", faults[0])


def test_where_the_storage_is() -> None:
    assert storage_url({"address": "fh://files.example"}) == "https://files.example"
    assert storage_url({"address": "http://127.0.0.1:1/x"}) == "http://127.0.0.1:1/x"
    assert storage_url({"urlv2": "fh://files.example/id"}) == "https://files.example"
