"""Beaker: a merge as typed, without options, and where its job gets the rest from."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from merge_launch import backends
from merge_launch.backends.beaker import IMAGE
from merge_launch.backends.beaker.options import Mount, implied_mounts
from merge_launch.submission import prepare

RESOURCES = backends.get("beaker").resources
SITE = "cluster ai2/jupiter, priority normal, min-runtime 8h (built in: ai2)"
BUILT_IN = f"image {IMAGE} (built in)"
FROM_THE_PATH = "mount weka:oe-adapt-default (from the path)"


class Shown(NamedTuple):
    spec: dict[str, Any]
    task: dict[str, Any]
    notes: list[str]


@pytest.fixture
def in_a_bucket(monkeypatch) -> None:
    """Run in a folder of a Weka bucket, as far as relative paths are concerned."""
    monkeypatch.setattr(prepare, "current_folder", lambda _: "/weka/oe-adapt-default/me")


@pytest.fixture
def shown(launch) -> Callable[..., Shown]:
    def run(*words: str) -> Shown:
        done = launch("beaker", *words, "--dry-run")
        assert done.code == 0, done.err
        spec = yaml.safe_load(done.out)
        notes = [line.removeprefix("merge-launch: ") for line in done.err.splitlines()]
        return Shown(spec, spec["tasks"][0], notes)

    return run


def write_config(monkeypatch, tmp_path: Path, text: str) -> Path:
    path = tmp_path / "beaker.yml"
    path.write_text(text)
    monkeypatch.setenv("BEAKER_CONFIG", str(path))
    return path


@pytest.mark.usefixtures("in_a_bucket")
def test_the_founding_call_without_a_config(shown) -> None:
    spec, task, notes = shown("out/", "m1", "m2", "m3")
    assert notes == [f"{BUILT_IN}, {FROM_THE_PATH}, {SITE}"]
    assert task["image"] == {"docker": IMAGE.removeprefix("docker://")}
    assert task["datasets"] == [
        {"mountPath": "/weka/oe-adapt-default", "source": {"weka": "oe-adapt-default"}}
    ]
    assert task["constraints"] == {"cluster": ["ai2/jupiter"]}
    assert task["context"] == {"priority": "normal", "minRuntime": "8h", "autoResume": True}
    assert task["resources"] == {"gpuCount": 0}
    assert "budget" not in spec
    script = task["arguments"][0]
    assert '"$merge_folder/recipe.yml" /weka/oe-adapt-default/me/out' in script
    assert "-m pip install --quiet pyyaml ||" in script


@pytest.mark.usefixtures("in_a_bucket")
def test_the_founding_call_with_the_defaults_of_a_config(shown, monkeypatch, tmp_path) -> None:
    text = "{user_token: t, default_org: ai2, default_workspace: ai2/w, default_image: ada/torch}"
    path = write_config(monkeypatch, tmp_path, text)
    _, task, notes = shown("out/", "m1", "m2", "m3")
    assert task["image"] == {"beaker": "ada/torch"}
    assert notes == [f"{FROM_THE_PATH}, {SITE}, workspace ai2/w, image ada/torch ({path})"]


@pytest.mark.usefixtures("in_a_bucket")
def test_a_flag_and_a_profile_come_before_the_config_and_the_site(
    shown, monkeypatch, tmp_path, work: Path
) -> None:
    write_config(monkeypatch, tmp_path, "{default_image: ada/torch, default_budget: ai2/b}")
    (work / "merge-launch.toml").write_text("[beaker]\ncluster = ['ai2/saturn']\n")
    spec, task, notes = shown("out", "m1", "m2", "--image", "me/own", "--min-runtime", "1h")
    assert (task["image"], spec["budget"]) == ({"beaker": "me/own"}, "ai2/b")
    assert task["constraints"] == {"cluster": ["ai2/saturn"]}
    assert task["context"]["minRuntime"] == "1h"
    line = notes[-1]
    assert "cluster ai2/saturn (merge-launch.toml)" in line
    assert "image" not in line and "min-runtime" not in line


@pytest.mark.usefixtures("in_a_bucket")
@pytest.mark.parametrize(
    ("config", "words", "applies"),
    [
        ("{default_org: other}", [], False),
        ("{default_workspace: other/w}", [], False),
        ("{}", ["--workspace", "other/w"], False),
        ("{default_org: other}", ["--workspace", "ai2/w"], True),
        ("{default_workspace: w}", [], True),
        (": [", [], True),
    ],
)
def test_the_site_of_another_organization(
    shown, monkeypatch, tmp_path, config: str, words: list[str], applies: bool
) -> None:
    write_config(monkeypatch, tmp_path, config)
    _, task, notes = shown("out", "m1", "m2", *words)
    assert ("constraints" in task) == applies == (SITE in notes[0])


def test_models_of_the_hub_need_only_an_out_on_a_mount(shown) -> None:
    _, task, notes = shown("/weka/b/out", "org/one", "org/two@main")
    assert notes == [f"{BUILT_IN}, mount weka:b (from the path), {SITE}"]
    assert "python3 -c 'import yaml, huggingface_hub'" in task["arguments"][0]


def test_a_path_of_a_laptop_is_refused_with_the_flag(launch, shown, work: Path) -> None:
    done = launch("beaker", "out/", "m1", "org/two")
    assert (done.code, done.out) == (2, "")
    assert f"no mount covers m1, out: add --weka BUCKET:{work} or" in done.err
    assert shown("out/", "m1", "org/two").notes[0].startswith("warning: no mount covers")


@pytest.mark.usefixtures("in_a_bucket")
def test_the_founding_call_arrives(launch, beaker_server, monkeypatch) -> None:
    for name, value in beaker_server.environment(default_image="ada/torch").items():
        monkeypatch.setenv(name, value)
    done = launch("beaker", "out/", "m1", "m2", "m3")
    assert done.code == 0, done.err
    assert "out     /weka/oe-adapt-default/me/out\n" in done.out
    (sent,) = beaker_server.requests("POST")
    (task,) = sent["spec"]["tasks"]
    assert (task["image"], task["context"]["priority"]) == ({"beaker": "ada/torch"}, "normal")
    assert [mount["source"] for mount in task["datasets"]] == [{"weka": "oe-adapt-default"}]


@pytest.mark.parametrize(
    ("paths", "options", "expected"),
    [
        (["/weka/b/x", "/weka/b/y", "/weka/b"], {}, ["/weka/b"]),
        (["/weka/b/x", "/weka/c/../d/y"], {}, ["/weka/b", "/weka/d"]),
        (["/weka", "/weka/", "/wekab/x", "/data/weka/b/x", "/weka/.b/x"], {}, []),
        (["/weka/b/x"], {"weka": ("b",)}, []),
        (["/weka/b/x"], {"weka": ("other:/weka",)}, []),
        (["/weka/b/x"], {"mount": ("ds:/weka/B/sub",)}, []),
        (["/weka/b/x"], {"mount": ("ds:/weka/b2",)}, ["/weka/b"]),
    ],
)
def test_mounts_that_follow_from_paths(paths, options, expected: list[str]) -> None:
    mounts = implied_mounts(RESOURCES(**options), paths)
    assert mounts == [Mount("weka", path.rpartition("/")[2], "", path) for path in expected]


def test_a_mount_covers_every_merge_of_one_pass(launch, work: Path) -> None:
    (work / "s.yml").write_text(
        "recipe: {merge_method: linear, models: [{model: /weka/a/m, parameters: {weight: 1}},"
        " {model: /weka/b/m, parameters: {weight: 1}}]}\n"
        "out: /data/runs\nname: 'w{weight}'\ngrid: {models.1.parameters.weight: [1, 3]}\n"
    )
    done = launch("sweep", "s.yml", "beaker", "--one-pass")
    assert done.code == 2
    assert "/data/runs/w1" in done.err and "/data/runs/w3" in done.err


@pytest.mark.parametrize(
    ("has", "pip", "code", "message"),
    [
        ("exit 0", "exit 9", 75, "holds no finished merge"),
        ("exit 1", "exit 0", 75, "holds no finished merge"),
        ("exit 1", "exit 9", 3, "lacks pyyaml"),
    ],
)
def test_the_job_installs_what_an_image_lacks(
    has: str, pip: str, code: int, message: str, launch, bare_bash, tmp_path: Path
) -> None:
    program = tmp_path / "their-python"
    program.write_text(
        f'#!/bin/bash\ncase "$1 $2" in "-c import yaml") {has} ;; "-m pip") {pip} ;; esac\n'
        f'case $1 in -I) exec {sys.executable} "$@" ;; esac\n'
    )
    program.chmod(0o755)
    words = ["beaker", "/weka/b/out", "/weka/b/m1", "/weka/b/m2", "--python", str(program)]
    (task,) = yaml.safe_load(launch("render", *words).out)["tasks"]
    done = bare_bash(*task["command"][1:], *task["arguments"])
    assert done.code == code, done.err
    assert message in done.err
