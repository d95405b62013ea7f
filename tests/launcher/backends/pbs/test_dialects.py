"""How sites write resources: a recorded text of each, and what they refuse before qsub does."""

import re

import pytest

from merge_launch import backends
from merge_launch.backends.pbs import dialects, resources

PBS = backends.get("pbs")
GADI = ("/scratch/ab12/me/out", "/g/data/cd34/m1", "/g/data/ab12/m2")
SITES = {
    "openpbs": {"ngpus": 2, "ncpus": 16, "mem": "80g", "project": "ab12"},
    "torque": {"ngpus": 2, "ncpus": 16, "mem": "80g", "project": "ab12"},
    "gadi": {"ngpus": 4, "mem": "180g", "project": "ab12", "queue": "gpuvolta"},
    "polaris": {"ngpus": 4, "project": "merging", "queue": "debug"},
    "abci": {"ngpus": 8, "project": "gaa50000"},
    "generic": {"resource": ("select=1:ncpus=16:ngpus=1:gpu_mem=16gb", "place=excl")},
}


def directives(text: str) -> list[str]:
    return [line.removeprefix("#PBS ") for line in text.splitlines() if line.startswith("#PBS")]


def of_the_dialect(text: str) -> str:
    """Return the lines above the part that all jobs share, and the lines of it that differ."""
    above, _, shared = text.partition("# linear of ")
    differing = re.findall(r"^(?:exec >>|export RANK=|.*/rank.sh\" \").*$", shared, re.M)
    return above + "".join(f"{line}\n" for line in differing)


def test_every_dialect_is_tried() -> None:
    assert set(SITES) == set(dialects.DIALECTS)


def test_the_option_names_every_dialect() -> None:
    assert tuple(dialects.DIALECTS) == resources.DIALECTS


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("dialect", SITES)
def test_goldens(dialect: str, nodes: int, make_job, render_job, golden) -> None:
    words = GADI if dialect == "gadi" else ("out", "m1", "m2")
    job = make_job(*words, setup=("module load python",))
    settings = {"walltime": "02:00:00", "nodes": nodes, **SITES[dialect]}
    text = render_job("pbs", job, dialect=dialect, **settings)
    golden(f"pbs-{dialect}{'-2' if nodes == 2 else ''}.sh", of_the_dialect(text))


@pytest.mark.parametrize(
    ("dialect", "nodes", "lines"),
    [
        ("openpbs", 1, ["-l select=1:ncpus=16:ngpus=2:mem=80gb", "-P ab12", "-k oed"]),
        (
            "openpbs",
            3,
            ["-l select=3:ncpus=16:ngpus=2:mem=80gb:mpiprocs=1", "-l place=scatter", "-P ab12"],
        ),
        ("torque", 1, ["-l nodes=1:ppn=16:gpus=2", "-l mem=80gb", "-A ab12"]),
        # There, memory is that of the whole job.
        ("torque", 3, ["-l nodes=3:ppn=16:gpus=2", "-l mem=240gb", "-A ab12"]),
        (
            "gadi",
            1,
            [
                "-l ngpus=4,ncpus=48,mem=180GB",
                "-l wd",
                "-l storage=gdata/cd34+gdata/ab12+scratch/ab12",
                "-q gpuvolta",
            ],
        ),
        ("gadi", 2, ["-l ngpus=8,ncpus=96,mem=360GB"]),
        (
            "polaris",
            2,
            [
                "-l select=2:system=polaris",
                "-l place=scatter",
                "-l filesystems=home",
                "-A merging",
                "-k doe",
            ],
        ),
        ("abci", 1, ["-l select=1", "-q rt_HF", "-P gaa50000"]),
        ("generic", 1, ["-l select=1:ncpus=16:ngpus=1:gpu_mem=16gb", "-l place=excl"]),
    ],
)
def test_resources(dialect: str, nodes: int, lines: list[str], make_job, render_job) -> None:
    words = GADI if dialect == "gadi" else ("out", "m1", "m2")
    settings = {"nodes": nodes, "walltime": "1:00:00", **SITES[dialect]}
    given = directives(render_job("pbs", make_job(*words), dialect=dialect, **settings))
    assert [line for line in lines if line not in given] == [], given
    assert "-l walltime=1:00:00" in given


@pytest.mark.parametrize("dialect", ["torque", "gadi", "abci"])
def test_where_output_comes_late_the_job_keeps_its_own_log(dialect: str, make_job, render_job):
    text = render_job("pbs", make_job(), dialect=dialect, **SITES[dialect])
    assert '-o "/home/me/work/out.job/out.end"' in directives(text)
    assert "\nexec >> /home/me/work/out.job/out.log 2>&1\n" in text
    assert not [line for line in directives(text) if line.startswith("-k")]


def test_file_systems_that_the_user_names_are_the_users(make_job, render_job) -> None:
    job = make_job(*GADI)
    text = render_job("pbs", job, dialect="gadi", resource=("storage=gdata/zz9",), project="ab12")
    assert [line for line in directives(text) if "storage" in line] == ["-l storage=gdata/zz9"]
    polaris = make_job("/eagle/p/out", "/home/me/m1", "/lus/grand/m2", folder="/eagle/p")
    text = render_job("pbs", polaris, dialect="polaris", project="p", walltime="60")
    assert "-l filesystems=home:grand:eagle" in directives(text)


@pytest.mark.parametrize(
    ("ngpus", "queue"), [(None, "rt_HF"), (0, "rt_HC"), (1, "rt_HG"), (8, "rt_HF")]
)
def test_at_abci_the_queue_is_the_kind_of_node(ngpus, queue: str, make_job, render_job) -> None:
    text = render_job("pbs", make_job(), dialect="abci", project="g", ngpus=ngpus)
    assert f"-q {queue}" in directives(text)
    text = render_job("pbs", make_job(), dialect="abci", project="g", ngpus=ngpus, queue="rt_x")
    assert "-q rt_x" in directives(text)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--dialect gadi", "--project: required by gadi"),
        ("--dialect polaris --project p", "--walltime: required by polaris"),
        (
            "--dialect polaris --project p --walltime 60 --mem 8g",
            "--mem: fixed by the type of node",
        ),
        ("--dialect polaris --project p --walltime 60 --ngpus 5", "a node of polaris has 4"),
        ("--dialect abci --project p --ncpus 4", "--ncpus: fixed by the type of node of abci"),
        (
            "--dialect gadi --project p --queue dgxa100 --ngpus 2 --ncpus 24",
            "--ncpus 24: dgxa100 requires 16 per GPU, so 32",
        ),
        ("--dialect generic --ngpus 2", "--ngpus: not used by generic; use --resource"),
        ("--dialect torque --name a-name-of-sixteen", "torque accepts at most 15 characters"),
    ],
)
def test_what_sites_refuse_is_refused_here(words: str, reason: str, launch) -> None:
    done = launch("pbs", "out", "m1", "m2", *words.split(), "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert reason in done.err


@pytest.mark.parametrize(
    "line",
    [
        *("-z", "-I", "-V", "-v A=1", "-N x", "-o x", "-e x", "-j oe", "-k oed", "-J 0-3"),
        *("-t 0-3", "-C x", "-r n", "-W block=true", "-W sandbox=PRIVATE", "-l place=free # why"),
    ],
)
def test_directives_that_would_break_the_rest(line: str, launch) -> None:
    done = launch("pbs", "out", "m1", "m2", f"--directive={line}", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert f"--directive '{line}': " in done.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--ngpus 2 --resource select=1:gpu_mem=16gb", "would replace '-l select=1:ngpus=2'"),
        ("--ngpus 2 --directive=-lselect=1:x=y", "would replace '-l select=1:ngpus=2'"),
        ("--nodes 2 --resource select=2:ncpus=4", "'-l select=2:mpiprocs=1'"),
        ("--ngpus 2 --resource ncpus=4", "together with '-l select=1:ngpus=2'; use --ncpus"),
        ("--ngpus 2 --resource nodes=1:ppn=2", "together with '-l select=1:ngpus=2'; use --nodes"),
        ("--dialect torque --ncpus 8 --resource nodes=1:fat", "would replace '-l nodes=1:ppn=8'"),
        ("--dialect torque --mem 8gb --directive=-lmem=9gb", "would replace '-l mem=8gb'"),
        ("--dialect gadi --project p --ngpus 1 --resource ncpus=24", "'-l ngpus=1,ncpus=12'"),
        ("--resource walltime=60", "use --walltime, which also sets the deadline of the worker"),
        ("--directive=-lplace=free,walltime=60", "use --walltime"),
    ],
)
def test_of_two_equal_resources_the_last_would_hold_alone(words: str, reason: str, launch) -> None:
    done = launch("pbs", "out", "m1", "m2", *words.split(), "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert reason in done.err


def test_resources_that_do_not_meet_ours(launch) -> None:
    for words in (
        "--resource select=1:ncpus=4:gpu_mem=16gb",
        "--nodes 2 --resource place=scatter:excl",
        "--ngpus 1 --resource storage=gdata/ab12 --directive=-lsoftware=x",
    ):
        done = launch("pbs", "out", "m1", "m2", *words.split(), "--dry-run")
        assert done.code == 0, done.err


def test_a_place_needs_chunks(launch, fakes, models) -> None:
    done = launch("pbs", "out", *models, "--resource", "place=scatter")
    assert (done.code, done.out) == (6, "")
    assert "qsub failed with status 7: qsub: -lplace= cannot be used" in done.err


def test_what_nobody_asked_for_gives_way(make_job, render_job) -> None:
    text = render_job("pbs", make_job(), dialect="torque", resource=("nodes=1:ppn=8:fat",))
    assert [line for line in directives(text) if "nodes" in line] == ["-l nodes=1:ppn=8:fat"]
    text = render_job("pbs", make_job(), resource=("select=1:x=y", "wd", "select=1:z=1", "ssd"))
    assert [line[3:] for line in directives(text) if line.startswith("-l")] == [
        *("select=1:z=1", "wd", "ssd")
    ]
    text = render_job("pbs", make_job(), nodes=2, ngpus=1, resource=("place=scatter:excl",))
    assert [line for line in directives(text) if "place" in line] == ["-l place=scatter:excl"]


def test_what_is_charged_has_the_option_that_the_site_wants(make_job, render_job) -> None:
    assert "-A ab12" in directives(render_job("pbs", make_job(), project="ab12", charge="A"))


def test_the_deadline_comes_shortly_before_the_walltime(make_job, render_job) -> None:
    for walltime, deadline in (("12:00:00", 42600), ("30:00", 1710), ("3600", 3420), ("60", 30)):
        text = render_job("pbs", make_job(), walltime=walltime)
        assert f"merge_deadline=$(({deadline} > SECONDS ? {deadline} - SECONDS : 1))" in text
        assert '--deadline="$merge_deadline"' in text
    assert "merge_deadline" not in render_job("pbs", make_job())


def test_a_deadline_of_the_user_stays(launch) -> None:
    words = ["pbs", "out", "m1", "m2", "--walltime", "1:00:00", "--deadline", "10m", "--dry-run"]
    text = launch(*words).out
    assert re.findall(r"--deadline\S*", text) == ["--deadline=10m"]
