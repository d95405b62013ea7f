"""Beaker: submission by the real client to a loopback server."""

import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_launch.errors import ClusterError
from merge_launch.job import payload
from support.checkpoint_factory import read_tensors

WORDS = [
    *["/weka/bucket/out", "/weka/bucket/m1", "/weka/bucket/m2"],
    *["--image", "ada/torch", "--weka", "bucket"],
]
RECIPE = """merge_method: linear
models: [{model: m1}, {model: m3}]
parameters: {weight: 1}
"""


@pytest.fixture
def beaker(launch_process, beaker_server):
    """merge-launch of a user whose Beaker is the server here."""

    def run(*words: object, **changes: str):
        return launch_process(*words, **beaker_server.environment(**changes))

    return run


def test_beaker_py_loses_nothing_of_the_spec(make_job, render_job) -> None:
    pytest.importorskip("beaker")
    from merge_launch.backends.beaker.client import to_beaker_spec

    text = render_job(
        "beaker",
        make_job(),
        gpus=2,
        cpus="7.5",
        mem="64GiB",
        shared_memory="10GiB",
        cluster=("ai2/jupiter",),
        budget="ai2/research",
        group=("ada/soups",),
        retries=2,
        replicas=3,
        weka=("oe-adapt-default",),
        mount=("base-model:sub/folder:/inputs/base", "/net/nfs:/net"),
        secret=("HF_TOKEN=ada_HF_TOKEN",),
        timeout="24h",
        min_runtime="30m",
    )
    spec = yaml.safe_load(text)
    taken = to_beaker_spec(spec).to_json()
    (task,) = taken["tasks"]
    assert {"mountPath": "/net", "source": {"hostPath": "/net/nfs"}} in task["datasets"]
    assert {
        "mountPath": "/inputs/base",
        "subPath": "sub/folder",
        "source": {"beaker": "base-model"},
    } in task["datasets"]
    resources = {"cpuCount": 7.5, "gpuCount": 2, "memory": "64GiB", "sharedMemory": "10GiB"}
    assert task["resources"] == resources
    assert (taken["groups"], taken["retry"]) == (["ada/soups"], {"allowedTaskRetries": 2})
    assert (task["replicas"], task["propagateFailure"]) == (3, True)
    spec["tasks"][0]["argumets"] = []
    with pytest.raises(ClusterError, match=r"lost spec\.tasks\[0\]\.argumets"):
        to_beaker_spec(spec)
    del spec["tasks"][0]["argumets"]
    spec["tasks"][0]["resources"]["gpus"] = 2
    with pytest.raises(ClusterError, match=r"lost spec\.tasks\[0\]\.resources\.gpus"):
        to_beaker_spec(spec)


def posted(server) -> dict[str, Any]:
    (request,) = server.requests("POST")
    return request


def test_submission(beaker, beaker_server, bare_bash) -> None:
    words = [*WORDS, "--name", "soup", "--workspace", "ai2/merging", "--timeout", "4h"]
    done = beaker("beaker", *words)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "job     01ABC0"
    assert lines[1] == "out     /weka/bucket/out"
    assert lines[2].endswith("/ex/01ABC0")
    assert lines[3:] == [
        "follow  merge-launch logs -f 01ABC0",
        "cancel  merge-launch cancel 01ABC0",
    ]
    assert beaker_server.requests()[0]["request"] == "GetUser"
    sent = posted(beaker_server)
    assert sent["path"].endswith("/workspaces/w1/experiments?name=soup")
    assert sent["agent"].startswith("merge-launch v")
    (task,) = sent["spec"]["tasks"]
    assert "".join(task["arguments"][2:-1]) == payload.build().embedded.encoded
    assert task["timeout"] == 4 * 3600 * 10**9
    assert bare_bash("-n", "-c", task["arguments"][0]).code == 0


@pytest.mark.slow
def test_what_arrived_merges(beaker, beaker_server, bare_bash, models, work, tmp_path) -> None:
    words = ["out", *models, "--image", "ada/torch", "--weka", f"bucket:{work}"]
    assert beaker("beaker", *words, "--python", sys.executable).code == 0
    (task,) = posted(beaker_server)["spec"]["tasks"]
    argv = [*task["command"], *task["arguments"]]
    assert argv.pop(0) == "bash"
    other = {"A": "B", "B": "A"}.get(argv[-2][5000], "A")
    broken = [*argv[:-2], argv[-2][:5000] + other + argv[-2][5001:], argv[-1]]
    assert bare_bash(*broken, cwd=tmp_path).code == 3
    assert not (work / "out").exists()
    done = bare_bash(*argv, cwd=tmp_path)
    assert done.code == 0, done.err
    merged = read_tensors(work / "out")["model.layers.0.weight"]
    assert set(merged.flatten().tolist()) == {2.0}


@pytest.mark.slow
def test_a_recipe_that_no_argument_holds_travels_in_several(
    beaker, beaker_server, bare_bash, models, work: Path
) -> None:
    comment = "".join(f"# {number:06} of no use, but there\n" for number in range(9000))
    Path("long.yml").write_text(comment + RECIPE)
    words = ["long.yml", "out", "--image", "ada/torch", "--weka", f"bucket:{work}"]
    done = beaker("beaker", *words, "--python", sys.executable)
    assert done.code == 0, done.err
    (task,) = posted(beaker_server)["spec"]["tasks"]
    assert len(task["arguments"]) > 2 + len(payload.build().embedded.chunks) + 1
    assert max(map(len, task["arguments"])) <= 96 * 1024
    done = bare_bash(*task["command"][1:], *task["arguments"])
    assert done.code == 0, done.err
    assert (work / "out" / "mergekit_config.yml").read_text().startswith(comment)


@pytest.mark.slow
def test_many_recipes_of_one_pass_are_further_arguments(
    beaker, beaker_server, bare_bash, models, work: Path
) -> None:
    members = ", ".join(str(number / 100) for number in range(1, 61))
    recipe = "".join(f"  {line}\n" for line in RECIPE.splitlines())
    (work / "s.yml").write_text(
        f"recipe:\n  note: {'x' * 1500}\n{recipe}"
        f"name: 'w{{weight}}'\ngrid: {{parameters.weight: [{members}]}}\nout: {work}/runs\n"
    )
    words = ["sweep", "s.yml", "beaker", "--one-pass", "--image", "ada/torch"]
    done = beaker(*words, "--weka", f"bucket:{work}", "--python", sys.executable)
    assert done.code == 0, done.err
    (task,) = posted(beaker_server)["spec"]["tasks"]
    script, _, *rest = task["arguments"]
    assert len(script) < 64_000 and len(rest) == len(payload.build().embedded.chunks) + 60
    done = bare_bash(*task["command"][1:], *task["arguments"])
    assert done.code == 0, done.err
    assert (work / "runs" / "w0.6" / "merge_manifest.json").exists()


def test_a_retry_sends_the_very_text(beaker, beaker_server) -> None:
    assert beaker("beaker", *WORDS).code == 0
    beaker_server.proceed("01ABC0", 9, {"exit_code": 75})
    assert beaker("retry", "01ABC0").code == 0
    first, second = (each["spec"] for each in beaker_server.requests("POST"))
    assert first == second


def test_names_without_a_name_differ(beaker, beaker_server) -> None:
    for _ in range(2):
        assert beaker("beaker", *WORDS).code == 0
    first, second = (each["path"].partition("name=")[2] for each in beaker_server.requests("POST"))
    assert first != second
    assert all(re.fullmatch("out-[0-9a-f]{8}", name) for name in (first, second))


def test_a_name_whose_experiment_is_over_gets_an_ending(beaker, beaker_server) -> None:
    beaker_server.proceed("old", 8)
    experiments = beaker_server.experiments()
    assert experiments["old"]["name"] == "old"
    done = beaker("beaker", *WORDS, "--name", "old")
    assert done.code == 0, done.err
    assert re.search(r"name=old-[0-9a-f]{8}$", posted(beaker_server)["path"])


def test_a_name_that_is_on_its_way_is_refused(beaker, beaker_server) -> None:
    beaker_server.proceed("soup", 4)
    done = beaker("beaker", *WORDS, "--name", "soup")
    assert (done.code, beaker_server.requests("POST")) == (6, [])
    assert "soup (soup) is still active" in done.err and "--name" in done.err


@pytest.mark.parametrize("mishap", ["answer lost", "request lost", "server error"])
@pytest.mark.parametrize("name", [[], ["--name", "soup"]], ids=["no name", "name"])
def test_a_lost_answer_makes_no_second_job(beaker, beaker_server, mishap: str, name) -> None:
    beaker_server.mishap(mishap)
    done = beaker("beaker", *WORDS, *name)
    assert done.code == 0, done.err
    assert done.out.startswith("job     01ABC0\n")
    assert list(beaker_server.experiments()) == ["01ABC0"]
    assert len(beaker_server.requests("POST")) == (1 if mishap == "answer lost" else 2)


def test_a_server_that_never_answers_a_post_leaves_the_name_to_look_for(
    beaker, beaker_server
) -> None:
    beaker_server.mishap("always request lost")
    done = beaker("beaker", *WORDS, "--name", "soup")
    assert (done.code, done.out) == (6, "")
    assert "look for ada/soup before you try again" in done.err
    assert len(beaker_server.requests("POST")) == 2


def test_a_full_quota(beaker, beaker_server) -> None:
    beaker_server.mishap("always quota")
    done = beaker("beaker", *WORDS)
    assert (done.code, done.out) == (6, "")
    assert "budget ai2/research is used up" in done.err
    assert len(beaker_server.requests("POST")) == 1


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ([], {"user_token": "wrong"}, "token rejected"),
        (["--image", "ada/nothing"], {}, "image ada/nothing does not exist"),
        (["--workspace", "ai2/other"], {}, "workspace ai2/other not found"),
        ([], {"default_workspace": ""}, "add --workspace ORG/NAME"),
    ],
)
def test_refusals_are_one_line(beaker, beaker_server, words, changes, message: str) -> None:
    done = beaker("beaker", *WORDS, *words, **changes)
    assert (done.code, done.out) == (6, "")
    *warnings, line = done.err.splitlines()
    assert message in line
    assert all("not checked" in each or "(built in" in each for each in warnings)
    assert beaker_server.experiments() == {}


def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"localhost:{unused.getsockname()[1]}"


def test_a_dead_server_is_an_answer_not_a_wait(beaker) -> None:
    done = beaker("beaker", *WORDS, rpc_address=nobody())
    assert done.code == 6
    assert "not reachable" in done.err


def test_a_dead_web_address_is_no_job(beaker, beaker_server) -> None:
    done = beaker("beaker", *WORDS, agent_address=f"http://{nobody()}")
    assert (done.code, done.out) == (6, "")
    assert "before you try again" in done.err


@pytest.mark.slow
def test_a_silent_server_is_given_up(beaker) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        done = beaker("beaker", *WORDS, rpc_address=f"localhost:{silent.getsockname()[1]}")
    assert done.code == 6
    assert "no answer within 10 s" in done.err or "not reachable" in done.err


@pytest.mark.parametrize("config", ["", "default_org: ai2\n", ": ["])
def test_a_config_that_is_none(launch_process, tmp_path: Path, config: str) -> None:
    pytest.importorskip("beaker")
    path = tmp_path / "config.yml"
    path.write_text(config)
    done = launch_process("beaker", *WORDS, BEAKER_CONFIG=str(path))
    assert done.code == 6
    assert len(done.err.splitlines()) <= 4, done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"BEAKER_CONFIG": "/no/such.yml"}, "BEAKER_CONFIG: /no/such.yml not found"),
        ({"BEAKER_ADDR": "https://beaker.example"}, "but calls would still go to beaker.org"),
    ],
)
def test_settings_that_are_not_what_they_seem(launch_process, variables, message: str) -> None:
    pytest.importorskip("beaker")
    done = launch_process("beaker", *WORDS, BEAKER_TOKEN="secret", **variables)
    assert (done.code, done.out) == (6, "")
    assert message in done.err.splitlines()[-1]
    assert "secret" not in done.err
