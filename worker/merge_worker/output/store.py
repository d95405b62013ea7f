"""The unfinished output: shards at their final size under other names, and journals of pieces.

Everything is in `OUT/.merge-partial`, so that nothing in OUT looks like a model before `finish`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from ..errors import OutputError, Stopped
from ..planning.plan import Plan
from ..planning.step import Piece, Step
from ..system.signals import StopFlag
from .checksums import Hashes, checksum, total
from .files import PARTIAL, PASSING, output_errors, unfinished, write_file
from .journal import KEY, Entry, entry_id, journal_prefix, parse_line, pending_commit, read_key
from .shard_file import ShardFile

VERIFY_BYTES = 8 << 20
SETTLED_S = 60.0
"""Seconds after which data written on one host can be read on all others."""


class PartialOutput:
    """The shards and journals of a plan in OUT. Writing is safe from any thread."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out = out
        self.folder = out / PARTIAL
        self.plan = plan
        self.entries: dict[tuple[int, int], Entry] = {}
        self._journal_of: dict[Entry, str] = {}
        self.files: list[ShardFile] = []
        self.hashes: Hashes | None = None
        self._journal = -1
        self._lock = threading.Lock()

    def open_or_resume(self, resume: bool = True) -> None:
        """Create the folder, or resume in it; files of another merge are removed. OutputError."""
        with output_errors(self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not resume or read_key(self.folder) not in (None, self.plan.key):
                self._discard(resume)
            write_file(self.folder / KEY, json.dumps({"key": self.plan.key}))

    def open(self) -> None:
        """Open all shards at their final size and a journal of this process. OutputError."""
        with output_errors(self.out):
            for shard in self.plan.layout.shards:
                file = ShardFile(self.folder / unfinished(shard.name), shard.size)
                self.files.append(file)
                file.write(memoryview(shard.header), 0)
            name = f"{self._journals}-{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._journal = os.open(self.folder / name, flags, 0o666)
            if pending_commit(self.folder) is not None:
                self._remove_created()

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
        with output_errors(self.out):
            file, position = self.files[step.shard], step.file_offset(piece)
            if same is None:
                file.write(data, position)
            else:
                file.copy(*same, data, position)
            if self.hashes is not None:
                self.hashes.wrote(step.shard, file.fd, position, data)
            entry = Entry(number, piece, checksum(data, position), nonfinite)
            with self._lock:
                line = entry.line()
                while line:
                    line = line[os.write(self._journal, line) :]
                self.entries[number, piece.first] = entry

    def read_journals(self) -> None:
        """Read the finished pieces from the journals of all processes, living and dead."""
        with output_errors(self.out):
            lost: set[str] = set()
            for path in self.folder.glob(f"{self._journals}.lost-*"):
                lost |= set(path.read_text(errors="replace").splitlines())
            for path in sorted(self.folder.glob(f"{self._journals}-*")):
                for line in path.read_bytes().splitlines():
                    entry = parse_line(line)
                    if entry is None or not self._fits(entry) or entry_id(path.name, entry) in lost:
                        continue
                    self.entries[entry.step, entry.piece.first] = entry
                    self._journal_of[entry] = path.name

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
            note = self.folder / f"{self._journals}.lost-{os.urandom(8).hex()}"
            note.touch()
            before = note.stat().st_mtime - SETTLED_S
            names = {self._journal_of[entry] for entry in lost}
            old = {n for n in names if (self.folder / n).stat().st_mtime < before}
            claims = [entry_id(self._journal_of[e], e) for e in lost if self._journal_of[e] in old]
            write_file(note, "".join(f"{claim}\n" for claim in claims))

    def sync(self, drop_cached: bool = False) -> None:
        """Flush everything to the storage; `drop_cached` frees its memory. OutputError."""
        with output_errors(self.out):
            for fd in (*(file.fd for file in self.files), self._journal):
                os.fsync(fd)
        for file in self.files if drop_cached else ():
            file.drop_cached()

    def close(self) -> None:
        """Close all files. OutputError: some file systems report lost writes only now."""
        files, journal = self.files, self._journal
        self.files, self._journal = [], -1
        with output_errors(self.out), contextlib.ExitStack() as closing:
            if journal >= 0:
                closing.callback(os.close, journal)
            for file in files:
                closing.callback(file.close)

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
        return journal_prefix(self.plan.key)

    def _discard(self, resume: bool) -> None:
        """Remove all but locks and files that ranks of this merge may have created."""
        names = [unfinished(shard.name) for shard in self.plan.layout.shards]
        # The key stays until it is replaced, or a starting rank would see shards without one.
        clear(self.folder, (*names, KEY), self._journals if resume else "")

    def _fits(self, entry: Entry) -> bool:
        if not 0 <= entry.step < len(self.plan.steps):
            return False
        blocks = self.plan.steps[entry.step].grid.blocks
        return entry.piece.first >= 0 and entry.piece.first + entry.piece.blocks <= blocks

    def _is_intact(self, entry: Entry) -> bool:
        step = self.plan.steps[entry.step]
        start, stop = step.grid.span(entry.piece.first, entry.piece.blocks)
        position, end = (step.offset + n * step.dtype.bytes for n in (start, stop))
        parts, buffer = [], bytearray(min(VERIFY_BYTES, end - position))
        while position < end:
            data = memoryview(buffer)[: end - position]
            got = os.preadv(self.files[step.shard].fd, [data], position)
            if not got:
                return False
            parts.append(checksum(data[:got], position))
            position += got
        return total(parts) == entry.checksum


def clear(folder: Path, names: Collection[str] = (), prefix: str = "") -> None:
    """Empty a partial folder except for locks, these names and names with this prefix."""
    for path in folder.iterdir():
        kept = path.name in names or (prefix and path.name.startswith(prefix))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not kept and not path.name.startswith(PASSING):
            path.unlink(missing_ok=True)


def remove_partial(out: Path) -> None:
    """Remove the partial folder, renaming it first: other ranks may be reading it."""
    trash = out / f"{PARTIAL}-{os.urandom(4).hex()}"
    with output_errors(out), contextlib.suppress(FileNotFoundError):
        (out / PARTIAL).rename(trash)  # unless another rank has done so
    shutil.rmtree(trash, ignore_errors=True)
