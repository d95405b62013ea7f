"""A fake PBS with jobs in files: the recorded replies, codes and refusals of OpenPBS 23.06, and
Torque's states if $FAKE_PBS is torque.

    python3 pbs.py qsub|qstat|qdel|qrerun|schedule WORDS…

Settings are files in $FAKES/pbs: `down` (no server), `no-history`, `quota` (one job a user),
`array-limit` (holds a number), `no-json` (PBS Pro 13), `raw-json` (later, but not by much),
`first-only` (JSON of OpenPBS since 2023-12), `variables` (of every job).
`schedule` is for tests: it runs what may run, one job after the other (`schedule begin`: starts it
only). With $FAKE_RUN each job runs at once.
"""

import os
import re
import shlex
import sys
import time
from pathlib import Path

from pbs_jobs import (
    HOME,
    TORQUE,
    Refused,
    ended,
    jobs,
    keep,
    numbers,
    qrerun,
    schedule,
    stop,
    switched,
)
from pbs_qstat import limit, qstat

KNOWN = {"select", "place", "walltime", "ncpus", "ngpus", "mem", "nodes", "mpiprocs"}
KNOWN |= {"storage", "jobfs", "wd", "filesystems", "system"}  # of the sites
OPTIONS = "NlkqPAjorWmMSp" + ("t" if TORQUE else "J")


def directives(text: str) -> list[str]:
    """Return the directives above the first line that is neither comment nor blank."""
    result = []
    for line in text.splitlines():
        if line.startswith("#PBS "):
            result.append(line[5:])
        elif line and not line.startswith("#"):
            break
    return result


def checked(option: str, value: str) -> None:
    if option not in OPTIONS or " #" in value:
        raise Refused(f"directive error: -{option} {value}", 1)
    if option == "N":
        longest = 15 if TORQUE else 230
        if not re.fullmatch(rf"[A-Za-z0-9_.+-]{{1,{longest}}}", value):
            raise Refused(
                "illegal -N value\nusage: qsub [-a date_time] [-A account]\n\t[-e path]", 2
            )
    if option == "W" and re.search(r"depend=\w+:.*\[\d", value):
        raise Refused("a real server knows no dependency on a member of an array", 99)
    if option == "q" and value == "nowhere":
        raise Refused("Unknown queue", 170)
    if option == "l":
        resources(value)


def resources(value: str) -> None:
    for part in re.split(r"[:,+]", value):
        name, _, amount = part.partition("=")
        if name == "gpus" and not TORQUE:
            raise Refused("node(s) specification error", 241)
        if amount and name not in KNOWN | {"ppn", "gpus"}:
            raise Refused(f"Unknown resource Resource_List.{name}", 187)
        if name == "mem" and not re.fullmatch(r"(?i)\d+([kmgt]?b)", amount):
            raise Refused("Illegal attribute or resource value", 166)
    if value.startswith("walltime=") and not re.fullmatch(r"walltime=\d+(:\d\d){0,2}", value):
        raise Refused("Illegal attribute or resource value Resource_List.walltime", 166)


def unmixed(text: str) -> None:
    """Refuse chunks together with resources of the whole job."""
    names = re.findall(r"^#PBS -l *(\w+)", text, re.MULTILINE)
    for name, status in (("ncpus", 5), ("mem", 5), ("nodes", 6)):
        if "select" in names and name in names:
            raise Refused(
                f'"-lresource=" cannot be used with "select", resource is: {name}', status
            )
    if "place" in names and "select" not in names and not TORQUE:
        raise Refused("-lplace= cannot be used without -lselect=", 7)
    if len(set(names)) < len(names):
        raise Refused("a real server would take the last of two equal resources", 99)


def qsub(words: list[str]) -> None:
    *given, name = words
    script = Path(name)
    if not script.is_file():
        raise Refused("script file:: No such file or directory", 1)
    text = script.read_text(encoding="utf-8", errors="surrogateescape")
    if "\r" in script.read_bytes().decode(errors="replace"):
        raise Refused("script contains cr, lf", 1)
    job = {"state": "Q", "comment": "", "runs": 0, "depend": "", "text": text, "queue": "workq"}
    job |= {"cwd": str(Path.cwd()), "ctime": time.ctime()}
    spoken = [f"{option} {value}" for option, value in zip(given[::2], given[1::2], strict=True)]
    # The command line wins.
    for line in directives(text) + spoken:
        option, value = line[1], line[3:]
        checked(option, value)
        if option in "NoqWJt":
            job[option] = shlex.split(value)[0]
    unmixed(text)
    if switched("quota") and jobs():
        raise Refused("would exceed limit on number of jobs a user may have", 188)
    output = Path(job["o"])
    if not (output if job["o"].endswith("/") else output.parent).is_dir():
        raise Refused(f"a real server would lose the log {job['o']}", 99)
    if "depend" in job.get("W", ""):
        job |= {"depend": job["W"].removeprefix("depend="), "state": "H"}
    number = max([11, *(numbers(job_id)[0] for job_id in jobs())]) + 1
    job_id = f"{number}.pbs-server"
    members = array(job.get("t" if TORQUE else "J"))
    if members:
        job_id = job["array"] = f"{number}[].pbs-server"
        for index in members:
            keep(job | {"id": job_id.replace("[]", f"[{index}]")})
    else:
        keep(job | {"id": job_id})
    if os.environ.get("FAKE_RUN"):
        schedule([])
    print(job_id)


def array(value: str | None) -> list[int]:
    """Return the numbers of an array's members; none for a single job."""
    if value is None:
        return []
    match = re.fullmatch(r"(\d+)-(\d+)(%\d+)?", value)
    # One member is no range.
    if match is None or int(match[1]) >= int(match[2]):
        raise Refused(f"illegal -{'t' if TORQUE else 'J'} value", 2)
    members = list(range(int(match[1]), int(match[2]) + 1))
    if len(members) > limit():
        raise Refused("Array job exceeds server or queue size limit", 255)
    return members


def qdel(words: list[str]) -> int:
    """Delete jobs; the exit status is that of the last one that cannot be."""
    status = 0
    for job_id in (word for word in words if word != "--"):
        try:
            delete(job_id)
        except Refused as error:
            print(f"qdel: {error}", file=sys.stderr)
            status = error.status
    return status


def delete(job_id: str) -> None:
    job = jobs().get(job_id)
    if job is None:
        raise Refused(f"Unknown Job Id {job_id}", 153)
    if job["state"] == "F":
        raise Refused(f"Job has finished {job_id}", 35)
    running = job["state"] == "R"
    if running:
        stop(job)
    ended(job, 271 if running else None, "Job run at now and terminated by me@login" * running)


def main() -> int:
    name, *words = sys.argv[1:]
    HOME.mkdir(exist_ok=True)
    if switched("down"):
        print("Connection refused", file=sys.stderr)
        print(f"{name}: cannot connect to server pbs-server (errno=15010)", file=sys.stderr)
        return 255 if name == "qstat" else 162
    commands = {"qsub": qsub, "qstat": qstat, "qdel": qdel, "qrerun": qrerun, "schedule": schedule}
    try:
        return commands[name](words) or 0
    except Refused as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.status


sys.exit(main())
