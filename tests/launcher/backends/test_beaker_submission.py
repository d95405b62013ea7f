"""Beaker: the real client against a loopback server."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from launcher import payload

SERVER = Path(__file__).resolve().parents[2] / "fakes" / "beaker_server.py"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("beaker") is None or shutil.which("openssl") is None,
    reason="needs beaker-py and openssl",
)
WORDS = [
    *["/weka/bucket/out", "/weka/bucket/m1", "/weka/bucket/m2"],
    *["--image", "ada/torch", "--weka", "bucket"],
]


def test_beaker_py_loses_nothing_of_the_spec(make_job, render_job) -> None:
    import beaker

    from launcher.backends.beaker import _taken_over
    from launcher.errors import ClusterError

    text = render_job(
        "beaker",
        make_job(),
        gpus=2,
        cluster=("ai2/jupiter",),
        budget="ai2/research",
        weka=("oe-adapt-default",),
        mount=("base-model:/inputs/base", "/net/nfs:/net"),
        secret=("HF_TOKEN=ada_HF_TOKEN",),
        timeout="24h",
        min_runtime="30m",
    )
    spec = yaml.safe_load(text)
    taken = _taken_over(beaker, spec).to_json()["tasks"][0]
    assert {"mountPath": "/net", "source": {"hostPath": "/net/nfs"}} in taken["datasets"]
    spec["tasks"][0]["argumets"] = []
    with pytest.raises(ClusterError, match=r"lost spec\.tasks\[0\]\.argumets"):
        _taken_over(beaker, spec)
    del spec["tasks"][0]["argumets"]
    spec["tasks"][0]["resources"]["gpus"] = 2
    with pytest.raises(ClusterError, match=r"lost spec\.tasks\[0\]\.resources\.gpus"):
        _taken_over(beaker, spec)


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

    def requests(self) -> list[dict[str, Any]]:
        path = self.folder / "requests"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
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
def server(running: Server) -> Server:
    (running.folder / "requests").unlink(missing_ok=True)
    return running


def test_submission(launch_process, server, bare_bash) -> None:
    words = [*WORDS, "--name", "soup", "--workspace", "ai2/merging", "--timeout", "4h"]
    done = launch_process("beaker", *words, **server.environment())
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "job     01ABC"
    assert lines[1] == "out     /weka/bucket/out"
    assert lines[2].endswith("/ex/01ABC")
    assert lines[3:] == ["follow  gantry follow 01ABC", "cancel  gantry stop 01ABC"]
    assert server.requests()[0]["request"] == "GetUser"
    (posted,) = [each for each in server.requests() if each["request"] == "POST"]
    assert posted["path"].endswith("/workspaces/w1/experiments?name=soup")
    (task,) = posted["spec"]["tasks"]
    assert task["arguments"][2] == payload.build(methods=frozenset({"linear"})).encoded
    assert task["timeout"] == 4 * 3600 * 10**9
    assert bare_bash("-n", "-c", task["arguments"][0]).code == 0


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        ([], {"user_token": "wrong"}, "refused the token"),
        (["--name", "taken"], {}, "taken"),
        (["--image", "ada/nothing"], {}, "image ada/nothing does not exist"),
        (["--workspace", "ai2/other"], {}, "ai2/other"),
    ],
)
def test_refusals_in_the_servers_words(launch_process, server, words, changes, said: str) -> None:
    done = launch_process("beaker", *WORDS, *words, **server.environment(**changes))
    assert (done.code, done.out) == (6, "")
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_dead_server_is_an_answer_not_a_wait(launch_process, server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"localhost:{unused.getsockname()[1]}"
    done = launch_process("beaker", *WORDS, **server.environment(rpc_address=address))
    assert done.code == 6
    assert "cannot be reached" in done.err


@pytest.mark.slow
def test_a_silent_server_is_given_up(launch_process, server, monkeypatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"localhost:{silent.getsockname()[1]}"
        done = launch_process("beaker", *WORDS, **server.environment(rpc_address=address))
    assert done.code == 6
    assert "did not answer within 10 s" in done.err or "cannot be reached" in done.err


@pytest.mark.parametrize("config", ["", "default_org: ai2\n", ": ["])
def test_a_config_that_is_none(launch_process, tmp_path: Path, config: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(config)
    done = launch_process("beaker", *WORDS, BEAKER_CONFIG=str(path))
    assert done.code == 6
    assert len(done.err.splitlines()) <= 4, done.err
    assert "Traceback" not in done.err
