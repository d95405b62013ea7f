"""The only user of beaker-py: every question has a deadline, every failure becomes one line.

beaker-py asks for ever while a server cannot be reached, and its errors, grpc's and requests' share
no base class. So questions go to its generated stub, with a deadline; only the spec's own class,
the settings and the one POST are the client's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_worker import __version__
from merge_worker.messages import printable

from ...errors import ClusterError
from .status import OVER, in_words

# MERGED Settings of Beaker that its client takes without a word, and that are not what they seem.


RPC = "beaker.org:443"
"""Where a client that knows nothing else asks."""


def check_file() -> None:
    """ClusterError: a file that is not there is no file to the client."""
    path = os.environ.get("BEAKER_CONFIG", "")
    if path and not Path(path).is_file():
        raise ClusterError(f"beaker: BEAKER_CONFIG names {printable(path)}, which is not there")


def check_addresses(rpc: str) -> None:
    """ClusterError: the variable changes the web's address only, so two servers would be asked."""
    address = os.environ.get("BEAKER_ADDR", "")
    host = urllib.parse.urlparse(address).hostname
    if address and rpc == RPC and host != RPC.partition(":")[0]:
        raise ClusterError(
            f"beaker: BEAKER_ADDR is {printable(address)}, but questions would still go to {RPC}; "
            f"set rpc_address too, in the config file ($BEAKER_CONFIG or ~/.beaker/config.yml)"
        )


DEADLINE_S = 10.0
NEWEST = 20
"""Runs of a task that are looked at. Each answer carries the job's whole text."""
CONFIG = "the config file ($BEAKER_CONFIG or ~/.beaker/config.yml)"


class Away(ClusterError):
    """The server is not there, or not now."""


@contextlib.contextmanager
def connected() -> Iterator[Client]:
    """A client, whose failures inside the block are ClusterErrors. Contacts nobody yet."""
    try:
        import beaker
        import grpc  # type: ignore[import-untyped]
        import requests
        from beaker import exceptions
    except ImportError:
        raise ClusterError(
            "beaker-py is not installed here; pip install 'merge-launch[beaker]', "
            "or add --dry-run to see the job"
        ) from None
    check_file()
    try:
        made = beaker.Beaker.from_env(
            check_for_upgrades=False, user_agent=f"merge-launch v{__version__}"
        )
    except exceptions.BeakerError as error:
        raise ClusterError(f"beaker: {printable(str(error))}") from None
    except Exception as error:  # An empty file, one without a token: whatever comes of it.
        raise ClusterError(
            f"beaker: {CONFIG} is not valid ({printable(' '.join(str(error).split()))})"
        ) from None
    check_addresses(made.config.rpc_address)
    try:
        with made as client:
            yield Client(client)
    except (exceptions.BeakerError, grpc.RpcError, requests.RequestException) as error:
        code = error.code().name if isinstance(error, grpc.RpcError) else ""
        kind = Away if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL") else ClusterError
        raise kind(f"beaker: {in_words(error, DEADLINE_S)}") from None


class Client:
    """Beaker's answers as they come. grpc.RpcError where none comes in time."""

    def __init__(self, client: Any) -> None:
        from beaker import beaker_pb2

        self.client, self.messages = client, beaker_pb2
        self._metadata = [("authorization", f"bearer {client.config.user_token}")]

    def begin(self, method: str, **fields: Any) -> Any:
        """A question whose answer is the future's `result()`; several may be on their way."""
        request = getattr(self.messages, f"{method}Request")(**fields)
        stub = getattr(self.client.service, method)
        return stub.future(request, timeout=DEADLINE_S, metadata=self._metadata)

    def ask(self, method: str, **fields: Any) -> Any:
        return self.begin(method, **fields).result()

    def stream(self, method: str, **fields: Any) -> Iterator[Any]:
        request = getattr(self.messages, f"{method}Request")(**fields)
        stub = getattr(self.client.service, method)
        answers: Iterator[Any] = stub(request, timeout=6 * DEADLINE_S, metadata=self._metadata)
        return answers

    def workloads(self, ids: Sequence[str]) -> dict[str, Any]:
        """Those that the server knows."""
        asked = {each: self.begin("GetWorkload", workload_id=each) for each in ids}
        found = {each: _or_none(future) for each, future in asked.items()}
        return {each: answer.workload for each, answer in found.items() if answer is not None}

    def runs(self, workloads: Sequence[Any]) -> list[list[Any]]:
        """The jobs of the one task of each, newest first."""
        from beaker import BeakerSortOrder

        name = self.client.config.default_org
        organization = self.ask("ResolveOrganizationName", organization_name=name)
        options = self.messages.ListJobsRequest.Opts
        newest = options.SortClause(sort_order=BeakerSortOrder.descending.as_pb2(), created={})
        asked = [
            self.begin(
                "ListJobs",
                options=options(
                    sort_clause=newest,
                    organization_id=organization.organization_id,
                    task_id=workload.experiment.tasks[0].id,
                    page_size=NEWEST,
                ),
            )
            if workload.experiment.tasks
            else None
            for workload in workloads
        ]
        return [[] if future is None else list(future.result().jobs) for future in asked]

    def events(self, job_id: str) -> list[Any]:
        options = self.messages.ListSummarizedJobEventsRequest.Opts(job_id=job_id, page_size=NEWEST)
        return list(self.ask("ListSummarizedJobEvents", options=options).summarized_job_events)

    def named(self, author: str, name: str) -> str | None:
        """The id of an experiment, None if there is none."""
        asked = self.begin("ResolveWorkloadName", author_name=author, workload_name=name)
        answer = _or_none(asked)
        return None if answer is None else str(answer.workload_id)

    def url(self, job_id: str) -> str:
        return f"{self.client.config.agent_address}/ex/{job_id}"

    def workspace_id(self, name: str | None) -> str:
        word = name or self.client.config.default_workspace
        if not word:
            raise ClusterError(
                f"beaker: no workspace; add --workspace ORG/NAME, or default_workspace to {CONFIG}"
            )
        owner, _, rest = str(word).rpartition("/")
        owner = owner or self.client.config.default_org
        asked = self.begin("ResolveWorkspaceName", owner_name=owner, workspace_name=rest)
        answer = _or_none(asked)
        if answer is None:
            raise ClusterError(f"beaker: there is no workspace {printable(f'{owner}/{rest}')}")
        return str(answer.workspace_id)


def _or_none(future: Any) -> Any | None:
    import grpc

    try:
        return future.result()
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


def submitted(client: Client, spec: Mapping[str, Any], ticket: Mapping[str, str]) -> str:
    """The id of the one experiment that this call makes, even where the server's answer is lost."""
    author = client.ask("GetUser").user.name
    taken = taken_over(spec)
    workspace = client.workspace_id(ticket.get("workspace"))
    name = _free_name(client, author, ticket)
    for attempt in (1, 2):
        found = _posted(client, f"workspaces/{workspace}/experiments", name, taken, attempt)
        # The server may have taken it all the same; nothing else has this name.
        found = found or client.named(author, name)
        if found is not None:
            return found
        if attempt == 2:
            break
    lost = ClusterError(
        f"beaker: the server did not answer twice; look for {author}/{name} before you try again"
    )
    lost.unanswered = True
    raise lost


def _free_name(client: Client, author: str, ticket: Mapping[str, str]) -> str:
    """The name as it was asked for while it is free, else with an ending that nothing has."""
    asked = ticket.get("name")
    if asked:
        held = client.named(author, asked)
        if held is None:
            return asked
        workload = client.workloads([held]).get(held)
        if workload is not None and workload.status not in OVER:
            raise ClusterError(
                f"beaker: your experiment {printable(asked)} ({held}) is on its way already; "
                f"cancel it, or choose another --name"
            )
    return f"{asked or ticket['stem']}-{secrets.token_hex(4)}"


def _posted(client: Client, resource: str, name: str, spec: Any, attempt: int) -> str | None:
    """The new id; None where nobody knows whether the server took it."""
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
            f"beaker: you have an experiment {printable(name)} already; choose another --name"
        ) from None
    except (requests.ConnectionError, requests.Timeout, ValueError, KeyError, TypeError):
        return None
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise
        return None


def taken_over(spec: Mapping[str, Any]) -> Any:
    """The spec as beaker-py's own class, with nothing lost on the way."""
    import beaker

    made = beaker.BeakerExperimentSpec.from_json(dict(spec))
    for task in made.tasks:
        for mount in task.datasets or []:
            # from_json leaves this one a plain mapping, which to_json does not spell back.
            if isinstance(mount.source, dict) and "host_path" in mount.source:
                mount.source = beaker.BeakerDataSource(**mount.source)
    _refuse_losses(spec, made.to_json())
    return made


def _refuse_losses(ours: Any, theirs: Any, path: str = "spec") -> None:
    """beaker-py must have taken over every leaf; only durations change, into nanoseconds."""
    if isinstance(ours, Mapping):
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
