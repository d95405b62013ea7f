"""A local server for the part of the Hub's protocol that its client needs."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER = COMMIT[::-1]


@dataclass
class Hub:
    """Files of repositories by name. `asked` holds the requests for files, with their ranges."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    old: dict[str, dict[str, bytes]] = field(default_factory=dict)  # of COMMIT, if it is not main
    commits: dict[str, str] = field(default_factory=dict)  # of main; else COMMIT
    branches: dict[str, dict[str, str]] = field(default_factory=dict)  # names to repositories
    gated: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, file, range
    private: set[str] = field(default_factory=set)
    broken: bool = False  # commits are refused
    pending: dict[str, bytes] = field(default_factory=dict)  # uploads by digest

    def add(self, name: str, folder: Path) -> None:
        files = (path for path in folder.rglob("*") if path.is_file())
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        self.repositories[name] = contents

    def move(self, name: str, folder: Path) -> None:
        """Add a commit to the main branch; earlier files remain under their commit."""
        self.old[name] = self.repositories[name]
        self.commits[name] = NEWER
        self.add(name, folder)

    def fetched(self) -> list[str]:
        """Return the files that were fetched whole."""
        return [name for method, name, span in self.asked if method == "GET" and not span]


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.change("POST")

    def do_PUT(self) -> None:
        self.change("PUT")

    def answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
        match = info or file or tree
        name, revision = match.groups()[:2] if match else ("", None)
        files = self.state.repositories.get(name)
        commit = self.state.commits.get(name, COMMIT)
        branch = self.state.branches.get(name, {})
        if refs := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", path):
            names = ("main", *self.state.branches.get(refs[1], {}))
            heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": COMMIT} for n in names]
            return self.say({"branches": heads, "converts": [], "tags": []})
        for other in branch:  # the commit of a branch is a digest of its name
            if revision in (other, _commit(other)):
                files, commit = self.state.repositories[branch[other]], _commit(other)
        if revision == COMMIT and commit != COMMIT:
            files, commit = self.state.old[name], COMMIT
        if path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == "Bearer hf_test"
            self.say({"name": "me", "type": "user"}) if known else self.refuse(401, "Unauthorized")
        elif files is None:
            self.refuse(404, "RepoNotFound")
        elif name in self.state.gated and not self.headers.get("Authorization"):
            self.refuse(403, "GatedRepo")
        elif revision not in (None, "main", COMMIT, commit, *branch):
            self.refuse(404, "RevisionNotFound")
        elif info:
            siblings = [{"rfilename": n, "size": len(data)} for n, data in files.items()]
            self.say(
                {
                    "id": name,
                    "sha": commit,
                    "siblings": siblings,
                    "private": name in self.state.private,
                }
            )
        elif tree:
            self.say(
                [
                    {"type": "file", "path": n, "size": len(d), "oid": _digest(d)}
                    for n, d in files.items()
                ]
            )
        elif file and file[3] in files:
            self.file(method, file[3], files[file[3]], commit)
        else:
            self.refuse(404, "EntryNotFound")

    def file(self, method: str, name: str, data: bytes, commit: str) -> None:
        span = self.headers.get("Range") or ""
        self.state.asked.append((method, name, span))
        status, part = 200, data
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", span):
            first, last = int(match[1]), int(match[2] or len(data) - 1)
            status, part = 206, data[first : last + 1]
        self.send_response(status)
        self.send_header("ETag", f'"{_digest(data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(part)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        if method == "GET":
            self.wfile.write(part)

    def change(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "me":
                self.refuse(403, "Forbidden")
                return
            if (
                "private" in (asked.get("visibility"), asked.get("private") and "private")
                and name not in self.state.repositories
            ):
                self.state.private.add(name)
            self.state.repositories.setdefault(name, {})
            self.say({"url": f"{self.state.url}/{name}", "name": name})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False}
                for f in files
            ]
            self.say({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self.say({"transfer": "basic", "objects": [self.target(o) for o in objects]})
        elif method == "PUT":
            self.state.pending[path.rpartition("/")[2]] = body
            self.say({})
        elif self.state.broken and path.endswith("/commit/main"):
            self.refuse(500, "Broken")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.say({})

    def target(self, wanted: dict[str, Any]) -> dict[str, Any]:
        action = {"href": f"{self.state.url}/upload/{wanted['oid']}", "header": {}}
        return {**wanted, "actions": {"upload": action}}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        import base64

        files = self.state.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.pending[value["oid"]]
        url = f"{self.state.url}/{name}/commit/{COMMIT}"
        self.say({"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})

    def say(self, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _commit(branch: str) -> str:
    return hashlib.sha1(branch.encode()).hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"
