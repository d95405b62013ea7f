"""Turns finished shards into a model folder: sync, side files, final names, the manifest last.

Every step is repeatable: a run that is stopped here is finished by the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..checkpoint.dcp_metadata import METADATA
from ..checkpoint.header import CONFIG
from ..errors import OutputError, ResultError
from ..messages import printable
from ..planning.dcp_layout import DcpLayout
from ..planning.plan import Plan
from .blocks import runs
from .checksums import Checksum, Hashes, checksum, total
from .dcp import metadata, write_frames
from .files import (
    ASIDE,
    CARD,
    FINAL_FILES,
    MANIFEST,
    PARTIAL,
    RECIPE,
    opened_folder,
    output_errors,
    path_inside,
    unfinished,
    write_file,
)
from .journal import COMMITTING
from .manifest import manifest, result_sizes
from .model_card import model_card
from .side_files import copy_side_files
from .store import PartialOutput, remove_partial
from .target import Target

_INDEX = ".safetensors.index.json"

GONE = (
    "removed or replaced before it was finished\n"
    "  nothing was finished; --no-resume merges again from the start"
)

Check = Callable[[], None]


def finish(
    store: PartialOutput, target: Target, run: dict[str, Any], sha256: bool
) -> dict[str, Any]:
    """Give everything its final name; returns the manifest. OutputError leaves it repeatable."""
    plan, out = store.plan, store.out
    staged = store.folder / staging_name()
    with output_errors(out):
        staged.mkdir()
        names = copy_side_files(plan, staged)
        for index, text in plan.layout.indexes():
            (staged / index).parent.mkdir(parents=True, exist_ok=True)
            write_file(staged / index, text)
            names.append(index)
        write_file(staged / CARD, model_card(plan, out.resolve().name))
        write_file(staged / RECIPE, plan.recipe.text)
        around: dict[int, list[Checksum]] = {}
        if isinstance(plan.layout, DcpLayout):
            around = write_frames(store, plan.layout)
            write_file(staged / METADATA, metadata(plan, plan.layout))
            names.append(METADATA)
        outputs = _outputs(store, sha256, around)
        _check_reproduced(plan, out, outputs)
        outputs += [
            {"file": name, "bytes": (staged / name).stat().st_size}
            for name in loaders_last([*names, CARD, RECIPE])
        ]
        value = manifest(plan, outputs, run)
    store.check_shards()
    seal(staged, value, target.replaces, store.check)
    return value


def staging_name() -> str:
    """Return a new name for the folder of files of a result, which no other process writes to."""
    return f"{FINAL_FILES}-{os.urandom(8).hex()}"


def loaders_last(names: Iterable[str]) -> list[str]:
    """Sort the files that a loader looks for first behind all others."""
    return sorted(names, key=lambda n: (n == CONFIG, n.endswith(_INDEX), n == METADATA))


def _check_reproduced(plan: Plan, out: Path, outputs: Sequence[Mapping[str, Any]]) -> None:
    """Raise ResultError if a reproduced merge differs from its manifest."""
    for entry in outputs:
        if plan.known_checksums.get(entry["file"], entry["sum128"]) != entry["sum128"]:
            raise ResultError(
                f"{out}: {entry['file']} would differ from the manifest; a model has "
                f"other values now, or the first merge was made on another kind of device\n"
                f"  merge the recipe {RECIPE} to accept the new result"
            )


def seal(staged: Path, value: Mapping[str, Any], replaces: Sequence[str], check: Check) -> None:
    """Commit a merge whose files are whole, in the partial folder and in `staged` there.

    `replaces` are the names of an older merge in OUT, `value` is the manifest. `check` is that of
    `commit`. OutputError leaves it repeatable.
    """
    partial = staged.parent
    out, note = partial.parent, partial / f"{staged.name}.json"
    with output_errors(out):
        write_file(staged / MANIFEST, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        # The storage writes small files together: after the first, the others hardly wait.
        for path in staged.rglob("*"):
            if path.is_file():
                _sync(path)
        _sync(staged)
        write_file(note, json.dumps({"replaces": list(replaces)}), durable=True)
        with _Folders(out) as folders:
            check()
            # Files of a run that was killed here make room.
            folders.move_within(FINAL_FILES, f"{ASIDE}{staged.name}")
            if not folders.move_within(staged.name, FINAL_FILES):
                raise OutputError(f"{out}: {GONE}")
            folders.refuse_missing(result_sizes(partial / FINAL_FILES / MANIFEST), moved=False)
            folders.move_within(note.name, COMMITTING)
            os.fsync(folders.partial)
    commit(out, replaces, check)


def commit(out: Path, replaces: Sequence[str], check: Check) -> None:
    """Rename everything; the manifest makes it a model. Repeatable from any point.

    First all of the older merge goes, its manifest before the rest, so that old and new files are
    never together; then the note says that nothing is left to replace, and the new files come.
    `check` raises OutputError if the partial folder is not this process's any more.
    """
    partial = out / PARTIAL
    with output_errors(out), _Folders(out) as folders:
        check()
        if sizes := result_sizes(partial / FINAL_FILES / MANIFEST):
            folders.refuse_missing(sizes, moved=not replaces)
            if replaces:
                _set_aside(partial, folders, replaces, check)
            for name in sizes:
                path_inside(out, name).parent.mkdir(parents=True, exist_ok=True)
                folders.move_out(name)
            folders.refuse_missing(sizes, moved=True)
            for folder in {(out / name).parent for name in sizes}:
                _sync(folder)
            if not folders.move_out(MANIFEST):
                raise OutputError(f"{out}: {GONE}")
        elif replaces or not (out / MANIFEST).exists():
            raise OutputError(f"{out}: {GONE}")
        _sync(out)
    with contextlib.suppress(OutputError):  # another process has removed it, or has taken it over
        remove_partial(out, check)


def _set_aside(partial: Path, folders: _Folders, replaces: Sequence[str], check: Check) -> None:
    """Move an older merge into the partial folder, and note that nothing is left to replace."""
    aside = f"{ASIDE}{os.urandom(8).hex()}"
    with _unnamed():
        os.mkdir(aside, dir_fd=folders.partial)
    for name in sorted(replaces, key=lambda name: name != MANIFEST):
        check()
        folders.move_aside(name, aside)
    os.fsync(folders.out)
    note = partial / f"{aside}.json"
    write_file(note, json.dumps({"replaces": []}), durable=True)
    folders.move_within(note.name, COMMITTING)
    os.fsync(folders.partial)


class _Folders:
    """OUT and its partial folder, held open as a context.

    Both may be deleted and begun again by others at any moment. Names are looked up in the folders
    that were opened, and a move between them fails if one of these is no more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Folders:
        with contextlib.ExitStack() as opened:
            self.out = opened.enter_context(opened_folder(self._path))
            self.partial = opened.enter_context(opened_folder(self._path / PARTIAL))
            self._close = opened.pop_all().close
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def move_within(self, name: str, new: str) -> bool:
        """Rename a file or folder of the partial folder; False if there is none."""
        return _move(name, new, self.partial, self.partial)

    def move_aside(self, name: str, aside: str) -> bool:
        """Move a file or folder of OUT into a folder in the partial folder."""
        return _move(name, f"{aside}/{name}", self.out, self.partial)

    def move_out(self, name: str) -> bool:
        """Give a file of the result its final name; False if it has it already."""
        return any(_move(place, name, self.partial, self.out) for place in _places(name))

    def refuse_missing(self, sizes: Mapping[str, int], moved: bool) -> None:
        """Raise OutputError unless all files are whole in the partial folder.

        If `moved`, they may have their final names already.
        """
        for name, size in sizes.items():
            found = [self.partial] * 2 + [self.out] * moved
            places = (*_places(name), name)
            sizes_found = (_size(n, folder) for n, folder in zip(places, found, strict=False))
            if next((one for one in sizes_found if one is not None), None) != size:
                raise OutputError(f"{self._path}: '{printable(name)}': {GONE}")


def _places(name: str) -> tuple[str, str]:
    """Return the names in the partial folder under which a file may wait for its final name."""
    return unfinished(name), f"{FINAL_FILES}/{name}"


def _move(name: str, new: str, source: int, target: int) -> bool:
    try:
        os.replace(name, new, src_dir_fd=source, dst_dir_fd=target)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _unnamed() -> Iterator[None]:
    """Take the name out of an OSError: it is relative to a folder that the error does not name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror) from None


def _size(name: str, folder: int) -> int | None:
    """Return the size of a file; None if it is none."""
    try:
        with _unnamed():
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the storage."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _outputs(
    store: PartialOutput, sha256: bool, around: Mapping[int, list[Checksum]]
) -> list[dict[str, Any]]:
    """Return size and checksums of every shard, from the checksums of its pieces, and of what is
    around them."""
    plan, shards = store.plan, store.plan.layout.shards
    parts = [[checksum(memoryview(shard.header), 0)] for shard in shards]
    for shard, sums in around.items():
        parts[shard] += sums
    for number, entries in store.by_step().items():
        step = plan.steps[number]
        for entry in entries:
            if step.blocks is None:
                parts[step.shard].append(entry.checksum)
                continue
            for run, (own, _) in zip(runs(step, entry.piece), entry.parts, strict=True):
                parts[run.shard].append(own)
    outputs: list[dict[str, Any]] = [
        {"file": shard.name, "bytes": shard.size, "sum128": str(total(pieces))}
        for shard, pieces in zip(shards, parts, strict=True)
    ]
    if sha256:
        hashes = store.hashes or Hashes([shard.header for shard in shards])
        sizes = [shard.size for shard in shards]
        paths = [store.folder / unfinished(shard.name) for shard in shards]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            digests = pool.map(hashes.finish, range(len(sizes)), paths, sizes)
            for facts, digest in zip(outputs, digests, strict=True):
                facts["sha256"] = digest
    return outputs
