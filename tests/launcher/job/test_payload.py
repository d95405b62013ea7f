"""The payload: the same bytes everywhere, small enough for every job, once in each script."""

import base64
import bz2
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import merge_worker
from merge_launch.job import payload

SOURCES = Path(merge_worker.__file__).parent
MOST_BYTES = 700_000
"""Most base64 in a job: a third of what the arguments of a Beaker job may hold, and the script of a
PBS job stays below 1 MiB."""


def copied(target: Path) -> Path:
    """Copy the worker with other times, other modes, and files that do not belong to it."""
    for path in (each for each in SOURCES.rglob("*") if each.suffix in payload.SUFFIXES):
        copy = target / path.relative_to(SOURCES)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
        os.utime(copy, (1_500_000_000, 1_500_000_000))
    (target / "__pycache__").mkdir()
    (target / "__pycache__" / "left.py").write_text("litter = 1\n")
    (target / "tests").mkdir()
    (target / "tests" / "test_it.py").write_text("litter = 1\n")
    (target / "notes.txt").write_text("litter\n")
    return target


def test_bytes_do_not_depend_on_the_checkout(tmp_path: Path) -> None:
    there, here = payload.build(copied(tmp_path / "merge_worker")), payload.build(SOURCES)
    assert (there.archive, there.packed) == (here.archive, here.packed)


def test_two_builds_are_equal() -> None:
    first = payload.build()
    payload.build.cache_clear()
    again = payload.build()
    assert first is not again and first == again


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    folder = copied(tmp_path / "merge_worker")
    code = (
        "import sys, pathlib\nfrom merge_launch.job import payload\n"
        "print(payload.build(pathlib.Path(sys.argv[1])).digest)"
    )
    env = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Tokyo",
        "PYTHONPATH": str(SOURCES.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        env=env,
        check=True,
        umask=0o077,
    )
    assert done.stdout.strip() == payload.build(folder).digest


def test_members() -> None:
    members = zipfile.ZipFile(io.BytesIO(payload.build().archive)).infolist()
    names = [member.filename for member in members]
    files = [each for each in SOURCES.rglob("*") if each.suffix in payload.SUFFIXES]
    assert names == [
        "__main__.py",
        *sorted(f"merge_worker/{p.relative_to(SOURCES)}" for p in files),
    ]
    assert {
        "merge_worker/cli.py",
        "merge_worker/drawing/page.html",
        "merge_worker/conversion/known_layouts.yml",
        "merge_worker/structure/implied_fields.yml",
        "merge_worker/methods/ties.py",
    } <= set(names)
    for member in members:
        assert member.compress_type == zipfile.ZIP_STORED
        assert member.date_time == (1980, 1, 1, 0, 0, 0)
        assert (member.external_attr >> 16, member.create_system) == (0o600, 3)


def test_nothing_of_the_worker_stays_behind() -> None:
    """A new kind of file has to be packed too; py.typed is for type checkers alone."""
    kinds = {path.suffix for path in SOURCES.rglob("*") if path.is_file()}
    assert kinds - {".pyc", ".typed"} == set(payload.SUFFIXES)


def test_encoded_is_the_archive_and_the_digest_is_of_it() -> None:
    worker = payload.build()
    assert base64.b64decode(worker.embedded.lines) == base64.b64decode(worker.embedded.encoded)
    assert bz2.decompress(base64.b64decode(worker.embedded.encoded)) == worker.archive
    assert hashlib.sha256(worker.archive).hexdigest() == worker.digest
    assert hashlib.sha256(worker.packed).hexdigest() == worker.embedded.digest
    assert max(map(len, worker.embedded.lines.splitlines())) == 76
    assert "".join(worker.embedded.chunks) == worker.embedded.encoded
    assert max(map(len, worker.embedded.chunks)) <= 96 * 1024


def test_it_is_small_enough_for_every_job() -> None:
    assert len(payload.build().embedded.encoded) < MOST_BYTES


def test_an_empty_file_travels_too() -> None:
    assert payload.EmbeddedFile("recipe.yml", b"").chunks == [""]


def test_the_archive_runs_where_a_foreign_worker_lies_about(tmp_path: Path) -> None:
    archive = tmp_path / "merge-worker.pyz"
    archive.write_bytes(payload.build().archive)
    (tmp_path / "worker.py").write_text("raise SystemExit('foreign')\n")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(archive), "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
    )
    assert (done.returncode, done.stdout) == (0, f"merge-worker {merge_worker.__version__}\n"), (
        done.stderr
    )


def test_a_changed_worker_has_another_digest(tmp_path: Path) -> None:
    folder = copied(tmp_path / "merge_worker")
    (folder / "methods" / "slerp.py").write_text("changed = 1\n")
    assert payload.build(folder).digest != payload.build().digest


@pytest.mark.parametrize("size", [1, 96 * 1024 * 3 // 4, 96 * 1024])
def test_chunks(size: int) -> None:
    embedded = payload.EmbeddedFile("x", bytes(size))
    assert base64.b64decode("".join(embedded.chunks)) == bytes(size)
    assert len(embedded.chunks) == 1 + (size * 4 // 3 > 96 * 1024)


def workers_in(script: Path) -> int:
    return script.read_text().count(payload.build().embedded.lines[:500])


@pytest.mark.parametrize(("backend", "ending"), [("slurm", "sbatch"), ("pbs", "pbs")])
def test_an_array_keeps_the_worker_in_one_file(
    backend: str, ending: str, launch, sweep: Path, fakes
) -> None:
    assert launch("sweep", "s.yml", backend, "--array").code == 0
    members = [sweep / f"w{n}.job" / f"w{n}.{ending}" for n in (1, 3, 7)]
    array = sweep.with_name("runs.job") / f"s-0.{ending}"
    assert [workers_in(script) for script in (*members, array)] == [0, 0, 0, 0]
    (worker,) = array.parent.glob("*-merge-worker.pyz.bz2")
    assert worker.read_bytes() == payload.build().packed


def test_one_pass_over_several_recipes_holds_it_once(launch, sweep: Path, fakes) -> None:
    assert launch("sweep", "s.yml", "slurm", "--one-pass").code == 0
    (script,) = sweep.parent.rglob("*.sbatch")
    assert workers_in(script) == 1
    assert script.read_text().count("\nMERGE_RECIPE_YML\n") == 3
