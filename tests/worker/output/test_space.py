"""Quotas as `lfs`, `quota` and `mmlsquota` print them, and merges under a quota."""

import grp
import os
import pwd
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from merge_worker.errors import OutputError
from merge_worker.output import space
from merge_worker.output.files import PARTIAL
from merge_worker.output.space import Limit, Owner, Quota, quotas_of
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import make_plan
from merge_worker.recipe import parse
from merge_worker.system.machine import Mount
from merge_worker.units import GIB
from support.recipes import average, plan_of, some_models

KIB = 1024
USER, GROUP = os.geteuid(), os.getegid()
NAMES = [f"user {pwd.getpwuid(USER).pw_name}", f"group {grp.getgrgid(GROUP).gr_name}"]
OUT = Path("out")


@pytest.fixture(autouse=True)
def _held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply quotas to the test process, although root is exempt."""
    monkeypatch.setattr(space, "_exempt", lambda: False)


def mounted(monkeypatch: pytest.MonkeyPatch, kind: str, source: str, place: Path) -> None:
    monkeypatch.setattr(space, "mount_of", lambda fd: Mount(kind, source, str(place)))


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> Path:
    """Put a program on PATH; it appends its arguments to the returned file, a line per call."""
    bin_, asked = folder / "bin", folder / f"{name}.asked"
    bin_.mkdir(exist_ok=True)
    path = bin_ / name
    path.write_text(f'#!/bin/bash\necho "$@" >> {asked}\n{text}\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    return asked


LUSTRE = """case "$3 $4" in
"-u {user}") echo "       {place} 1048576*  1000000 2097152 6d23h59m  [12]  0  1000  -" ;;
"-g {group}") printf '%s\\n%s\\n' {place} "            10  0  0  -  5  0  0  -" ;;
"-p 42") echo "       {place}  900 500 2000 none 1 0 0 -"; echo "pid 42 is using default" ;;
esac"""


def test_lustre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, "lustre", "10.0.0.1@o2ib:/work", tmp_path)
    monkeypatch.setattr(space, "_project", lambda fd: [Owner("project", 42)])
    text = LUSTRE.format(user=USER, group=GROUP, place=tmp_path)
    asked = program(tmp_path, monkeypatch, "lfs", text)
    assert quotas_of(tmp_path) == (
        Quota(NAMES[0], Limit(1 << 30, 1000000 * KIB, 2 << 30), Limit(12, 0, 1000)),
        Quota("project 42", Limit(900 * KIB, 500 * KIB, 2000 * KIB, True), Limit(1)),
    )
    assert quotas_of(tmp_path)[1].space.left == 0, "the time over the soft limit has run out"
    words = {f"quota -q -u {USER} {tmp_path}", f"quota -q -g {GROUP} {tmp_path}"}
    assert words < set(asked.read_text().splitlines())


def test_projects_of_folders(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert space._project(fd) == []
    os.close(fd)


LINUX = """case "$1" in -u) what="user me (uid {user})" ;; -g) what="group us (gid {group})" ;; esac
echo "Disk quotas for group others (gid 77): "
echo "nas:/export 1 1 1 0 1 0 0 0"
echo "Disk quotas for $what: "
echo "     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace"
echo "nas:/other  1 1 1 0 1 0 0 0"
[ "$1" = -g ] || echo "nas:/export   2048*   1000   4096   {time}   10   0   20   0"
exit 1"""


@pytest.mark.parametrize("kind", ["nfs4", "ext4"])
@pytest.mark.parametrize(("time_left", "left"), [(1000, 2048), (-1000, 0)])
def test_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, time_left: int, left: int
) -> None:
    mounted(monkeypatch, kind, "nas:/export", tmp_path)
    end = int(time.time()) + time_left
    asked = program(tmp_path, monkeypatch, "quota", LINUX.format(user=USER, group=GROUP, time=end))
    (read,) = quotas_of(tmp_path)
    assert read.whose == NAMES[0] and read.space.left == left * KIB
    assert read.files == Limit(10, 0, 20)
    assert f"-u -w -p -f {tmp_path}" in asked.read_text()


GPFS_FIELDS = (
    "version:reserved:reserved:filesystemName:quotaType:id:name:blockUsage:blockQuota:blockLimit:"
    "blockInDoubt:blockGrace:filesUsage:filesQuota:filesLimit:filesInDoubt:filesGrace:remarks:"
    "quota:defQuota:fid:filesetname:"
)
# Synopsis: mmlsquota [-u User | -g Group] [-v | -q] [-e] [-C Cluster] [-Y] [Device ...];
# without -u and -g it reports the calling user.
GPFS = """kind=USR id={user} human=yes
while getopts "u:g:j:vqeC:Y" option; do
    case $option in
        u) kind=USR id=$OPTARG ;; g) kind=GRP id=$OPTARG ;; j) kind=FILESET id=$OPTARG ;;
        Y) human= ;;
        v|q|e|C) ;;
        *) echo "mmlsquota: Incorrect option: $option" >&2; exit 1 ;;
    esac
done
shift $((OPTIND - 1))
[ $# = 1 ] || {{ echo "mmlsquota: Missing arguments." >&2; exit 1; }}
[ -z "$human" ] || {{ echo "                         Block Limits | File Limits"; exit 0; }}
echo "mmlsquota::HEADER:{fields}"
grep "::0:1:::$1:$kind:$id:" {rows}"""


@pytest.fixture
def gpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make `mmlsquota` of a file system gpfs0, with rows from quotaType to filesGrace."""

    def make(*rows: str) -> Path:
        mounted(monkeypatch, "gpfs", "/dev/gpfs0", tmp_path)
        file = tmp_path / "rows"
        file.write_text("".join(f"mmlsquota::0:1:::{row}:e:on:off:::\n" for row in rows))
        text = GPFS.format(user=USER, fields=GPFS_FIELDS, rows=file)
        return program(tmp_path, monkeypatch, "mmlsquota", text)

    return make


def test_gpfs(tmp_path: Path, gpfs: Callable[..., Path]) -> None:
    asked = gpfs(
        f"gpfs0:USR:{USER}:me:2097152:1000:3145728:0:7 days:5:0:9:0:none",
        f"gpfs1:USR:{USER}:me:1:2:3:0:none:5:0:9:0:none",
        f"gpfs0:GRP:{GROUP}:us:900:500:2000:0:expired:1:0:0:0:none",
        f"gpfs0:GRP:{GROUP + 1}:others:1:1:1:0:none:1:0:0:0:none",
    )
    assert quotas_of(tmp_path) == (
        Quota(NAMES[0], Limit(2 << 30, 1000 * KIB, 3 << 30), Limit(5, 0, 9)),
        Quota(NAMES[1], Limit(900 * KIB, 500 * KIB, 2000 * KIB, True), Limit(1)),
    )
    assert quotas_of(tmp_path)[1].space.left == 0, "the time over the soft limit has run out"
    words = {f"-Y -u {USER} gpfs0", f"-Y -g {GROUP} gpfs0"}
    assert set(asked.read_text().splitlines()) == words


def test_gpfs_with_quotas_per_fileset(tmp_path: Path, gpfs: Callable[..., Path]) -> None:
    gpfs(
        f"gpfs0:USR:{USER}:me:2097152:0:3145728:0:none:5:0:9:0:none",
        f"gpfs0:GRP:{GROUP}:us:1:2:3:0:none:5:0:9:0:none",
        f"gpfs0:GRP:{GROUP}:us:1:2:4:0:none:5:0:9:0:none",
    )
    assert [read.whose for read in quotas_of(tmp_path)] == NAMES[:1]


def test_a_merge_on_gpfs_is_refused(
    tmp_path: Path, gpfs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    models = some_models(tmp_path)
    gpfs(f"gpfs0:GRP:{GROUP}:us:10000:0:70000:0:none:5:0:0:0:none")
    assert average(tmp_path / "out", models) == 4
    assert f"only 58.59 MiB are left of the quota of {NAMES[1]} there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        *("", "exit 3", "echo no such thing; exit 1", "echo mmlsquota::HEADER:; echo mmlsquota:::"),
        *("echo 'a b c d e f g h i j k'", "printf '\\377\\000 :'", "kill -9 $$"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "name"), [("lustre", "lfs"), ("nfs", "quota"), ("gpfs", "mmlsquota")]
)
def test_output_in_another_form_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, text: str
) -> None:
    mounted(monkeypatch, kind, "gpfs0", tmp_path)
    program(tmp_path, monkeypatch, name, text)
    assert quotas_of(tmp_path) == ()


def test_missing_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for kind in space.READERS:
        mounted(monkeypatch, kind, "x", tmp_path)
        assert quotas_of(tmp_path) == ()


def test_a_program_that_hangs_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, "lustre", "x", tmp_path)
    monkeypatch.setattr(space, "TIMEOUT_S", 0.3)
    program(tmp_path, monkeypatch, "lfs", f"echo $$ >> {tmp_path}/pids; sleep 100")
    began = time.monotonic()
    assert quotas_of(tmp_path) == ()
    assert time.monotonic() - began < 5, "all of them together"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_querying_this_system_does_not_fail(tmp_path: Path) -> None:
    assert all(isinstance(item, Quota) for item in quotas_of(tmp_path))
    assert quotas_of(tmp_path / "gone") == ()


class Quotas:
    """Quotas printed by `quota` for a folder, by owner: used, soft and hard limit in KiB."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mounted(monkeypatch, "xfs", "/dev/sda1", folder)
        self.folder = folder / "quotas"
        self.folder.mkdir()
        heads = 'case "$1" in -u) w="user x (uid $(id -u))" ;; -g) w="group x (gid $n)" ;; esac'
        text = (
            f'for f in {self.folder}/"${{1#-}}"*; do n=${{f##*[ug]}}\n{heads}\n'
            'echo "Disk quotas for $w:"; cat "$f"; done'
        )
        self.asked = program(folder, monkeypatch, "quota", text)

    def __setitem__(self, owner: Owner, limits: tuple[int, int, int]) -> None:
        words = " ".join(str(limit) for limit in limits)
        (self.folder / f"{owner.kind[0]}{owner.number}").write_text(
            f"/dev/sda1 {words} 0 0 0 0 0\n"
        )


@pytest.fixture
def quotas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quotas:
    return Quotas(tmp_path, monkeypatch)


def test_the_group_is_that_of_new_files(tmp_path: Path, quotas: Quotas) -> None:
    other = GROUP + 1 if os.geteuid() == 0 else os.getgroups()[-1]
    (tmp_path / "shared").mkdir()
    os.chown(tmp_path / "shared", -1, other)
    quotas[Owner("group", other)] = (0, 0, 1)
    quotas[Owner("group", GROUP)] = (0, 0, 2)
    assert quotas_of(tmp_path / "shared")[0].space.hard == 2 * KIB
    (tmp_path / "shared").chmod(0o2775)
    assert quotas_of(tmp_path / "shared")[0].space.hard == KIB


def test_root_has_no_quotas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked = Quotas(tmp_path, monkeypatch).asked
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    quotas_of(tmp_path)
    machine = Path("/proc/self/uid_map").read_text().split() == space.UNBOUND
    assert asked.exists() is not machine


def refusal(owner_quota: Quota, needs: int, files: int = 1) -> str:
    with pytest.raises(OutputError) as caught:
        owner_quota.refuse(OUT, needs, files)
    return str(caught.value)


def test_messages_of_a_refusal() -> None:
    whole = Quota("user anna", Limit(9 * GIB, 5 * GIB, 10 * GIB), Limit(995, 0, 1000))
    assert refusal(whole, 2 * GIB) == (
        "out: needs 2.00 GiB, only 1.00 GiB are left of the quota of user anna there (10.00 GiB)\n"
        "  make room, or choose another folder"
    )
    assert refusal(whole, 1, 17).startswith(
        "out: needs 17 files, only 5 files are left of the quota"
    )
    assert whole.refuse(OUT, GIB, 5) == [
        "out: needs 1.00 GiB, which is more than the soft limit of user anna there leaves "
        "(5.00 GiB, 9.00 GiB used)"
    ]
    assert Quota("user anna", Limit(5)).refuse(OUT, 1 << 60, 1 << 30) == []


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return some_models(tmp_path)


def test_a_merge_is_refused_before_it_starts(
    tmp_path: Path, models: list[Path], quotas: Quotas, capsys: pytest.CaptureFixture[str]
) -> None:
    quotas[Owner("user", USER)] = (0, 0, 60 * KIB)
    assert average(tmp_path / "out", models) == 4
    text = capsys.readouterr().err
    assert f"only 60.00 MiB are left of the quota of {NAMES[0]} there" in text
    assert len(text.splitlines()) == 2 and not (tmp_path / "out").exists()
    quotas[Owner("user", USER)] = (0, 60 * KIB, 90 * KIB)
    assert average(tmp_path / "out", models) == 0
    assert "warning: " in (text := capsys.readouterr().err) and "soft limit" in text
    assert average(tmp_path / "out", models) == 0
    assert "limit" not in capsys.readouterr().err, "nothing is written any more"


def test_space_of_existing_files_is_not_needed_again(
    tmp_path: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = plan_of(models), tmp_path / "out"
    before = space.disk_space(plan, out).needs
    assert before == plan.output_bytes + space.SPARE_BYTES
    (out / PARTIAL).mkdir(parents=True)
    with (out / PARTIAL / "model.safetensors.partial").open("wb") as file:
        file.write(os.urandom(8192))
        file.truncate(1 << 30)  # a hole takes nothing
        os.fsync(file.fileno())
    assert space.disk_space(plan, out).needs == before - 8192


def test_kept_intermediate_results_count(tmp_path: Path, models: list[Path]) -> None:
    first = f"name: first\nmerge_method: slerp\nbase_model: {models[1]}\nmodels: [{models[0]}]\n"
    last = f"merge_method: linear\nmodels: [first, {models[2]}]\nparameters: {{weight: 1}}\n"
    text = f"{first}parameters: {{t: 0.5}}\n---\n{last}"
    plan = make_plan(parse(text), PlanOptions(stages_folder=tmp_path / ".out.stages"))
    (stage,) = plan.stages
    assert stage.folder is not None
    whole = plan.output_bytes + stage.output_bytes + space.SPARE_BYTES
    assert space.disk_space(plan, tmp_path / "out").needs == whole
    stage.folder.mkdir(parents=True)
    (stage.folder / "model.safetensors").write_bytes(os.urandom(8192))
    os.sync()
    assert space.disk_space(plan, tmp_path / "out").needs == whole - 8192
