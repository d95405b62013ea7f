"""What qstat of the fake PBS prints: the full form of jobs, and of the server."""

import sys

from pbs_jobs import HOME, TORQUE, Refused, jobs, switched


def limit() -> int:
    """Of an array's members."""
    path = HOME / "array-limit"
    return int(path.read_text()) if path.exists() else 10000


def field(name: str, value: object) -> str:
    """Lines of 79 columns, and what does not fit goes on behind a tab."""
    line = f"    {name} = {value}"
    return "\n\t".join(line[at : at + 79] for at in range(0, len(line), 79))


def letter(job: dict) -> str:
    if job["state"] != "F":
        return str(job["state"])
    rest = [each for each in jobs().values() if each.get("array", "") == job.get("array")]
    others = any(each["state"] != "F" for each in rest)
    return "C" if TORQUE else "X" if others else "F"


def described(job: dict) -> str:
    lines = [f"Job Id: {job['id']}", field("Job_Name", job["N"]), field("Job_Owner", "me@login")]
    lines.append(field("job_state", letter(job)))
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
    if words == ["-B", "-f"]:
        name = "max_job_array_size" if TORQUE else "max_array_size"
        print(f"Server: pbs-server\n    server_state = Active\n    {name} = {limit()}\n")
        return 0
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
        if job is None or (switched("no-history") and letter(job) == "F"):
            print(f"qstat: Unknown Job Id {job_id}", file=sys.stderr)
            status = 153
        elif letter(job) == "F" and not history:
            print(f"qstat: {job_id} Job has finished, use -x or -H", file=sys.stderr)
            status = 35
        else:
            print(described(job))
    return status
