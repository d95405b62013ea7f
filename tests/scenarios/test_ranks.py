"""Several processes that share only the file system write one merge, bit for bit."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.forked_process import Ended, Forks
from support.recipes import average, one_tensor_models, shards_of

VARIABLES = [
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("BEAKER_REPLICA_RANK", "BEAKER_REPLICA_COUNT"),
]
TOGETHER, IN_TURN = ("--ranks", "auto"), ("--ranks", "auto:0s")
pytestmark = pytest.mark.usefixtures("centered_method")


@pytest.fixture
def big(tmp_path: Path) -> list[Path]:
    return one_tensor_models(tmp_path, 2_600_000)


def together(
    forks: Forks,
    words: Sequence[object],
    world: int,
    pair: tuple[str, str] = VARIABLES[0],
) -> list[Ended]:
    environments = [{pair[0]: str(n), pair[1]: str(world)} for n in range(world)]
    return [fork.wait() for fork in [forks.start(*words, env=env) for env in environments]]


def command(out: Path, models: list[Path], *options: object) -> list[object]:
    return ["average", out, *models, "--progress", "off", "--threads", 1, *options]


@pytest.mark.parametrize("method", ["linear", "centered"])
@pytest.mark.parametrize(("world", "pair"), list(zip([2, 5, 2, 3, 2], VARIABLES, strict=True)))
def test_ranks_give_the_same_bytes(
    tmp_path: Path, big: list[Path], forks: Forks, method: str, world: int, pair: tuple[str, str]
) -> None:
    words = command(tmp_path / "out", big, "--method", method, "--shard-size", "3MB", *TOGETHER)
    ended = together(forks, words, world, pair)
    assert [one.code for one in ended] == [0] * world, ended
    assert not any("Traceback" in one.err for one in ended)
    assert any("tensors merged" in one.out for one in ended)
    assert (tmp_path / "out" / "merge_manifest.json").exists()
    assert not list((tmp_path / "out").glob(".merge-partial*"))
    alone = ("--method", method, "--shard-size", "3MB")
    assert average(tmp_path / "alone", big, *alone) == 0
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "alone")


def test_ranks_one_after_the_other(tmp_path: Path, big: list[Path], forks: Forks) -> None:
    words = command(tmp_path / "out", big, *IN_TURN)
    for number in (2, 0, 1):
        ended = forks.start(*words, env={"RANK": str(number), "WORLD_SIZE": "3"}).wait()
        assert ended.code == (0 if number == 1 else 75)
        left = f"share {number + 1} of 3 is done, and no process works on the others"
        assert (left in ended.err) == (number != 1)
        assert (tmp_path / "out" / "merge_manifest.json").exists() == (number == 1)
    again = forks.start(*words, env={"RANK": "0", "WORLD_SIZE": "3"}).wait()
    assert again.code == 0 and "nothing to do" in again.out


def test_more_ranks_than_work(tmp_path: Path, models: list[Path], forks: Forks) -> None:
    ended = together(forks, command(tmp_path / "out", models, *TOGETHER), 9)
    assert [one.code for one in ended] == [0] * 9, ended
    assert (tmp_path / "out" / "merge_manifest.json").exists()


def test_another_number_of_ranks_resumes(tmp_path: Path, big: list[Path], forks: Forks) -> None:
    words = command(tmp_path / "out", big)
    for rank, world in (("1", "3"), ("0", "4")):
        variables = {"RANK": rank, "WORLD_SIZE": world}
        assert forks.start(*words, *IN_TURN, env=variables).wait().code == 75
    ended = forks.start(*words).wait()
    assert ended.code == 0 and "tensors merged" in ended.out
    assert average(tmp_path / "alone", big) == 0
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "alone")


@pytest.mark.parametrize("option", ["--no-resume", "--overwrite"])
def test_ranks_that_replace_another_merge(
    tmp_path: Path, big: list[Path], forks: Forks, option: str
) -> None:
    out = tmp_path / "out"
    variables = {"RANK": "0", "WORLD_SIZE": "2"}
    assert forks.start(*command(out, big[::-1], *IN_TURN), env=variables).wait().code == 75
    assert together(forks, command(out, big, *TOGETHER), 2)[0].code == 4
    ended = together(forks, command(out, big, option, *TOGETHER), 3)
    assert [one.code for one in ended] == [0] * 3, ended
    assert average(tmp_path / "alone", big) == 0
    assert shards_of(out) == shards_of(tmp_path / "alone")


def test_damage_in_the_share_of_a_slower_rank(
    tmp_path: Path, big: list[Path], forks: Forks
) -> None:
    """No rank commits the merge while a damaged piece has yet to be redone."""
    out = tmp_path / "out"
    words = command(out, big, *IN_TURN)
    assert forks.start(*words, env={"RANK": "1", "WORLD_SIZE": "2"}).wait().code == 75
    partial = out / ".merge-partial" / "model.safetensors.partial"
    with partial.open("r+b") as file:
        file.seek(-300_000, 2)
        byte = file.read(1)
        file.seek(-300_000, 2)
        file.write(bytes([byte[0] ^ 1]))
    for journal in (out / ".merge-partial").glob("journal-*"):
        os.utime(journal, (time.time() - 120,) * 2)
    # The other rank finishes first; the one with the damage starts later.
    first = forks.start(*words, env={"RANK": "0", "WORLD_SIZE": "2"}).wait()
    assert first.code == 75 and "no process works on the others" in first.err
    assert not (out / "merge_manifest.json").exists()
    assert forks.start(*words, env={"RANK": "1", "WORLD_SIZE": "2"}).wait().code == 0
    assert average(tmp_path / "alone", big) == 0
    assert shards_of(out) == shards_of(tmp_path / "alone")


def test_one_command_twice_at_once(tmp_path: Path, big: list[Path], forks: Forks) -> None:
    words = command(tmp_path / "out", big)
    ended = [fork.wait() for fork in [forks.start(*words) for _ in range(3)]]
    codes = sorted(one.code for one in ended)
    assert codes[0] == 0 and set(codes) <= {0, 4}
    for one in ended:
        assert "Traceback" not in one.err
        assert one.code == 0 or "another merge writes here" in one.err, one.err
    time.sleep(0.01)
    assert forks.start(*words).wait().code == 0
    assert json.loads((tmp_path / "out" / "merge_manifest.json").read_text())["format"] == 1
    assert average(tmp_path / "alone", big) == 0
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "alone")
