"""--notify: one small JSON at the end, to an address that stays secret, and never fatal."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

RAN: list[dict[str, str]] = []


class Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        RAN.append({"path": self.path, **json.loads(body)})
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    RAN.clear()
    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/services/SECRET"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_queued_job(launch, fakes, models, hook: str, work: Path) -> None:
    done = launch("pbs", "out", *models, "--python", sys.executable, "--notify", hook)
    assert done.code == 0, done.err
    fakes.pbs("schedule")
    (message,) = RAN
    assert message["path"] == "/services/SECRET"
    assert message["text"].startswith("merge-launch: out done (exit code 0) on ")
    assert message["text"].endswith(f": {work}/out")
    secret = work / "out.job" / "out.notify"
    assert secret.stat().st_mode & 0o777 == 0o600
    for path in work.rglob("*"):
        if path.is_file() and path != secret:
            assert b"SECRET" not in path.read_bytes(), path
    assert "SECRET" not in launch("logs", "out").out + launch("why", "out").out + done.out


def test_a_failure_in_the_foreground(launch_process, models, hook: str, work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / ".merge-partial").touch()
    done = launch_process("local", "out", *models, "--notify", hook)
    assert done.code == 4
    assert "out failed (exit code 4)" in RAN[0]["text"]
    assert "SECRET" not in done.out + done.err


def test_a_server_that_does_not_answer_is_not_an_error(launch_process, models) -> None:
    address = "http://127.0.0.1:9/SECRET"
    done = launch_process("local", "out", *models, "--progress", "off", "--notify", address)
    assert done.code == 0
    assert done.err.endswith("merge-launch: the notification was not sent\n")
    assert "SECRET" not in done.err


def test_a_dry_run_does_not_show_the_address(launch, models) -> None:
    for backend in ("pbs", "slurm", "local"):
        shown = launch("render", backend, "out", *models, "--notify", "https://x/SECRET")
        assert shown.code == 0
        assert "SECRET" not in shown.out
    assert launch("render", "pbs", "out", *models, "--notify", "not an address").code == 2
