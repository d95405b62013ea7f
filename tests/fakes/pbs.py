"""A PBS that keeps its jobs in files: the replies, codes and refusals of OpenPBS 23.06 as recorded
there, and Torque's letters where $FAKE_PBS is torque.

    python3 pbs.py qsub|qstat|qdel|qrerun|schedule WORDS…

Settings are files in $FAKES/pbs: `down` (no server), `no-history`, `quota` (one job a user).
`schedule` is for tests: it runs what may run, one job after the other (`schedule begin`: starts it
only). With $FAKE_RUN each job runs at once.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKES"]) / "pbs"
TORQUE = os.environ.get("FAKE_PBS") == "torque"
KNOWN = {"select", "place", "walltime", "ncpus", "ngpus", "mem", "nodes", "mpiprocs"}
KNOWN |= {"storage", "jobfs", "wd", "filesystems", "system"}  # of the sites
OPTIONS = "NlkqPAjorWmMSp"


class Refused(Exception):
    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def switched(name: str) -> bool:
    return (HOME / name).exists()


def jobs() -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in HOME.glob("*.job")]
    return {job["id"]: job for job in sorted(found, key=lambda job: int(job["id"].split(".")[0]))}


def keep(job: dict) -> None:
    partial = HOME / f"{job['id']}.partial"
    partial.write_text(json.dumps(job))
    partial.rename(HOME / f"{job['id']}.job")


def directives(text: str) -> list[str]:
    """Those above the first line that is neither comment nor blank."""
    found = []
    for line in text.splitlines():
        if line.startswith("#PBS "):
            found.append(line[5:])
        elif line and not line.startswith("#"):
            break
    return found


def checked(option: str, value: str) -> None:
    if option not in OPTIONS or " #" in value:
        raise Refused(f"directive error: -{option} {value}", 1)
    if option == "N":
        longest = 15 if TORQUE else 230
        if not re.fullmatch(rf"[A-Za-z0-9_.+-]{{1,{longest}}}", value):
            raise Refused(
                "illegal -N value\nusage: qsub [-a date_time] [-A account]\n\t[-e path]", 2
            )
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


def qsub(words: list[str]) -> None:
    given = ["-W " + words[1]] if words[:1] == ["-W"] else []
    script = Path(words[-1])
    if not script.is_file():
        raise Refused("script file:: No such file or directory", 1)
    text = script.read_text(encoding="utf-8", errors="surrogateescape")
    if "\r" in script.read_bytes().decode(errors="replace"):
        raise Refused("script contains cr, lf", 1)
    job = {"state": "Q", "comment": "", "runs": 0, "depend": "", "text": text, "queue": "workq"}
    for line in directives(text) + given:
        option, value = line[1], line[3:]
        checked(option, value)
        if option in "NoqW":
            job[option] = shlex.split(value)[0]
    if switched("quota") and jobs():
        raise Refused("would exceed limit on number of jobs a user may have", 188)
    if not Path(job["o"]).parent.is_dir():
        raise Refused(f"a real server would lose the log {job['o']}", 99)
    job["depend"] = job.get("W", "").removeprefix("depend=") if "depend" in job.get("W", "") else ""
    number = 12 + len(list(HOME.glob("*.job")))
    job |= {"id": f"{number}.pbs-server", "cwd": str(Path.cwd())}
    if job["depend"]:
        job["state"] = "H"
    keep(job)
    if os.environ.get("FAKE_RUN"):
        schedule([])
    print(job["id"])


def field(name: str, value: object) -> str:
    """Lines of 79 columns, and what does not fit goes on behind a tab."""
    line = f"    {name} = {value}"
    return "\n\t".join(line[at : at + 79] for at in range(0, len(line), 79))


def described(job: dict) -> str:
    lines = [f"Job Id: {job['id']}", field("Job_Name", job["N"]), field("Job_Owner", "me@login")]
    over = job["state"] == "F"
    lines.append(field("job_state", "C" if over and TORQUE else job["state"]))
    lines.append(field("queue", job.get("q", "workq")))
    if job["depend"] and job["state"] == "H":
        lines += [field("Hold_Types", "s"), field("depend", job["depend"] + "@pbs-server")]
    lines.append(field("Output_Path", f"login:{job['o']}"))
    lines.append(field("Rerunable", True))
    # What a user's own variables may hold is no field of the job's.
    lines.append(field("Variable_List", "PBS_O_HOME=/home/me,A=job_state = F"))
    if job["comment"]:
        lines.append(field("comment", job["comment"]))
    lines.append(field("run_count", job["runs"]))
    if "code" in job:
        lines.append(field("exit_status" if TORQUE else "Exit_status", job["code"]))
    return "\n".join([*lines, field("project", "_pbs_project_default"), ""])


def qstat(words: list[str]) -> int:
    history = "-x" in words
    if "-F" in words or (history and TORQUE):
        raise Refused("the caller reads plain text", 2)
    ids = [word for word in words if not word.startswith("-")]
    if history and switched("no-history"):
        print("PBS is not configured to maintain job history", file=sys.stderr)
        return 0
    status = 0
    known = jobs()
    for job_id in ids:
        job = known.get(job_id)
        if job is None or (switched("no-history") and job["state"] == "F"):
            print(f"qstat: Unknown Job Id {job_id}", file=sys.stderr)
            status = 153
        elif job["state"] == "F" and not history and not TORQUE:
            print(f"qstat: {job_id} Job has finished, use -x or -H", file=sys.stderr)
            status = 35
        else:
            print(described(job))
    return status


def ended(job: dict, code: int | None, comment: str) -> None:
    job |= {"state": "F", "comment": comment}
    if code is not None:
        job["code"] = code
    keep(job)


def stop(job: dict) -> None:
    os.killpg(job["pid"], signal.SIGTERM)
    for _ in range(100):
        try:
            os.killpg(job["pid"], 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)


def qdel(words: list[str]) -> None:
    job = jobs().get(words[-1])
    if job is None:
        raise Refused(f"Unknown Job Id {words[-1]}", 153)
    if job["state"] == "F":
        raise Refused(f"Job has finished {words[-1]}", 35)
    running = job["state"] == "R"
    if running:
        stop(job)
    ended(job, 271 if running else None, "Job run at now and terminated by me@login" * running)


def qrerun(words: list[str]) -> None:
    job = jobs()[words[-1]]
    stop(job)
    keep(job | {"state": "Q", "comment": "Job was requeued"})


def schedule(words: list[str]) -> None:
    for job_id in jobs():
        job = jobs()[job_id]
        if job["state"] == "H" and job["depend"].startswith("afterok:"):
            parent = jobs().get(job["depend"].removeprefix("afterok:"))
            if parent is not None and parent["state"] != "F":
                continue
            if parent is None or parent.get("code") != 0:
                # Without a word and a code, as PBS does it.
                ended(job, None, "")
                continue
        if job["state"] in "QH":
            begin(job, wait="begin" not in words)


def begin(job: dict, wait: bool) -> None:
    script = HOME / f"{job['id']}.SC"
    script.write_text(job["text"], encoding="utf-8", errors="surrogateescape")
    nodes = HOME / f"{job['id']}.nodes"
    chunks = re.search(r"(?:select|nodes)=(\d+)", job["text"])
    nodes.write_text("".join(f"node{n}\n" * 2 for n in range(int(chunks[1]) if chunks else 1)))
    env = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "FAKES": os.environ["FAKES"],
        "PBS_JOBID": job["id"],
        "PBS_O_WORKDIR": job["cwd"],
        "PBS_NODEFILE": str(nodes),
        "PBS_ENVIRONMENT": "PBS_BATCH",
    }
    with Path(job["o"]).open("ab") as log:
        process = subprocess.Popen(
            ["bash", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            cwd=env["HOME"],
            start_new_session=True,
        )
    keep(job | {"state": "R", "pid": process.pid, "runs": job["runs"] + 1, "comment": "Job run"})
    if wait:
        code = process.wait()
        ended(jobs()[job["id"]], code if code >= 0 else 256 - code, "Job run at now and finished")


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
