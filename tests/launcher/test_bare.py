"""Sources read once and kept: the same job, without reading them again, whatever lies there."""

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import worker
from launcher import bare, payload

LINEAR = frozenset({"linear"})
# The build itself, not the one that the tests of this folder share.
BUILD = "import sys; from launcher import bare, payload; "
BUILD += "print(payload.build(methods=frozenset({'linear'})).packed_digest); bare.keep()"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has just begun."""
    monkeypatch.setattr(bare, "_used", {})
    bare._kept.cache_clear()
    yield
    bare._kept.cache_clear()


def forget() -> None:
    bare._used.clear()
    bare._kept.cache_clear()


def built() -> bytes:
    return payload.build.__wrapped__(methods=LINEAR).packed


def never(*words: object) -> None:
    raise AssertionError("a source was parsed")


def test_what_is_kept_is_not_read_again(fresh, monkeypatch) -> None:
    first = built()
    bare.keep()
    forget()
    monkeypatch.setattr(ast, "parse", never)
    assert built() == first


def test_other_sources_are_other_entries(fresh) -> None:
    assert bare.of("a.py", "x = 1  # one\n") == ("x = 1\n", ())
    bare.keep()
    forget()
    assert bare.of("a.py", "x = 2  # two\n").text == "x = 2\n"
    text = "def f():\n    with needed('hub'):\n        from . import b\n"
    assert ("b.py", ("hub",)) in bare.of("a.py", text).imports
    assert ("c/b.py", ("hub",)) in bare.of("c/a.py", text).imports


@pytest.mark.parametrize("damage", ["bit", "half", "empty", "list", "binary"])
def test_a_damaged_file_is_not_believed(fresh, damage: str) -> None:
    first = built()
    bare.keep()
    whole = bare.path().read_bytes()
    middle = len(whole) // 2
    changed = {
        "bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "half": whole[:middle],
        "empty": b"",
        "list": b"4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945\n[]",
        "binary": b"\xff\xfe",
    }
    bare.path().write_bytes(changed[damage])
    forget()
    assert built() == first
    bare.keep()
    assert bare.path().read_bytes() == whole


def test_a_file_of_somebody_else_is_not_believed(fresh, monkeypatch) -> None:
    built()
    bare.keep()
    forget()
    monkeypatch.setattr(os, "getuid", lambda: bare.path().stat().st_uid + 1)
    monkeypatch.setattr(ast, "parse", never)
    with pytest.raises(AssertionError, match="was parsed"):
        built()


def test_without_a_cache_folder(fresh, tmp_path: Path) -> None:
    (tmp_path / "home" / ".cache").write_text("a file")
    first = built()
    bare.keep()
    forget()
    assert built() == first


def test_entries_of_long_ago_go(fresh, tmp_path: Path) -> None:
    folder = bare.path().parent
    folder.mkdir(parents=True)
    for name, age_s in (("sources-old.json", bare.OLD_S + 60), ("sources-new.json", 60)):
        (folder / name).touch()
        then = (folder / name).stat().st_mtime - age_s
        os.utime(folder / name, (then, then))
    built()
    bare.keep()
    names = {path.name for path in folder.iterdir()}
    assert names == {bare.path().name, "sources-new.json"}


def test_many_processes_at_once(fresh, launch) -> None:
    root = str(Path(worker.__file__).parents[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD],
            env={**os.environ, "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = {each.communicate(timeout=120)[0] for each in started}
    assert {each.returncode for each in started} == {0}
    assert len(said) == 1
    assert bare._kept() and len(list(bare.path().parent.iterdir())) == 1


def test_only_submissions_write(launch_process, fakes, models, tmp_path: Path) -> None:
    shown = launch_process("render", "pbs", "out", *models)
    assert shown.code == 0 and not (tmp_path / "home" / ".cache").exists()
    assert launch_process("pbs", "out", *models).code == 0
    assert bare.path().is_file()
    assert launch_process("render", "pbs", "out", *models).out == shown.out


def test_a_job_id_within_a_second(launch_process, fakes, models) -> None:
    """Of processor time, the fake qsub's too; threefold, for machines that are slow or busy."""
    assert launch_process("pbs", "out0", *models).code == 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for number in (1, 2):
        assert launch_process("pbs", f"out{number}", *models).code == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used_s / 2 < 3
