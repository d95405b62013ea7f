"""The digest of the code that computes the numbers of a merge."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import merge_worker
from merge_worker.output.code import PARTS, code_digest

PACKAGE = Path(merge_worker.__file__).parent
PRINT = "from merge_worker.output.code import code_digest; print(code_digest())"


def digest_of(place: Path) -> str:
    """Return the digest that a worker in a folder or zip gives itself."""
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1]); {PRINT}"]
    return subprocess.check_output([*words, str(place)], text=True, cwd="/").strip()


def test_a_zip_and_a_folder_are_one_worker(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "worker.pyz", "w") as archive:
        for path in PACKAGE.rglob("*"):
            if path.suffix in (".py", ".yml"):
                archive.write(path, Path(PACKAGE.name, path.relative_to(PACKAGE)))
    assert digest_of(tmp_path / "worker.pyz") == code_digest()


def test_what_changes_it(tmp_path: Path) -> None:
    """Arithmetic does, words and the version do not."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name)

    def with_comment(name: str) -> str:
        with (tmp_path / PACKAGE.name / name).open("a") as file:
            file.write("\n# altered\n")
        return digest_of(tmp_path)

    for name in ("__init__.py", "cli.py", "messages.py", "output/lock.py"):
        assert with_comment(name) == code_digest()
    seen = {code_digest()}
    for name in ("algorithms/gram.py", "methods/ties.py", "dtypes.py", "engine/lane.py"):
        seen.add(with_comment(name))
    assert len(seen) == 5


def test_all_parts_are_there() -> None:
    assert all((PACKAGE / part).exists() for part in PARTS)
