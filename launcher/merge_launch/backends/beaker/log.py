"""The log of a Beaker job: of all its runs one after the other, as far as they have come."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Any

from merge_worker.messages import printable

from ...errors import ClusterError
from .client import Away, Client, connected
from .status import OVER

POLL_S = 3.0
PATIENCE_S = 300.0
"""For how long a server may be away while its log is followed."""


def lines(job_id: str, follow: bool, poll_s: float = POLL_S) -> Iterator[str]:
    """Once, or with `follow` until the job is over, through every preemption."""
    reader = Reader(job_id)
    answered = time.monotonic()
    while True:
        try:
            with connected() as client:
                while True:
                    over = yield from reader.news(client)
                    answered = time.monotonic()
                    if over or not follow:
                        return
                    time.sleep(poll_s)
        except Away:
            if not (follow and reader.begun) or time.monotonic() - answered > PATIENCE_S:
                raise
        time.sleep(poll_s)


class Reader:
    """Remembers how far each run was read; a stream that breaks goes on there."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.begun = False
        self._read: dict[str, Any] = {}
        self._closed: set[str] = set()

    def news(self, client: Client) -> Generator[str, None, bool]:
        """What came since; whether the job is over."""
        workload = client.workloads([self.job_id]).get(self.job_id)
        if workload is None:
            raise ClusterError(f"beaker: there is no job {printable(self.job_id)}")
        self.begun = True
        over = workload.status in OVER
        (runs,) = client.runs([workload])
        for job in reversed(runs):
            if job.id in self._closed:
                continue
            group = job.system_details.replica_group_details
            mark = f"[{group.rank}] " if group.size > 1 else ""
            yield from self._lines(client, job, mark)
            if job.status.HasField("finalized"):
                self._closed.add(job.id)
        return bool(over)

    def _lines(self, client: Client, job: Any, mark: str) -> Iterator[str]:
        more = {"since": self._read[job.id]} if job.id in self._read else {}
        for line in client.stream("StreamJobLogs", job_id=job.id, follow=False, **more):
            after = client.messages.JobLog().timestamp
            after.FromNanoseconds(line.timestamp.ToNanoseconds() + 1)
            self._read[job.id] = after
            yield mark + line.message.decode(errors="replace")
