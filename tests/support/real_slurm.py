"""A real Slurm on loopback, private to one run of the tests: controller, two nodes, no database.

Debian's packages run as root without systemd or cgroups. All their files are in one folder, ports
are free ones, and nothing under /etc is touched. Missing packages are installed by apt as root, if
possible; otherwise the tests that need them are skipped with the reason.
"""

import contextlib
import functools
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .debian import install

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
PACKAGES = ("slurm-wlm", "munge")
SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"
START_S = 60
LIVELY_S = 0.5
NEXT_SECOND_S = 1.5
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"})

CONFIGURATION = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
MaxArraySize=5
KillWait=5
MinJobAge={remembered_s}
PluginDir={plugins}
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=3000 \
Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=3000 \
Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP
"""


class Cluster(NamedTuple):
    """A running Slurm. `variables` are the environment variables its commands need."""

    folder: Path
    variables: dict[str, str]

    def ask(self, *argv: str) -> str:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self.variables},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fields(self, job_id: str) -> dict[str, str]:
        shown = self.ask("scontrol", "-o", "show", "job", job_id)
        return dict(word.partition("=")[::2] for word in shown.split())

    def field(self, job_id: str, name: str) -> str:
        return self.fields(job_id).get(name, "")

    def wait(self, job_id: str, *states: str, timeout_s: float = 90) -> str:
        """Wait until the job is in one of these states; fail with its log if it ends otherwise."""
        fields: dict[str, str] = {}

        def there() -> bool:
            fields.update(self.fields(job_id))
            return fields["JobState"] in ENDED.union(states)

        with contextlib.suppress(AssertionError):
            until(there, "it", timeout_s)
        state, log = fields["JobState"], Path(fields.get("StdOut", ""))
        text = log.read_text() if log.is_file() else "no log"
        assert state in states, f"job {job_id} is {state}, not {states}: {fields}\n{text}"
        return state

    def clear(self) -> None:
        """Cancel all jobs, so that the next test begins without any."""
        self.ask("scancel", "--full", "--user=root")
        until(lambda: not self.ask("squeue", "-h"), "all jobs to be gone")
        until(lambda: _idle(self), "two idle nodes")

    def start_now(self, job_id: str) -> None:
        """Start a requeued job without the two minutes that it would wait.

        Waits past the second in which its last run ended: nodes refuse credentials from before
        that, and both times are in seconds ("Job credential revoked").
        """
        until(lambda: _idle(self), "the last run to end")
        time.sleep(NEXT_SECOND_S)

        def started() -> bool:
            if self.field(job_id, "JobState") != "PENDING":
                return True
            with contextlib.suppress(AssertionError):  # it has just begun
                self.ask("scontrol", "update", f"jobid={job_id}", "StartTime=now")
            return False

        until(started, f"job {job_id} to start again")


def until(look, words: str, timeout_s: float = 60):
    """Poll `look` and return its first true result."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        result = look()
        if result:
            return result
        time.sleep(LIVELY_S)
    raise AssertionError(f"waited {timeout_s:.0f} s for {words}")


def _missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=SYSTEM) is None]


@functools.cache
def why_not() -> str | None:
    """Return why Slurm cannot run here, or None; installs the packages if possible."""
    if os.geteuid() != 0:
        return "a real Slurm is started by root only"
    if _missing() and shutil.which("apt-get") is None:
        return f"not installed: {', '.join(_missing())}"
    failure = install(*PACKAGES) if _missing() else None
    if failure is not None:
        return failure
    return f"not installed: {', '.join(_missing())}" if _missing() else None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def _configure(folder: Path, remembered_s: int) -> None:
    plugins = next(Path("/usr/lib").glob("*/slurm-wlm"), Path("/usr/lib/slurm"))
    (folder / "state").mkdir()
    text = CONFIGURATION.format(
        folder=folder, ports=_free_ports(3), plugins=plugins, remembered_s=remembered_s
    )
    gpus = []
    for node in ("n1", "n2"):
        (folder / f"spool-{node}").mkdir()
        for number in range(2):
            # A character device like /dev/null: slurmd accepts nothing else.
            os.mknod(folder / f"{node}-gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        gpus.append(f"NodeName={node} Name=gpu File={folder}/{node}-gpu[0-1]")
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("\n".join(gpus) + "\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)


def _start(folder: Path, variables: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    munge = [
        *("munged", "--foreground", "--force", f"--socket={folder}/munge.socket"),
        *(f"--key-file={folder}/munge.key", f"--pid-file={folder}/munge.pid"),
        *(f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"),
    ]
    commands = [munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"]]
    commands.append(["slurmd", "-D", "-N", "n2"])
    started = []
    for argv in commands:
        with (folder / f"{argv[0]}.out").open("ab") as log:
            started.append(
                subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables
                )
            )
        if argv is munge:
            until((folder / "munge.socket").exists, "munge to answer", START_S)
    return started


def cluster(folder: Path, remembered_s: int = 3600) -> Iterator[Cluster]:
    """Run a cluster for a fixture. `folder` must be short: socket paths have 107 characters."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    _configure(folder, remembered_s)
    variables = {
        "SLURM_CONF": f"{folder}/slurm.conf",
        "PATH": f"{os.environ['PATH']}:{SYSTEM}",
    }
    started = _start(folder, {**os.environ, **variables})
    running = Cluster(folder, variables)
    try:
        until(lambda: _idle(running), f"two idle nodes; see {folder}", START_S)
        yield running
    finally:
        for child in reversed(started):
            child.terminate()
        for child in reversed(started):
            child.wait(timeout=30)


def _idle(cluster: Cluster) -> bool:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%T"],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **cluster.variables},
        check=False,
    )
    return done.stdout.split() == ["idle", "idle"]
