"""Beaker: several machines that share one merge, and what follows it."""

import os
import subprocess
import sys

import pytest
import yaml

from merge_launch import backends

BEAKER = backends.get("beaker")
WORDS = ["/weka/bucket/out", "/weka/bucket/m1", "/weka/bucket/m2"]
WORDS += ["--image", "ada/torch", "--weka", "bucket:/weka/bucket"]


def rendered(launch, *words: object):
    done = launch("render", "beaker", *words)
    assert done.code == 0, done.err
    return yaml.safe_load(done.out)


def test_replicas_share_one_merge(launch) -> None:
    (task,) = rendered(launch, *WORDS, "--replicas", "3")["tasks"]
    shared = {"replicas": 3, "propagateFailure": True, "propagatePreemption": True}
    assert shared.items() <= task.items()
    words = ["--replicas", "3", "--then", "ls", "--overwrite", "--dry-run"]
    refused = launch("beaker", *WORDS, *words)
    assert (refused.code, refused.out) == (2, "")
    assert "--then: conflicts with --replicas and --overwrite" in refused.err


@pytest.mark.slow
def test_what_follows_replicas_runs_once_after_all(models, work, launch) -> None:
    words = ["out", *models, "--image", "ada/torch", "--weka", f"bucket:{work}", "--replicas", "2"]
    words += ["--python", sys.executable, "--then", "echo ran >> ../then; ls *.safetensors"]
    (task,) = rendered(launch, *words)["tasks"]
    argv = [*task["command"], *task["arguments"]]

    def begin(rank: int) -> subprocess.Popen[str]:
        group = {"BEAKER_REPLICA_RANK": str(rank), "BEAKER_REPLICA_COUNT": "2"}
        env = {"PATH": os.environ["PATH"], "HOME": str(work), **group}
        return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True)

    first = begin(0)
    with pytest.raises(subprocess.TimeoutExpired):  # It waits for the share of the other.
        first.wait(timeout=8)
    assert not (work / "then").exists()
    other = begin(1)
    outputs = [each.communicate(timeout=120)[0] for each in (first, other)]
    assert (first.returncode, other.returncode) == (0, 0)
    assert "model.safetensors" in outputs[0] and "model.safetensors" not in outputs[1]
    assert (work / "then").read_text() == "ran\n"


def test_results_of_replicas_are_not_shared(make_job) -> None:
    job = make_job("/results/out", "org/a", "org/b")
    alone = BEAKER.resources(image="a/b")
    assert BEAKER.obstacles(job, alone) == []
    (obstacle,) = BEAKER.obstacles(job, BEAKER.resources(image="a/b", replicas=2))
    assert "no mount covers /results/out" in obstacle
