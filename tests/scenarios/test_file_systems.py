"""Merges into real small file systems that are full, limited, read-only, or removed half-way.

Expected each time: exit code 4 with a message; finished work is kept, and the same command resumes
to the same bytes.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from merge_worker.output import space
from merge_worker.output.files import PARTIAL
from support.checkpoint_factory import write_checkpoint
from support.recipes import after_a_third, average, digest, one_tensor_models, shards_of
from support.small_disks import MIB, Disk, make_disk, run

pytestmark = pytest.mark.slow
OUT_BYTES = 20_000_000
# Small pieces, so that a merge can fail halfway.
WORDS = ("--threads", "1", "--memory", "4MiB")


@dataclass
class Trial:
    """A disk, the models merged into it, and the checksums of an undisturbed merge."""

    disk: Disk
    models: list[Path]
    whole: dict[str, int]
    capsys: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    @property
    def out(self) -> Path:
        return self.disk.place / "out"

    def merge(self, *words: str) -> int:
        for lock in (self.out / PARTIAL).glob("lock-*"):
            lock.unlink()  # a process that ended would not hold it; these tests live on
        return average(self.out, self.models, *WORDS, *words)

    def check_error(self, *words: str) -> None:
        text = self.capsys.readouterr().err
        assert any(word in text for word in words), text
        assert "run the same command to resume" in text and "Traceback" not in text
        assert len(text.strip().splitlines()) <= 3

    def half_way(self, act: Callable[[], object]) -> None:
        """Call `act` once when a third of the result is written."""
        after_a_third(self.patch, OUT_BYTES, act)

    def check_resumes(self, continues: bool = True) -> None:
        """Assert that the same command succeeds once the cause is fixed."""
        self.capsys.readouterr()
        assert self.merge("--progress", "plain") == 0
        assert not continues or "continuing at" in self.capsys.readouterr().err
        assert digest(self.out) == self.whole
        assert not list(self.out.glob(f"{PARTIAL}*"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return one_tensor_models(tmp_path_factory.mktemp("models"), OUT_BYTES // 2)


@pytest.fixture(scope="module")
def whole(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert average(out, models) == 0
    return digest(out)


@pytest.fixture
def trial(
    request: pytest.FixtureRequest,
    models: list[Path],
    whole: dict[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Trial]:
    disk = make_disk(request.param, tmp_path)
    yield Trial(disk, models, whole, capsys, monkeypatch)
    while os.path.ismount(disk.place):
        run("umount", "-l", str(disk.place))


def on(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("trial", kinds, indirect=True)


@on("tmpfs", "ext4", "xfs", "btrfs")
def test_no_space_from_the_start(trial: Trial) -> None:
    ballast = trial.disk.fill(8 * MIB)
    assert trial.merge() == 4
    assert "are free there" in trial.capsys.readouterr().err
    left = {path.name for path in trial.disk.place.iterdir()} - {"lost+found"}
    assert left == {ballast.name}


@on("tmpfs", "ext4", "xfs", "btrfs")
def test_full_halfway(trial: Trial) -> None:
    ballast = trial.disk.fill(12 * MIB)
    trial.patch.setattr(space, "SPARE_BYTES", -(1 << 30))  # as if it filled up later
    assert trial.merge() == 4
    trial.check_error("No space left on device")
    assert [path.name for path in trial.out.iterdir()] == [PARTIAL]
    ballast.unlink()
    run("sync", "-f", str(trial.disk.place))
    trial.check_resumes(
        continues=trial.disk.kind != "ext4"
    )  # which takes the room before it begins


@on("btrfs")
def test_a_quota_reached_halfway(trial: Trial) -> None:
    assert run("btrfs", "subvolume", "create", str(trial.out)).returncode == 0
    if run("btrfs", "quota", "enable", str(trial.disk.place)).returncode != 0:
        pytest.skip("this kernel has no quotas of btrfs")
    limit = ("btrfs", "qgroup", "limit")
    assert run(*limit, "10M", str(trial.out)).returncode == 0
    assert trial.merge() == 4
    trial.check_error("Disk quota exceeded")
    assert run(*limit, "none", str(trial.out)).returncode == 0
    trial.check_resumes()


@on("btrfs")
def test_copied_tensors_share_space(trial: Trial, tmp_path: Path) -> None:
    """Tensors copied from a file with the same alignment share its space."""
    tensors = {"a": torch.ones(3), "numbers": torch.randint(1 << 60, (10 * MIB // 8,))}
    first = write_checkpoint(tmp_path / "first", tensors)
    models = [trial.disk.place / name for name in ("m1", "m2")]
    assert [average(model, [first]) for model in models] == [0, 0]
    run("sync", "-f", str(trial.disk.place))
    before = trial.disk.free_bytes()
    assert average(trial.out, models) == 0
    run("sync", "-f", str(trial.disk.place))
    assert before - trial.disk.free_bytes() < 2 * MIB
    assert average(tmp_path / "out", models) == 0
    assert digest(trial.out) == digest(tmp_path / "out")


@on("ext4")
def test_read_only_halfway(trial: Trial) -> None:
    trial.half_way(trial.disk.fail)
    assert trial.merge() == 4
    trial.check_error("Read-only file system", "Input/output error")
    assert average(trial.out, trial.models) == 4, "it still is"
    trial.disk.again()
    trial.check_resumes(continues=False)  # ext4 loses what was not synced


@pytest.mark.parametrize("power", [False, True])
@on("ext4", "xfs")
def test_device_removed_halfway(trial: Trial, power: bool) -> None:
    trial.half_way(lambda: trial.disk.pull_out(power))
    assert trial.merge() == 4
    trial.check_error("Input/output error", "Structure needs cleaning", "Read-only")
    trial.disk.again()
    # A power failure loses unsynced data, and none of it may be trusted.
    trial.check_resumes(continues=not power)


@on("tmpfs", "ext4", "xfs")
def test_unmounted_halfway(trial: Trial) -> None:
    trial.half_way(lambda: trial.disk.unmount("-l"))
    assert trial.merge() == 4
    trial.check_error("No such file or directory")
    assert not trial.out.exists(), "nothing goes where the mount was"
    if trial.disk.kind != "tmpfs":  # which is gone with all that was in it
        trial.disk.mount()
        trial.check_resumes()


@on("ext4", "xfs")
def test_inputs_on_a_removed_device(trial: Trial, tmp_path: Path) -> None:
    """An unreadable input ends with code 3."""
    inputs = [trial.disk.place / model.name for model in trial.models]
    for model, here in zip(trial.models, inputs, strict=True):
        shutil.copytree(model, here)
    trial.disk.again()  # out of the page cache

    def lost() -> None:
        trial.disk.pull_out()
        Path("/proc/sys/vm/drop_caches").write_text("1")

    trial.half_way(lost)
    assert average(tmp_path / "out", inputs, *WORDS) == 3
    text = trial.capsys.readouterr().err
    assert "Input/output error" in text or "Structure needs cleaning" in text
    assert "Traceback" not in text
    trial.disk.again()
    assert average(tmp_path / "out", inputs, *WORDS) == 0
    assert shards_of(tmp_path / "out").items() <= trial.whole.items()
