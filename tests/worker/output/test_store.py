"""Shards and journal: recorded pieces are kept, damaged ones are redone."""

import json
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.errors import OutputError, Stopped
from merge_worker.output.checksums import Checksum
from merge_worker.output.files import PARTIAL, output_errors, write_file
from merge_worker.output.journal import Entry, parse_line
from merge_worker.output.store import PartialOutput
from merge_worker.planning.plan import Plan
from merge_worker.planning.step import Piece
from support.recipes import finish_into, one_tensor_models, plan_of, shards_of, stream_into

naturals = st.integers(0, 1 << 40)


sums = st.builds(Checksum, st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))


@given(naturals, naturals, naturals, sums, naturals)
def test_journal_lines_come_back(
    step: int, first: int, blocks: int, checksum: Checksum, bad: int
) -> None:
    entry = Entry(step, Piece(first, blocks), checksum, bad)
    assert parse_line(entry.line()) == entry
    assert entry.line().endswith(b"\n") and entry.line().count(b"\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        *(b"x 0 1 %032d 0", b"-1 0 1 %032d 0", b"0 -1 1 %032d 0", b"0 0 -3 %032d 0"),
        *(b"0 0 1 %032d -1", b"9" * 5000 + b" 0 1 %032d 0", b"0 0 1 g%031d 0", b"0 0 1 %033d 0"),
    ],
)
def test_lines_with_a_right_check_and_wrong_fields(text: bytes) -> None:
    line = text % 0
    assert parse_line(line + b" %d" % zlib.crc32(line)) is None
    assert parse_line(line + b" " + b"9" * 5000) is None


@given(st.binary(max_size=60))
def test_any_bytes_parse_or_give_none(line: bytes) -> None:
    parse_line(line)


def test_a_line_of_an_earlier_version_is_none() -> None:
    text = "12 345 6 789 0"
    assert parse_line(f"{text} {zlib.crc32(text.encode())}\n".encode()) is None


@given(st.integers(0, 40), st.integers(1, 255))
def test_a_damaged_line_is_none(place: int, flip: int) -> None:
    line = bytearray(Entry(12, Piece(345, 6), Checksum(789), 0).line())
    place %= len(line) - 1
    line[place] ^= flip
    assert parse_line(bytes(line)) in (None, Entry(12, Piece(345, 6), Checksum(789), 0))
    assert parse_line(bytes(line[:place])) is None


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(one_tensor_models(tmp_path, 1_400_000), threads=1, memory_bytes=2 << 20)


@pytest.fixture
def out(tmp_path: Path, plan: Plan) -> Path:
    """Write a merge that was stopped after five pieces."""
    with pytest.raises(Stopped):
        stream_into(tmp_path / "out", plan, stop_after=5)
    return tmp_path / "out"


def reopened(out: Path, plan: Plan) -> PartialOutput:
    store = PartialOutput(out, plan)
    store.read_journals()
    store.open()
    return store


def finishes_like_a_whole_run(tmp_path: Path, out: Path, plan: Plan) -> None:
    for folder in (out, tmp_path / "whole"):
        stream_into(folder, plan)
        finish_into(folder, plan)
    assert shards_of(out) == shards_of(tmp_path / "whole")


def test_nothing_has_a_final_name_yet(out: Path) -> None:
    assert [path.name for path in out.iterdir()] == [PARTIAL]
    names = {path.name for path in (out / PARTIAL).iterdir()}
    assert "model.safetensors.partial" in names
    assert not [name for name in names if name.endswith((".safetensors", "config.json"))]


def test_shards_have_their_size_and_header_at_once(out: Path, plan: Plan) -> None:
    raw = (out / PARTIAL / "model.safetensors.partial").read_bytes()
    assert len(raw) == plan.layout.shards[0].size
    assert raw.startswith(plan.layout.shards[0].header)


def test_a_second_run_knows_what_is_done(out: Path, plan: Plan) -> None:
    store = reopened(out, plan)
    assert len(store.entries) >= 5
    assert store.drop_damaged(2) == 0 and not store.complete()
    store.close()


def test_damaged_bytes_are_redone(tmp_path: Path, out: Path, plan: Plan) -> None:
    store = reopened(out, plan)
    entry = next(iter(store.entries.values()))
    step = plan.steps[entry.step]
    place = step.offset + step.grid.span(entry.piece.first, 1)[0] * step.dtype.bytes
    raw = os.pread(store.files[0].fd, 1, place)
    os.pwrite(store.files[0].fd, bytes([raw[0] ^ 1]), place)
    before = len(store.entries)
    assert store.drop_damaged(2) == 1 and len(store.entries) == before - 1
    store.close()
    finishes_like_a_whole_run(tmp_path, out, plan)


def test_a_missing_shard_is_created_again(tmp_path: Path, out: Path, plan: Plan) -> None:
    (out / PARTIAL / "model.safetensors.partial").unlink()
    store = reopened(out, plan)
    lost = len(store.entries)
    assert store.drop_damaged(2) == lost
    store.close()
    finishes_like_a_whole_run(tmp_path, out, plan)


def test_a_shard_of_another_size(tmp_path: Path, out: Path, plan: Plan) -> None:
    os.truncate(out / PARTIAL / "model.safetensors.partial", 1000)
    finishes_like_a_whole_run(tmp_path, out, plan)


def test_torn_and_foreign_lines(tmp_path: Path, out: Path, plan: Plan) -> None:
    (journal,) = (out / PARTIAL).glob("journal-*")
    lines = journal.read_bytes().splitlines(keepends=True)
    strange = [
        Entry(10_000, Piece(0, 1), 0, 0).line(),
        Entry(0, Piece(0, 10_000), 0, 0).line(),
        Entry(0, Piece(-1, 1), 0, 0).line(),
        b"\n",
        b"\xff\xfe\n",
    ]
    journal.write_bytes(b"".join([*strange, *lines[:-2], lines[-2][:9], b"\n", lines[-1][:-1]]))
    store = reopened(out, plan)
    assert len(store.entries) == len(lines) - 1
    store.close()
    finishes_like_a_whole_run(tmp_path, out, plan)


def test_a_wrong_journal_is_detected(tmp_path: Path, out: Path, plan: Plan) -> None:
    lie = Entry(0, Piece(0, plan.steps[0].grid.blocks), 12345, 0)
    (out / PARTIAL / f"journal-{plan.key[:16]}-x").write_bytes(lie.line())
    finishes_like_a_whole_run(tmp_path, out, plan)


def test_journals_of_another_merge_are_not_read(out: Path, plan: Plan) -> None:
    """Ranks may see the folder of an older merge before another rank has cleared it."""
    for journal in (out / PARTIAL).glob("journal-*"):
        journal.rename(journal.with_name(journal.name.replace(plan.key[:16], "0" * 16)))
    store = reopened(out, plan)
    assert store.entries == {}
    store.close()


def test_pieces_done_by_two_processes_count_once(plan: Plan, tmp_path: Path) -> None:
    store = PartialOutput(tmp_path, plan)
    number = next(n for n, s in enumerate(plan.steps) if s.name == "big")
    for first, blocks in [(0, 4), (2, 1), (3, 4), (4, 2), (6, 1)]:
        entry = Entry(number, Piece(first, blocks), 0, 1)
        store.entries[number, first] = entry
    assert store.done()[number] == [Piece(0, 4), Piece(4, 2), Piece(6, 1)]


def test_complete_wants_every_block(plan: Plan, tmp_path: Path) -> None:
    store = PartialOutput(tmp_path, plan)
    for number, step in enumerate(plan.steps):
        store.entries[number, 0] = Entry(number, Piece(0, step.grid.blocks), 0, 0)
    assert store.complete()
    big = next(n for n, s in enumerate(plan.steps) if s.name == "big")
    store.entries[big, 0] = Entry(big, Piece(0, plan.steps[big].grid.blocks - 1), 0, 0)
    assert not store.complete()


def test_processes_with_one_id_on_two_hosts_write_the_key(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks with one process id, as in containers, write the key without conflict."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    real = Path.replace

    def between(self: Path, target: Path) -> Path:
        if not (tmp_path / "twice").exists():
            (tmp_path / "twice").touch()
            PartialOutput(tmp_path / "out", plan).open_or_resume()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", between)
    PartialOutput(tmp_path / "out", plan).open_or_resume()
    assert json.loads((tmp_path / "out" / PARTIAL / "key.json").read_text()) == {"key": plan.key}


def test_write_file_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_file(path, "old")

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_file(path, "new", durable=True)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_file(path, "new", durable=True)
    assert path.read_text() == "new"
    write_file(path, 'a name of other bytes: "\udcff"')
    assert json.loads(path.read_bytes()[23:]) == "\udcff", "as JSON escapes it"


def test_messages_of_system_errors(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, output_errors(tmp_path):
        (tmp_path / "gone" / "x").write_text("")
    assert str(caught.value).startswith(f"{tmp_path}: cannot write: No such file or directory")
    with pytest.raises(Stopped), output_errors(tmp_path):
        raise Stopped("passes through")
    with pytest.raises(ValueError, match="a bug"), output_errors(tmp_path):
        raise ValueError("a bug")
