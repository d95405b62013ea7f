"""Contents of an installation: two top-level names, the templates inside one of them."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*argv: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run([*map(str, argv)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def pip(*words: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation the build backend is the one of the environment: no network.
    pip("wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT)
    (built,) = folder.glob("merge_launch-*.whl")
    return built


def test_top_level_of_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "merge_launch",
        "merge_worker",
    }


def test_the_wheel_holds_every_module_and_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    templates = {
        f"merge_launch/templates/{path.name}" for path in (ROOT / "templates").glob("*.j2")
    }
    assert templates
    modules = {
        path.relative_to(ROOT / folder).as_posix()
        for folder in ("launcher", "worker")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert sorted((templates | modules) - names) == []


def test_the_licence_travels_along(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_an_installed_wheel_renders_a_job(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--target", tmp_path / "site", wheel)
    # From elsewhere, so that the checkout is not on the path; -P is of 3.11, hence the file.
    script = tmp_path / "render.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import merge_launch, merge_worker\n"
        "print(merge_launch.__file__, file=sys.stderr)\n"
        f"assert merge_launch.__file__.startswith({str(tmp_path)!r}), merge_launch.__file__\n"
        "assert merge_launch.__version__ == merge_worker.__version__\n"
        "from merge_launch.cli import main\n"
        "sys.argv = ['merge-launch', 'slurm', '/out', '/m1', '/m2', '--dry-run']\n"
        "main()\n",
        encoding="utf-8",
    )
    text = run(sys.executable, script, cwd=tmp_path)
    assert text.startswith("#!")
    assert "#SBATCH" in text


def test_an_editable_install_sees_the_templates_as_they_are(tmp_path: Path) -> None:
    pip("install", "--no-build-isolation", "--no-deps", "--target", tmp_path, "-e", ROOT)
    (link,) = tmp_path.glob("*.pth")
    assert {Path(line) for line in link.read_text().split()} == {ROOT / "launcher", ROOT / "worker"}
    # A copy inside the installation would go stale at the first edit.
    assert list(tmp_path.rglob("*.j2")) == []


def test_the_source_archive_can_run_its_own_tests(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path)
    (archive,) = tmp_path.glob("merge_launch-*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    wanted = {"pyproject.toml", "scripts/test", "tests/conftest.py", "templates/_worker.sh.j2"}
    assert sorted(wanted - names) == []
