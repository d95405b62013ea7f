"""What Slurm says of a job → states and sentences. Codes as in 22.05 and its manuals."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..base import JobState, Status

STATES = {
    JobState.QUEUED: "PENDING CONFIGURING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT",
    JobState.RUNNING: "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
    JobState.DONE: "COMPLETED",
    JobState.FAILED: "FAILED OUT_OF_MEMORY BOOT_FAIL LAUNCH_FAILED RECONFIG_FAIL",
    JobState.CANCELLED: "CANCELLED REVOKED",
    # By the limit, another job or the machine, not by itself: the same command resumes it.
    JobState.STOPPED: "TIMEOUT DEADLINE PREEMPTED NODE_FAIL",
}

WORDS = {
    "Resources": "It waits for nodes to become free.",
    "Priority": "Other jobs of this partition come before it.",
    "Dependency": "It waits for another job.",
    "DependencyNeverSatisfied": "It can never run: the job that it waits for did not succeed.",
    "BeginTime": "It is back in the queue, or was asked to begin later; it waits for that time.",
    "JobHeldUser": "It is held; release it: scontrol release JOB",
    "JobHeldAdmin": "An administrator holds it.",
    "JobArrayTaskLimit": "As many members of its array run as may run at once.",
    "PartitionConfig": "It can never run: it is over what this partition has, or its limits.",
    "PartitionNodeLimit": "It can never run: this partition gives no job as many nodes.",
    "PartitionTimeLimit": "It can never run: its --time is over the limit of the partition.",
    "PartitionDown": "The partition is down.",
    "PartitionInactive": "The partition starts no jobs now.",
    "ReqNodeNotAvail": "Nodes that it asks for are down, drained or reserved.",
    "Licenses": "It waits for a licence.",
    "Reservation": "It waits for its reservation to begin.",
    "InvalidAccount": "Its --account does not exist or may not run here.",
    "InvalidQOS": "Its QOS does not exist or may not run here.",
    "BadConstraints": "It can never run: no node has what it asks for.",
    "JobLaunchFailure": "The node could not start it; often the folder of the log is not there.",
    "launch_failed_requeued_held": "The node could not start it; it is held: scontrol release JOB",
    "TimeLimit": "It reached its time limit.",
    "OutOfMemory": "It used more memory than it had asked for; give more --mem, or less --memory.",
    "NodeDown": "Its node went down.",
    "NodeFail": "Its node failed.",
    "NonZeroExitCode": "It ended by itself with an error; its log tells which.",
    "SystemFailure": "Slurm or the node failed.",
    "Prolog": "The node is being prepared.",
    "Cleaning": "What its last run left is being cleared away.",
}
# Families of reasons: the names go on with what is counted.
FAMILIES = {
    "QOSMax": "It is over, or waits for, a limit of its QOS.",
    "QOSGrp": "All jobs of its QOS together use what they may; it waits for them.",
    "AssocMax": "It is over, or waits for, a limit of its account.",
    "AssocGrp": "All jobs of its account together use what they may; it waits for them.",
    "Max": "It is over, or waits for, a limit.",
    "RaisedSignal": "It ended by a signal.",
    "Nodes_required": "Nodes that it asks for are down, drained or reserved.",
}


def state(code: str) -> JobState:
    return next((s for s, codes in STATES.items() if code in codes.split()), JobState.UNKNOWN)


def sentence(reason: str) -> str | None:
    plain = re.split(r"[,(: ]", reason, maxsplit=1)[0]
    near = (words for name, words in FAMILIES.items() if plain.startswith(name))
    return WORDS.get(plain) or next(near, None)


def of_squeue(text: str) -> dict[str, Status]:
    """Lines of `%i|%T|%r|%S`: id, state, reason, (expected) start."""
    found = {}
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) == 4:
            job_id, code, reason, start = fields
            found[job_id] = _status(code, reason, start)
    return found


def of_sacct(text: str) -> dict[str, Status]:
    """Lines of `JobID|State|ExitCode|Reason`."""
    found = {}
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) == 4:
            # 'CANCELLED by 1000' names the user.
            job_id, words, ended, reason = fields
            code, _, by = words.partition(" ")
            status = _status(code, reason, "")
            more = [f"It was cancelled {by}."] if by else []
            more += _of_exit(ended)
            detail = f"{words}: {reason}" if _said(reason) else words
            found[job_id] = Status(status.state, detail, (*status.reasons, *more))
    return found


def _said(reason: str) -> bool:
    return reason not in ("", "None", "(null)", "Unknown")


def _status(code: str, reason: str, start: str) -> Status:
    found = state(code)
    sentences = []
    if _said(reason):
        sentences.append(sentence(reason) or f"Slurm's reason: {reason}")
    if found is JobState.QUEUED and re.match(r"\d{4}-", start):
        sentences.append(f"Slurm expects it to start at {start}.")
    detail = f"{code}: {reason}" if _said(reason) else code
    return Status(found, detail, tuple(sentences))


def of_scontrol(text: str) -> tuple[str, ...]:
    """One line of `scontrol -o show job`: what `squeue` does not tell."""
    fields = dict(re.findall(r"(?:^| )([A-Za-z/:]+)=(\S*)", text))
    return tuple(_told(fields))


def _told(fields: dict[str, str]) -> Iterator[str]:
    again = fields.get("Restarts", "0")
    if again not in ("0", ""):
        yield f"It has gone back into the queue {again} {'time' if again == '1' else 'times'}."
    waits = fields.get("Dependency", "(null)")
    if waits not in ("(null)", ""):
        yield f"It waits for {waits}."
    if fields.get("JobState") in ("RUNNING", "COMPLETING"):
        yield (
            f"It has run {fields.get('RunTime', '?')} of {fields.get('TimeLimit', '?')} "
            f"on {fields.get('NodeList', '?')}."
        )
    if fields.get("JobState") != "PENDING":
        yield from _of_exit(fields.get("ExitCode", "0:0"))


def _of_exit(pair: str) -> Iterator[str]:
    """`75:0` is the code of the script, `0:9` the signal that ended it."""
    code, _, signal = pair.partition(":")
    if signal not in ("", "0"):
        yield f"A signal ended it: number {signal}."
    elif code not in ("", "0"):
        yield f"Its script ended with code {code}."
