"""Contents of an installation: two top-level names, the templates inside one of them."""

import os
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


USERS_SCRIPT = """
from collections.abc import Iterator
from pathlib import Path

import merge_launch as ml
import merge_worker as mw
from merge_worker import Plan, Result, merge_method
from torch import Tensor


@merge_method
def scaled(*, weight: list[float]) -> list[float]:
    return [2 * w for w in weight]


@mw.merge_method(base="required", models=(1, 1))
def close(*tensors: Tensor, limit: float) -> Tensor:
    return tensors[0]


def show(done: int, total: int) -> None:
    print(done / total)


plan: Plan = mw.plan({"merge_method": scaled}, methods=[close, "my.py"], dtype="bfloat16", seed=1)
average: Plan = mw.average([Path("a"), "b"], weights=[1, 2], memory="4GiB")
result: Result = mw.merge(plan, "out", progress=show, overwrite=True, sha256=True)
seconds: float = result.seconds
shape: tuple[int, ...] = plan.tensors["x"].shape
one: Iterator[tuple[str, Tensor]] = mw.stream(plan)
many: Iterator[tuple[str, tuple[Tensor | None, ...]]] = mw.stream([plan, average], dtype="float32")
state: dict[str, Tensor] = mw.merge_state_dicts([dict(one)], "ties", dict(one), weight=0.5)
recipe: str | None = mw.compare(["a", "b"], base="c").recipe
try:
    mw.verify("out")
except mw.errors.InputError as error:
    texts: list[str] = [fault.text for fault in error.faults]
job: ml.Job = ml.submit("recipe.yml", "out", "slurm", partition="gpu")
done: bool = job.wait().state is ml.JobState.DONE
"""
WRONG = {
    "mw.plan('r.yml', dtyp='float32')": 'Unexpected keyword argument "dtyp"',
    "mw.plan('r.yml', dtype='float')": "has incompatible type",
    "mw.merge('r.yml', 'out').path.upper()": 'has no attribute "upper"',
    "mw.nothing()": 'Module has no attribute "nothing"',
}


@pytest.mark.slow
def test_a_users_script_is_typed(wheel: Path, tmp_path: Path) -> None:
    """`mypy --strict` of a script passes with the installed wheel, and finds its mistakes."""
    pip("install", "--no-deps", "--target", tmp_path / "site", wheel)
    (tmp_path / "good.py").write_text(USERS_SCRIPT, encoding="utf-8")
    (tmp_path / "wrong.py").write_text("import merge_worker as mw\n" + "\n".join(WRONG) + "\n")
    (tmp_path / "empty.ini").write_text("[mypy]\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    command += ["--config-file", "empty.ini", "good.py", "wrong.py"]
    env = {**os.environ, "MYPYPATH": "site"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "good.py" not in done.stdout, done.stdout
    for line, text in zip(range(2, 2 + len(WRONG)), WRONG.values(), strict=True):
        found = [row for row in done.stdout.splitlines() if row.startswith(f"wrong.py:{line}: ")]
        assert found and text in " ".join(found), done.stdout + done.stderr
