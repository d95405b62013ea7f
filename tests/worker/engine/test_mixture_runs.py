"""Mixtures of experts from models to files: values, gates of stopped merges, ranks, kills."""

import json
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.engine.options import Clock, RunOptions
from merge_worker.engine.run import run_merges
from merge_worker.errors import Stopped
from merge_worker.experts.gates import prepare_gates
from merge_worker.output.manifest import read_manifest
from merge_worker.planning.options import PlanOptions, stage_folder
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from merge_worker.system.ranks import Rank
from support.checkpoint_factory import read_tensors
from support.forked_process import Forks
from support.mixtures import HIDDEN, LAYERS, build, llama_tensors, recipe, write_llama
from support.recipes import digest, shards_of

EXPERT = "model.layers.1.block_sparse_moe.experts.{}.w{}.weight"
PROMPTS: list[dict[str, Any]] = [
    {"source_model": "a", "positive_prompts": ["ab"]},
    {"source_model": "b", "positive_prompts": ["cd"]},
]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(tmp_path / name, seed)
    return tmp_path


def built(folder: Path, experts: Any, out: str = "out", **keys: Any) -> dict[str, torch.Tensor]:
    assert build(recipe(folder, "base", experts, **keys), folder / out) == 0
    return read_tensors(folder / out)


def test_all_but_the_mlps_is_the_base_s(models: Path) -> None:
    result = built(models, ["a", "b"])
    base = llama_tensors(0)
    kept = {name for name in base if ".mlp." not in name}
    assert {name for name in result if "block_sparse_moe" not in name} == kept
    assert all(torch.equal(result[name], base[name]) for name in kept)


def test_residual_scale_multiplies_the_down_projection(models: Path) -> None:
    result = built(models, [{"source_model": "a", "residual_scale": 0.3}, "b"])
    a, b = llama_tensors(1), llama_tensors(2)
    down = a["model.layers.1.mlp.down_proj.weight"]
    # In float32, rounded once.
    assert torch.equal(result[EXPERT.format(0, 2)], (down.float() * 0.3).to(torch.bfloat16))
    assert torch.equal(result[EXPERT.format(0, 1)], a["model.layers.1.mlp.gate_proj.weight"])
    assert torch.equal(result[EXPERT.format(1, 2)], b["model.layers.1.mlp.down_proj.weight"])


@pytest.mark.parametrize("target", ["mixtral", "granitemoe"])
def test_scales_and_dtypes_in_every_layout(models: Path, target: str) -> None:
    experts = [{"source_model": "a", "residual_scale": 2.0}, "b"]
    result = built(models, experts, architecture=target, dtype="float16")
    down = llama_tensors(1)["model.layers.0.mlp.down_proj.weight"].float() * 2
    prefix = "model.layers.0.block_sparse_moe."
    mine = (
        result[f"{prefix}output_linear.weight"][0]
        if target == "granitemoe"
        else result[f"{prefix}experts.0.w2.weight"]
    )
    assert torch.equal(mine, down.to(torch.float16))
    assert {tensor.dtype for tensor in result.values()} == {torch.float16}


def test_noise_has_its_size_and_a_seed(tmp_path: Path) -> None:
    write_llama(tmp_path / "base", hidden=64, width=128)
    experts = [{"source_model": "base", "noise_scale": 0.5}] * 2
    results = []
    for seed in (0, 0, 1):
        path = recipe(tmp_path, "base", experts, dtype="float32")
        assert build(path, tmp_path / f"o{len(results)}", "--seed", seed) == 0
        results.append(read_tensors(tmp_path / f"o{len(results)}"))
    first, again, other = results
    source = llama_tensors(0, 64, 128)["model.layers.1.mlp.gate_proj.weight"].float()
    noise = [first[EXPERT.format(e, 1)] - source for e in (0, 1)]
    assert all(float(n.std()) == pytest.approx(0.5, rel=0.05) for n in noise)
    assert all(abs(float(n.mean())) < 0.02 for n in noise)
    # Experts of one model differ by their noise alone.
    assert abs(float((noise[0] * noise[1]).mean())) < 0.02
    name = EXPERT.format(0, 1)
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_noise_does_not_depend_on_pieces(tmp_path: Path) -> None:
    write_llama(tmp_path / "base", hidden=256, width=1024)
    experts = [{"source_model": "base", "noise_scale": 0.5, "residual_scale": 0.7}, "base"]
    path = recipe(tmp_path, "base", experts)
    assert build(path, tmp_path / "wide") == 0
    assert build(path, tmp_path / "narrow", "--memory", "1MiB", "--threads", 1) == 0
    assert shards_of(tmp_path / "wide") == shards_of(tmp_path / "narrow")


def test_the_manifest_and_the_card(models: Path) -> None:
    experts = [
        {"source_model": "a", "positive_prompts": ["ab", "b"], "negative_prompts": ["c"]},
        {"source_model": "b", "positive_prompts": ["cd"], "residual_scale": 0.5},
    ]
    built(models, experts, gate_mode="cheap_embed")
    manifest = read_manifest(models / "out")
    assert manifest is not None
    mixture = manifest["mixture"]
    assert mixture["target"] == "mixtral" and mixture["gate_mode"] == "cheap_embed"
    assert [m["model"] for m in mixture["members"]] == ["a", "b"]
    assert [m["prompts"] for m in mixture["members"]] == [2, 1]
    assert manifest["recipe"]["models"] == ["base", "a", "b"]
    card = (models / "out" / "README.md").read_text()
    assert "\n- merge\n- moe\n" in card and "A mixture of 2 experts" in card
    assert "| a | 2 | 1 | 1 |\n| b | 1 | 0 | 0.5 |" in card
    again = models / "again"
    words = [models / "out" / "merge_manifest.json", again]
    from merge_worker.cli import main

    assert main(["merge", *map(str, words), "--relative-to", str(models)]) == 0
    assert shards_of(again) == shards_of(models / "out")


def planned(folder: Path, out: Path, **keys: Any) -> Plan:
    path = recipe(folder, "base", PROMPTS, gate_mode="cheap_embed", **keys)
    options = PlanOptions(relative_to=folder, stages_folder=stage_folder(str(out)))
    return make_plan(parse(path.read_text(), "moe.yml", folder), options)


def run(plan: Plan, out: Path, gates: Any = prepare_gates) -> None:
    run_merges([(plan, out)], RunOptions(progress="off", gates=gates), Rank(), Clock(0.0))


def test_a_stopped_merge_finds_its_gates_again(models: Path) -> None:
    out = models / "out"
    plan = planned(models, out)
    assert plan.mixture is not None

    def stops(plan: Plan, options: RunOptions) -> None:
        prepare_gates(plan, options)
        raise Stopped("between gates and copies")

    with pytest.raises(Stopped):
        run(plan, out, stops)
    file = plan.mixture.gates.file
    assert file.is_file() and not out.exists()
    stamp = file.stat().st_mtime_ns
    taken = []

    def looks(plan: Plan, options: RunOptions) -> None:
        prepare_gates(plan, options)
        taken.append(file.stat().st_mtime_ns)

    run(planned(models, out), out, looks)
    assert taken == [stamp] and not file.parent.exists()


def test_a_damaged_file_of_gates_is_written_anew(models: Path) -> None:
    out = models / "out"
    plan = planned(models, out)
    assert plan.mixture is not None
    file = plan.mixture.gates.file
    file.parent.mkdir()
    file.write_bytes(plan.mixture.gates.header[:-8])
    run(plan, out)
    gates = read_tensors(out)["model.layers.0.block_sparse_moe.gate.weight"]
    assert torch.linalg.vector_norm(gates.float(), dim=1).tolist() == pytest.approx(
        [1, 1], rel=0.01
    )


def test_processes_wait_for_the_one_that_computes(models: Path) -> None:
    out, calls = models / "out", []
    plan = planned(models, out)
    from merge_worker.experts import gates as module

    real = module.MODES["cheap_embed"]

    def slow(request: Any) -> torch.Tensor:
        calls.append(threading.get_ident())
        time.sleep(0.5)
        return real(request)

    module.MODES["cheap_embed"] = slow
    try:
        options = RunOptions(progress="off")
        first = threading.Thread(target=prepare_gates, args=(plan, options))
        first.start()
        time.sleep(0.2)
        prepare_gates(plan, options)
        first.join()
    finally:
        module.MODES["cheap_embed"] = real
    assert len(calls) == 1


def test_a_folder_that_cannot_be_written(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / ".out.stages").write_text("a file in its place")
    assert build(recipe(models, "base", ["a", "b"]), models / "out") == 4
    assert len(capsys.readouterr().err.splitlines()) <= 4
    assert not (models / "out").exists()


@pytest.mark.slow
def test_two_ranks_give_the_same_bytes(models: Path, forks: Forks) -> None:
    path = recipe(models, "base", PROMPTS, gate_mode="cheap_embed")
    words = ("merge", path, models / "both", "--relative-to", models, "--progress", "off")
    places = [{"RANK": str(n), "WORLD_SIZE": "2"} for n in range(2)]
    started = [forks.start(*words, "--ranks", "auto", env=env) for env in places]
    ended = [fork.wait() for fork in started]
    assert [one.code for one in ended] == [0, 0], ended
    assert build(path, models / "alone") == 0
    assert shards_of(models / "both") == shards_of(models / "alone")
    assert not (models / ".both.stages").exists()


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path, forks: Forks) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(tmp_path / name, seed, hidden=256, width=2048, layers=8)
    path = recipe(tmp_path, "base", PROMPTS, gate_mode="cheap_embed")
    assert build(path, tmp_path / "whole") == 0
    whole, hit = digest(tmp_path / "whole"), 0
    for number in range(12):
        out = tmp_path / f"out{number}"
        words = ("merge", path, out, "--relative-to", tmp_path, "--progress", "off")
        world = 1 + number % 2
        for attempt in range(2):
            places = [{"RANK": str(n), "WORLD_SIZE": str(world)} for n in range(world)]
            ranks = ("--ranks", "auto") if world > 1 else ()
            started = [forks.start(*words, *ranks, env=env) for env in places]
            if attempt == 0:
                time.sleep(0.05 * number)
                for fork in started:
                    fork.kill(signal.SIGKILL)
                hit += not (out / "merge_manifest.json").exists()
            codes = {fork.wait().code for fork in started}
        assert codes == {0} and digest(out) == whole, number
        assert not list(out.glob(".merge-partial*"))
        assert not list(stage_folder(str(out)).glob("*"))
        shutil.rmtree(out)
    assert hit >= 4


def test_streams_refuse_gates_that_need_a_file(models: Path) -> None:
    import merge_worker

    plan = merge_worker.plan(recipe(models, "base", ["a", "b"]), relative_to=models)
    with pytest.raises(merge_worker.errors.UsageError, match="merge this recipe into a folder"):
        next(merge_worker.stream(plan))
    result = merge_worker.merge(plan, models / "api")
    assert result.manifest["mixture"]["experts"] == 2
    assert not (models / ".api.stages").exists()


def test_mixtures_that_are_merged_while_they_stream(models: Path) -> None:
    experts = json.dumps([{"source_model": "a"}, {"source_model": "b"}])
    text = "\n---\n".join(
        [
            f"{{name: one, base_model: base, gate_mode: random, experts: {experts}}}",
            f"{{name: two, base_model: base, gate_mode: zeros, experts: {experts}}}",
            "{merge_method: linear, models: [{model: one, parameters: {weight: 1}},"
            " {model: two, parameters: {weight: 3}}]}",
        ]
    )
    path = models / "moe.yml"
    path.write_text(text)
    assert build(path, models / "out") == 0
    mean = read_tensors(models / "out")
    alone = built(models, ["a", "b"], "alone", dtype="float32")
    gate = "model.layers.1.block_sparse_moe.gate.weight"
    assert torch.equal(mean[gate], (alone[gate] / 4).to(torch.bfloat16))
    assert mean[gate].shape == (2, HIDDEN) and LAYERS == 2
