"""Beaker: the rendered spec, and what is refused before anything is sent."""

import base64
import copy
import sys
from typing import Any

import pytest
import yaml

from merge_launch import backends
from merge_launch.backends.beaker import spec as spec_module
from merge_launch.backends.beaker.spec import ARGUMENTS_BYTES
from merge_launch.errors import UsageError
from merge_launch.job import payload

BEAKER = backends.get("beaker")
READY = ["--image", "ada/torch", "--weka", "bucket:/weka/bucket"]
WORDS = ["/weka/bucket/out", "/weka/bucket/m1", "/weka/bucket/m2", *READY]


def rendered(launch, *words: object) -> dict[str, Any]:
    done = launch("render", "beaker", *words)
    assert done.code == 0, done.err
    spec: dict[str, Any] = yaml.safe_load(done.out)
    return spec


def full(**changes: Any) -> dict[str, Any]:
    resources = {
        "gpus": 2,
        "cluster": ("ai2/jupiter", "ai2/saturn"),
        "workspace": "ai2/merging",
        "budget": "ai2/research",
        "priority": "high",
        "image": "docker://ghcr.io/ada/torch:2.8",
        "weka": ("oe-adapt-default", "other:/weka/other"),
        "mount": ("base-model:/inputs/base", "/net/nfs:/net"),
        "secret": ("HF_TOKEN=ada_HF_TOKEN",),
        "timeout": "24h",
        "min_runtime": "30m",
    }
    return resources | changes


def test_golden(make_job, render_job, golden) -> None:
    words = ("/weka/other/out", "/weka/other/m1", "/inputs/base", "org/name")
    job = make_job(*words, env=("HF_HOME=/weka/other/it's 😀",), then="ls", setup=("nvidia-smi",))
    text = render_job("beaker", job, **full())
    golden("beaker.yaml", text)
    assert "\n        set -euo pipefail\n" in text, "the script is there to be read"
    assert spec_module.faults(yaml.safe_load(text)) == []
    assert BEAKER.obstacles(job, BEAKER.resources(**full())) == []


def test_the_least(make_job, render_job) -> None:
    text = render_job("beaker", make_job("/w/out", "/w/m1", "/w/m2"), image="ada/torch")
    (task,) = yaml.safe_load(text)["tasks"]
    assert task["image"] == {"beaker": "ada/torch"}
    assert task["context"] == {"priority": "normal", "autoResume": True}
    assert not {"envVars", "datasets", "constraints", "timeout"} & set(task)
    assert task["resources"] == {"gpuCount": 0}


def test_no_argument_is_near_the_limit(launch) -> None:
    (task,) = rendered(launch, *WORDS)["tasks"]
    script, name, *chunks, recipe = task["arguments"]
    assert name == "merge-launch"
    assert b"merge_method" in base64.b64decode(recipe)
    assert "".join(chunks) == payload.build().embedded.encoded
    assert max(map(len, chunks)) <= 96 * 1024
    assert len(script) < 30_000


def test_a_recipe_that_no_arguments_hold_is_refused(launch, models, work) -> None:
    least = len(payload.build().embedded.encoded)
    recipe = "merge_method: linear\nmodels: [{model: /weka/bucket/m1}]\nparameters: {weight: 1}\n"
    for size, code in ((ARGUMENTS_BYTES - least - 20_000, 0), (ARGUMENTS_BYTES - least, 2)):
        (work / "long.yml").write_text("#" * (size * 3 // 4) + "\n" + recipe)
        done = launch("render", "beaker", "long.yml", *WORDS[:1], *READY)
        assert done.code == code, done.err
    assert "beaker takes 1572864; shorten the recipe" in done.err and done.out == ""


def test_a_secret_is_named_never_shown(launch, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    done = launch("render", "beaker", *WORDS, "--secret", "HF_TOKEN=ada_HF_TOKEN")
    assert "hf_very_secret" not in done.out
    (task,) = yaml.safe_load(done.out)["tasks"]
    assert task["envVars"] == [{"name": "HF_TOKEN", "secret": "ada_HF_TOKEN"}]


def test_the_text_does_not_depend_on_who_submits(launch, monkeypatch) -> None:
    first = launch("render", "beaker", *WORDS).out
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("VIRTUAL_ENV", "/else/where")
    assert launch("render", "beaker", *WORDS).out == first


def test_uncovered_paths_are_a_warning_in_a_dry_run_and_refused_else(launch, models) -> None:
    words = ["beaker", "out", "m1", "/weka/bucket/m2", "org/name", *READY]
    shown = launch(*words, "--dry-run")
    assert shown.code == 0
    assert "warning: no mount covers" in shown.err
    assert yaml.safe_load(shown.out)["version"] == "v2"
    refused = launch(*words)
    assert (refused.code, refused.out) == (2, "")
    assert "no mount covers m1, out: " in refused.err
    assert f"--weka BUCKET:{models[0].parent}" in refused.err
    assert "m2" not in refused.err


@pytest.mark.parametrize(
    ("path", "covered"),
    [
        ("/weka/bucket/m", True),
        ("/weka/bucket", True),
        ("/data/x/../other/m", False),
        ("/data/x2/m", False),
        ("/weka", False),
        ("/data/x/m", True),
    ],
)
def test_what_a_mount_covers(make_job, path: str, covered: bool) -> None:
    mounts = BEAKER.resources(image="a/b", weka=("bucket",), mount=("ds:/data/x/",))
    job = make_job("/results/out", path, "org/name")
    assert (BEAKER.obstacles(job, mounts) == []) == covered


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--timeout", "1d"),
        ("--timeout", "24:00:00"),
        ("--min-runtime", "soon"),
        ("--priority", "hgh"),
        ("--cluster", "jupiter ai2"),
        ("--weka", "bucket:relative"),
        ("--mount", "/only/one"),
        ("--secret", "HF_TOKEN"),
        ("--env", "1A=b"),
        ("--replicas", "0"),
        ("--timeout", "3600"),
        ("--mem", "64"),
        ("--cpus", "many"),
        ("--retries", "-1"),
        ("--gpus", "-1"),
        ("--image", "a b"),
    ],
)
def test_values_that_beaker_would_misread(launch, flag: str, value: str) -> None:
    done = launch("beaker", *WORDS, f"{flag}={value}", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert flag in done.err


def change(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(spec)
    target: Any = changed
    *steps, last = path.split(".")
    for step in steps:
        target = target[int(step)] if step.isdigit() else target[step]
    target[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("tasks.0.argumets", [], "tasks[0].argumets: unknown key (did you mean 'arguments'?)"),
        ("tasks.0.arguments", "echo hi", "tasks[0].arguments: must be a list"),
        ("tasks.0.arguments", [1], "tasks[0].arguments[0]: 1 must be a text"),
        ("tasks.0.resources", {"gpus": 2}, "tasks[0].resources.gpus: unknown key"),
        (
            "tasks.0.resources",
            {"gpuCount": "2"},
            "tasks[0].resources.gpuCount: '2' must be a count",
        ),
        ("tasks.0.timeout", 3600, "tasks[0].timeout: 3600 must be a duration"),
        ("tasks.0.timeout", "1d", "tasks[0].timeout: '1d' must be a duration"),
        ("tasks.0.context", {"priority": "hgh"}, "must be one of low, normal"),
        ("tasks.0.image", {}, "tasks[0].image: must be exactly one"),
        ("tasks.0.image", {"beaker": "a/b", "docker": "c"}, "exactly one of beaker, docker"),
        ("tasks.0.envVars", [{"name": "A", "value": 1}], "envVars[0].value: 1 must be a text"),
        ("tasks.0.envVars", [{"name": "A"}], "envVars[0]: must have a value or a secret"),
        (
            "tasks.0.envVars",
            [{"name": "A", "value": ""}, {"name": "A", "secret": "s"}],
            "A is set twice",
        ),
        (
            "tasks.0.datasets",
            [{"mountPath": "weka", "source": {"weka": "b"}}],
            "datasets[0].mountPath: 'weka' must be a path",
        ),
        (
            "tasks.0.datasets",
            [
                {"mountPath": "/W/b", "source": {"weka": "b"}},
                {"mountPath": "/w/b/c", "source": {"weka": "c"}},
            ],
            "/w/b/c is mounted twice, or inside another mount",
        ),
        ("tasks.0.arguments", ["x" * 131_072], "arguments[0]: 131072 bytes, at most 131071 fit"),
        ("tasks.0.constraints", {"cluster": "ai2/jupiter"}, "cluster: must be a list"),
        ("budget", 3, "budget: 3 must be a name"),
        ("version", 2, "version: 2 must be one of v2"),
    ],
)
def test_the_strict_check(make_job, render_job, path: str, value: Any, words: str) -> None:
    spec = yaml.safe_load(render_job("beaker", make_job(), **full()))
    mistakes = "\n".join(spec_module.faults(change(spec, path, value)))
    assert words in mistakes


@pytest.mark.parametrize("key", ["image", "context", "result"])
def test_what_beaker_py_cannot_do_without(make_job, render_job, key: str) -> None:
    spec = yaml.safe_load(render_job("beaker", make_job(), **full()))
    del spec["tasks"][0][key]
    assert spec_module.faults(spec) == [f"tasks[0].{key}: missing"]


def test_faults_of_the_spec_come_before_the_client() -> None:
    with pytest.raises(UsageError, match="beaker spec: version: missing"):
        BEAKER.spec("tasks: []")


def test_overlapping_mounts_are_refused_by_their_flags_values(launch) -> None:
    done = launch("beaker", *WORDS, "--weka", "other:/weka/bucket/inner", "--env", "A=1")
    assert done.code == 2
    assert "/weka/bucket/inner is mounted twice" in done.err


def test_without_beaker_py(launch, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "beaker", None)
    done = launch("beaker", *WORDS)
    assert done.code == 6
    assert "pip install 'beaker-py>=2.6,<3' (the extra beaker)" in done.err
    assert launch("beaker", *WORDS, "--dry-run").code == 0


def test_the_merge_stops_in_good_order_before_its_time_limit(launch) -> None:
    (task,) = rendered(launch, *WORDS, "--timeout", "1h30m")["tasks"]
    assert "merge_deadline=$((5130 > SECONDS" in task["arguments"][0]
    (task,) = rendered(launch, *WORDS)["tasks"]
    assert "--deadline" not in task["arguments"][0]


def test_what_else_is_asked_for(launch) -> None:
    words = ["--description", "a soup: of 2", "--group", "ada/soups", "--retries", "3"]
    words += ["--no-auto-resume", "--cpus", "8", "--mem", "64GiB", "--shared-memory", "1GiB"]
    spec = rendered(launch, *WORDS, *words)
    assert (spec["description"], spec["groups"]) == ("a soup: of 2", ["ada/soups"])
    assert spec["retry"] == {"allowedTaskRetries": 3}
    (task,) = spec["tasks"]
    assert task["context"]["autoResume"] is False
    resources = {"cpuCount": 8, "gpuCount": 0, "memory": "64GiB", "sharedMemory": "1GiB"}
    assert task["resources"] == resources


def test_nothing_of_the_environment_travels(launch, monkeypatch) -> None:
    secrets = {"BEAKER_TOKEN": "bk_secret", "HF_TOKEN": "hf_secret", "WANDB_API_KEY": "wb_secret"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    text = launch("render", "beaker", *WORDS).out
    assert not [word for word in (*secrets, *secrets.values()) if word in text]
    assert "{{" not in text, "the Go client would take it for a template of its own"
