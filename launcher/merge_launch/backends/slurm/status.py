"""Statuses from the output of squeue, sacct and scontrol. Codes as in 22.05 and its manuals."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator

from ..base import JobState, Origin, Status

STATES = {
    JobState.QUEUED: "PENDING CONFIGURING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT",
    JobState.RUNNING: "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
    JobState.DONE: "COMPLETED",
    JobState.FAILED: "FAILED OUT_OF_MEMORY BOOT_FAIL LAUNCH_FAILED RECONFIG_FAIL",
    JobState.CANCELLED: "CANCELLED REVOKED",
    # Ended by a limit, another job or the machine: the same command resumes the merge.
    JobState.STOPPED: "TIMEOUT DEADLINE PREEMPTED NODE_FAIL",
}

REASONS = {
    "Resources": "Waiting for nodes to become free.",
    "Priority": "Jobs with higher priority are ahead in this partition.",
    "Dependency": "Waiting for another job.",
    "DependencyNeverSatisfied": "Can never run: the job it depends on did not succeed.",
    "BeginTime": "Requeued, or submitted with a later start time; waiting for that time.",
    "JobHeldUser": "On hold; release it with: scontrol release JOB",
    "JobHeldAdmin": "Held by an administrator.",
    "JobArrayTaskLimit": "The limit of concurrent members of the array is reached.",
    "PartitionConfig": "Can never run: exceeds the resources or limits of this partition.",
    "PartitionNodeLimit": "Can never run: exceeds the node limit of this partition.",
    "PartitionTimeLimit": "Can never run: --time exceeds the limit of this partition.",
    "PartitionDown": "The partition is down.",
    "PartitionInactive": "The partition is not starting jobs at present.",
    "ReqNodeNotAvail": "Requested nodes are down, drained or reserved.",
    "Licenses": "Waiting for a license.",
    "Reservation": "Waiting for its reservation to begin.",
    "InvalidAccount": "The --account does not exist or may not run here.",
    "InvalidQOS": "The QOS does not exist or may not run here.",
    "BadConstraints": "Can never run: no node has the requested resources.",
    "JobLaunchFailure": "The node could not start the job; often the folder of the log is missing.",
    "launch_failed_requeued_held": (
        "The node could not start the job; on hold: scontrol release JOB"
    ),
    "TimeLimit": "The job reached its time limit.",
    "OutOfMemory": "The job used more memory than requested; give more --mem, or less --memory.",
    "NodeDown": "The node of the job went down.",
    "NodeFail": "The node of the job failed.",
    "NonZeroExitCode": "The job ended with an error; see its log.",
    "SystemFailure": "Slurm or the node failed.",
    "Prolog": "The node is being prepared.",
    "Cleaning": "The previous run is being cleaned up.",
}
# Beginnings of reasons; each has variants, which end in the name of the limit.
REASON_FAMILIES = {
    "QOSMax": "Exceeds a QOS limit, or is waiting for one to free up.",
    "QOSGrp": "All jobs of the QOS together have reached a limit; waiting for one of them.",
    "AssocMax": "Exceeds a limit of the account, or is waiting for one to free up.",
    "AssocGrp": "All jobs of the account together have reached a limit; waiting for one of them.",
    "Max": "Exceeds a limit, or is waiting for one to free up.",
    "RaisedSignal": "A signal ended the job.",
    "Nodes_required": "Requested nodes are down, drained or reserved.",
}


def state(code: str) -> JobState:
    """Return the state for a code of Slurm."""
    return next((s for s, codes in STATES.items() if code in codes.split()), JobState.UNKNOWN)


def sentence(reason: str) -> str | None:
    """Return a sentence for a reason of Slurm, or None for an unknown one."""
    plain = re.split(r"[,(: ]", reason, maxsplit=1)[0]
    families = (text for name, text in REASON_FAMILIES.items() if plain.startswith(name))
    return REASONS.get(plain) or next(families, None)


SQUEUE_FIELDS = "%i|%T|%r|%S|%V|%U|%j"
SACCT_FIELDS = "JobID,State,ExitCode,Reason,Submit,UID,JobName"


def of_squeue(text: str) -> dict[str, Status]:
    """Return the status of each job from the lines of squeue with SQUEUE_FIELDS."""
    return {
        job_id: dataclasses.replace(_status(code, reason, start), origin=origin)
        for (job_id, code, reason, start), origin in _rows(text)
    }


def of_sacct(text: str) -> dict[str, Status]:
    """Return the status of each job from the lines of sacct with SACCT_FIELDS.

    Members of an array that wait have one line, `12_[0-3%2]`; the id of the array has its status.
    """
    statuses = {}
    for (job_id, words, exit_pair, reason), origin in _rows(text):
        # 'CANCELLED by 1000' names the user.
        code, _, by = words.partition(" ")
        status = _status(code, reason, "")
        sentences = [*status.reasons, *([f"Cancelled {by}."] if by else []), *_of_exit(exit_pair)]
        detail = f"{words}: {reason}" if _is_given(reason) else words
        status = Status(status.state, detail, tuple(sentences), origin)
        statuses[job_id.partition("_[")[0]] = status
    return statuses


def _rows(text: str) -> Iterator[tuple[list[str], Origin]]:
    """Yield the fields that the sources differ in, and the origin of each job."""
    # The name is last: that of another user's job may hold anything.
    rows = (line.strip().split("|", 6) for line in text.splitlines())
    for *fields, submitted, user, name in (row for row in rows if len(row) == 7):
        yield fields, Origin(name, user, _seconds(submitted))


def _seconds(time_text: str) -> float | None:
    """Return a time as Slurm prints it, in the zone of this machine, as Unix seconds."""
    try:
        return time.mktime(time.strptime(time_text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


def _is_given(reason: str) -> bool:
    return reason not in ("", "None", "(null)", "Unknown")


def _status(code: str, reason: str, start: str) -> Status:
    job_state = state(code)
    sentences = []
    if _is_given(reason):
        sentences.append(sentence(reason) or f"Slurm's reason: {reason}")
    if job_state is JobState.QUEUED and re.match(r"\d{4}-", start):
        sentences.append(f"Slurm expects the job to start at {start}.")
    detail = f"{code}: {reason}" if _is_given(reason) else code
    return Status(job_state, detail, tuple(sentences))


def of_scontrol(text: str) -> Iterator[str]:
    """Yield what squeue leaves out, from the line of `scontrol --oneliner show job`."""
    fields = dict(re.findall(r"(?:^| )([A-Za-z/:]+)=(\S*)", text))
    restarts = fields.get("Restarts", "0")
    if restarts not in ("0", ""):
        yield f"Requeued {restarts} {'time' if restarts == '1' else 'times'}."
    dependency = fields.get("Dependency", "(null)")
    if dependency not in ("(null)", ""):
        yield f"The job depends on {dependency}."
    if fields.get("JobState") in ("RUNNING", "COMPLETING"):
        yield (
            f"Running for {fields.get('RunTime', '?')} of {fields.get('TimeLimit', '?')} "
            f"on {fields.get('NodeList', '?')}."
        )
    if fields.get("JobState") != "PENDING":
        yield from _of_exit(fields.get("ExitCode", "0:0"))


def _of_exit(pair: str) -> Iterator[str]:
    """Yield a sentence on CODE:SIGNAL; `75:0` is the code of the script, `0:9` a signal."""
    code, _, signal = pair.partition(":")
    if signal not in ("", "0"):
        yield f"Signal {signal} killed the job."
    elif code not in ("", "0"):
        yield f"The script ended with code {code}."
