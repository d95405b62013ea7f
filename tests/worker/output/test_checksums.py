"""Additive checksums, and SHA-256 of shards while they are written."""

import hashlib
import os
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.output import checksums
from merge_worker.output.checksums import COLUMNS, DIGITS, Checksum, Hashes, checksum, parse, total
from support.recipes import average, manifest, one_tensor_models

MOD = 1 << 64


def defined(raw: bytes) -> Checksum:
    """Compute the checksum word by word, as the docstring defines it."""
    raw += bytes(-len(raw) % 8)
    words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
    placed = sum(place * word for place, word in enumerate(words, 1))
    return Checksum(sum(words) % MOD, placed % MOD)


def of(raw: bytes, position: int = 0) -> Checksum:
    return checksum(memoryview(bytearray(raw)), position)


def test_by_hand() -> None:
    assert of(b"\x05") == (5, 5)
    assert of(b"\x05", 9) == (5 << 8, 2 * (5 << 8))
    assert of((MOD - 1).to_bytes(8, "little") * 2) == (MOD - 2, MOD - 3)
    assert of(b"") == (0, 0)


@given(st.binary(max_size=200))
def test_matches_the_definition(raw: bytes) -> None:
    assert of(raw) == checksum(memoryview(raw), 0) == defined(raw)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)), st.randoms())
def test_parts_add_up_in_any_order(raw: bytes, cuts: list[int], chance: random.Random) -> None:
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    parts = [of(raw[a:b], a) for a, b in pairwise(edges)]
    chance.shuffle(parts)
    assert total(parts) == of(raw)


@given(st.integers(0, 3 * COLUMNS * 8), st.integers(0, 40), st.integers(0, 1 << 30))
def test_many_rows(size: int, start: int, seed: int) -> None:
    raw = random.Random(seed).randbytes(size)
    assert of(raw, start) == defined(bytes(start) + raw)
    cut = size // 3
    assert total([of(raw[:cut], start), of(raw[cut:], start + cut)]) == of(raw, start)


def test_more_than_a_chunk() -> None:
    raw = random.Random(0).randbytes((8 << 20) + 4099) + bytes(1 << 20)
    cut = (1 << 20) + 3
    assert total([of(raw[:cut]), of(raw[cut:], cut)]) == of(raw)


@given(st.binary(min_size=64, max_size=64), st.integers(0, 511))
def test_one_bit_changes_the_checksum(raw: bytes, bit: int) -> None:
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << bit % 8
    assert of(bytes(damaged)) != of(raw)


@given(st.lists(st.binary(min_size=8, max_size=8), min_size=2, max_size=20), st.data())
def test_swapped_words_change_the_checksum(words: list[bytes], data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, len(words) - 1)) for _ in range(2))
    moved = list(words)
    moved[a], moved[b] = words[b], words[a]
    apart = (int.from_bytes(words[a], "little") - int.from_bytes(words[b], "little")) * (a - b)
    assert (of(b"".join(moved)) == of(b"".join(words))) == (apart % MOD == 0)


@given(st.integers(0, MOD - 1), st.integers(0, MOD - 1))
def test_as_text(plain: int, placed: int) -> None:
    text = str(Checksum(plain, placed))
    assert len(text) == DIGITS
    assert parse(text) == parse(text.encode()) == (plain, placed)


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
    digest = hashes.finish(0, path, len(HEADER) + len(data))
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


def test_data_of_an_earlier_run_are_read(tmp_path: Path) -> None:
    models = one_tensor_models(tmp_path, 3_000_000)
    assert average(tmp_path / "out", models, "--sha256", "--deadline", "0s") == 75
    assert average(tmp_path / "out", models, "--sha256") == 0
    digests = sums(tmp_path / "out")
    for name, digest in true_sums(tmp_path / "out").items():
        assert digests[name] == digest
