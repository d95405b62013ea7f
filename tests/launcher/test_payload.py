"""The payload: the same bytes everywhere, small, runnable, and bare of what it need not hold."""

import ast
import base64
import gzip
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import worker
from launcher import payload
from launcher.errors import UsageError

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
    assert payload.pack(copied(tmp_path / "worker")) == payload.pack(SOURCES)


def test_bytes_do_not_depend_on_the_process() -> None:
    code = "from launcher import payload; print(payload.build().digest)"
    env = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Tokyo",
        "PYTHONPATH": str(SOURCES.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=env,
        check=True,
        umask=0o077,
    )
    assert done.stdout.strip() == payload.build().digest


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
        assert (member.external_attr >> 16, member.create_system) == (0o100644, 3)


def test_encoded_is_the_archive_and_the_digest_is_of_it() -> None:
    made = payload.build()
    zipped = base64.b64decode(made.wrapped())
    assert gzip.decompress(zipped) == made.archive
    assert zipped[4:8] == b"\0\0\0\0", "a time in the gzip header"
    assert hashlib.sha256(made.archive).hexdigest() == made.digest
    assert max(map(len, made.wrapped().splitlines())) == 76


def test_the_budget_is_kept() -> None:
    made = payload.build()
    assert len(made.encoded) < 160 * 1024, "time to ship less, or to raise the budget knowingly"
    assert all(len(chunk) <= 96 * 1024 for chunk in made.chunks())


def test_a_worker_beyond_the_budget_is_refused_with_its_size() -> None:
    size = len(payload.build().encoded)
    with pytest.raises(UsageError, match=f"{size} bytes encoded, more than the 1000"):
        payload.build(budget=1000)


def test_chunks_join_to_the_whole() -> None:
    made = payload.build()
    chunks = made.chunks(1000)
    assert "".join(chunks) == made.encoded
    assert {len(chunk) for chunk in chunks[:-1]} == {1000}
    assert "".join(made.chunks()) == made.encoded


def code_of(text: str) -> str:
    """The syntax tree with line numbers, less the docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and len(body) > 1 and isinstance(body[0], ast.Expr):
            constant = body[0].value
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                del body[0]
    return ast.dump(tree, include_attributes=True)


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.stem)
def test_without_words_the_code_stays_where_it_was(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert code_of(payload.without_words(text)) == code_of(text)


def test_words_go_and_lines_stay() -> None:
    text = 'x = 1  # one\n# two\ny = f"""\n# {x}\n"""\ny = """\n  # 4\n"""\n  # 5\n'
    bare = 'x = 1  # one\n\ny = f"""\n# {x}\n"""\ny = """\n  # 4\n"""\n\n'
    assert payload.without_words(text) == bare


def test_docstrings_that_are_a_body_or_share_a_line_stay() -> None:
    text = 'class A(Exception):\n    """Why."""\n\n\ndef f(): "short"; return 1\n'
    assert payload.without_words(text) == text


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


def test_methods_keep_their_pages(tmp_path: Path) -> None:
    archive = tmp_path / "merge-worker.pyz"
    archive.write_bytes(payload.build().archive)
    done = subprocess.run(
        [sys.executable, str(archive), "methods", "linear"], capture_output=True, text=True
    )
    assert "Σ" in done.stdout, done.stderr
