"""Several recipes in one pass, killed at random moments and resumed, by one or more ranks."""

import random
import signal
import time
from pathlib import Path

import pytest

from support.forked_process import Forks
from support.recipes import digest, one_tensor_models, run

RECIPES = {
    "even": "merge_method: linear\nparameters: {weight: 1}\n"
    "models: [{model: big0}, {model: big1}, {model: big2}]\n",
    "uneven": "merge_method: linear\nmodels:\n- {model: big2, parameters: {weight: 3}}\n"
    "- {model: big0, parameters: {weight: 1}}\ndtype: float32\n",
    "ties": "merge_method: ties\nbase_model: big0\nmodels: [{model: big1}, {model: big2}]\n"
    "parameters: {weight: 1, density: 0.3}\n",
}
SLOW = ("--progress", "off", "--memory", "4MiB", "--threads", "1")
KINDS = (signal.SIGKILL, signal.SIGTERM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("together")
    one_tensor_models(path, 4_000_000, 3)
    for name, text in RECIPES.items():
        (path / f"{name}.yml").write_text(text)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("alone")
    for name in RECIPES:
        words = ("merge", folder / f"{name}.yml", place / name, "--relative-to", folder)
        assert run(*words, *SLOW) == 0
    return place


def command(folder: Path, place: Path) -> list[object]:
    pairs = [word for n in RECIPES for word in ("-a", folder / f"{n}.yml", place / n)]
    return ["merge", *pairs, "--relative-to", folder, *SLOW]


@pytest.mark.parametrize(("world", "kills"), [(1, 3), (2, 3)])
def test_killed_and_continued(
    tmp_path: Path, folder: Path, alone: Path, forks: Forks, world: int, kills: int
) -> None:
    kill_and_continue(tmp_path, folder, forks, world, kills)
    for name in RECIPES:
        assert digest(tmp_path / name) == digest(alone / name), name


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
def test_killed_many_times(
    tmp_path: Path, folder: Path, alone: Path, forks: Forks, world: int
) -> None:
    kill_and_continue(tmp_path, folder, forks, world, 12)
    for name in RECIPES:
        assert digest(tmp_path / name) == digest(alone / name), name


def kill_and_continue(place: Path, folder: Path, forks: Forks, world: int, kills: int) -> None:
    chance = random.Random(10 * world + kills)
    for number in range(kills + 1):
        ranks = [
            forks.start(
                *command(folder, place),
                *(["--ranks", "auto"] if world > 1 else []),
                env={"RANK": str(n), "WORLD_SIZE": str(world)} if world > 1 else None,
            )
            for n in range(world)
        ]
        if number < kills:
            time.sleep(0.05 + chance.random() * 0.4)
            for fork in chance.sample(ranks, chance.randrange(1, world + 1)):
                fork.kill(chance.choice(KINDS))
        ended = [fork.wait() for fork in ranks]
        # In its first milliseconds Python has not begun to listen.
        fine = {0, 75, -signal.SIGKILL, -signal.SIGTERM}
        assert not [one for one in ended if one.code not in fine], ended
    assert [one.code for one in ended] == [0] * world, ended
