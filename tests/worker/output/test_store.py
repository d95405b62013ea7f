"""Shards and journal: recorded pieces are kept, damaged ones are redone."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.errors import OutputError, Stopped
from merge_worker.output.checksums import Checksum
from merge_worker.output.code import code_digest
from merge_worker.output.files import PARTIAL, output_errors, write_file
from merge_worker.output.journal import Entry, Head, WorkKey, head_name, parse_line, read_head
from merge_worker.output.lock import Lock
from merge_worker.output.store import PartialOutput, discard_others
from merge_worker.output.target import State, inspect_output
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


ODD_HEADS = (
    *(b"", b"1", b"[1]", b"{}", b"[" * 9000, b"\xff", b'{"inputs": [[1]], "shards": []}'),
    *(b'{"inputs": [], "shards": [null]}', b'{"inputs": [], "shards": [1e999]}'),
)


@pytest.mark.parametrize("text", ODD_HEADS)
def test_odd_heads(tmp_path: Path, text: bytes) -> None:
    (tmp_path / head_name("journal-1")).write_bytes(text)
    assert read_head(tmp_path, "journal-1") == Head((), ())


def test_heads_come_back(tmp_path: Path) -> None:
    head = Head((("node disk", 5, 7), ("", 0, 0)), (1, 1 << 63))
    write_file(tmp_path / head_name("journal-1"), head.text())
    assert read_head(tmp_path, "journal-1") == head
    assert not head.contradicts(head.inputs) and not head.contradicts((("other disk", 1, 1),))
    assert head.contradicts((("node disk", 5, 8), ("", 0, 0)))


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
    written = json.loads((tmp_path / "out" / PARTIAL / "key.json").read_text())
    assert written == {"key": plan.key, "code": code_digest()}


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


def test_a_shard_that_lost_its_name(out: Path, plan: Plan) -> None:
    """Pieces in a file without a name are in no result, whoever wrote them."""
    store = reopened(out, plan)
    store.check_shards()
    shard = out / PARTIAL / "model.safetensors.partial"
    raw = shard.read_bytes()
    for spoil in (shard.unlink, lambda: shard.write_bytes(raw), lambda: os.truncate(shard, 9)):
        spoil()
        with pytest.raises(OutputError, match=r"partial: removed or replaced by another process"):
            store.check_shards()
    store.close()


def test_pieces_in_a_file_that_lost_its_name(out: Path, plan: Plan) -> None:
    """A slower rank goes on writing to a shard that was removed and that this one has made anew."""
    slower = reopened(out, plan)
    (out / PARTIAL / "model.safetensors.partial").unlink()
    store = reopened(out, plan)
    assert len(store.entries) == store.drop_damaged(2) > 0
    number = next(n for n, step in enumerate(plan.steps) if step.name == "small.0")
    work = (number, plan.steps[number])
    slower.write(work, Piece(0, 1), memoryview(bytearray(b"x" * 100)), 0)
    store.read_journals()
    assert store.entries == {}
    store.write(work, Piece(0, 1), memoryview(bytearray(b"y" * 100)), 0)
    store.read_journals()
    assert len(store.entries) == 1
    slower.close()
    store.close()
    # Nor do later runs take them, though the journals are fresh.
    again = PartialOutput(out, plan)
    again.read_journals()
    assert list(again.entries) == [(number, 0)]
    again.open()
    again.drop_damaged(2)
    assert again.done() in ({}, {number: [Piece(0, 1)]})
    again.close()


def change_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-9, 2)
        file.write(b"otherwise")


def change_by_name(path: Path) -> None:
    raw = path.read_bytes()
    path.with_name("new").write_bytes(raw[:-9] + b"otherwise")
    path.with_name("new").rename(path)


@pytest.mark.parametrize("change", [change_in_place, change_by_name])
def test_an_input_of_the_same_size_and_mtime(
    out: Path, plan: Plan, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Pieces of other bytes are done again, for which neither key nor header speak."""
    models = [model.path for model in plan.models]
    weights = models[1] / "model.safetensors"
    status = weights.stat()
    change(weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    now = plan_of(models, threads=1, memory_bytes=2 << 20)
    assert now.key == plan.key
    store = PartialOutput(out, now)
    store.read_journals()
    assert store.entries == {} and store.outdated >= 5
    # A rank on a node with a copy of its own cannot tell, but learns it.
    other = PartialOutput(out, plan)
    other.read_journals()
    assert other.entries == {} and other.outdated == 0
    finishes_like_a_whole_run(tmp_path, out, now)


def test_copies_on_the_disks_of_other_nodes(
    out: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inode and ctime of a copy elsewhere show nothing; the key is the same."""
    monkeypatch.setattr("socket.gethostname", lambda: "another-node")
    copies = PartialOutput(out, plan)
    assert all(place.startswith("another-node ") for place, _, _ in copies._inputs)
    copies.__dict__["_inputs"] = tuple((place, 1, 2) for place, _, _ in copies._inputs)
    copies.read_journals()
    assert len(copies.entries) >= 5 and copies.outdated == 0


def test_work_of_other_code_is_not_continued(
    out: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merge_worker.output.store.code_digest", lambda: "other")
    monkeypatch.setattr("merge_worker.output.target.code_digest", lambda: "other")
    target = inspect_output(plan, out, overwrite=False, resume=True)
    assert target.state is State.FRESH
    assert target.warnings == (f"{out}: begun by code that computes otherwise; begun anew",)
    store = PartialOutput(out, plan)
    with pytest.raises(OutputError, match="another merge has begun here"):
        store.open_or_resume()
    discard_others(out, store.key)
    assert list(out.iterdir()) == []


def test_late_writers_of_another_merge(out: Path, plan: Plan, tmp_path: Path) -> None:
    """Processes that wake up after another merge took the folder over write to nowhere."""
    late = reopened(out, plan)
    other = plan_of([model.path for model in plan.models][::-1], threads=1)
    discard_others(out, PartialOutput(out, other).key)
    stream_into(out, other)
    finish_into(out, other)
    before = shards_of(out)
    late.write((0, plan.steps[0]), Piece(0, 1), memoryview(bytearray(b"late" * 20)), 0)
    late.close()
    assert shards_of(out) == before


@pytest.mark.parametrize("resume", [True, False])
def test_work_of_a_living_process_is_not_discarded(out: Path, plan: Plan, resume: bool) -> None:
    key = PartialOutput(out, plan).key
    with Lock(out / PARTIAL / "lock-0-of-1", str(key)):
        with pytest.raises(OutputError, match="another merge writes here"):
            discard_others(out, key if not resume else WorkKey("another"), resume)
        discard_others(out, key)
    assert (out / PARTIAL / "model.safetensors.partial").exists()


def test_messages_of_system_errors(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, output_errors(tmp_path):
        (tmp_path / "gone" / "x").write_text("")
    assert str(caught.value).startswith(f"{tmp_path}: cannot write: No such file or directory")
    with pytest.raises(Stopped), output_errors(tmp_path):
        raise Stopped("passes through")
    with pytest.raises(ValueError, match="a bug"), output_errors(tmp_path):
        raise ValueError("a bug")
