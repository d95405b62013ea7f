"""Which job of a scheduler is ours: ids come again, on another cluster and after a while."""

import dataclasses
import json
import time

import pytest

from merge_launch.backends.base import Origin
from merge_launch.tracking import records, status
from merge_launch.tracking.records import Record

NOW = 1_790_000_000.0
OURS = Record("34", "slurm", "", "/out", "/log", "soup", submitted_s=NOW, user="1000")


@pytest.mark.parametrize(
    ("origin", "ours"),
    [
        (Origin("soup", "1000", NOW + 1), True),
        (Origin(), True),
        (Origin("other", "1000", NOW), False),
        (Origin("soup", "1001", NOW), False),
        (Origin("soup", "1000", NOW - 3 * 24 * 3600), False),
        # A clock that is ahead, another time zone, and a job that was requeued.
        (Origin("soup", "1000", NOW - 3600), True),
        (Origin("soup", "1000", NOW - 14 * 3600), True),
        (Origin("soup", "1000", NOW + 9 * 24 * 3600), True),
    ],
)
def test_name_user_and_time(origin: Origin, ours: bool) -> None:
    assert status.is_of(OURS, origin) is ours


def test_names_of_arrays_and_names_that_were_cut() -> None:
    member = dataclasses.replace(OURS, name="w3", job_name="sweep")
    assert status.is_of(member, Origin("sweep")) and not status.is_of(member, Origin("w3"))
    long = dataclasses.replace(OURS, name="a-name-of-many-characters")
    assert status.is_of(long, Origin("a-name-of-many-")) and not status.is_of(
        long, Origin("a-name")
    )


def test_two_clusters_keep_two_records() -> None:
    first = dataclasses.replace(OURS, cluster="north")
    for record in (first, dataclasses.replace(OURS, cluster="south"), OURS):
        records.save(record)
    known, _ = records.load()
    assert {record.cluster for record in known} == {"north", "south", ""}
    assert not any(record.superseded for record in known)


def test_of_recycled_ids_the_later_job_is_alive() -> None:
    later = dataclasses.replace(OURS, out="/later", submitted_s=NOW + 100)
    for record in (OURS, later):
        records.save(record)
    assert [(job.out, job.superseded) for job in records.load()[0]] == [
        *(("/later", False), ("/out", True))
    ]
    assert records.find("34").out == "/later"
    statuses, failures = status.query([records.find("/out")])
    assert failures == []
    assert list(statuses.values()) == [status.SUPERSEDED]


def test_files_of_earlier_versions_are_read_once() -> None:
    records.save(OURS)
    (path,) = records.folder().iterdir()
    (records.folder() / "slurm.34.json").write_text(path.read_text())
    assert len(records.load()[0]) == 1


def test_the_cluster_is_part_of_the_record(launch, fakes, models) -> None:
    assert launch("slurm", "out", *models).code == 0
    record = records.find("34")
    assert record.cluster == "cluster"
    assert records.path_of(record).name == f"slurm.cluster.34.{int(record.submitted_s)}.json"


def test_a_job_of_another_cluster_is_not_asked_for_here(launch, fakes, models) -> None:
    """34 is another job here; that of the other cluster stays as it was seen last."""
    assert launch("slurm", "out", *models).code == 0
    assert "queued" in launch("status", "out").out
    (fakes.folder / "slurm.conf").write_text("ClusterName=other\n")
    (fakes.folder / "slurm.34").unlink()
    done = launch("jobs")
    assert (done.code, done.err) == (0, "")
    assert "queued" in done.out
    assert "--clusters=cluster" in fakes.calls()[-1]
    assert launch("slurm", "there", *models).code == 0
    assert "/there" in launch("status", "34").out
    # It is asked for over there; this Slurm knows no other cluster.
    cancelled = launch("cancel", "out")
    assert cancelled.code == 6
    assert "No cluster 'cluster' known" in cancelled.err
    assert "queued" in launch("status", "34").out


@pytest.mark.parametrize(
    "origin",
    [
        "2026-11-29T03:04:05|4242|out",
        "2026-11-29T03:04:05|{uid}|another",
        "2001-11-29T03:04:05|{uid}|out",
    ],
)
def test_anothers_job_of_this_id_is_neither_shown_nor_cancelled(
    origin: str, launch, fakes, models
) -> None:
    assert launch("slurm", "out", *models).code == 0
    _, uid, _ = (fakes.folder / "34.origin").read_text().split("|")
    (fakes.folder / "34.origin").write_text(origin.format(uid=uid) + "\n")
    assert "34  unknown  (34 is another job here" in launch("status", "34").out
    assert "Waiting for nodes" not in launch("why", "34").out
    done = launch("cancel", "34")
    assert (done.code, done.out) == (6, "")
    assert "job 34 not found, nothing was cancelled: 34 is another job here" in done.err
    assert not [call for call in fakes.calls() if call.startswith("scancel")]
    assert launch("retry", "34").code == 0


def test_pbs_tells_whose_job_it_is(launch, fakes, models) -> None:
    assert launch("pbs", "out", *models).code == 0
    path = fakes.folder / "pbs" / "12.pbs-server.job"
    assert "queued" in launch("status", "12").out
    job = json.loads(path.read_text())
    for change in ({"N": "another"}, {"ctime": time.ctime(1e9)}):
        path.write_text(json.dumps(job | change))
        assert "is another job here" in launch("status", "12").out
        assert launch("cancel", "12").code == 6


def test_a_member_of_an_array_has_the_arrays_name(launch, sweep, fakes) -> None:
    assert launch("sweep", "s.yml", "slurm", "--array").code == 0
    assert {job.job_name for job in records.load()[0]} == {"s"}
    assert "34_1  queued" in launch("status", "34_1").out
