"""The jobs of the fake PBS: where they are kept, and how they run, stop and end."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

HOME = Path(os.environ["FAKES"]) / "pbs"
TORQUE = os.environ.get("FAKE_PBS") == "torque"


class Refused(Exception):
    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def switched(name: str) -> bool:
    return (HOME / name).exists()


def jobs() -> dict[str, dict]:
    loaded = [json.loads(path.read_text()) for path in HOME.glob("*.job")]
    return {job["id"]: job for job in sorted(loaded, key=lambda job: numbers(job["id"]))}


def numbers(job_id: str) -> list[int]:
    """Return the number of the job, and that of an array's member."""
    return [int(number) for number in re.findall(r"\d+", job_id)]


def keep(job: dict) -> None:
    partial = HOME / f"{job['id']}.partial"
    partial.write_text(json.dumps(job))
    partial.rename(HOME / f"{job['id']}.job")


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
        # With the brackets of an array's member.
        "TMPDIR": str(HOME / f"pbs.{job['id']}"),
    }
    Path(env["TMPDIR"]).mkdir(exist_ok=True)
    if "array" in job:
        env |= {"PBS_ARRAYID" if TORQUE else "PBS_ARRAY_INDEX": str(numbers(job["id"])[1])}
    output = f"{job['o']}{job['id']}.OU" if job["o"].endswith("/") else job["o"]
    with Path(output).open("ab") as log:
        process = subprocess.Popen(
            ["bash", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            cwd=env["HOME"],
            start_new_session=True,
            umask=0o077,
        )
    keep(job | {"state": "R", "pid": process.pid, "runs": job["runs"] + 1, "comment": "Job run"})
    if wait:
        code = process.wait()
        ended(jobs()[job["id"]], code if code >= 0 else 256 - code, "Job run at now and finished")
