"""Killed at twenty moments all over a merge, with one and three ranks: what is lost, what is left.

Bytes are counted by the system while the process is stopped, just before it is killed.
"""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from forks import Fork, Forks
from merges import digest, run

from worker.journal import parse_line
from worker.plan import Plan, PlanOptions, make_plan
from worker.recipe import parse
from worker.store import PARTIAL

pytestmark = pytest.mark.slow
KILLS = 20
MOST = 0.05
ROWS, WIDTH, LAYERS = 600, 512, 60
OPTIONS = ("--threads", 1, "--memory", "2MiB", "--shard-size", "6MB", "--progress", "off")
RECIPES = {
    "linear": "merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{0}\n{1}\n{2}\n",
    "ties": "merge_method: ties\nparameters: {{weight: 1, density: 0.5}}\nbase_model: {base}\n"
    "models:\n{1}\n{2}\n",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Layers of one size and an embedding of three, in the proportions of a model."""
    folder = tmp_path_factory.mktemp("models")
    base = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (3 * ROWS, WIDTH)}
    shapes |= {f"layers.{i}.weight": (ROWS, WIDTH) for i in range(LAYERS)}
    first = {name: torch.randn(shape, generator=base) for name, shape in shapes.items()}
    found = []
    for number in range(3):
        own = torch.Generator().manual_seed(1 + number)
        tensors = {
            name: (values + 0.05 * torch.randn(values.shape, generator=own)).to(torch.bfloat16)
            for name, values in first.items()
        }
        found.append(write_checkpoint(folder / f"m{number}", tensors))
    return found


@pytest.fixture(scope="module", params=RECIPES)
def recipe(
    request: pytest.FixtureRequest, models: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("recipe") / f"{request.param}.yml"
    listed = [f"- model: {model}" for model in models]
    path.write_text(RECIPES[request.param].format(*listed, base=models[0]))
    return path


def plan_for(recipe: Path) -> Plan:
    return make_plan(parse(recipe.read_text()), PlanOptions(shard_bytes=6_000_000))


def claimed(out: Path, plan: Plan) -> tuple[int, int]:
    """Bytes that the journals say are there, and the bytes that had to be read for them."""
    written = read = 0
    for path in (out / PARTIAL).glob("journal-*"):
        for entry in map(parse_line, path.read_bytes().splitlines()):
            if entry is not None:
                step = plan.steps[entry.step]
                start, stop = step.grid.span(entry.piece.first, entry.piece.blocks)
                written += (stop - start) * step.dtype.bytes
                read += (stop - start) * sum(s.dtype.bytes for s in step.sources)
    return written, read


def moved(pid: int) -> tuple[int, int]:
    """Bytes that a process has written and read, page cache or not."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    facts = {name: int(count) for name, count in (line.split(": ") for line in lines)}
    return facts["wchar"], facts["rchar"]


def wait_for(out: Path, plan: Plan, share: float, forks: list[Fork]) -> None:
    """Until so much of the merge is in the journals, or nobody works any more."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and any(fork.running() for fork in forks):
        if claimed(out, plan)[0] >= share * plan.output_bytes:
            return
        time.sleep(0.001)


def moments(seed: int) -> Iterator[tuple[float, int]]:
    """Shares of the merge, all over it, and signals in turn."""
    chance = random.Random(seed)
    for number in range(KILLS):
        kind = signal.SIGKILL if number % 2 else signal.SIGTERM
        yield (number + chance.random()) / KILLS, kind


def end(out: Path, plan: Plan, forks: list[Fork], kind: int) -> float:
    """Kill one or all of them; returns the work that is lost as a share of the whole merge."""
    before = {}
    for fork in forks:
        fork.kill(signal.SIGSTOP)
    for fork in forks:
        if fork.running():
            before[fork.pid] = moved(fork.pid)
    written, read = claimed(out, plan)
    for fork in forks:
        fork.kill(kind)
        fork.kill(signal.SIGCONT)
    codes = {fork.wait().code for fork in forks}
    assert codes <= {0, 75, -signal.SIGKILL}, codes
    if len(before) < len(forks) or kind == signal.SIGTERM:
        return 0.0  # one had ended by itself; and who is asked to stop ends its pieces
    done = sum(w + r for w, r in before.values())
    return max(0.0, (done - written - read) / (plan.output_bytes + plan.input_bytes))


@pytest.mark.parametrize("world", [1, 3])
def test_twenty_kills(
    tmp_path: Path, recipe: Path, forks: Forks, world: int, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_for(recipe)
    whole = tmp_path / "whole"
    assert run("merge", recipe, whole, *OPTIONS) == 0
    lost, hit = [], 0

    def start(out: Path) -> list[Fork]:
        places = [{"RANK": str(n), "WORLD_SIZE": str(world)} for n in range(world)]
        words = ("merge", recipe, out, *OPTIONS)
        return [forks.start(*words, env=place if world > 1 else None) for place in places]

    for number, (share, kind) in enumerate(moments(world)):
        out = tmp_path / f"out{number}"
        working = start(out)
        wait_for(out, plan, share, working)
        lost.append(end(out, plan, working, kind))
        hit += not (out / "merge_manifest.json").exists()
        codes = [fork.wait().code for fork in start(out)]
        assert codes == [0] * world
        assert digest(out) == digest(whole), f"killed at {share:.0%} by {kind}"
        assert not list(out.glob(".merge-partial*"))
    with capsys.disabled():
        told = f"lost by a kill: at most {max(lost):.1%}, {sum(lost) / (KILLS / 2):.1%} in the mean"
        print(f"\n{recipe.stem}, {world} ranks: {hit} of {KILLS} hit it at work; {told}")
    assert hit >= KILLS * 3 // 4
    assert max(lost) <= MOST
