"""The payload: the same bytes everywhere, small, runnable, and bare of what it need not hold."""

import base64
import bz2
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import worker
from launcher import payload
from worker import methods

SOURCES = Path(worker.__file__).parent


def copied(target: Path) -> Path:
    """The worker as another checkout has it: other times, other modes, and litter."""
    for path in SOURCES.rglob("*.py"):
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
    there, here = payload.build(copied(tmp_path / "worker")), payload.build(SOURCES)
    assert (there.archive, there.packed) == (here.archive, here.packed)


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    folder = copied(tmp_path / "worker")
    code = (
        "import sys, pathlib\nfrom launcher import payload\n"
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
    assert names == sorted(names)
    assert {
        "__main__.py",
        "worker/__init__.py",
        "worker/cli.py",
        "worker/methods/linear.py",
    } <= set(names)
    for member in members:
        assert member.compress_type == zipfile.ZIP_STORED
        assert member.date_time == (1980, 1, 1, 0, 0, 0)
        assert (member.external_attr >> 16, member.create_system) == (0o600, 3)


def text_of(made: payload.Payload) -> Iterator[str]:
    """What is packed: each member behind its name."""
    archive = zipfile.ZipFile(io.BytesIO(made.archive))
    for member in archive.namelist():
        text = archive.read(member).decode()
        assert payload.BEGIN not in text
        yield f"{payload.BEGIN}{member}\n{text}"


def test_encoded_is_the_archive_and_the_digest_is_of_it() -> None:
    made = payload.build()
    packed = base64.b64decode(made.wrapped())
    assert base64.b64decode(made.encoded) == packed
    assert bz2.decompress(packed).decode() == "".join(text_of(made))
    assert hashlib.sha256(packed).hexdigest() == made.packed_digest
    assert hashlib.sha256(made.archive).hexdigest() == made.digest
    assert max(map(len, made.wrapped().splitlines())) == 76


def test_the_same_recipe_gives_the_same_payload() -> None:
    recipe = b"merge_method: TIES\nmodels: []\n"
    first = payload.build(methods=payload.methods_of(recipe))
    again = payload.build(methods=payload.methods_of(recipe + b"# and a comment\n"))
    assert (first.archive, first.packed) == (again.archive, again.packed)
    assert first.digest != payload.build().digest


@pytest.mark.parametrize(
    ("recipe", "methods"),
    [
        ('{"merge_method": "linear", "models": []}', {"linear"}),
        ("merge_method: Dare_TIES", {"dare_ties"}),
        ("name: a\nmerge_method: ties\n---\nmerge_method: slerp\n", {"ties", "slerp"}),
        (
            "a: &a {merge_method: sce}\nmodels: [{use: *a}, {x: [{merge_method: cabs}]}]",
            {"sce", "cabs"},
        ),
        ("\ufeffmerge_method: ties # merge_method: slerp\n", {"ties"}),
        ("merge_method: 3", set()),
    ],
)
def test_the_methods_that_a_recipe_names(recipe: str, methods: set[str]) -> None:
    assert payload.methods_of(recipe.encode()) == methods


def test_every_payload_says_of_which_worker_it_is_a_part(tmp_path: Path) -> None:
    folder = copied(tmp_path / "worker")
    digests = set()
    for part in (None, frozenset({"ties"})):
        archive = zipfile.ZipFile(io.BytesIO(payload.build(folder, part).archive))
        digests.add(archive.read("worker/__init__.py").decode().splitlines()[-1])
    assert digests == {f'__sources__ = "{payload.sources_digest(SOURCES)}"'}
    (folder / "methods" / "slerp.py").write_text("changed = 1\n")
    assert payload.sources_digest(folder) != payload.sources_digest(SOURCES)


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
    assert (done.returncode, done.stdout) == (0, f"merge-worker {worker.__version__}\n"), (
        done.stderr
    )


def methods_of(archive: Path, *words: str) -> str:
    argv = [sys.executable, str(archive), "methods", *words]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_archive_tells_its_methods_without_docstrings(tmp_path: Path) -> None:
    archive = tmp_path / "merge-worker.pyz"
    archive.write_bytes(payload.build().archive)
    lines = methods_of(archive).splitlines()
    assert [line.split()[0] for line in lines] == list(methods.names())
    assert re.fullmatch("linear +weight, normalize", lines[methods.names().index("linear")])
    page = methods_of(archive, "linear")
    assert page.startswith("linear\n\nmodels: 1 or more;")
    assert "  weight (float per model, required)\n" in page
