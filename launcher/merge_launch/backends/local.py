"""This machine: bash runs the same job text that other backends submit.

The job runs in this terminal, or detached from it with a state, a log and a record like any other.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..settings.options import OptionSpec, option
from .base import JobState, LocalBackend, Resources, Status

if TYPE_CHECKING:
    from ..job.job import Job


# A job id ends with the process id and is an argument of the process, so that a later process with
# the same number is not mistaken for the job.
START_SCRIPT = """
start() {
    exec bash -c 'MERGE_LAUNCH_JOB=local-$(date +%y%m%d%H%M%S)-$$ || exit
export MERGE_LAUNCH_JOB
exec 3>&1 >> "$2" 2>&1 < /dev/null || exit
printf "%s\\n" "$MERGE_LAUNCH_JOB" >&3
exec 3>&- bash "$1" "$MERGE_LAUNCH_JOB"' bash "$@"
}
export -f start
trap '' HUP
if command -v setsid > /dev/null; then setsid bash -c 'start "$@"' bash "$@" & else start "$@" & fi
"""
ARGUMENTS_FUNCTION = """
words() {
    ps -o args= -p "${1##*-}" 2> /dev/null || tr '\\0' ' ' < "/proc/${1##*-}/cmdline" 2> /dev/null
}
"""
STATUS_SCRIPT = (
    ARGUMENTS_FUNCTION
    + """
for id; do
    case $(words "$id") in *" $id"*) printf '%s\\n' "$id" ;; esac
done
"""
)
ALREADY_ENDED = 35
STOP_SCRIPT = (
    ARGUMENTS_FUNCTION
    + """
case $(words "$1") in *" $1"*) ;; *) exit 35 ;; esac
kill -TERM -- "-${1##*-}" 2> /dev/null || kill -TERM "${1##*-}"
"""
)
ID = r"local-\d{12}-\d+"


@dataclass(frozen=True)
class LocalResources(Resources):
    """The options of the local backend; the machine itself is not configurable."""

    detach: bool = option(False, OptionSpec("run in the background, as a job with a log"))


class Local(LocalBackend[LocalResources]):
    """The backend of this machine."""

    name = "local"
    template = "local.sh.j2"
    help = "Merge here and now."
    resources = LocalResources
    suffix = "sh"
    sources = ("bash",)
    already_ended_codes = (ALREADY_ENDED,)
    status_if_forgotten = Status(
        JobState.STOPPED, "ended without an exit code: killed, or the machine was restarted"
    )

    def context(self, job: Job, resources: LocalResources) -> dict[str, object]:
        return {"detached": resources.detach}

    def detached(self, resources: LocalResources) -> bool:
        return resources.detach

    def run_argv(self, path: str) -> list[str]:
        return ["bash", path]

    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        return ["bash", "-c", START_SCRIPT, "bash", path, f"{path.removesuffix('.sh')}.log"]

    def parse_submit(self, text: str) -> str | None:
        match = re.fullmatch(ID, text.strip())
        return match[0] if match else None

    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str]:
        return [source, "-c", STATUS_SCRIPT, "bash", *ids]

    def parse_status(self, source: str, text: str) -> dict[str, Status]:
        running = Status(JobState.RUNNING, "process is running")
        return dict.fromkeys(text.splitlines(), running)

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["bash", "-c", STOP_SCRIPT, "bash", job_id]

    def python(self) -> str:
        """Return this interpreter if it has torch, so that environments work without activation."""
        has_torch = sys.executable and importlib.util.find_spec("torch") is not None
        return sys.executable if has_torch else super().python()


BACKEND = Local()
