"""The unfinished output: shards at their final size under other names, and a journal of pieces.

All of it lies in `OUT/.merge-partial`, so that nothing in OUT looks like a model before `finish`.
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
"""After this long, what was written on one host can be read on all others."""


class PartialOutput:
    """Shards and journal of one plan in OUT. Writing is safe from any thread."""

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
        """Take the folder for this merge; what another one left in it goes away. OutputError."""
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
                self._forget_made()

    def _forget_made(self) -> NoReturn:
        """Another rank moves the shards to their names: what was made here in their place is none,
        and would be moved in a later run if that rank were killed now."""
        for file in self.files:
            if file.made:
                file.path.unlink(missing_ok=True)
        raise OutputError(f"{self.out}: another rank has just finished; run the same command again")

    def write(
        self,
        work: tuple[int, Step],
        piece: Piece,
        data: memoryview,
        nonfinite: int,
        same: tuple[int, int] | None = None,
    ) -> None:
        """Put a piece at its place, then note it in the journal. OutputError.

        `same` is an open file and the offset where it has these very bytes.
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
        """Take over what the journals of all processes, living and dead, say is done."""
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
        """Finished pieces by step; none of them overlap."""
        return {n: [entry.piece for entry in entries] for n, entries in self.by_step().items()}

    def complete(self) -> bool:
        """Whether every block of every step is done."""
        done = self.done()
        return all(
            sum(piece.blocks for piece in done.get(number, ())) == step.grid.blocks
            for number, step in enumerate(self.plan.steps)
        )

    def drop_damaged(self, threads: int, stop: StopFlag | None = None) -> int:
        """Forget entries whose bytes are not in the shards any more; returns how many.

        All are read, which takes as long as the storage does; `stop` ends it early. Stopped.
        """

        def there(entry: Entry) -> bool:
            if stop is not None and stop.is_set():
                raise Stopped(f"{stop.reason}; run the same command again to continue")
            with output_errors(self.out):
                return self._is_intact(entry)

        with ThreadPoolExecutor(threads) as pool:
            entries = list(self.entries.values())
            good = list(pool.map(there, entries))
        lost = [entry for entry, there in zip(entries, good, strict=True) if not there]
        for entry in lost:
            del self.entries[entry.step, entry.piece.first]
        if lost:
            self._note_lost(lost)
        return len(lost)

    def _note_lost(self, lost: Sequence[Entry]) -> None:
        """Tell other ranks, who may be waiting for nothing else than what that journal claims.

        Not of fresh journals: what a living rank has just written may not be seen here yet.
        """
        with output_errors(self.out):
            note = self.folder / f"{self._journals}.lost-{os.urandom(8).hex()}"
            note.touch()
            before = note.stat().st_mtime - SETTLED_S
            names = {self._journal_of[entry] for entry in lost}
            old = {n for n in names if (self.folder / n).stat().st_mtime < before}
            claims = [entry_id(self._journal_of[e], e) for e in lost if self._journal_of[e] in old]
            write_file(note, "".join(f"{claim}\n" for claim in claims))

    def sync(self, forget: bool = False) -> None:
        """Force everything written here to the storage, and out of memory. OutputError."""
        with output_errors(self.out):
            for fd in (*(file.fd for file in self.files), self._journal):
                os.fsync(fd)
        for file in self.files if forget else ():
            file.forget()

    def close(self) -> None:
        """OutputError: some systems tell only now that what was written is lost."""
        files, journal = self.files, self._journal
        self.files, self._journal = [], -1
        with output_errors(self.out), contextlib.ExitStack() as every:
            if journal >= 0:
                every.callback(os.close, journal)
            for file in files:
                every.callback(file.close)

    def remove_leftovers(self) -> None:
        """Remove what a run left that was killed in `remove_partial`."""
        for trash in self.out.glob(f"{PARTIAL}-*"):
            shutil.rmtree(trash, ignore_errors=True)

    @property
    def _journals(self) -> str:
        """How journals begin; other ranks may be here before what an older merge left is gone."""
        return journal_prefix(self.plan.key)

    def _discard(self, resume: bool) -> None:
        """Remove all but locks and what ranks of this merge may have made by now."""
        names = [unfinished(shard.name) for shard in self.plan.layout.shards]
        # The key stays until it is replaced: a rank that begins now would see shards without one.
        clear(self.folder, (*names, KEY), self._journals if resume else "")

    def by_step(self) -> dict[int, list[Entry]]:
        """The journal in order of place, without what two processes did twice."""
        grouped: dict[int, list[Entry]] = {}
        for entry in sorted(self.entries.values(), key=lambda e: (e.step, e.piece.first)):
            kept = grouped.setdefault(entry.step, [])
            if not kept or entry.piece.first >= kept[-1].piece.first + kept[-1].piece.blocks:
                kept.append(entry)
        return grouped

    def forget_nonfinite(self) -> None:
        """What an earlier run was allowed to merge with NaN or Inf is to be done again."""
        for place, entry in list(self.entries.items()):
            if entry.nonfinite and self.plan.steps[entry.step].task is not None:
                del self.entries[place]

    def nonfinite(self) -> int:
        """NaN and Inf of everything that is done."""
        return sum(entry.nonfinite for entries in self.by_step().values() for entry in entries)

    def _fits(self, entry: Entry) -> bool:
        if not 0 <= entry.step < len(self.plan.steps):
            return False
        blocks = self.plan.steps[entry.step].grid.blocks
        return entry.piece.first >= 0 and entry.piece.first + entry.piece.blocks <= blocks

    def _is_intact(self, entry: Entry) -> bool:
        step = self.plan.steps[entry.step]
        start, stop = step.grid.span(entry.piece.first, entry.piece.blocks)
        position, end = (step.offset + n * step.dtype.bytes for n in (start, stop))
        found, room = [], bytearray(min(VERIFY_BYTES, end - position))
        while position < end:
            data = memoryview(room)[: end - position]
            got = os.preadv(self.files[step.shard].fd, [data], position)
            if not got:
                return False
            found.append(checksum(data[:got], position))
            position += got
        return total(found) == entry.checksum


def clear(folder: Path, names: Collection[str] = (), prefix: str = "") -> None:
    """Empty a partial folder except for locks, these names and names with this prefix."""
    for path in folder.iterdir():
        kept = path.name in names or (prefix and path.name.startswith(prefix))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not kept and not path.name.startswith(PASSING):
            path.unlink(missing_ok=True)


def remove_partial(out: Path) -> None:
    """Remove the partial folder, renamed first: other ranks may look into it now."""
    trash = out / f"{PARTIAL}-{os.urandom(4).hex()}"
    with output_errors(out), contextlib.suppress(FileNotFoundError):
        (out / PARTIAL).rename(trash)  # unless another rank has done so
    shutil.rmtree(trash, ignore_errors=True)
