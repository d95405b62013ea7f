"""Merges killed at twenty moments, with one and three ranks: the work lost and the files left.

The work lost is the input bytes read by both runs, less those of one undisturbed run.
"""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from merge_worker.output.files import PARTIAL
from merge_worker.output.journal import parse_line
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from support.checkpoint_factory import write_checkpoint
from support.forked_process import PATIENCE_S, Fork, Forks
from support.recipes import digest

pytestmark = pytest.mark.slow
KILLS = 20
MOST = 0.05
ROWS, WIDTH, LAYERS = 600, 512, 120
OPTIONS = ("--threads", 1, "--memory", "2MiB", "--shard-size", "6MB", "--progress", "off")
RECIPES = {
    "linear": "merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{0}\n{1}\n{2}\n",
    "ties": "merge_method: ties\nparameters: {{weight: 1, density: 0.5}}\nbase_model: {base}\n"
    "models:\n{1}\n{2}\n",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write layers and an embedding three times their size, in the proportions of a model."""
    folder = tmp_path_factory.mktemp("models")
    base = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (3 * ROWS, WIDTH)}
    shapes |= {f"layers.{i}.weight": (ROWS, WIDTH) for i in range(LAYERS)}
    first = {name: torch.randn(shape, generator=base) for name, shape in shapes.items()}
    paths = []
    for number in range(3):
        own = torch.Generator().manual_seed(1 + number)
        tensors = {
            name: (values + 0.05 * torch.randn(values.shape, generator=own)).to(torch.bfloat16)
            for name, values in first.items()
        }
        paths.append(write_checkpoint(folder / f"m{number}", tensors))
    return paths


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


def claimed(out: Path, plan: Plan) -> int:
    """Return the bytes recorded as finished in the journals."""
    total = 0
    for path in (out / PARTIAL).glob("journal-*"):
        for entry in map(parse_line, path.read_bytes().splitlines()):
            if entry is not None:
                step = plan.steps[entry.step]
                start, stop = step.grid.span(entry.piece.first, entry.piece.blocks)
                total += (stop - start) * step.dtype.bytes
    return total


def wait_for(out: Path, plan: Plan, share: float, forks: list[Fork]) -> None:
    """Wait until the journals hold this share of the merge, or all processes have ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and any(fork.running() for fork in forks):
        if claimed(out, plan) >= share * plan.output_bytes:
            return
        time.sleep(0.001)


def moments(seed: int) -> Iterator[tuple[float, int]]:
    """Yield shares spread over the merge, with alternating signals."""
    chance = random.Random(seed)
    for number in range(KILLS):
        kind = signal.SIGKILL if number % 2 else signal.SIGTERM
        yield (number + chance.random()) / KILLS, kind


def start(forks: Forks, recipe: Path, out: Path, world: int) -> list[Fork]:
    """Start all ranks of the merge."""
    forked = []
    for number in range(world):
        place = {"RANK": str(number), "WORLD_SIZE": str(world)} if world > 1 else {}
        words = ("merge", recipe, out, *OPTIONS, *(["--ranks", "auto"] if world > 1 else []))
        forked.append(forks.start(*words, env={**place, "COUNT_READS": "1"}))
    return forked


@pytest.mark.parametrize("world", [1, 3])
def test_twenty_kills(
    tmp_path: Path, recipe: Path, forks: Forks, world: int, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_for(recipe)
    undisturbed = start(forks, recipe, tmp_path / "whole", world)
    assert [fork.wait().code for fork in undisturbed] == [0] * world
    whole, needed = digest(tmp_path / "whole"), sum(fork.read_bytes() for fork in undisturbed)
    assert needed >= plan.input_bytes
    lost, hit = [], 0
    for number, (share, kind) in enumerate(moments(world)):
        out = tmp_path / f"out{number}"
        killed = start(forks, recipe, out, world)
        wait_for(out, plan, share, killed)
        for fork in killed:
            fork.kill(kind)
        ended = [fork.wait() for fork in killed]
        assert {one.code for one in ended} <= {0, 75, -signal.SIGKILL}, ended
        hit += not (out / "merge_manifest.json").exists()
        again = start(forks, recipe, out, world)
        ended = [fork.wait() for fork in again]
        assert [one.code for one in ended] == [0] * world, ended
        assert digest(out) == whole, f"killed at {share:.0%} by {kind}"
        assert not list(out.glob(".merge-partial*"))
        lost.append(sum(fork.read_bytes() for fork in (*killed, *again)) / needed - 1)
        shutil.rmtree(out)
    with capsys.disabled():
        summary = f"done twice: at most {max(lost):.1%}, in the mean {sum(lost) / KILLS:.1%}"
        print(f"\n{recipe.stem}, {world} ranks: {hit} of {KILLS} were hit at work; {summary}")
    assert hit >= KILLS * 3 // 4
    assert max(lost) <= MOST
