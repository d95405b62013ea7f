"""A Beaker on loopback for the real client."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SERVER = Path(__file__).resolve().parents[2] / "fakes" / "beaker_server.py"


class Server(NamedTuple):
    folder: Path

    def environment(self, **changes: str) -> dict[str, str]:
        config = json.loads((self.folder / "config.yml").read_text()) | changes
        path = self.folder / "config-of-this-test.yml"
        path.write_text(json.dumps(config))
        return {
            "BEAKER_CONFIG": str(path),
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(self.folder / "cert.pem"),
            "no_proxy": "localhost,127.0.0.1",
        }

    def requests(self, name: str | None = None) -> list[dict[str, Any]]:
        path = self.folder / "requests"
        lines = path.read_text().splitlines() if path.exists() else []
        parsed = [json.loads(line) for line in lines]
        return [each for each in parsed if name is None or each["request"] == name]

    def experiments(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def proceed(self, job_id: str, status: int, *jobs: dict[str, Any]) -> None:
        """Set the state of an experiment; `jobs` are the times it was started."""
        experiments = self.experiments()
        started = [{"lines": [], "events": []} | job for job in jobs]
        experiments[job_id] = {
            "name": job_id,
            **experiments.get(job_id, {}),
            "status": status,
            "jobs": started,
        }
        partial = self.folder / "state.partial"
        partial.write_text(json.dumps(experiments))
        partial.replace(self.folder / "state.json")

    def mishap(self, kind: str) -> None:
        (self.folder / "mishap").write_text(kind)


@pytest.fixture(scope="session")
def _running_beaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if importlib.util.find_spec("beaker") is None or shutil.which("openssl") is None:
        pytest.skip("needs beaker-py and openssl")
    folder = tmp_path_factory.mktemp("beaker")
    argv = [sys.executable, str(SERVER), str(folder)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Server(folder)
        process.kill()


@pytest.fixture
def beaker_server(_running_beaker: Server) -> Server:
    """Without experiments."""
    for name in ("requests", "state.json", "mishap"):
        (_running_beaker.folder / name).unlink(missing_ok=True)
    return _running_beaker
