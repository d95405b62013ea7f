"""A search with four workers on a real Slurm: they work at once, and replace one that is killed."""

import json
import re
import sys
from pathlib import Path

import pytest

from support.real_slurm import until

pytestmark = pytest.mark.slow

SEARCH = """
recipe:
  merge_method: linear
  models: [{model: m1, parameters: {weight: 1}}, {model: m2, parameters: {weight: 1}}]
out: runs
space: {models.1.parameters.weight: [0, 1]}
evaluate: 'bash $MERGE_SEARCH_FOLDER/evaluate.sh'
sampler: tpe
trials: 8
"""
# A trial waits until four trials have begun: workers that take turns would never get there.
TOGETHER = """
cd "$MERGE_SEARCH_FOLDER"
case $MERGE_SEARCH_CANDIDATE in t*) touch "began-$MERGE_SEARCH_CANDIDATE" ;; esac
for second in {1..300}; do
    case $MERGE_SEARCH_CANDIDATE in t*) ;; *) break ;; esac
    begun=(began-*)
    [ "${#begun[@]}" -lt 4 ] || break
    sleep 1
done
[ "$second" -lt 300 ] && echo "0.$RANDOM"
"""
# The worker of the third trial is killed once, as by a machine that fails.
KILLED = """
cd "$MERGE_SEARCH_FOLDER"
if [ "$MERGE_SEARCH_CANDIDATE" = t0002 ] && mkdir killed 2> /dev/null; then kill -9 $PPID; fi
echo "0.$RANDOM"
"""
OPTIONS = ("--mem", "700M", "--cpus", "1", "--threads", "1", "--python", sys.executable)


def workers(launch, count: int) -> list[str]:
    done = launch("search", "s.yml", "slurm", "--workers", count, *OPTIONS)
    assert done.code == 0, done.err
    found = re.findall(r"^job +(\S+)$", done.out, re.MULTILINE)
    assert len(found) == count
    return found


def scores(launch) -> dict[str, float]:
    rows = json.loads(launch("search", "s.yml", "results", "--json").out)
    return {row["candidate"]: row["score"] for row in rows if row["score"] is not None}


def test_four_workers_at_once(slurm, launch, models, work: Path) -> None:
    (work / "s.yml").write_text(SEARCH)
    (work / "evaluate.sh").write_text(TOGETHER)
    for job_id in workers(launch, 4):
        slurm.wait(job_id, "COMPLETED", timeout_s=500)
    assert len(scores(launch)) == 4 + 8
    logs = sorted((work / "runs.job").glob("w*.log"))
    by = [re.findall(r"^(t\d{4}) ", log.read_text(), re.MULTILINE) for log in logs]
    assert all(by) and sorted(name for names in by for name in names) == [
        f"t{number:04d}" for number in range(8)
    ]
    assert (work / "runs" / "best.yml").exists()


def test_a_killed_worker_is_replaced_by_the_others(slurm, launch, models, work: Path) -> None:
    (work / "s.yml").write_text(SEARCH)
    (work / "evaluate.sh").write_text(KILLED)
    jobs = workers(launch, 4)
    until(lambda: len(scores(launch)) == 4 + 8, "all scores", timeout_s=500)
    ends = sorted(slurm.wait(job_id, "COMPLETED", "FAILED", timeout_s=120) for job_id in jobs)
    assert ends == ["COMPLETED"] * 3 + ["FAILED"]
    merged = [path.parent.name for path in (work / "runs").glob("*/merge.out")]
    assert sorted(merged) == ["average", "recipe", *(f"t{number:04d}" for number in range(8))]
