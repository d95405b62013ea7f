"""The client of Beaker, the only user of beaker-py: calls have a deadline, errors fit one line.

beaker-py retries endlessly while a server cannot be reached, and the errors of beaker-py, grpc and
requests share no base class. So calls go to its generated stub, with a deadline; only the class of
the spec, the settings and the one POST come from beaker-py itself. It also accepts wrong settings
silently; `connected` checks them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import urllib.parse
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_worker import __version__
from merge_worker.messages import printable
from merge_worker.system.packages import missing_package

from ...errors import ClusterError
from .status import ENDED, describe_error

RPC = "beaker.org:443"
"""The default server of beaker-py."""
DEADLINE_S = 10.0
PAGE = 20
"""Runs or events in one answer; that of runs includes the whole text of the job for each."""
CONFIG = "the config file ($BEAKER_CONFIG or ~/.beaker/config.yml)"


class Unreachable(ClusterError):
    """The server cannot be reached at present."""


@contextlib.contextmanager
def connected() -> Iterator[Client]:
    """Yield a client; its errors inside the block become ClusterErrors. Makes no call yet."""
    try:
        import beaker
        import grpc  # type: ignore[import-untyped]
        import requests
        from beaker import exceptions
    except ImportError:
        error = missing_package("beaker", "beaker-py", otherwise="or add --dry-run to see the job")
        raise ClusterError(str(error)) from None
    path = os.environ.get("BEAKER_CONFIG", "")
    if path and not Path(path).is_file():
        raise ClusterError(f"beaker: BEAKER_CONFIG: {printable(path)} not found")
    try:
        unopened = beaker.Beaker.from_env(
            check_for_upgrades=False, user_agent=f"merge-launch v{__version__}"
        )
    except exceptions.BeakerError as error:
        raise ClusterError(f"beaker: {printable(str(error))}") from None
    except Exception as error:  # An empty file, or one without a token: any error is possible.
        raise ClusterError(
            f"beaker: {CONFIG} is not valid ({printable(' '.join(str(error).split()))})"
        ) from None
    _check_addresses(unopened.config.rpc_address)
    try:
        with unopened as client:
            yield Client(client)
    except (exceptions.BeakerError, grpc.RpcError, requests.RequestException) as error:
        code = error.code().name if isinstance(error, grpc.RpcError) else ""
        is_unreachable = code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL")
        kind = Unreachable if is_unreachable else ClusterError
        raise kind(f"beaker: {describe_error(error, DEADLINE_S)}") from None


def _check_addresses(rpc: str) -> None:
    """Refuse a BEAKER_ADDR of another server than `rpc`: it changes the web address only."""
    address = os.environ.get("BEAKER_ADDR", "")
    host = urllib.parse.urlparse(address).hostname
    if address and rpc == RPC and host != RPC.partition(":")[0]:
        raise ClusterError(
            f"beaker: BEAKER_ADDR is {printable(address)}, but calls would still go to {RPC}; "
            f"set rpc_address too, in {CONFIG}"
        )


class Client:
    """The calls that merge-launch makes, as protobuf messages. They raise grpc.RpcError."""

    def __init__(self, client: Any) -> None:
        from beaker import beaker_pb2

        self.client, self.messages = client, beaker_pb2
        self._metadata = [("authorization", f"bearer {client.config.user_token}")]

    def begin(self, method: str, **fields: Any) -> Any:
        """Start a call and return its future, so that several can run at once."""
        request = getattr(self.messages, f"{method}Request")(**fields)
        stub = getattr(self.client.service, method)
        return stub.future(request, timeout=DEADLINE_S, metadata=self._metadata)

    def call(self, method: str, **fields: Any) -> Any:
        """Make a call and return its answer."""
        return self.begin(method, **fields).result()

    def stream(self, method: str, **fields: Any) -> Iterator[Any]:
        """Make a call that returns several answers."""
        request = getattr(self.messages, f"{method}Request")(**fields)
        stub = getattr(self.client.service, method)
        answers: Iterator[Any] = stub(request, timeout=6 * DEADLINE_S, metadata=self._metadata)
        return answers

    def workloads(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return the workloads by id; unknown ones are left out."""
        futures = {job_id: self.begin("GetWorkload", workload_id=job_id) for job_id in ids}
        answers = {job_id: _or_none(future) for job_id, future in futures.items()}
        return {job_id: answer.workload for job_id, answer in answers.items() if answer is not None}

    def runs(self, workloads: Sequence[Any], known: Collection[str] = ()) -> list[list[Any]]:
        """Return the jobs of the first task of each workload, newest first.

        Pages after one with a job in `known` are left out.
        """
        from beaker import BeakerSortOrder

        name = self.client.config.default_org
        organization = self.call("ResolveOrganizationName", organization_name=name).organization_id
        options = self.messages.ListJobsRequest.Opts
        newest = options.SortClause(sort_order=BeakerSortOrder.descending.as_pb2(), created={})
        shared = {"sort_clause": newest, "page_size": PAGE, "organization_id": organization}
        begun = [
            [
                Pages(self, "ListJobs", options(task_id=task.id, **shared))
                for task in workload.experiment.tasks[:1]
            ]
            for workload in workloads
        ]
        return [[job for pages in first for job in _until(pages, known)] for first in begun]

    def events(self, job_id: str) -> list[Any]:
        """Return the events of a job, newest first."""
        from beaker import BeakerSortOrder

        options = self.messages.ListSummarizedJobEventsRequest.Opts
        order = BeakerSortOrder.descending.as_pb2()
        newest = options.SortClause(sort_order=order, latest_occurrence={})
        wanted = options(job_id=job_id, sort_clause=newest, page_size=PAGE)
        pages = Pages(self, "ListSummarizedJobEvents", wanted)
        return [event for page in pages for event in page.summarized_job_events]

    def experiment_id(self, author: str, name: str) -> str | None:
        """Return the id of an experiment by its name, or None if there is none."""
        answer = _or_none(self.begin("ResolveWorkloadName", author_name=author, workload_name=name))
        return None if answer is None else str(answer.workload_id)

    def url(self, job_id: str) -> str:
        """Return the address of the page of an experiment."""
        return f"{self.client.config.agent_address}/ex/{job_id}"

    def workspace_id(self, name: str | None) -> str:
        """Return the id of a workspace, by default that of the config file."""
        full_name = name or self.client.config.default_workspace
        if not full_name:
            raise ClusterError(
                f"beaker: no workspace; add --workspace ORG/NAME, or default_workspace to {CONFIG}"
            )
        owner, _, rest = str(full_name).rpartition("/")
        owner = owner or self.client.config.default_org
        future = self.begin("ResolveWorkspaceName", owner_name=owner, workspace_name=rest)
        answer = _or_none(future)
        if answer is None:
            raise ClusterError(f"beaker: workspace {printable(f'{owner}/{rest}')} not found")
        return str(answer.workspace_id)


class Pages:
    """The answers to a call that lists things in pages. The first is asked for at once."""

    def __init__(self, client: Client, method: str, options: Any) -> None:
        self._client, self._method = client, method
        self._first = client.begin(method, options=options)

    def __iter__(self) -> Iterator[Any]:
        page = self._first.result()
        yield page
        while page.next_page_token:
            # The token stands for the options: a request has the one or the other.
            page = self._client.call(self._method, next_page_token=page.next_page_token)
            yield page


def _until(pages: Pages, known: Collection[str]) -> Iterator[Any]:
    for page in pages:
        yield from page.jobs
        if any(job.id in known for job in page.jobs):
            return


def _or_none(future: Any) -> Any | None:
    import grpc

    try:
        return future.result()
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


def submit_spec(client: Client, spec: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Create one experiment and return its id, even if the server's answer is lost."""
    author = client.call("GetUser").user.name
    beaker_spec = to_beaker_spec(spec)
    workspace = client.workspace_id(metadata.get("workspace"))
    name = _free_name(client, author, metadata)
    for attempt in (1, 2):
        job_id = _post(client, f"workspaces/{workspace}/experiments", name, beaker_spec, attempt)
        # The server may have created it without answering; nothing else has this name.
        job_id = job_id or client.experiment_id(author, name)
        if job_id is not None:
            return job_id
    error = ClusterError(
        f"beaker: no answer after two attempts; look for {author}/{name} before you try again"
    )
    error.unanswered = True
    raise error


def _free_name(client: Client, author: str, metadata: Mapping[str, str]) -> str:
    """Return the requested name if it is free, else that name with a random suffix."""
    requested = metadata.get("name")
    if requested:
        job_id = client.experiment_id(author, requested)
        if job_id is None:
            return requested
        workload = client.workloads([job_id]).get(job_id)
        if workload is not None and workload.status not in ENDED:
            raise ClusterError(
                f"beaker: your experiment {printable(requested)} ({job_id}) is still active; "
                f"cancel it, or choose another --name"
            )
    return f"{requested or metadata['stem']}-{secrets.token_hex(4)}"


def _post(client: Client, resource: str, name: str, spec: Any, attempt: int) -> str | None:
    """Return the id of the new experiment, or None if it is unknown whether it was created."""
    import requests
    from beaker.exceptions import BeakerExperimentConflict

    try:
        answer = client.client.experiment.http_request(
            resource,
            method="POST",
            query={"name": name},
            data=spec.to_json(),
            exceptions_for_status={409: BeakerExperimentConflict(name)},
        )
        return str(answer.json()["id"])
    except BeakerExperimentConflict:
        if attempt > 1:
            return None
        raise ClusterError(
            f"beaker: your experiment {printable(name)} already exists; choose another --name"
        ) from None
    except (requests.ConnectionError, requests.Timeout, ValueError, KeyError, TypeError):
        return None
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise
        return None


def to_beaker_spec(spec: Mapping[str, Any]) -> Any:
    """Convert a spec to the class of beaker-py. Raises ClusterError if that loses a value."""
    import beaker

    converted = beaker.BeakerExperimentSpec.from_json(dict(spec))
    for task in converted.tasks:
        for mount in task.datasets or []:
            # from_json leaves this source a plain mapping, which to_json writes with other keys.
            if isinstance(mount.source, dict) and "host_path" in mount.source:
                mount.source = beaker.BeakerDataSource(**mount.source)
    _refuse_losses(spec, converted.to_json())
    return converted


def _refuse_losses(given: Any, kept: Any, path: str = "spec") -> None:
    """Raise ClusterError for a value that beaker-py lost; durations change to nanoseconds."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                raise ClusterError(f"beaker-py lost {path}.{key}; is its version 2.6 or newer?")
            if key not in ("timeout", "minRuntime"):
                _refuse_losses(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list):
        for number, value in enumerate(given):
            inner = kept[number] if isinstance(kept, list) and number < len(kept) else None
            _refuse_losses(value, inner, f"{path}[{number}]")
    elif given != kept:
        raise ClusterError(f"beaker-py changed {path}; is its version 2.6 or newer?")
