"""This machine: bash runs the very job text that the other backends carry, in this terminal, or
detached from it, as a job with a state, a log and a record like any other."""

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


# The number of a job is that of its process, and its id stands among the words of the process: a
# later process of the same number is not taken for it.
START = """
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
WORDS = """
words() {
    ps -o args= -p "${1##*-}" 2> /dev/null || tr '\\0' ' ' < "/proc/${1##*-}/cmdline" 2> /dev/null
}
"""
ASK = (
    WORDS
    + """
for id; do
    case $(words "$id") in *" $id"*) printf '%s\\n' "$id" ;; esac
done
"""
)
GONE = 35
STOP = (
    WORDS
    + """
case $(words "$1") in *" $1"*) ;; *) exit 35 ;; esac
kill -TERM -- "-${1##*-}" 2> /dev/null || kill -TERM "${1##*-}"
"""
)
ID = r"local-\d{12}-\d+"


@dataclass(frozen=True)
class LocalResources(Resources):
    """The machine is what it is."""

    detach: bool = option(False, OptionSpec("go on in the background, as a job with a log"))


class Local(LocalBackend[LocalResources]):
    name = "local"
    template = "local.sh.j2"
    help = "Merge here and now."
    resources = LocalResources
    suffix = "sh"
    sources = ("bash",)
    already_ended_codes = (GONE,)
    status_if_forgotten = Status(
        JobState.STOPPED, "it ended without a word: killed, or the machine was restarted"
    )

    def context(self, job: Job, resources: LocalResources) -> dict[str, object]:
        return {"detached": resources.detach}

    def detached(self, resources: LocalResources) -> bool:
        return resources.detach

    def run_argv(self, path: str) -> list[str]:
        return ["bash", path]

    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        return ["bash", "-c", START, "bash", path, f"{path.removesuffix('.sh')}.log"]

    def parse_submit(self, text: str) -> str | None:
        found = re.fullmatch(ID, text.strip())
        return found[0] if found else None

    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str]:
        return [source, "-c", ASK, "bash", *ids]

    def parse_status(self, source: str, text: str) -> dict[str, Status]:
        return {
            job_id: Status(JobState.RUNNING, "its process is there") for job_id in text.splitlines()
        }

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["bash", "-c", STOP, "bash", job_id]

    def python(self) -> str:
        """Our own interpreter if it can merge: an environment need not be activated to be used."""
        able = sys.executable and importlib.util.find_spec("torch") is not None
        return sys.executable if able else super().python()


BACKEND = Local()
