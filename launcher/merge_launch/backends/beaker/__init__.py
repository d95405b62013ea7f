"""The backend of Beaker: an experiment with one task, whose arguments hold the whole merge.

The spec is checked key by key before it is sent, since neither beaker-py nor, apparently, the
server does so. `client` makes the calls.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from merge_worker.messages import printable

from ...errors import ClusterError, UsageError
from ..base import Run, Service, Status, Submitted, seconds
from . import config
from .client import connected, submit_spec
from .log import lines
from .options import BeakerResources, Mount, covered, implied_mounts, requested_mounts
from .spec import ARGUMENTS_BYTES, faults
from .status import event_lines, last_run, workload_status

if TYPE_CHECKING:
    from ...job.job import Job

RESULTS = "/results"
IMAGE = "docker://pytorch/pytorch:2.7.1-cuda12.8-cudnn9-runtime"
"""A public image with Python and torch; the job installs what else the worker needs."""
LONGEST_DESCRIPTION = 500


class Beaker(Service[BeakerResources]):
    """The backend of Beaker."""

    name = "beaker"
    job_id_pattern = "[A-Za-z0-9][A-Za-z0-9_.-]*"
    template = "beaker.yaml.j2"
    help = "Submit to Beaker."
    resources = BeakerResources
    max_bytes = ARGUMENTS_BYTES

    def run(self, resources: BeakerResources) -> Run:
        return Run(
            walltime_s=seconds(resources.timeout),
            gpus=resources.gpus,
            ranks=resources.replicas,
            # An image may have variables of another launcher.
            identity="export RANK=$BEAKER_REPLICA_RANK WORLD_SIZE=$BEAKER_REPLICA_COUNT",
        )

    def faults(self, job: Job, resources: BeakerResources) -> list[str]:
        if resources.replicas > 1 and job.then is not None and job.worker.overwrite:
            return [
                "--then: conflicts with --replicas and --overwrite: the replica that runs it could "
                "not tell the old merge from the new one"
            ]
        return []

    def obstacles(self, job: Job, resources: BeakerResources) -> list[str]:
        paths = [mount.path for mount in mounts(job, resources)]
        inputs = dict.fromkeys(job.local_inputs())
        uncovered = [path for path in inputs if not covered(path, paths)]
        if resources.replicas == 1:  # each replica has a results folder of its own
            paths.append(RESULTS)
        uncovered += [merge.out for merge in job.merges if not covered(merge.out, paths)]
        if not uncovered:
            return []
        return [
            f"no mount covers {', '.join(printable(path) for path in uncovered)}: "
            f"add --weka BUCKET:{printable(posixpath.dirname(uncovered[0]))} or "
            f"--mount SOURCE:/PATH, or use paths below a mount, such as /weka/BUCKET"
        ]

    def own_settings(self) -> tuple[str, Mapping[str, object]]:
        return str(config.path()), config.defaults()

    def site(self, resources: BeakerResources) -> str | None:
        owner, slash, _ = (resources.workspace or "").partition("/")
        organization = owner if slash else config.defaults().get("org", config.ORGANIZATION)
        return organization if organization == config.ORGANIZATION else None

    def assumptions(self, job: Job, resources: BeakerResources) -> list[str]:
        image = [f"image {IMAGE} (built in)"] if resources.image is None else []
        implied = implied_mounts(resources, paths_of(job))
        return image + [f"mount weka:{mount.source} (from the path)" for mount in implied]

    def context(self, job: Job, resources: BeakerResources) -> dict[str, object]:
        image = resources.image or IMAGE
        docker = image.startswith("docker://")
        about = resources.description or f"{job.merge.title()} into {job.merge.out}"
        cpus = None if resources.cpus is None else float(resources.cpus)
        return {
            "resources": resources,
            "description": about[:LONGEST_DESCRIPTION],
            "image": {"docker" if docker else "beaker": image.removeprefix("docker://")},
            "cpus": int(cpus) if cpus is not None and cpus.is_integer() else cpus,
            "mounts": mounts(job, resources),
            "secrets": dict(pair.split("=", 1) for pair in resources.secret),
            "results": RESULTS,
        }

    def spec(self, text: str) -> dict[str, Any]:
        """Parse and check a rendered job. Raises UsageError with every fault."""
        import yaml

        spec = yaml.safe_load(text)
        if mistakes := faults(spec):
            raise UsageError("\n".join(f"beaker spec: {mistake}" for mistake in mistakes))
        return dict(spec)

    def submission_metadata(self, job: Job, resources: BeakerResources) -> dict[str, str]:
        name = None if job.options.name is None else job.name
        metadata = {"stem": job.name, "name": name, "workspace": resources.workspace}
        return {key: value for key, value in metadata.items() if value is not None}

    def submit(self, text: str, metadata: Mapping[str, str]) -> Submitted:
        spec = self.spec(text)
        with connected() as client:
            job_id = submit_spec(client, spec, metadata)
            return Submitted(job_id, client.url(job_id))

    def statuses(self, ids: Sequence[str]) -> dict[str, Status]:
        with connected() as client:
            workloads = client.workloads(ids)
            runs = client.runs(list(workloads.values()))
        return {
            job_id: workload_status(workload.status, jobs)
            for (job_id, workload), jobs in zip(workloads.items(), runs, strict=True)
        }

    def log_lines(self, job_id: str, follow: bool) -> Iterator[str]:
        return lines(job_id, follow)

    def why(self, job_id: str) -> tuple[str, ...]:
        """Return the last events of the last run, the newest last."""
        with connected() as client:
            workloads = client.workloads([job_id])
            job = last_run(client.runs(list(workloads.values()))[0]) if workloads else None
            return () if job is None else event_lines(client.events(job.id))

    def cancel(self, job_id: str) -> None:
        with connected() as client:
            if job_id not in client.workloads([job_id]):
                raise ClusterError(f"beaker: job {printable(job_id)} not found")
            client.call("CancelWorkloads", workload_ids=[job_id])


def paths_of(job: Job) -> list[str]:
    """Return the paths of models and outputs that a job uses."""
    return [*job.local_inputs(), *(merge.out for merge in job.merges)]


def mounts(job: Job, resources: BeakerResources) -> list[Mount]:
    """Return the mounts of a job: those requested, and those that follow from its paths."""
    return requested_mounts(resources) + implied_mounts(resources, paths_of(job))


BACKEND = Beaker()
