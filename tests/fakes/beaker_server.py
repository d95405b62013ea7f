"""A Beaker on loopback for the real client: TLS gRPC and plain HTTP, just enough to submit.

    python beaker_server.py FOLDER

writes FOLDER/config.yml and FOLDER/cert.pem, prints "ready", and adds each request to
FOLDER/requests. Strict where the client is not: the token, the types, taken names.
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
TAKEN = "taken"


def note(name: str, **more: Any) -> None:
    with (FOLDER / "requests").open("a") as file:
        file.write(json.dumps({"request": name, **more}) + "\n")


class Service(beaker_pb2_grpc.BeakerServicer):
    def _enter(self, name: str, context: grpc.ServicerContext) -> None:
        note(name)
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

    def GetWorkspace(self, request, context):
        self._enter("GetWorkspace", context)
        return pb2.GetWorkspaceResponse(workspace=pb2.Workspace(id="w1", name="ai2/merging"))

    def GetWorkload(self, request, context):
        self._enter("GetWorkload", context)
        experiment = pb2.Experiment(id="01ABC", name="soup")
        return pb2.GetWorkloadResponse(workload=pb2.Workload(experiment=experiment))


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        note("POST", path=self.path, spec=body)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"message": "no such token"})
        elif f"name={TAKEN}" in self.path:
            self._answer(409, {"message": "name is already in use"})
        elif body["tasks"][0]["image"].get("beaker") == "ada/nothing":
            self._answer(400, {"message": "image ada/nothing does not exist"})
        else:
            self._answer(200, {"id": "01ABC"})

    def _answer(self, status: int, value: dict[str, str]) -> None:
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
