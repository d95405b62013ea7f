"""Beaker: an experiment spec whose one task is an argument list that holds the whole merge.

beaker-py is imported only to submit. Its calls hang on a wrong address and its errors share no base
class, so `submit` asks the server with a deadline first and catches whatever comes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.errors import ClusterError, UsageError
from launcher.options import Shape, option
from worker.errors import printable

from ._base import Resources, Service, Status, Submitted, node_faults
from ._beaker_spec import DURATION, PRIORITIES, faults

if TYPE_CHECKING:
    from launcher.job import Job

PREFLIGHT_S = 10.0
FOLLOWED = "beaker: jobs there are followed with its own tools"
RESULTS = "/results"
NO_IMAGE = "author/image-to-be-chosen"
WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


@dataclass(frozen=True)
class BeakerResources(Resources):
    gpus: int = option(0, Shape("GPUs", metavar="N"))
    cluster: tuple[str, ...] = option(
        (),
        Shape(
            "where it may run (repeatable)",
            metavar="ORG/NAME",
            pattern=f"{WORD}(/{WORD})?",
            form="such as ai2/jupiter",
        ),
    )
    workspace: str | None = option(
        None,
        Shape(
            "workspace, else that of your Beaker config",
            metavar="ORG/NAME",
            pattern=f"{WORD}(/{WORD})?",
            form="such as ai2/merging",
        ),
    )
    budget: str | None = option(
        None,
        Shape(
            "budget, else the workspace's own",
            metavar="ORG/NAME",
            pattern=f"{WORD}(/{WORD})?",
            form="such as ai2/research",
        ),
    )
    priority: str = option(
        "normal",
        Shape(", ".join(PRIORITIES), pattern="|".join(PRIORITIES), form=" or ".join(PRIORITIES)),
    )
    image: str | None = option(
        None,
        Shape(
            "an image with python, torch, safetensors and pyyaml; docker://TAG for Docker's",
            metavar="AUTHOR/NAME",
            pattern=r"(docker://)?[A-Za-z0-9][A-Za-z0-9_.:/@-]*",
            form="AUTHOR/NAME or docker://TAG",
        ),
    )
    weka: tuple[str, ...] = option(
        (),
        Shape(
            "mount a Weka bucket, at /weka/BUCKET if nothing else is said (repeatable)",
            metavar="BUCKET[:/PATH]",
            pattern=rf"{WORD}(:/[^:]*)?",
            form="BUCKET or BUCKET:/PATH",
            adds_up=True,
        ),
    )
    mount: tuple[str, ...] = option(
        (),
        Shape(
            "mount a dataset (name or id) or a host's folder (repeatable)",
            metavar="SOURCE:/PATH",
            pattern=r"[^:]+:/[^:]*",
            form="DATASET:/PATH or /HOST/PATH:/PATH",
            adds_up=True,
        ),
    )
    secret: tuple[str, ...] = option(
        (),
        Shape(
            "set a variable from a secret of the workspace (repeatable)",
            metavar="VAR=SECRET",
            pattern=r"[A-Za-z_][A-Za-z0-9_]*=.+",
            form="VARIABLE=SECRET",
            adds_up=True,
        ),
    )
    timeout: str | None = option(
        None, Shape("time limit", metavar="24h", pattern=DURATION, form="such as 30m or 4h")
    )
    min_runtime: str | None = option(
        None,
        Shape(
            "time that cannot be preempted",
            metavar="1h",
            pattern=DURATION,
            form="such as 30m or 4h",
        ),
    )
    replicas: int = option(1, Shape("replicas", metavar="N", minimum=1))


class Mount(NamedTuple):
    kind: str
    source: str
    path: str


def mounts(resources: BeakerResources) -> list[Mount]:
    found = []
    for word in resources.weka:
        bucket, _, path = word.partition(":")
        found.append(Mount("weka", bucket, path or f"/weka/{bucket}"))
    for word in resources.mount:
        source, _, path = word.partition(":")
        found.append(Mount("hostPath" if source.startswith("/") else "beaker", source, path))
    return found


def _covered(path: str, by: list[str]) -> bool:
    plain = posixpath.normpath(path)
    return any(
        plain == root or plain.startswith(root.rstrip("/") + "/")
        for root in (posixpath.normpath(each) for each in by)
    )


class Beaker(Service[BeakerResources]):
    name = "beaker"
    template = "beaker.yaml.j2"
    help = "Submit to Beaker."
    resources = BeakerResources

    def faults(self, job: Job, resources: BeakerResources) -> list[str]:
        return node_faults("--replicas", resources.replicas)

    def obstacles(self, job: Job, resources: BeakerResources) -> list[str]:
        found = []
        if resources.image is None:
            found.append(
                "no image: add --image AUTHOR/NAME, one with python, torch, safetensors and pyyaml"
            )
        paths = [mount.path for mount in mounts(resources)]
        lost = [path for path in job.merge.local_models() if not _covered(path, paths)]
        if not _covered(job.merge.out, [*paths, RESULTS]):
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
        return {
            "resources": resources,
            "image": {"docker" if docker else "beaker": image.removeprefix("docker://")},
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

    def ticket(self, job: Job, resources: BeakerResources) -> dict[str, str]:
        wanted = {"name": job.options.name, "workspace": resources.workspace}
        return {key: value for key, value in wanted.items() if value is not None}

    def submit(self, text: str, ticket: Mapping[str, str]) -> Submitted:
        spec = self.spec(text)
        try:
            import beaker
        except ImportError:
            raise ClusterError(
                "beaker-py is not installed here; pip install 'merge-launch[beaker]', "
                "or add --dry-run to see the job"
            ) from None
        try:
            with beaker.Beaker.from_env(check_for_upgrades=False) as client:
                _preflight(client)
                workload = client.experiment.create(
                    spec=_taken_over(beaker, spec),
                    name=ticket.get("name"),
                    workspace=ticket.get("workspace"),
                )
                job_id = workload.experiment.id
                url = client.workload.url(workload)
        except ClusterError:
            raise
        except Exception as error:  # beaker-py, grpc and requests share no base class.
            raise ClusterError(f"beaker: {_in_words(error)}") from None
        return Submitted(job_id, url)

    def statuses(self, ids: Sequence[str]) -> dict[str, Status]:
        raise ClusterError(FOLLOWED)

    def log_lines(self, job_id: str, follow: bool) -> Iterator[str]:
        raise ClusterError(FOLLOWED)

    def why(self, job_id: str) -> tuple[str, ...]:
        raise ClusterError(FOLLOWED)

    def cancel(self, job_id: str) -> None:
        raise ClusterError(FOLLOWED)


def _preflight(client: Any) -> None:
    """Is the server there, and is the token right? beaker-py itself would try for ever."""
    from beaker import beaker_pb2

    client.service.GetUser(
        beaker_pb2.GetUserRequest(),
        timeout=PREFLIGHT_S,
        metadata=[("authorization", f"bearer {client.config.user_token}")],
    )


def _taken_over(beaker: Any, spec: dict[str, Any]) -> Any:
    """The spec as beaker-py's own class, with nothing lost on the way."""
    made = beaker.BeakerExperimentSpec.from_json(spec)
    for task in made.tasks:
        for mount in task.datasets or []:
            # from_json leaves this one a plain mapping, which to_json does not spell back.
            if isinstance(mount.source, dict) and "host_path" in mount.source:
                mount.source = beaker.BeakerDataSource(**mount.source)
    _refuse_losses(spec, made.to_json())
    return made


def _refuse_losses(ours: Any, theirs: Any, path: str = "spec") -> None:
    """beaker-py must have taken over every leaf; only durations change, into nanoseconds."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            if not isinstance(theirs, dict) or key not in theirs:
                raise ClusterError(f"beaker-py lost {path}.{key}; is its version 2.6 or newer?")
            if key not in ("timeout", "minRuntime"):
                _refuse_losses(value, theirs[key], f"{path}.{key}")
    elif isinstance(ours, list):
        for number, value in enumerate(ours):
            inner = theirs[number] if isinstance(theirs, list) and number < len(theirs) else None
            _refuse_losses(value, inner, f"{path}[{number}]")
    elif ours != theirs:
        raise ClusterError(f"beaker-py changed {path}; is its version 2.6 or newer?")


def _in_words(error: Exception) -> str:
    code = getattr(error, "code", None)
    if callable(code):
        status = str(getattr(code(), "name", code()))
        known = {
            "UNAVAILABLE": "the server cannot be reached; are you on line, is the address right?",
            "DEADLINE_EXCEEDED": f"the server did not answer within {PREFLIGHT_S:.0f} s",
            "UNAUTHENTICATED": "the server refused the token; check BEAKER_TOKEN or your config",
            "PERMISSION_DENIED": "the token may not do this",
        }
        return known.get(status, f"{status}: {getattr(error, 'details', str)()}")
    kind = type(error).__name__
    if kind in ("AttributeError", "TypeError"):
        return f"the config file ($BEAKER_CONFIG or ~/.beaker/config.yml) is not valid ({error})"
    return f"{kind}: {printable(str(error)) or 'no reason given'}"


BACKEND = Beaker()
