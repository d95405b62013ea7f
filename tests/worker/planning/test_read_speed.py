"""The speed of the storage from a few MiB of the inputs."""

import os
from pathlib import Path

import pytest

from merge_worker.commands.check import as_json, describe
from merge_worker.planning import read_speed
from merge_worker.planning.plan import Plan
from merge_worker.planning.read_speed import PART, PARTS, measure_read_speed
from support.recipes import plan_of, sparse_file


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two models of 80 MiB each that take no room, one of them in several shards."""
    names = ("model.safetensors",), [f"model-{n:05}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    for model, files in zip("ab", names, strict=True):
        (tmp_path / model).mkdir()
        for number, file in enumerate(files):
            count = 4 // len(files)
            tensors = {
                f"layers.{number + i}.w": ((10, 1 << 20), "BF16", 20 << 20) for i in range(count)
            }
            sparse_file(tmp_path / model / file, tensors)
    return plan_of([tmp_path / "a", tmp_path / "b"])


def test_parts_lie_evenly_over_all_files(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []

    def note(path: str, offset: int, count: int) -> tuple[int, bool]:
        read.append((Path(path).parent.name, offset))
        return PART, False

    monkeypatch.setattr(read_speed, "_read", note)
    speed = measure_read_speed(plan)
    assert speed is not None and speed.read == PARTS * PART and not speed.cached
    assert len(read) == PARTS
    assert sum(name == "a" for name, _ in read) == PARTS / 2
    assert len({name for name, _ in read}) == 2


def test_a_real_read(plan: Plan) -> None:
    speed = measure_read_speed(plan)
    assert speed is not None and speed.seconds > 0
    assert PART * PARTS / 2 < speed.read <= PART * PARTS
    facts = as_json(plan, speed)["storage"]
    moved = plan.input_bytes + plan.output_bytes
    assert facts["estimated_s"] == pytest.approx(moved / speed.bytes_per_s, abs=0.1)
    assert facts["cached"] in (True, False)
    line = describe(plan, speed).splitlines()[-1]
    assert line.startswith("time       about ") and "of reading and writing, at " in line


def test_slow_storage_is_not_asked_for_more(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_speed, "_read", lambda *_: (PART, False))
    assert measure_read_speed(plan, limit_s=0) is None


def test_no_word_where_it_cannot_tell(
    plan: Plan, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measure_read_speed(plan_of(models)) is None  # too little to measure
    assert as_json(plan)["storage"] is None and "time  " not in describe(plan)

    def fails(*_: object) -> tuple[int, bool]:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(read_speed, "_read", fails)
    assert measure_read_speed(plan) is None
