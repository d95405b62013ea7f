"""The log of a Beaker job: all of its runs in order, as far as they are written."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Any

from merge_worker.messages import printable

from ...errors import ClusterError
from .client import Client, Unreachable, connected
from .status import ENDED

POLL_S = 3.0
PATIENCE_S = 300.0
"""How long a server may be unreachable while a log is followed."""


def lines(job_id: str, follow: bool, poll_s: float = POLL_S) -> Iterator[str]:
    """Yield the lines so far; with `follow`, until the job ends, through every preemption."""
    reader = Reader(job_id)
    answered = time.monotonic()
    while True:
        try:
            with connected() as client:
                while True:
                    ended = yield from reader.read_new(client)
                    answered = time.monotonic()
                    if ended or not follow:
                        return
                    time.sleep(poll_s)
        except Unreachable:
            if not (follow and reader.job_exists) or time.monotonic() - answered > PATIENCE_S:
                raise
        time.sleep(poll_s)


class Reader:
    """A reader that remembers its position in each run, to resume after a broken stream."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.job_exists = False
        self._read: dict[str, Any] = {}
        self._closed: set[str] = set()

    def read_new(self, client: Client) -> Generator[str, None, bool]:
        """Yield the lines since the last call; return whether the job has ended."""
        workload = client.workloads([self.job_id]).get(self.job_id)
        if workload is None:
            raise ClusterError(f"beaker: job {printable(self.job_id)} not found")
        self.job_exists = True
        ended = workload.status in ENDED
        (runs,) = client.runs([workload], self._closed)
        for job in reversed(runs):
            if job.id in self._closed:
                continue
            group = job.system_details.replica_group_details
            prefix = f"[{group.rank}] " if group.size > 1 else ""
            yield from self._lines(client, job, prefix)
            if job.status.HasField("finalized"):
                self._closed.add(job.id)
        return bool(ended)

    def _lines(self, client: Client, job: Any, prefix: str) -> Iterator[str]:
        more = {"since": self._read[job.id]} if job.id in self._read else {}
        for line in client.stream("StreamJobLogs", job_id=job.id, follow=False, **more):
            after = client.messages.JobLog().timestamp
            after.FromNanoseconds(line.timestamp.ToNanoseconds() + 1)
            self._read[job.id] = after
            yield prefix + line.message.decode(errors="replace")
