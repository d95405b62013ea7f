"""The payload: the same bytes everywhere, small, runnable, and bare of what it need not hold."""

import ast
import base64
import bz2
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import worker
from launcher import payload
from launcher.errors import UsageError
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
    assert payload.pack(copied(tmp_path / "worker")) == payload.pack(SOURCES)


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
        assert (member.external_attr >> 16, member.create_system) == (0o100644, 3)


def test_encoded_is_the_archive_and_the_digest_is_of_it() -> None:
    made = payload.build()
    packed = base64.b64decode(made.wrapped())
    assert base64.b64decode(made.encoded) == packed
    assert bz2.decompress(packed) == made.archive
    assert hashlib.sha256(packed).hexdigest() == made.packed_digest
    assert hashlib.sha256(made.archive).hexdigest() == made.digest
    assert max(map(len, made.wrapped().splitlines())) == 76


def test_the_budget_is_kept() -> None:
    # 4 KiB less than what is refused: a worker that grows is to be noticed before it cannot ship.
    assert len(payload.build().encoded) < 92 * 1024
    assert payload.BUDGET_BYTES == 96 * 1024


def test_a_worker_beyond_the_budget_is_refused_with_its_size(tmp_path: Path) -> None:
    folder = copied(tmp_path / "worker")
    size = len(payload.build(folder).encoded)
    with pytest.raises(UsageError, match=f"{size} bytes encoded, more than the 1000"):
        payload.build(folder, budget=1000)


def code_of(text: str) -> str:
    """The syntax tree with line numbers, less the strings that are statements."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and len(body) > 1:
            body[:] = [each for each in body if not is_string(each)]
    return ast.dump(tree, include_attributes=True)


def is_string(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.stem)
def test_without_words_the_code_stays_where_it_was(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert code_of(payload.without_words(text)) == code_of(text)


def test_words_go_and_lines_stay() -> None:
    text = 'x = 1  # one\n# it\'s 2\ny = f"""  # 3\n# {x}\n"""\ny = """\n  # 4\n"""\n  # 5\n'
    bare = 'x = 1\n\ny = f"""  # 3\n# {x}\n"""\ny = """\n  # 4\n"""\n\n'
    assert payload.without_words(text) == bare


def test_a_sign_within_a_string_is_no_comment() -> None:
    text = "x = 'a  # b', \"  # c\"\n"
    assert payload.without_words(text) == text
    assert payload.without_words(text.replace("\n", "  # d\n")) == text


def test_docstrings_that_are_a_body_or_share_a_line_stay() -> None:
    text = 'class A(Exception):\n    """Why."""\n\n\ndef f(): "short"; return 1\n"a"; b = "c"\n'
    assert payload.without_words(text) == text


def test_strings_below_names_go_too() -> None:
    text = 'x = 1\n"""Of x,\n# in two lines."""\n\nif x:\n    y = 2\nelse:\n    y = 3\n    "3."\n'
    bare = "x = 1\n\n\n\nif x:\n    y = 2\nelse:\n    y = 3\n\n"
    assert payload.without_words(text) == bare


def test_a_string_that_is_continued_is_no_comment() -> None:
    text = 'x = "a\\\n# b"\n'
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
