"""A merge that several nodes share, started by pbsdsh on each of them."""

import json
import sys
from pathlib import Path

FIRST = "12.pbs-server"
# Ranks by their environment, in place of a worker.
RANKS = '[ "$RANK" = 0 ] || exit 5; [ "$WORLD_SIZE" = 2 ] && exit 75'


def test_several_nodes_share_a_merge(launch, fakes, models, work: Path, manifest) -> None:
    words = ["--python", sys.executable, "--progress", "off", "--nodes", 2, "--walltime", "10:00"]
    assert launch("pbs", "out", *models, *words).code == 0
    fakes.pbs("schedule")
    log = launch("logs", "out").out
    assert launch("status", "out").out.startswith(f"{FIRST}  done"), log
    calls = [call for call in fakes.calls() if call.startswith("pbsdsh")]
    assert [call.split()[:3] for call in sorted(calls)] == [
        ["pbsdsh", "-n", "0"],
        ["pbsdsh", "-n", "2"],
    ]
    assert {call.split()[-2:][0] for call in calls} == {"0", "1"}
    assert manifest(work / "out")["counts"]["merged"] == 2
    assert not list((work / "out.job").glob("run.*"))


def test_a_node_that_fails_fails_the_job(launch, fakes, models, python) -> None:
    launch("pbs", "out", *models, "--python", python(running=RANKS), "--nodes", 2)
    fakes.pbs("schedule")
    assert "exit code 5" in launch("status", "out").out


def test_too_few_nodes(launch, fakes, models) -> None:
    path = fakes.folder / "pbs"
    launch("pbs", "out", *models, "--python", sys.executable, "--nodes", 2)
    job = json.loads((path / f"{FIRST}.job").read_text())
    job["text"] = job["text"].replace("select=2", "select=1")
    (path / f"{FIRST}.job").write_text(json.dumps(job))
    # As if the site had put both parts on one node.
    fakes.pbs("schedule")
    assert "the job got 1 nodes, not 2" in launch("logs", "out").out
