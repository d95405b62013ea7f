"""Reads in flight: as many as the storage of the inputs needs, none more for disks and memory."""

from pathlib import Path

import pytest

from merge_worker.planning import latency
from merge_worker.planning.latency import MOST_READS, reads_to_keep_up
from merge_worker.system.machine import Mount
from support.recipes import one_tensor_models, plan_of


@pytest.mark.parametrize(
    ("seconds", "threads", "reads"),
    [
        (0.0, 2, 0),
        (0.0005, 2, 1),
        (0.005, 1, 5),
        (0.005, 2, 10),
        (0.02, 2, 41),
        (0.5, 2, MOST_READS),
    ],
)
def test_as_many_reads_as_keep_the_cores_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, threads: int, reads: int
) -> None:
    monkeypatch.setattr(latency, "_seconds_to_read", lambda tensor: seconds)
    assert reads_to_keep_up(plan_of(one_tensor_models(tmp_path, 1000)).steps, threads) == reads


def test_disks_of_this_machine_and_cached_files_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = plan_of(one_tensor_models(tmp_path, 1000)).steps
    monkeypatch.setattr(latency, "mount_of", lambda fd: Mount("ext4"))
    assert reads_to_keep_up(steps, 2) == 0
    monkeypatch.setattr(latency, "mount_of", lambda fd: Mount("lustre"))
    monkeypatch.setattr(latency, "_is_cached", lambda fd, place: True)
    assert reads_to_keep_up(steps, 2) == 0


def test_files_that_are_missing_or_end_early_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = one_tensor_models(tmp_path, 1000)
    steps = plan_of(models).steps
    monkeypatch.setattr(latency, "mount_of", lambda fd: Mount("nfs4"))
    monkeypatch.setattr(latency, "_is_cached", lambda fd, place: False)
    for model in models:
        (model / "model.safetensors").unlink()
    assert reads_to_keep_up(steps, 2) == 0


def test_patience_ends_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(latency, "_seconds_to_read", lambda tensor: asked.append(tensor) or 0.3)
    monkeypatch.setattr(latency, "PATIENCE_S", -1.0)
    assert reads_to_keep_up(plan_of(one_tensor_models(tmp_path, 1000)).steps, 2) == 0
    assert not asked
