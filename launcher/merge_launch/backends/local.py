"""This machine: bash runs the same job text that other backends submit.

The job runs in this terminal, or detached from it with a state, a log and a record like any other.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..settings.options import option
from .base import JobState, LocalBackend, Resources, Status

if TYPE_CHECKING:
    from ..job.job import Job


# A job id ends with the process id and is an argument of the process, so that a later process with
# the same number is not mistaken for the job. The process prints the id once it has it as argument.
START_SCRIPT = """
start() {
    exec bash -c 'MERGE_LAUNCH_JOB=local-$(date +%y%m%d%H%M%S)-$$ || exit
export MERGE_LAUNCH_JOB
exec 3>&1 >> "$2" 2>&1 < /dev/null || exit
exec bash -c "$3" "$1" "$MERGE_LAUNCH_JOB"' bash "$@" 'printf "%s\\n" "$1" >&3; exec 3>&-; . "$0"'
}
export -f start
trap '' HUP
if command -v setsid > /dev/null; then setsid bash -c 'start "$@"' bash "$@" & else start "$@" & fi
"""
# Reads the arguments without a further process where it can: one that a busy machine cannot start
# would make the job look ended. `ps` without -ww cuts lines at $COLUMNS.
IS_RUNNING_FUNCTION = """
is_running() {
    local word arguments=/proc/${1##*-}/cmdline
    if [ -e "$arguments" ]; then
        while IFS= read -r -d '' word; do [ "$word" != "$1" ] || return 0; done < "$arguments"
    else
        case "$(ps -ww -o args= -p "${1##*-}" 2> /dev/null) " in *" $1 "*) return 0 ;; esac
    fi
    return 1
}
"""
STATUS_SCRIPT = f"""{IS_RUNNING_FUNCTION}
for id; do
    if is_running "$id"; then printf '%s\\n' "$id"; fi
done
"""
STOP_SCRIPT = f"""{IS_RUNNING_FUNCTION}
code=0
for id; do
    if ! is_running "$id"; then code=35
    else kill -TERM -- "-${{id##*-}}" 2> /dev/null || kill -TERM "${{id##*-}}" || code=1; fi
done
exit "$code"
"""


@dataclass(frozen=True)
class LocalResources(Resources):
    """The options of the local backend; the machine itself is not configurable."""

    detach: bool = option(False, "run in the background, as a job with a log")


class Local(LocalBackend[LocalResources]):
    """The backend of this machine."""

    name = "local"
    template = "local.sh.j2"
    help = "Merge here and now."
    resources = LocalResources
    suffix = "sh"
    job_id_pattern = r"local-\d{12}-\d+"
    reply_pattern = f"({job_id_pattern})"
    sources = ("bash",)
    already_ended_codes = (35,)
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

    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str]:
        return [source, "-c", STATUS_SCRIPT, "bash", *ids]

    def parse_status(self, source: str, text: str) -> dict[str, Status]:
        return dict.fromkeys(text.splitlines(), Status(JobState.RUNNING, "process is running"))

    def cancel_argv(self, ids: Sequence[str]) -> list[str]:
        return ["bash", "-c", STOP_SCRIPT, "bash", *ids]

    def python(self) -> str:
        """Return this interpreter if it has torch, so that environments work without activation."""
        has_torch = sys.executable and importlib.util.find_spec("torch") is not None
        return sys.executable if has_torch else super().python()


BACKEND = Local()
