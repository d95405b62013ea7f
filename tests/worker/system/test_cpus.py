"""CPUs granted to the process by affinity and by cgroup quotas."""

import os
from pathlib import Path

import pytest

from merge_worker.system.cpus import usable_cpus

V1 = "5:memory:/job\n4:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/\n"


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    place = f"sys/fs/cgroup/cpu,cpuacct{folder}"
    return {f"{place}/cpu.cfs_quota_us": f"{quota}\n", f"{place}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("text", "count"),
    [("400000 100000", 4), ("250000 100000", 3), ("50000 100000", 1), ("max 100000", 16),
     ("6400000 100000", 16), ("0 0", 16), ("", 16), ("nonsense", 16)],
)  # fmt: skip
def test_version_2(tmp_path: Path, text: str, count: int) -> None:
    files = {"sys/fs/cgroup/pod/box/cpu.max": text + "\n"}
    assert usable_cpus(system(tmp_path, "0::/pod/box\n", files)) == count


def test_the_lowest_limit_of_all_parent_groups_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu.max": "900000 100000",
        "sys/fs/cgroup/pod/cpu.max": "300000 100000",
        "sys/fs/cgroup/pod/box/cpu.max": "max 100000",
    }
    assert usable_cpus(system(tmp_path, "0::/pod/box\n", files)) == 3


def test_in_a_container_the_group_is_the_top(tmp_path: Path) -> None:
    for number, group in enumerate(("/", "/docker/0f3a", "/../../pod")):
        files = {"sys/fs/cgroup/cpu.max": "200000 100000"}
        assert usable_cpus(system(tmp_path / str(number), f"0::{group}\n", files)) == 2
    assert usable_cpus(system(tmp_path / "v1", V1, v1("", 500_000))) == 5


def test_version_1(tmp_path: Path) -> None:
    files = {**v1("/slurm/job_7", 600_000), **v1("/slurm", -1), **v1("", -1)}
    assert usable_cpus(system(tmp_path, V1, files)) == 6
    system(tmp_path, V1, v1("/slurm", 100_000, 50_000))
    assert usable_cpus(tmp_path) == 2


def test_no_control_groups(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 16
    assert 1 <= usable_cpus() <= 16
