"""Unpacking in a job: check the embedded files, unpack the worker, check it again."""

import base64
import re
from pathlib import Path

import pytest

from merge_launch import backends
from merge_launch.job import payload

RECIPE = "# as given\nmerge_method: linear\nmodels: [{model: m1}, {model: m2}]\n"
WORKER = 5
"""Index of the worker in the arguments of a container: after options and script."""
START = base64.b64encode(b"BZh91AY&SY").decode()[:12]
"""Of every bz2 of level 9."""


def flip(text: str) -> str:
    """Change one bit of the payload: A and E, B and F … differ in one bit of the decoded bytes."""
    middle = text.index(START) + 4000
    place = re.compile("[A-D]").search(text, middle)
    assert place is not None
    at = place.start()
    return text[:at] + chr(ord(text[at]) + 4) + text[at + 1 :]


@pytest.mark.parametrize("backend", backends.names())
def test_a_flipped_bit_stops_it_before_anything_runs(
    backend: str, job_argv, models, bare_bash, tmp_path: Path
) -> None:
    argv = job_argv(backend, "out", *models, "--setup", "touch it-ran")
    if backend == "beaker":
        argv[WORKER] = flip(argv[WORKER])
    else:
        script = Path(argv[0])
        script.write_text(flip(script.read_text()))
    done = bare_bash(*argv, cwd=tmp_path)
    assert done.code == 3
    assert "the worker or recipe in this job is damaged" in done.err
    assert not list(tmp_path.rglob("it-ran"))


@pytest.mark.parametrize("backend", backends.names())
def test_a_payload_cut_short_stops_it(
    backend: str, job_argv, models, bare_bash, tmp_path: Path
) -> None:
    argv = job_argv(backend, "out", *models, "--setup", "touch it-ran")
    if backend == "beaker":
        argv[-2] = argv[-2][:-401]
    else:
        script = Path(argv[0])
        script.write_text(
            re.sub(r".{76}\n.*\nMERGE_WORKER_PYZ", "MERGE_WORKER_PYZ", script.read_text())
        )
    done = bare_bash(*argv, cwd=tmp_path)
    assert done.code == 3
    assert "damaged" in done.err
    assert not list(tmp_path.rglob("it-ran"))


def test_a_damaged_recipe_stops_it_too(job_argv, models, bare_bash, tmp_path: Path) -> None:
    Path("recipe.yml").write_text(RECIPE)
    (script,) = map(Path, job_argv("local", "recipe.yml", "out", "--setup", "touch it-ran"))
    first = base64.b64encode(RECIPE.encode()).decode()[:76]
    other = base64.b64encode(RECIPE.replace("as given", "is given").encode()).decode()[:76]
    script.write_text(script.read_text().replace(first, other))
    done = bare_bash(script)
    assert done.code == 3
    assert "damaged" in done.err
    assert not list(tmp_path.rglob("it-ran"))


def test_reading_it_as_the_job_says(job_argv, models, bare_bash, tmp_path: Path) -> None:
    (script,) = map(Path, job_argv("pbs", "out", *models))
    (line,) = [each for each in script.read_text().splitlines() if "THIS_FILE" in each]
    done = bare_bash("-c", line.removeprefix("#").replace("THIS_FILE", "job"), cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "merge-worker.pyz").read_bytes() == payload.build().archive


def test_reading_it_as_the_spec_says(job_argv, models, bare_bash, tmp_path: Path) -> None:
    argv = job_argv("beaker", "out", *models)
    (line,) = [each for each in argv[WORKER - 2].splitlines() if "bzip2 -d" in each]
    count, command = re.findall(r"first (\d+) arguments, joined, to: (.*)", line)[0]
    words = ["-c", f'printf %s "$@" | {command}', "bash", *argv[WORKER : WORKER + int(count)]]
    done = bare_bash(*words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "merge-worker.pyz").read_bytes() == payload.build().archive


RUNS = 'echo "runs $(sha256sum < "$1")"'


@pytest.mark.parametrize("backend", ["local", "beaker"])
def test_the_python_that_setup_brings_unpacks(
    backend: str, job_argv, models, bare_bash, python
) -> None:
    folder = python(running=RUNS).parent
    words = ["--python", "their-python", "--setup", f"PATH={folder}:$PATH"]
    done = bare_bash(*job_argv(backend, "out", *models, *words))
    assert (done.code, done.out) == (0, f"runs {payload.build().digest}  -\n"), done.err


def test_what_lies_about_is_not_what_unpacks(job_argv, models, bare_bash, python) -> None:
    Path("bz2.py").write_text("raise SystemExit('foreign')\n")
    argv = job_argv("local", "out", *models, "--python", python())
    done = bare_bash(*argv, PYTHONPATH=str(Path.cwd()))
    assert (done.code, done.err) == (0, "")


def test_an_archive_that_came_out_otherwise_does_not_run(
    job_argv, models, bare_bash, python
) -> None:
    wrong = python('"$real" "$@" && echo more >> "${@: -1}"', RUNS)
    done = bare_bash(*job_argv("local", "out", *models, "--python", wrong))
    assert (done.code, done.out) == (3, "")
    assert "damaged (SHA-256 differs)" in done.err


# The code stands on the line after, so that it begins as it is.
WITHOUT = """code=$3; shift 3
exec "$real" -I -c "import sys; {}
$code" "$@"
"""


@pytest.mark.parametrize(
    ("unpacking", "reason"),
    [
        (WITHOUT.replace("{}", "sys.modules['bz2'] = None"), "bz2"),
        (
            WITHOUT.replace("{}", "sys.version_info = (3, 9); sys.version = '3.9'"),
            "this is Python 3.9",
        ),
        ("echo 'Unknown option: -I' >&2; exit 2", "Unknown option: -I"),
        ("exec /no/such/program", "/no/such/program"),
    ],
    ids=["no bz2", "3.9", "2.7", "not there"],
)
@pytest.mark.parametrize("backend", ["local", "beaker"])
def test_a_python_that_cannot_unpack_is_named(
    backend: str, unpacking: str, reason: str, job_argv, models, bare_bash, python
) -> None:
    program = python(unpacking, RUNS)
    done = bare_bash(*job_argv(backend, "out", *models, "--python", program))
    assert (done.code, done.out) == (3, "")
    *above, last = done.err.splitlines()
    assert reason in "\n".join(above)
    assert last.startswith(
        f"merge-launch: {program} cannot unpack the worker (the reason is above)"
    )
    assert "--python" in last and "--setup" in last


def test_a_python_that_is_not_there_is_named(job_argv, models, bare_bash) -> None:
    done = bare_bash(*job_argv("local", "out", *models, "--python", "it's-nowhere"))
    assert done.code == 3
    assert "it's-nowhere: command not found" in done.err
    assert "merge-launch: it's-nowhere cannot unpack the worker" in done.err
