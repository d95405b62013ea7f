"""The output of qstat of the fake PBS: jobs in full, as text or JSON, and the server."""

import json
import os
import pwd
import re
import sys

from pbs_jobs import HOME, TORQUE, Refused, jobs, switched

USAGE = "usage:\nqstat [-f] [-J] [-p] [-t] [-x] [-E] [-F format] [-D delim] [ job_identifier… ]"


def limit() -> int:
    """Return the limit of members in an array."""
    path = HOME / "array-limit"
    return int(path.read_text()) if path.exists() else 10000


def letter(job: dict) -> str:
    if job["state"] != "F":
        return str(job["state"])
    rest = [each for each in jobs().values() if each.get("array", "") == job.get("array")]
    others = any(each["state"] != "F" for each in rest)
    return "C" if TORQUE else "X" if others else "F"


def variables() -> list[tuple[str, str]]:
    """Return the variables of every job, NUL-separated in $FAKES/pbs/variables."""
    path = HOME / "variables"
    given = path.read_text().split("\0") if path.exists() else []
    # What a user's own variables may hold is no field of the job's.
    pairs = ["PBS_O_HOME=/home/me", "A=job_state = F", *given]
    return [tuple(pair.split("=", 1)) for pair in pairs]


def fields(job: dict) -> dict[str, object]:
    owner = pwd.getpwuid(os.getuid()).pw_name
    result: dict[str, object] = {"Job_Name": job["N"], "Job_Owner": f"{owner}@login"}
    result["ctime"] = job["ctime"]
    result |= {"job_state": letter(job), "queue": job.get("q", "workq")}
    if job["depend"] and job["state"] == "H":
        result |= {"Hold_Types": "s", "depend": job["depend"] + "@pbs-server"}
    result |= {"Output_Path": f"login:{job['o']}", "Rerunable": True, "Variable_List": variables()}
    if job["comment"]:
        result["comment"] = job["comment"]
    result["run_count"] = job["runs"]
    if "code" in job:
        result["exit_status" if TORQUE else "Exit_status"] = job["code"]
    return result | {"project": "_pbs_project_default"}


def as_text(job: dict) -> str:
    lines = [f"Job Id: {job['id']}"]
    for name, value in fields(job).items():
        if isinstance(value, list):
            value = ",".join("=".join(pair) for pair in value)
        # Lines of 79 columns, and what does not fit goes on behind a tab.
        line = f"    {name} = {value}"
        lines.append("\n\t".join(line[at : at + 79] for at in range(0, len(line), 79)))
    return "\n".join([*lines, ""])


def coerced(value: str) -> object:
    """Turn text that looks like a number or a boolean into one, with backslashes doubled."""
    if value in ("true", "false"):
        return value == "true"
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value):
        number = float(value)
        return int(number) if number.is_integer() else number
    return value.replace("\\", "\\\\")


def as_json(shown: list[dict]) -> str:
    answer: dict[str, object] = {"timestamp": 1764100000, "pbs_version": "23.06.06"}
    answer["pbs_server"] = "pbs-server"
    for job in shown[: 1 if switched("first-only") else None]:
        listed = fields(job)
        listed["Variable_List"] = {name: coerced(value) for name, value in variables()}
        answer.setdefault("Jobs", {})[job["id"]] = listed
    text = json.dumps(answer, indent=4, ensure_ascii=False)
    if not switched("raw-json"):
        return text
    # Of older versions, which escape nothing and write what looks like a number as it was given.
    for name, value in variables():
        word = json.dumps(coerced(value), ensure_ascii=False)
        raw = f'"{value}"' if isinstance(coerced(value), str) else value
        text = text.replace(f'"{name}": {word}', f'"{name}": {raw}')
    return text


def qstat(words: list[str]) -> int:
    if words == ["-B", "-f"]:
        name = "max_job_array_size" if TORQUE else "max_array_size"
        print(f"Server: pbs-server\n    server_state = Active\n    {name} = {limit()}\n")
        return 0
    history, as_document = "-x" in words, "-F" in words
    if as_document and (TORQUE or switched("no-json")):
        raise Refused(f"invalid option -- 'F'\n{USAGE}", 2)
    if history and TORQUE:
        raise Refused("a real one would print XML", 2)
    ids = [word for word in words if not word.startswith("-") and word != "json"]
    if history and switched("no-history"):
        print("PBS is not configured to maintain job history", file=sys.stderr)
        return 0
    shown, status = known(ids, history)
    if shown or as_document:
        print(as_json(shown) if as_document else "\n".join(map(as_text, shown)))
    return status


def known(ids: list[str], history: bool) -> tuple[list[dict], int]:
    """Return the jobs to print, and the exit status for the last unknown one."""
    shown, status, existing = [], 0, jobs()
    for job_id in ids:
        job = existing.get(job_id)
        if job is None or (switched("no-history") and letter(job) == "F"):
            print(f"qstat: Unknown Job Id {job_id}", file=sys.stderr)
            status = 153
        elif letter(job) == "F" and not history:
            print(f"qstat: {job_id} Job has finished, use -x or -H", file=sys.stderr)
            status = 35
        else:
            shown.append(job)
    return shown, status
