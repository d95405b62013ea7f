"""Flag > environment > profile > built in, and no key of a profile is silently nothing."""

import json
from pathlib import Path

import pytest

from merge_launch import backends
from merge_launch.errors import UsageError
from merge_launch.profiles import file, precedence
from merge_launch.profiles.file import ProfileFile
from merge_launch.settings.groups import JobOptions, WorkerOptions

PBS = backends.get("pbs").resources

FILE = """
python = "/opt/py/bin/python"
setup = ["module load python"]
threads = 8

[pbs]
queue = "normal"
walltime = 04:00:00
directive = ["-l place=scatter"]

[profile.gadi]
env = ["HF_HOME=/scratch/hf"]

[profile.gadi.pbs]
queue = "gpuvolta"
directive = ["-l storage=gdata/ab12"]
"""


def settings(tmp_path: Path, flags=None, variables=None, name=None, text: str = FILE):
    path = tmp_path / file.FILE_NAME
    path.write_text(text)
    origins = [
        precedence.flags(flags or {}),
        precedence.environment(variables or {}),
        *precedence.profile(ProfileFile.read(path), name, "pbs"),
    ]
    return precedence.resolve([JobOptions, WorkerOptions, PBS], origins)


def test_built_in_where_nobody_says_anything(tmp_path: Path) -> None:
    job, worker, pbs = settings(tmp_path, text="")
    assert (job.python, worker.threads, pbs.dialect) == (None, None, "openpbs")


def test_profile_over_built_in(tmp_path: Path) -> None:
    job, worker, pbs = settings(tmp_path)
    assert (job.python, worker.threads) == ("/opt/py/bin/python", 8)
    assert (pbs.queue, pbs.walltime) == ("normal", "04:00:00")


def test_named_profile_over_the_rest_of_the_file(tmp_path: Path) -> None:
    job, _, pbs = settings(tmp_path, name="gadi")
    assert (job.python, job.env) == ("/opt/py/bin/python", ("HF_HOME=/scratch/hf",))
    assert (pbs.queue, pbs.walltime) == ("gpuvolta", "04:00:00")


def test_environment_over_profile_and_flag_over_environment(tmp_path: Path) -> None:
    variables = {"MERGE_LAUNCH_THREADS": "4", "MERGE_LAUNCH_QUEUE": "express", "OTHER": "1"}
    _, worker, pbs = settings(tmp_path, {"threads": "2"}, variables)
    assert (worker.threads, pbs.queue) == (2, "express")


def test_free_lines_add_up_with_the_nearest_last(tmp_path: Path) -> None:
    variables = {"MERGE_LAUNCH_DIRECTIVE": "-l a=1\n-l b=2"}
    _, _, pbs = settings(tmp_path, {"directive": ["-l c=3"]}, variables, name="gadi")
    assert pbs.directive == (
        "-l place=scatter",
        "-l storage=gdata/ab12",
        "-l a=1",
        "-l b=2",
        "-l c=3",
    )


def test_the_nearest_value_of_a_variable_wins(tmp_path: Path) -> None:
    job, _, _ = settings(tmp_path, {"env": ["HF_HOME=/mine", "B=2"]}, name="gadi")
    assert job.variables() == {"HF_HOME": "/mine", "B": "2"}


def test_a_list_that_does_not_add_up_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / file.FILE_NAME
    path.write_text('[beaker]\ncluster = ["ai2/jupiter"]\n')
    origins = [
        precedence.flags({"cluster": ["ai2/saturn"]}),
        *precedence.profile(ProfileFile.read(path), None, "beaker"),
    ]
    (beaker,) = precedence.resolve([backends.get("beaker").resources], origins)
    assert beaker.cluster == ("ai2/saturn",)


def test_faults_of_all_origins_at_once(tmp_path: Path) -> None:
    text = '[pbs]\nmem = "80GiB"\n'
    with pytest.raises(UsageError) as caught:
        settings(tmp_path, {"walltime": "noon"}, {"MERGE_LAUNCH_NGPUS": "two"}, text=text)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "MERGE_LAUNCH_NGPUS 'two' must be a whole number" in lines[0]
    assert "merge-launch.toml: [pbs]: mem '80GiB' must be" in lines[1]
    assert "--walltime 'noon' must be HH:MM:SS" in lines[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pyhton = 1", "unknown key 'pyhton' (did you mean 'python'?)"),
        ("queue = 'x'", "toml: 'queue' belongs in [pbs]"),
        ("mem = '8G'", "toml: 'mem' belongs in [beaker] or [pbs] or [slurm]"),
        ("partion = 'x'", "toml: unknown key 'partion' (did you mean 'partition'?)"),
        ("[profile.a]\npartion = 'x'", "unknown key 'partion' (did you mean 'partition'?)"),
        ("[slurm]\npartion = 'x'", "unknown key 'partion' (did you mean 'partition'?)"),
        # Of another backend it would be no help.
        ("[slurm]\nqueu = 'x'", "[slurm]: unknown key 'queu' (did you mean 'requeue'?)"),
        ("[pbs]\nqueu = 'x'", "[pbs]: unknown key 'queu' (did you mean 'queue'?)"),
        ("[pbs]\npartition = 'x'", "[pbs]: 'partition' belongs in [slurm]"),
        ("[profile.a]\nqueue = 'x'", "profile.a: 'queue' belongs in [pbs]"),
        ("[profile.a.slurm]\nqueue = 'x'", "[slurm]: 'queue' belongs in [pbs]"),
        ("pbs = 3", "'pbs' must be a table"),
        ("profile = 'gadi'", "'profile' must be a table"),
        ("[profile]\nx = 1", "profile.x must be a table"),
        ("[threads]\nx = 1", "'threads' must be a value, not a table"),
        ("python = ", "merge-launch.toml"),
        ("[profile.a]\nextend = 'b'", "unknown key 'extend' (did you mean 'extends'?)"),
        ("[profile.a]\nextends = 3", "'extends' must be a string"),
        (
            "default_profil = 'a'",
            "unknown key 'default_profil' (did you mean 'default_profile'?)",
        ),
    ],
)
def test_what_nothing_reads_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(tmp_path, text=text)
    assert words in str(caught.value)


def test_an_unknown_profile_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no profile 'gady' \(did you mean 'gadi'\?\): abci, "):
        settings(tmp_path, name="gady")


def test_a_profile_extends_others(tmp_path: Path) -> None:
    text = """
[pbs]
walltime = "01:00:00"
queue = "at the top"
[profile.mine]
extends = "group"
setup = ["third"]
pbs = {queue = "q"}
[profile.group]
extends = "gadi"
setup = ["second"]
pbs = {mem = "5gb", directive = ["-l a=1"]}
"""
    job, _, pbs = settings(tmp_path, name="mine", text=text)
    assert job.setup == ("second", "third")
    assert job.env == ("HF_HUB_OFFLINE=1",)
    assert (pbs.queue, pbs.mem, pbs.dialect, pbs.walltime) == ("q", "5gb", "gadi", "04:00:00")


def test_a_profile_extends_the_site_of_its_name(tmp_path: Path) -> None:
    text = "[profile.gadi]\nextends = 'gadi'\n[profile.gadi.pbs]\nproject = 'ab12'\n"
    _, _, pbs = settings(tmp_path, name="gadi", text=text)
    assert (pbs.project, pbs.dialect) == ("ab12", "gadi")


def test_profiles_in_a_circle(tmp_path: Path) -> None:
    text = "[profile.a]\nextends = 'b'\n[profile.b]\nextends = 'a'\n"
    with pytest.raises(UsageError, match=r"profile\.b: extends: profile 'a' extends itself"):
        settings(tmp_path, name="a", text=text)


def test_the_default_profile(tmp_path: Path) -> None:
    text = "default_profile = 'gadi'\n" + FILE
    assert settings(tmp_path, text=text)[2].queue == "gpuvolta"
    with pytest.raises(UsageError, match="default_profile: no profile 'nowhere'"):
        settings(tmp_path, text="default_profile = 'nowhere'\n")


def test_a_site_without_a_file() -> None:
    origins = precedence.profile(ProfileFile.read(None), "gadi", "pbs")
    (pbs,) = precedence.resolve([PBS], origins)
    assert (pbs.dialect, pbs.queue) == ("gadi", "gpuvolta")
    with pytest.raises(UsageError, match="--profile gady: no profile 'gady'"):
        precedence.profile(ProfileFile.read(None), "gady", "pbs")


def test_dashes_and_underscores_are_one(tmp_path: Path) -> None:
    _, worker, _ = settings(tmp_path, text='shard-size = "1GB"')
    assert worker.shard_size == "1GB"


def test_here_before_the_config_folder(tmp_path: Path, work: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert ProfileFile.here().path is None
    for folder in (tmp_path / "merge-launch", work):
        folder.mkdir(exist_ok=True)
        (folder / file.FILE_NAME).touch()
        assert ProfileFile.here().path == folder / file.FILE_NAME


def test_a_profile_reaches_the_job(launch, work: Path) -> None:
    (work / file.FILE_NAME).write_text(FILE)
    text = launch("pbs", "out", "m1", "m2", "--profile", "gadi", "--dry-run").out
    assert "#PBS -q gpuvolta\n" in text
    assert "#PBS -l storage=gdata/ab12\n" in text
    assert "\nmerge_line='module load python'\n" in text
    assert "--threads=8" in text


def test_the_environment_names_the_profile(launch, work: Path, monkeypatch) -> None:
    (work / file.FILE_NAME).write_text(FILE)
    monkeypatch.setenv("MERGE_LAUNCH_PROFILE", "gadi")
    assert "#PBS -q gpuvolta\n" in launch("render", "pbs", "out", "m1", "m2").out


def test_the_config_folder_of_the_user(launch, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "merge-launch"
    folder.mkdir(parents=True)
    (folder / file.FILE_NAME).write_text('[slurm]\npartition = "long"\n')
    assert "#SBATCH --partition=long\n" in launch("render", "slurm", "out", "m1", "m2").out


def test_list(launch, work: Path) -> None:
    (work / file.FILE_NAME).write_text("default_profile = 'mine'\n[profile.mine]\nextends='gadi'")
    done = launch("profile", "list")
    assert done.code == 0, done.err
    rows = {line.split()[0]: line for line in done.out.splitlines()[1:]}
    assert set(rows) == {*file.sites(), "mine"}
    assert "pbs" in rows["mine"] and str(work / file.FILE_NAME) in rows["mine"]
    assert "NCI Gadi" in rows["gadi"] and rows["gadi"].endswith("built in")
    assert "mine is the default without --profile" in done.err


def test_show(launch, work: Path) -> None:
    text = "threads = 4\n[profile.mine]\nextends = 'gadi'\npbs = {mem = '5gb'}\n"
    (work / file.FILE_NAME).write_text(text)
    rows = json.loads(launch("profile", "show", "mine", "--json").out)
    shown = {row["option"]: (row["value"], row["from"]) for row in rows}
    here = str(work / file.FILE_NAME)
    assert shown["mem"] == ("5gb", f"{here}: profile.mine: [pbs]")
    assert shown["threads"] == (4, here)
    assert shown["queue"] == ("gpuvolta", "built in: gadi: [pbs]")
    assert "gpuvolta" in launch("profile", "show", "mine").out
    assert "env " in (table := launch("profile", "show", "gadi").out)
    assert " HF_HUB_OFFLINE=1 " in table and "['" not in table


def test_check(launch, work: Path) -> None:
    assert launch("profile", "check").code == 0
    path = work / file.FILE_NAME
    path.write_text("[profile.a]\npbs = {walltime = 'noon'}\n[profile.b]\nextends = 'c'\n")
    done = launch("profile", "check")
    assert (done.code, done.out) == (2, "")
    assert "walltime 'noon' must be HH:MM:SS" in done.err
    assert "profile.b: extends: no profile 'c'" in done.err
    assert launch("profile", "check", "gadi").out.startswith("gadi: no faults")


@pytest.mark.parametrize("site", file.sites())
def test_every_site_makes_a_job(site: str, launch) -> None:
    for backend in ("pbs", "slurm", "beaker"):
        own = precedence.profile(ProfileFile.read(None), site, backend)
        if any(f"[{backend}]" in origin.name for origin in own):
            charged = ("--project", "ab12") if backend == "pbs" else ()
            done = launch("render", backend, "out", "m1", "m2", "--profile", site, *charged)
            assert done.code == 0, done.err
            assert done.out.startswith("# linear" if backend == "beaker" else "#!/bin/bash\n")
            return
    raise AssertionError(f"{site} is for no backend")


def test_profiles_are_completed(work: Path) -> None:
    (work / file.FILE_NAME).write_text("[profile.gamma]\nthreads = 1\n")
    assert file.complete("ga") == ["gadi", "gadi-a100", "gamma"]
    (work / file.FILE_NAME).write_text("[profile")
    assert file.complete("ga") == []


def test_a_line_says_what_a_job_takes_from_where(launch, fakes, models, work: Path) -> None:
    path = work / file.FILE_NAME
    path.write_text(
        "default_profile = 'a'\n[profile.a]\nextends = 'openpbs'\n[pbs]\nqueue = 'long'\n"
        "[slurm]\nmem = '32G'\n"
    )
    (work / "recipe.yml").write_text(
        "merge_method: linear\nmodels: [{model: m1}, {model: m2}]\nparameters: {weight: 1}\n"
    )
    named = f"merge-launch: settings of {path} apply\n"
    done = launch("pbs", "--ngpus", "2", "recipe.yml")
    assert done.code == 0, done.err
    taken = f"ncpus 8, mem 32gb, walltime 04:00:00 (built in: openpbs), queue long ({path.name})"
    assert done.err == f"{named}merge-launch: {taken}\n"
    assert f"out     {work}/linear-m1-m2\n" in done.out
    done = launch("slurm", "--gpus", "2", "recipe.yml", "--profile", "slurm")
    assert done.code == 0, done.err
    taken = "cpus 8, mem 32G, time 04:00:00 (built in: slurm)"
    assert done.err == f"{named}merge-launch: {taken}\n"
    assert f"out     {work}/linear-m1-m2\n" in done.out
    assert launch("slurm", "--gpus", "2", "--mem", "1G", "out", *models).err == named
