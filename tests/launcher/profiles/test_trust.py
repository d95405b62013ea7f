"""A file of profiles in a folder that is not the user's runs nothing before it is accepted."""

import os
from pathlib import Path

import pytest

from merge_launch.profiles import file

STRANGER = 54321
WORDS = ("render", "slurm", "out", "m1", "m2")


@pytest.fixture
def here(work: Path) -> Path:
    path = work / file.FILE_NAME
    path.write_text('setup = ["touch ran"]\n')
    return path


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(path, STRANGER, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: STRANGER)


def test_the_file_that_applies_is_named(launch, here: Path) -> None:
    done = launch(*WORDS)
    assert done.code == 0 and "touch ran" in done.out
    assert f"settings of {here} apply" in done.err


def test_the_users_own_file_and_none_are_not_named(launch, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert "settings of" not in launch(*WORDS).err
    folder = tmp_path / "config" / "merge-launch"
    folder.mkdir(parents=True)
    (folder / file.FILE_NAME).write_text("threads = 3\n")
    done = launch(*WORDS)
    assert "--threads=3" in done.out and "settings of" not in done.err


@pytest.mark.parametrize("whose", ["a stranger's", "open to all"])
def test_one_of_others_is_accepted_once(launch, here: Path, whose: str, monkeypatch) -> None:
    if whose == "open to all":
        here.chmod(0o666)
    else:
        give_away(here, monkeypatch)
    for words in (WORDS, ("check", "out", "m1", "m2"), ("local", "out", "m1", "m2")):
        done = launch(*words)
        assert done.code == 2 and "touch ran" not in done.out
        assert f"{here.name}: not yours" in done.err and "merge-launch profile trust" in done.err
    assert launch("profile", "check").code == 0, "it may be read"
    assert launch("profile", "trust").code == 0
    for _ in range(2):
        done = launch(*WORDS)
        assert done.code == 0 and f"settings of {here} apply" in done.err


def test_another_folder_is_not_accepted_with_it(launch, here: Path, monkeypatch) -> None:
    here.chmod(0o666)
    assert launch("profile", "trust").code == 0
    other = here.parent / "other"
    other.mkdir()
    (other / file.FILE_NAME).write_text("threads = 2\n")
    (other / file.FILE_NAME).chmod(0o666)
    monkeypatch.chdir(other)
    assert launch(*WORDS).code == 2
    (other / file.FILE_NAME).unlink()
    assert "not found" in launch("profile", "trust").err


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 50_000,
        "threads = 0x" + "f" * 5000,
        "threads = " + "9" * 5000,
        "a" + ".a" * 100_000 + " = 1",
        "x = '''" + "y" * 300_000 + "'''",
        "\x1b[2J = 1",
        '"\\u001b[2J" = 1',
    ],
)
def test_odd_files_are_told_in_words(launch, here: Path, text: str) -> None:
    here.write_text(text)
    done = launch(*WORDS)
    assert done.code == 2 and here.name in done.err and "\x1b" not in done.err
