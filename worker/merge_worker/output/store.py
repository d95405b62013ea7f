"""The unfinished output: shards at their final size under other names, and journals of pieces.

Everything is in `OUT/.merge-partial`, so that nothing in OUT looks like a model before `finish`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from ..errors import OutputError, Stopped
from ..messages import printable
from ..planning.plan import Plan
from ..planning.step import Piece, Step
from ..system.signals import StopFlag
from .blocks import part, runs
from .checksums import Checksum, Hashes, checksum, total
from .code import code_digest
from .files import PARTIAL, RECIPE, opened_folder, output_errors, unfinished, write_file
from .inputs import Stamp, input_stamps
from .journal import (
    KEY,
    Entry,
    Head,
    WorkKey,
    entry_id,
    head_name,
    is_of_others,
    parse_line,
    pending_commit,
    read_head,
)
from .lock import HEARTBEAT_S, POLL_S, STALE_AFTER_S, Busy, Lock, refuse_others
from .shard_file import ShardFile

VERIFY_BYTES = 8 << 20
DISCARDING = ".lock-discard"
"""A lock that does not count as work: its owner removes the folder."""

SETTLED_S = 60.0
"""Seconds after which data written on one host can be read on all others."""


class PartialOutput:
    """The shards and journals of a plan in OUT. Writing is safe from any thread."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out = out
        self.folder = out / PARTIAL
        self.plan = plan
        self.key = WorkKey(plan.key, code_digest())
        self.entries: dict[tuple[int, int], Entry] = {}
        self.outdated = 0  # pieces of inputs that were replaced or written to since
        self._journal_of: dict[Entry, str] = {}
        self._inodes_of: dict[str, tuple[int, ...]] = {}  # of the shards, by journal
        self.files: list[ShardFile] = []
        self.locks: list[Lock] = []
        self.hashes: Hashes | None = None
        self._journal = -1
        self._lock = threading.Lock()

    @cached_property
    def _inputs(self) -> tuple[Stamp, ...]:
        return input_stamps(self.plan)

    def open_or_resume(self) -> None:
        """Create the folder, or resume in it. OutputError if it is another merge's."""
        self.check()  # others may have finished and removed it since it was locked
        with output_errors(self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
            if is_of_others(self.folder, self.key):
                raise Busy(
                    f"{self.out}: another merge has begun here meanwhile; choose another OUT"
                )
            if self.plan.recipe.runs():  # a later run goes on with the checkpoints of this one
                write_file(self.folder / RECIPE, self.plan.recipe.text)
            write_file(self.folder / KEY, json.dumps({"key": self.key.plan, "code": self.key.code}))

    def check(self, age_s: float = 0.0) -> None:
        """Raise OutputError if the folder is not that of this process any more.

        It may be deleted and begun again, or taken over, while this process sleeps. `age_s` is
        that of `Lock.check`.
        """
        for lock in self.locks:
            lock.check(age_s)

    def check_shards(self) -> None:
        """Raise OutputError if a shard lost its name, as cleaners of scratch space may do."""
        for file in self.files:
            if not file.is_in_place():
                raise OutputError(
                    f"{printable(str(file.path))}: removed or replaced by another process\n"
                    f"  nothing was finished; run the same command again, which writes it anew"
                )

    def open(self, direct: bool = True) -> None:
        """Open all shards at their final size and a journal of this process. OutputError.

        `direct`: with a second descriptor of each that bypasses the page cache, where that helps.
        """
        with output_errors(self.out):
            for shard in self.plan.layout.shards:
                file = ShardFile(self.folder / unfinished(shard.name), shard.size, direct)
                self.files.append(file)
                file.write(memoryview(shard.header), 0)
            name = f"{self._journals}-{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}"
            head = Head(self._inputs, tuple(file.inode for file in self.files))
            write_file(self.folder / head_name(name), head.text())
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._journal = os.open(self.folder / name, flags, 0o666)
            if pending_commit(self.folder) is not None:
                self._remove_created()
        self.check()  # from the lock until now all names were in one folder, which this one has

    def _remove_created(self) -> NoReturn:
        """Remove the empty shards just created: another rank is moving the finished ones, and a
        later run would move these if that rank were killed now."""
        for file in self.files:
            if file.created:
                file.path.unlink(missing_ok=True)
        raise OutputError(
            f"{self.out}: another rank finished meanwhile; run the same command again"
        )

    def write(
        self,
        work: tuple[int, Step],
        piece: Piece,
        data: memoryview,
        nonfinite: int,
        same: tuple[int, int] | None = None,
    ) -> None:
        """Write a piece, then record it in the journal. OutputError.

        `same` is an open file and the offset at which it holds the same bytes.
        """
        number, step = work
        self.check(HEARTBEAT_S)
        with output_errors(self.out):
            if step.blocks is None:
                position = step.file_offset(piece)
                self._write_at(step.shard, position, data, same)
                entry = Entry(number, piece, checksum(data, position), nonfinite)
            else:
                parts = []
                for run in runs(step, piece):
                    own = part(step, run, data)
                    self.files[run.shard].write(own, run.position)
                    parts.append((checksum(own, run.position), zlib.crc32(own)))
                whole = total([one for one, _ in parts])
                entry = Entry(number, piece, whole, nonfinite, tuple(parts))
            with self._lock:
                line = entry.line()
                while line:
                    line = line[os.write(self._journal, line) :]
                self.entries[number, piece.first] = entry

    def _write_at(
        self, shard: int, position: int, data: memoryview, same: tuple[int, int] | None
    ) -> None:
        file = self.files[shard]
        if same is None:
            file.write(data, position)
        else:
            file.copy(*same, data, position)
        if self.hashes is not None:
            self.hashes.wrote(shard, file.fd, position, data)

    def read_journals(self) -> None:
        """Read the finished pieces from the journals of all processes, living and dead.

        Pieces of other inputs are left out; so are, once the shards are open, pieces that another
        process wrote into files that have lost their names since.
        """
        with output_errors(self.out):
            lost, outdated = set[str](), list[str]()
            for path in self.folder.glob(f"{self._journals}.lost-*"):
                lost |= set(path.read_text(errors="replace").splitlines())
            for path in sorted(self.folder.glob(f"{self._journals}-*")):
                head = read_head(self.folder, path.name)
                self._inodes_of[path.name] = head.shards
                for entry in filter(None, map(parse_line, path.read_bytes().splitlines())):
                    name, place = entry_id(path.name, entry), (entry.step, entry.piece.first)
                    if not self._fits(entry) or name in lost:
                        continue
                    if head.contradicts(self._inputs):
                        outdated.append(name)
                    elif self.entries.get(place) != entry and self._is_reachable(entry, path.name):
                        self.entries[place] = entry
                        self._journal_of[entry] = path.name
            if outdated and not self.files:
                self.outdated = len(outdated)
                self._publish_lost(outdated)

    def _is_reachable(self, entry: Entry, journal: str) -> bool:
        """Whether a piece is in the shards as this process has opened them."""
        return not self.files or self._is_same_file(entry, journal) or self._is_intact(entry)

    def _is_same_file(self, entry: Entry, journal: str) -> bool:
        """Whether a piece was written to the very files that this process has opened."""
        inodes = self._inodes_of[journal]
        return all(
            not self.files[run.shard].created
            and inodes[run.shard : run.shard + 1] == (self.files[run.shard].inode,)
            for run in runs(self.plan.steps[entry.step], entry.piece)
        )

    def done(self) -> dict[int, list[Piece]]:
        """Return the finished pieces by step, without overlaps."""
        return {n: [entry.piece for entry in entries] for n, entries in self.by_step().items()}

    def complete(self) -> bool:
        """Whether every block of every step is done."""
        done = self.done()
        return all(
            sum(piece.blocks for piece in done.get(number, ())) == step.grid.blocks
            for number, step in enumerate(self.plan.steps)
        )

    def drop_damaged(self, threads: int, stop: StopFlag | None = None) -> int:
        """Discard entries whose bytes are not in the shards any more; returns their number.

        Reads all finished data; raises Stopped once `stop` is set.
        """

        def is_intact(entry: Entry) -> bool:
            if stop is not None and stop.is_set():
                raise Stopped(f"{stop.reason}; run the same command to resume")
            with output_errors(self.out):
                return self._is_intact(entry)

        with ThreadPoolExecutor(threads) as pool:
            entries = list(self.entries.values())
            good = list(pool.map(is_intact, entries))
        lost = [entry for entry, intact in zip(entries, good, strict=True) if not intact]
        for entry in lost:
            del self.entries[entry.step, entry.piece.first]
        if lost:
            self._note_lost(lost)
        return len(lost)

    def _note_lost(self, lost: Sequence[Entry]) -> None:
        """Publish lost entries to other ranks, which may be waiting for just these pieces.

        Fresh journals are left out: data of a living rank may not be visible here yet.
        """
        with output_errors(self.out):
            probe = self.folder / f".{os.urandom(8).hex()}"
            probe.touch()
            before = probe.stat().st_mtime - SETTLED_S
            probe.unlink()
            pairs = [(entry, self._journal_of[entry]) for entry in lost]
            old = {n for _, n in pairs if (self.folder / n).stat().st_mtime < before}
            self._publish_lost(
                entry_id(n, entry)
                for entry, n in pairs
                if n in old or not self._is_same_file(entry, n)
            )

    def _publish_lost(self, names: Iterable[str]) -> None:
        note = self.folder / f"{self._journals}.lost-{os.urandom(8).hex()}"
        write_file(note, "".join(f"{name}\n" for name in names))

    def sync(self, drop_cached: bool = False) -> None:
        """Flush everything to the storage; `drop_cached` frees its memory. OutputError.

        Shards stay open, so that their inodes are theirs; the journal is complete.
        """
        with output_errors(self.out):
            for fd in (*(file.fd for file in self.files), self._journal):
                os.fsync(fd)
                os.close(os.dup(fd))  # some file systems report lost writes only now
            self._close_journal()
        for file in self.files if drop_cached else ():
            file.drop_cached()

    def close(self) -> None:
        """Close all files. Lost writes were reported by `sync`."""
        files, self.files = self.files, []
        for closing in (self._close_journal, *(file.close for file in files)):
            with contextlib.suppress(OSError):
                closing()

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, -1
        if journal >= 0:
            os.close(journal)

    def remove_leftovers(self) -> None:
        """Remove folders left by a run that was killed in `remove_partial`."""
        for trash in self.out.glob(f"{PARTIAL}-*"):
            shutil.rmtree(trash, ignore_errors=True)

    def by_step(self) -> dict[int, list[Entry]]:
        """Return journal entries by step in order, without pieces that two processes did twice."""
        grouped: dict[int, list[Entry]] = {}
        for entry in sorted(self.entries.values(), key=lambda e: (e.step, e.piece.first)):
            kept = grouped.setdefault(entry.step, [])
            if not kept or entry.piece.first >= kept[-1].piece.first + kept[-1].piece.blocks:
                kept.append(entry)
        return grouped

    def discard_nonfinite(self) -> None:
        """Discard merged pieces with NaN or Inf, which an earlier run was allowed to write."""
        for place, entry in list(self.entries.items()):
            if entry.nonfinite and self.plan.steps[entry.step].task is not None:
                del self.entries[place]

    def nonfinite(self) -> int:
        """Return the number of NaN and Inf in all finished pieces."""
        return sum(entry.nonfinite for entries in self.by_step().values() for entry in entries)

    @property
    def _journals(self) -> str:
        """Prefix of journals; other ranks may start before an older merge is removed."""
        return self.key.journals

    def _fits(self, entry: Entry) -> bool:
        if not 0 <= entry.step < len(self.plan.steps):
            return False
        step = self.plan.steps[entry.step]
        if not 0 <= entry.piece.first <= entry.piece.first + entry.piece.blocks <= step.grid.blocks:
            return False
        return step.blocks is None or len(entry.parts) == sum(1 for _ in runs(step, entry.piece))

    def _is_intact(self, entry: Entry) -> bool:
        parts: list[Checksum] = []
        for run in runs(self.plan.steps[entry.step], entry.piece):
            position, end = run.position, run.position + run.nbytes
            buffer = bytearray(min(VERIFY_BYTES, end - position))
            while position < end:
                data = memoryview(buffer)[: end - position]
                got = os.preadv(self.files[run.shard].fd, [data], position)
                if not got:
                    return False
                parts.append(checksum(data[:got], position))
                position += got
        return total(parts) == entry.checksum


def discard_others(out: Path, key: WorkKey, resume: bool = True) -> None:
    """Rename the unfinished work of other merges away; all unfinished work if not `resume`.

    Files of the new merge are other files, so that processes of the old one that wake up later
    write to nowhere. Raises Busy if such a process lives. Ranks do this one after the other.
    """
    partial = out / PARTIAL
    for _ in range(round(2 * STALE_AFTER_S / POLL_S)):
        if not partial.is_dir() or (resume and not is_of_others(partial, key)):
            return
        try:
            with Lock(partial / DISCARDING, str(key)) as lock:
                refuse_others(partial, "")
                if not resume or is_of_others(partial, key):
                    remove_partial(out, lock.check)
                    return
        except OutputError:
            if not _is_passing(partial):
                raise
        time.sleep(POLL_S)


def _is_passing(partial: Path) -> bool:
    """Whether another process discards a partial folder, or has just done so."""
    return not partial.is_dir() or (partial / DISCARDING).exists()


def remove_partial(out: Path, check: Callable[[], None] = lambda: None) -> None:
    """Remove the partial folder, renaming it first: other ranks may be reading it.

    `check` raises OutputError if the folder is not this process's any more.
    """
    trash = f"{PARTIAL}-{os.urandom(4).hex()}"
    with output_errors(out), contextlib.suppress(FileNotFoundError), opened_folder(out) as folder:
        check()
        # In this very folder, should OUT be deleted and begun again; unless another rank did so.
        os.rename(PARTIAL, trash, src_dir_fd=folder, dst_dir_fd=folder)
    shutil.rmtree(out / trash, ignore_errors=True)
