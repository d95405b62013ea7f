"""Beaker: an experiment spec whose one task is an argument list that holds the whole merge.

What is sent is checked here key by key, since neither beaker-py nor, as far as anybody can see, the
server does. Acting on the server is `_beaker_client`'s.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from merge_worker.messages import printable

from ...errors import ClusterError, UsageError
from ..base import Run, Service, Status, Submitted, seconds
from .options import BeakerResources, covered, mounts
from .spec import ARGUMENTS_BYTES, faults

if TYPE_CHECKING:
    from ...job.job import Job


RESULTS = "/results"
NO_IMAGE = "author/image-to-be-chosen"
LONGEST_DESCRIPTION = 500


class Beaker(Service[BeakerResources]):
    name = "beaker"
    template = "beaker.yaml.j2"
    help = "Submit to Beaker."
    resources = BeakerResources
    max_bytes = ARGUMENTS_BYTES

    def run(self, resources: BeakerResources) -> Run:
        return Run(walltime_s=seconds(resources.timeout), ranks=resources.replicas)

    def faults(self, job: Job, resources: BeakerResources) -> list[str]:
        found = []
        if resources.replicas > 1 and job.then is not None and job.worker.overwrite:
            found.append(
                "--then: not with --replicas and --overwrite: the replica that runs it would take "
                "the old merge for the new one"
            )
        return found

    def obstacles(self, job: Job, resources: BeakerResources) -> list[str]:
        found = []
        if resources.image is None:
            found.append("no image: add --image AUTHOR/NAME, one with python, torch and pyyaml")
        paths = [mount.path for mount in mounts(resources)]
        lost = [path for path in job.merge.local_models() if not covered(path, paths)]
        # Each replica has results of its own.
        own = [RESULTS] if resources.replicas == 1 else []
        if not covered(job.merge.out, [*paths, *own]):
            lost.append(job.merge.out)
        if lost:
            found.append(
                f"no mount covers {', '.join(printable(path) for path in lost)}: "
                f"add --weka BUCKET:{printable(posixpath.dirname(lost[0]))} or "
                f"--mount SOURCE:/PATH, or name paths below a mount"
            )
        return found

    def context(self, job: Job, resources: BeakerResources) -> dict[str, object]:
        image = resources.image or NO_IMAGE
        docker = image.startswith("docker://")
        about = resources.description or f"{job.merge.title()} into {job.merge.out}"
        cpus = None if resources.cpus is None else float(resources.cpus)
        return {
            "resources": resources,
            "description": about[:LONGEST_DESCRIPTION],
            "image": {"docker" if docker else "beaker": image.removeprefix("docker://")},
            "cpus": int(cpus) if cpus is not None and cpus.is_integer() else cpus,
            "mounts": mounts(resources),
            "secrets": dict(pair.split("=", 1) for pair in resources.secret),
            "results": RESULTS,
        }

    def spec(self, text: str) -> dict[str, Any]:
        """The rendered text as a checked mapping."""
        import yaml

        spec = yaml.safe_load(text)
        found = faults(spec)
        if found:
            raise UsageError("\n".join(f"beaker spec: {fault}" for fault in found))
        return dict(spec)

    def submission_metadata(self, job: Job, resources: BeakerResources) -> dict[str, str]:
        wanted = {"stem": job.name, "name": job.options.name, "workspace": resources.workspace}
        return {key: value for key, value in wanted.items() if value is not None}

    def submit(self, text: str, ticket: Mapping[str, str]) -> Submitted:
        spec = self.spec(text)
        from .client import connected, submitted

        with connected() as client:
            job_id = submitted(client, spec, ticket)
            return Submitted(job_id, client.url(job_id))

    def statuses(self, ids: Sequence[str]) -> dict[str, Status]:
        from .client import connected
        from .status import verdict

        with connected() as client:
            found = client.workloads(ids)
            runs = client.runs(list(found.values()))
        return {
            each: verdict(workload.status, jobs)
            for (each, workload), jobs in zip(found.items(), runs, strict=True)
        }

    def log_lines(self, job_id: str, follow: bool) -> Iterator[str]:
        from .log import lines

        return lines(job_id, follow)

    def why(self, job_id: str) -> tuple[str, ...]:
        """What happened to its last run, the newest last."""
        from .client import connected
        from .status import events, last_run

        with connected() as client:
            found = client.workloads([job_id])
            job = last_run(client.runs(list(found.values()))[0]) if found else None
            return () if job is None else events(client.events(job.id))

    def cancel(self, job_id: str) -> None:
        from .client import connected

        with connected() as client:
            if job_id not in client.workloads([job_id]):
                raise ClusterError(f"beaker: there is no job {printable(job_id)}")
            client.ask("CancelWorkloads", workload_ids=[job_id])


BACKEND = Beaker()
