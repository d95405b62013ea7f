"""SHA-256 of shards while they are written: any order of pieces, memory or interruption."""

import hashlib
import os
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from merge_worker.output import checksums
from merge_worker.output.checksums import Hashes
from support.recipes import average, manifest, one_tensor_models

HEADER = b"12345678"


@pytest.mark.parametrize("room", [0, 3000, 1 << 20])
@pytest.mark.parametrize("missing", [0, 1, 5])
def test_pieces_in_any_order(room: int, missing: int, tmp_path: Path) -> None:
    chance = random.Random(room + missing)
    data = chance.randbytes(20_000)
    path = tmp_path / "shard"
    path.write_bytes(HEADER + data)
    cuts = [0, *sorted(chance.sample(range(1, len(data)), 30)), len(data)]
    pieces = list(pairwise(cuts))
    chance.shuffle(pieces)
    hashes = Hashes([HEADER], room)
    fd = os.open(path, os.O_RDONLY)
    for start, stop in pieces[missing:]:
        hashes.wrote(0, fd, len(HEADER) + start, memoryview(data)[start:stop])
    os.close(fd)
    digest = hashes.finish(0, str(path), len(HEADER) + len(data))
    assert digest == hashlib.sha256(HEADER + data).hexdigest()
    assert missing or hashes._room == room, "what waited has gone"


def sums(out: Path) -> dict[str, Any]:
    return {entry["file"]: entry.get("sha256") for entry in manifest(out)["outputs"]}


def true_sums(out: Path) -> dict[str, str]:
    files = sorted(out.glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_nothing_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = one_tensor_models(tmp_path, 4_000_000)
    read: list[int] = []

    def counted(here: object, descriptor: int, end: int) -> None:
        count = max(0, end - getattr(here, "reached", end))
        read.append(count)
        update(here, descriptor, end)

    update: Any = checksums._update
    monkeypatch.setattr(checksums, "_update", counted)
    words = ("--sha256", "--threads", 4, "--shard-size", "4MB")
    assert average(tmp_path / "out", models, *words) == 0
    assert sum(read) == 0
    digests = sums(tmp_path / "out")
    for name, digest in true_sums(tmp_path / "out").items():
        assert digests[name] == digest


def test_what_an_earlier_run_wrote_is_read(tmp_path: Path) -> None:
    models = one_tensor_models(tmp_path, 3_000_000)
    assert average(tmp_path / "out", models, "--sha256", "--deadline", "0s") == 75
    assert average(tmp_path / "out", models, "--sha256") == 0
    digests = sums(tmp_path / "out")
    for name, digest in true_sums(tmp_path / "out").items():
        assert digests[name] == digest
