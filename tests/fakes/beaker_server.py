"""A Beaker on loopback for the real client: TLS gRPC and plain HTTP, from submission to the end.

    python beaker_server.py FOLDER

writes FOLDER/config.yml and FOLDER/cert.pem, prints "ready", and adds each request to
FOLDER/requests. Experiments stand in FOLDER/state.json, which tests change to let them proceed.
FOLDER/mishap names what befalls the next POST. Strict where the client is not: the token, types,
names that are taken. Calls that are not here answer UNIMPLEMENTED.
"""

import json
import subprocess
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from beaker import beaker_pb2 as pb2
from beaker import beaker_pb2_grpc

TOKEN = "right-token"
FOLDER = Path(sys.argv[1])
LOCK = threading.Lock()
QUEUED = 2


def note(request: str, **more: Any) -> None:
    with LOCK, (FOLDER / "requests").open("a") as file:
        file.write(json.dumps({"request": request, **more}) + "\n")


def experiments() -> dict[str, Any]:
    with LOCK:
        path = FOLDER / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}


def create(name: str) -> str:
    """The new id, or that of who has the name, after a '!'."""
    held = experiments()
    for job_id, each in held.items():
        if each["name"] == name:
            return f"!{job_id}"
    job_id = f"01ABC{len(held)}"
    held[job_id] = {"name": name, "status": QUEUED, "jobs": []}
    with LOCK:
        (FOLDER / "state.json").write_text(json.dumps(held))
    return job_id


def job_of(job_id: str, number: int, each: dict[str, Any]) -> pb2.Job:
    """`each`: lines, and any of exit_code, canceled_code, message, rank, size, finalized."""
    status = pb2.JobStatus(message=each.get("message", ""))
    status.failed_scheduling_message = each.get("waiting", "")
    status.created.FromSeconds(1_000_000 + number)
    status.started.FromSeconds(1_000_001 + number)
    if "exit_code" in each:
        status.exit_code = each["exit_code"]
    if "canceled_code" in each:
        status.canceled_code = each["canceled_code"]
        status.canceled.FromSeconds(1_000_009)
    if each.get("finalized", "exit_code" in each or "canceled_code" in each):
        status.finalized.FromSeconds(1_000_010 + number)
    made = pb2.Job(id=f"{job_id}-j{number}", task_id=f"{job_id}-t", status=status)
    group = made.system_details.replica_group_details
    group.size, group.rank = each.get("size", 0), each.get("rank", 0)
    return made


def begun(request: Any, subject: str) -> tuple[str, int, int]:
    """The subject of a list, the first of its things to return, and how many."""
    if request.WhichOneof("opts") == "next_page_token":
        named, start, size = request.next_page_token.split("|")
        return named, int(start), int(size)
    return getattr(request.options, subject), 0, request.options.page_size


def page(things: list[Any], named: str, start: int, size: int) -> tuple[list[Any], str]:
    """One page of a list, newest first, and the token of the next."""
    token = f"{named}|{start + size}|{size}" if len(things) > start + size else ""
    return things[start : start + size], token


class Service(beaker_pb2_grpc.BeakerServicer):
    def _enter(self, call: str, context: grpc.ServicerContext, **more: Any) -> None:
        note(call, **more)
        if dict(context.invocation_metadata()).get("authorization") != f"bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")

    def GetUser(self, request, context):
        self._enter("GetUser", context)
        return pb2.GetUserResponse(user=pb2.User(id="u1", name="ada"))

    def ResolveWorkspaceName(self, request, context):
        self._enter("ResolveWorkspaceName", context)
        if (request.owner_name, request.workspace_name) != ("ai2", "merging"):
            context.abort(grpc.StatusCode.NOT_FOUND, "no such workspace")
        return pb2.ResolveWorkspaceNameResponse(workspace_id="w1")

    def ResolveOrganizationName(self, request, context):
        self._enter("ResolveOrganizationName", context)
        return pb2.ResolveOrganizationNameResponse(organization_id="o1")

    def ResolveWorkloadName(self, request, context):
        self._enter("ResolveWorkloadName", context, name=request.workload_name)
        for job_id, each in experiments().items():
            if (request.author_name, request.workload_name) == ("ada", each["name"]):
                return pb2.ResolveWorkloadNameResponse(workload_id=job_id)
        context.abort(grpc.StatusCode.NOT_FOUND, "no such workload")

    def GetWorkload(self, request, context):
        self._enter("GetWorkload", context, id=request.workload_id)
        experiment = experiments().get(request.workload_id)
        if experiment is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such workload")
        task = pb2.Task(id=f"{request.workload_id}-t")
        made = pb2.Experiment(id=request.workload_id, name=experiment["name"], tasks=[task])
        workload = pb2.Workload(experiment=made, status=experiment["status"])
        return pb2.GetWorkloadResponse(workload=workload)

    def ListJobs(self, request, context):
        self._enter("ListJobs", context)
        named, *place = begun(request, "task_id")
        job_id = named.removesuffix("-t")
        jobs = experiments()[job_id]["jobs"]
        made = [job_of(job_id, number, each) for number, each in enumerate(jobs)]
        some, token = page(made[::-1], named, *place)
        return pb2.ListJobsResponse(jobs=some, next_page_token=token)

    def StreamJobLogs(self, request, context):
        self._enter("StreamJobLogs", context, job=request.job_id)
        job_id, _, number = request.job_id.rpartition("-j")
        job = experiments()[job_id]["jobs"][int(number)]
        for position, line in enumerate(job["lines"]):
            made = pb2.JobLog(message=line.encode())
            made.timestamp.FromNanoseconds(10**18 + position)
            if made.timestamp.ToNanoseconds() >= request.since.ToNanoseconds():
                yield made
            if job.get("cut") == position and not request.HasField("since"):
                context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")

    def ListSummarizedJobEvents(self, request, context):
        self._enter("ListSummarizedJobEvents", context)
        named, *place = begun(request, "job_id")
        job_id, _, number = named.rpartition("-j")
        made = []
        for at, (status, text) in enumerate(experiments()[job_id]["jobs"][int(number)]["events"]):
            event = pb2.SummarizedJobEvent(status=status, latest_message=text, occurrences=at + 1)
            event.latest_occurrence.FromSeconds(1_700_000_000 - at)
            made.append(event)
        some, token = page(made, named, *place)
        return pb2.ListSummarizedJobEventsResponse(
            summarized_job_events=some, next_page_token=token
        )

    def CancelWorkloads(self, request, context):
        self._enter("CancelWorkloads", context, ids=list(request.workload_ids))
        return pb2.CancelWorkloadsResponse(workload_ids=request.workload_ids)


def mishap() -> str:
    """Return the failure to simulate for this request; once, or always."""
    path = FOLDER / "mishap"
    what = path.read_text() if path.exists() else ""
    if not what.startswith("always "):
        path.unlink(missing_ok=True)
    return what.removeprefix("always ")


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_POST(self) -> None:
        body = json.loads(self._body())
        agent = self.headers["User-Agent"]
        note("POST", path=self.path, spec=body, agent=agent)
        what = mishap()
        name = self.path.partition("name=")[2]
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"message": "no such token"})
        elif what == "request lost":
            self.close_connection = True
        elif what == "server error":
            self._answer(502, {"message": "bad gateway"})
        elif what == "quota":
            self._answer(403, {"message": "budget ai2/research is used up"})
        elif body["tasks"][0]["image"].get("beaker") == "ada/nothing":
            self._answer(400, {"message": "image ada/nothing does not exist"})
        else:
            job_id = create(name)
            if what == "answer lost":
                self.close_connection = True
            elif job_id.startswith("!"):
                self._answer(409, {"message": "name is already in use"})
            else:
                self._answer(200, {"id": job_id})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


def main() -> None:
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            *["-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2"],
            *["-subj", "/CN=localhost"],
            *["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        ],
        cwd=FOLDER,
        check=True,
        capture_output=True,
    )
    pair = ((FOLDER / "key.pem").read_bytes(), (FOLDER / "cert.pem").read_bytes())
    server = grpc.server(futures.ThreadPoolExecutor(4))
    beaker_pb2_grpc.add_BeakerServicer_to_server(Service(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    web = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    config = {
        "user_token": TOKEN,
        "agent_address": f"http://127.0.0.1:{web.server_port}",
        "rpc_address": f"localhost:{port}",
        "default_org": "ai2",
        "default_workspace": "ai2/merging",
    }
    (FOLDER / "config.yml").write_text(json.dumps(config))
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
