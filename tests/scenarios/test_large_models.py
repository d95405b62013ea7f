"""Memory and time for models of the size of real releases, made of files with holes."""

import cProfile
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from merge_worker.engine.work import cost, share
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import make_plan
from merge_worker.recipe import parse
from merge_worker.recipe.shorthand import direct_recipe
from merge_worker.system.ranks import Rank
from support.recipes import manifest, sparse_file

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30

pytestmark = pytest.mark.slow


def measured(*words: object) -> tuple[float, float, str]:
    """Return the processor seconds, peak GiB and standard output of a worker command."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'merge_worker', *sys.argv[1:]])\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / (1 << 20)\n"
        "print('MEASURED', done.returncode, seconds, peak)\n"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    rest, _, line = done.stdout.rpartition("MEASURED ")
    status, seconds, peak = line.split()
    assert int(status) == 0, done.stderr
    return float(seconds), float(peak), rest


def test_a_tensor_of_half_a_billion_elements(tmp_path: Path) -> None:
    for number in range(3):
        shape, size = (250_000, 2048), 250_000 * 2048 * 2
        file = tmp_path / f"m{number}" / "model.safetensors"
        sparse_file(file, {"embed.weight": (shape, "BF16", size), "norm": ((64,), "BF16", 128)})
    free = os.statvfs(tmp_path)
    if free.f_bavail * free.f_frsize < 2 * GIB:
        pytest.skip("needs 2 GiB of disk")
    models = [tmp_path / f"m{number}" for number in range(3)]
    _, peak, _ = measured("average", tmp_path / "out", *models, "--progress", "off")
    assert peak <= 1.0
    assert manifest(tmp_path / "out")["counts"]["merged"] == 2


LAYERS, EXPERTS, SHARDS = 61, 256, 163


def giant(folder: Path, layers: int = LAYERS) -> None:
    """Write 671 B bfloat16 parameters: 163 shards, 47 thousand tensors, 1.3 TB, all holes."""
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [129_280, 7168]}
    for layer in range(layers):
        for expert in range(EXPERTS if layer >= 3 else 1):
            for part in ("gate_proj", "up_proj", "down_proj"):
                shape = [7168, 2048] if part == "down_proj" else [2048, 7168]
                shapes[f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"] = shape
        for part in ("q_proj", "kv_proj", "o_proj"):
            shapes[f"model.layers.{layer}.self_attn.{part}.weight"] = [7168, 7168]
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{part}.weight"] = [7168]
    shapes["lm_head.weight"] = [129_280, 7168]
    names = list(shapes)
    places = {}
    per_shard = -(-len(names) // SHARDS)
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        part = names[number * per_shard : (number + 1) * per_shard]
        sizes = {}
        for name in part:
            count = 1
            for extent in shapes[name]:
                count *= extent
            sizes[name] = (shapes[name], "BF16", 2 * count)
        sparse_file(folder / file, sizes)
        places.update(dict.fromkeys(part, file))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))


@pytest.fixture(scope="module")
def giants(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("giants")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if hard != resource.RLIM_INFINITY:
        pytest.skip("files of this size are not allowed here")
    folders = [base / f"m{number}" for number in range(3)]
    for folder in folders:
        try:
            giant(folder)
        except OSError as error:
            pytest.skip(f"this file system holds no such files: {error}")
    return folders


def test_planning_a_giant(
    tmp_path: Path, giants: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yml"
    listed = "".join(f"- model: {folder}\n" for folder in giants)
    recipe.write_text(f"merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{listed}")
    seconds, peak, text = measured("check", recipe, "--json")
    facts = json.loads(text)
    assert facts["tensors"]["merged"] > 44_000 and facts["bytes_out"] > 1.25e12
    assert facts["layers"] == {"model.layers.": LAYERS}
    with capsys.disabled():
        tensors, terabytes = facts["tensors"]["merged"], facts["bytes_out"] / 1e12
        summary = f"{seconds:.1f} processor seconds, {peak:.2f} GiB"
        print(f"\nplanned: 3 models of {tensors} tensors, {terabytes:.2f} TB each: {summary}")
    assert peak <= 1.0


def test_planning_takes_as_long_as_there_are_tensors(tmp_path: Path) -> None:
    """Four times as many tensors take four times as many calls, which no slow machine changes."""
    calls = []
    for layers in (5, 11):  # the first three have no experts, so 2 and 8 layers with them
        folders = [tmp_path / f"{layers}-{number}" for number in range(3)]
        for folder in folders:
            giant(folder, layers)
        profile = cProfile.Profile()
        recipe = parse(direct_recipe([str(folder) for folder in folders]))
        plan = profile.runcall(make_plan, recipe, PlanOptions())
        calls.append(sum(entry.callcount for entry in profile.getstats()) / len(plan.steps))
    assert calls[1] <= 1.1 * calls[0]


@pytest.mark.parametrize("method", ["linear", "ties", "della", "tsvm"])
def test_64_ranks_share_a_giant_fairly(
    giants: list[Path], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shares are fair for multi-pass methods and for tensors of one indivisible block, too."""
    base = {} if method == "linear" else {"base_model": str(giants[0])}
    text = direct_recipe([str(giant) for giant in giants], method=method, **base)
    plan = make_plan(parse(text), PlanOptions())
    costs, blocks = [], 0
    for number in range(64):
        works = share(plan.steps, Rank(number, 64), {})
        blocks += sum(piece.blocks for work in works for piece in work.todo)
        costs.append(
            sum(cost(w.step) * p.blocks / w.step.grid.blocks for w in works for p in w.todo)
        )
    busiest = max(costs) / (sum(costs) / 64)
    with capsys.disabled():
        print(f"\n{method}: the busiest of 64 ranks has {busiest:.4f} times the mean")
    assert blocks == sum(step.grid.blocks for step in plan.steps), "all is done, nothing twice"
    assert busiest <= 1.05
