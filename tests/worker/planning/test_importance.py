"""Importance files in a merge: what they are fitted to, and what becomes of them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from support.checkpoint_factory import read_tensors, save_fine_tunes, write_checkpoint
from support.importance_files import channels_of, importance_of
from support.recipes import digest, manifest, run

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
SHAPES = {
    "model.embed_tokens.weight": (24, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.norm.weight": (8,),
    "lm_head.weight": (24, 8),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Base, a and b, with importance for a and b; the current folder."""
    monkeypatch.chdir(tmp_path)
    noise = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=noise) for name, shape in SHAPES.items()}
    write_checkpoint(tmp_path / "base", base, config=CONFIG)
    for seed, model in enumerate("ab"):
        tensors = {n: x + 0.01 * torch.randn(x.shape, generator=noise) for n, x in base.items()}
        write_checkpoint(tmp_path / model, tensors, config=CONFIG)
        save_file(importance_of(tensors, seed), f"{model}.safetensors", {"kind": "fisher"})
    return tmp_path


def recipe(a: object = "a.safetensors", b: object = "b.safetensors", **more: Any) -> dict[str, Any]:
    models = [{"model": "a"}, {"model": "b"}]
    for model, word in zip(models, (a, b), strict=True):
        if word is not None:
            model["importance"] = word  # type: ignore[assignment]  # faults are given too
    return {"merge_method": "fisher", "base_model": "base", "models": models} | more


def plan(value: Mapping[str, Any], **options: Any) -> Plan:
    return make_plan(parse(yaml.safe_dump(dict(value))), PlanOptions(**options))


def merged(value: Mapping[str, Any], out: str = "out", *words: object) -> dict[str, Tensor]:
    Path("recipe.yml").write_text(yaml.safe_dump(dict(value)), encoding="utf-8")
    assert run("merge", "recipe.yml", out, "--progress", "off", *words) == 0
    return read_tensors(Path(out))


def fisher_of(models: str, files: list[str], names: Mapping[str, str] | None = None) -> Any:
    """Return a function of the expected tensor in float64, without floor."""
    weights = [{n: x.double() for n, x in read_tensors(Path(m)).items()} for m in models]
    scores = [{n: x.double() for n, x in load_file(file).items()} for file in files]
    norms = [sum(float((x**2).sum()) for x in each.values()) ** 0.5 for each in scores]

    def expected(name: str) -> Tensor:
        key = (names or {}).get(name, name)
        parts = [score[key] / norm for score, norm in zip(scores, norms, strict=True)]
        total = sum(f * x[name] for f, x in zip(parts, weights, strict=True))
        return total / sum(parts)  # type: ignore[return-value]  # a sum of tensors

    return expected


def test_a_merge_is_the_formula(folder: Path) -> None:
    got = merged(recipe(parameters={"floor": 0}))
    expected = fisher_of("ab", ["a.safetensors", "b.safetensors"])
    for name, tensor in got.items():
        assert torch.allclose(tensor.double(), expected(name), rtol=1e-6, atol=1e-7), name
    inputs = manifest(folder / "out")["inputs"]
    assert [entry["model"] for entry in inputs] == [
        "base",
        "a",
        "b",
        "a.safetensors",
        "b.safetensors",
    ]
    assert sorted(path.name for path in (folder / "out").glob("*.safetensors")) == [
        "model.safetensors"
    ]
    assert run("verify", "out") == 0


def test_the_manifest_repeats_the_merge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged(recipe())
    assert run("merge", "out/merge_manifest.json", "again", "--progress", "off") == 0
    assert digest(folder / "again") == digest(folder / "out")
    changed = {n: x * 2 for n, x in load_file("a.safetensors").items()} | {"more": torch.ones(1)}
    save_file(changed, "a.safetensors", {"kind": "fisher"})
    assert run("merge", "out/merge_manifest.json", "third", "--progress", "off") == 3
    assert "not the model that merge_manifest.json was made from" in capsys.readouterr().err


def test_every_way_to_cut_the_work_gives_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged(recipe())
    merged(recipe(), "small", "--memory", "8MiB", "--threads", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, code in (("0", 75), ("1", 0)):  # the first waits for the other, which begins later
        monkeypatch.setenv("RANK", rank)
        words = ("--ranks", "auto:1s", "--progress", "off")
        assert run("merge", "recipe.yml", "shared", *words) == code
    assert digest(folder / "out") == digest(folder / "small") == digest(folder / "shared")


def test_another_importance_is_another_merge(folder: Path) -> None:
    first = plan(recipe())
    assert plan(recipe(b="a.safetensors")).key != first.key
    assert plan(recipe()).key == first.key
    plain = plan(recipe(None, None))
    assert first.input_bytes > plain.input_bytes
    save_file(load_file("a.safetensors"), "a.safetensors", {"kind": "adam_v"})
    assert plan(recipe()).key != first.key


@pytest.mark.parametrize("suffix", [".exp_avg_sq", ".grad_sq"])
def test_other_names_are_understood(folder: Path, suffix: str) -> None:
    want = merged(recipe())
    tensors = load_file("a.safetensors")
    other = {n: torch.ones_like(x) for n, x in tensors.items()}
    save_file(other | {n + suffix: x for n, x in tensors.items()}, "a.safetensors")
    prefixed = {
        n.replace("model.", "model.language_model.", 1): x
        for n, x in load_file("b.safetensors").items()
    }
    save_file(prefixed, "b.safetensors")
    got = merged(recipe(), "other")
    assert all(got[name].equal(tensor) for name, tensor in want.items())


def test_shards_in_a_folder(folder: Path) -> None:
    want = merged(recipe())
    Path("parts").mkdir()
    for number, (name, tensor) in enumerate(load_file("a.safetensors").items()):
        save_file({name: tensor}, f"parts/part-{number}.safetensors", {"kind": "fisher"})
    got = merged(recipe("parts"), "sharded")
    assert all(got[name].equal(tensor) for name, tensor in want.items())


def test_slices_take_the_importance_of_their_layers(folder: Path) -> None:
    sources = [
        {"model": "a", "layer_range": [0, 1], "importance": "a.safetensors"},
        {"model": "b", "layer_range": [0, 1], "importance": "b.safetensors"},
    ]
    value = {"merge_method": "fisher", "slices": [{"sources": sources}], "parameters": {"floor": 0}}
    got = merged(value)
    expected = fisher_of("ab", ["a.safetensors", "b.safetensors"])
    for name, tensor in got.items():
        assert torch.allclose(tensor.double(), expected(name), rtol=1e-6, atol=1e-7), name


def test_a_missing_tensor_counts_nothing(folder: Path) -> None:
    tensors = load_file("a.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, "a.safetensors", {"kind": "fisher"})
    got = plan(recipe())
    assert (
        "a.safetensors: 1 tensor has no importance, which counts as 0: model.norm.weight"
        in "\n".join(got.warnings)
    )
    norm = merged(recipe(parameters={"floor": 0}))["model.norm.weight"]
    assert norm.equal(read_tensors(Path("b"))["model.norm.weight"])


def test_a_model_without_a_file_makes_a_mean(folder: Path) -> None:
    value = recipe(b=None)
    assert any(
        "no importance of b: the models are averaged" in line for line in plan(value).warnings
    )
    got = merged(value)
    a, b = read_tensors(Path("a")), read_tensors(Path("b"))
    assert all(torch.allclose(x, (a[n] + b[n]) / 2, atol=1e-7) for n, x in got.items())


def test_tied_heads_share_their_importance(folder: Path) -> None:
    for model in "ab":
        config = json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
        text = json.dumps(config | {"tie_word_embeddings": True})
        Path(model, "config.json").write_text(text, encoding="utf-8")
        tensors = read_tensors(Path(model))
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        shutil.rmtree(model)
        write_checkpoint(Path(model), tensors, config=json.loads(text))
        scores = load_file(f"{model}.safetensors")
        del scores["lm_head.weight"]
        save_file(scores, f"{model}.safetensors", {"kind": "fisher"})
    value = recipe()
    del value["base_model"]
    got = plan(value)
    assert not any("no importance" in line for line in got.warnings)


def test_a_layout_with_experts_in_one_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importance of stacked experts is that of experts that a checkpoint has apart."""
    monkeypatch.chdir(tmp_path)
    models = save_fine_tunes(tmp_path, "qwen3_moe", count=2)
    apart, stacked = [importance_of(read_tensors(m), n) for n, m in enumerate(models)], []
    for number, scores in enumerate(apart):
        save_file(scores, f"{number}.safetensors", {"kind": "fisher"})
        stacked.append(dict(scores))
    layers = {n.split(".experts.")[0] for n in apart[0] if ".experts." in n}
    assert layers
    for number, scores in enumerate(stacked):
        for layer in layers:
            count = sum(
                n.startswith(f"{layer}.experts.") and n.endswith("up_proj.weight") for n in scores
            )
            parts = {
                part: [scores.pop(f"{layer}.experts.{e}.{part}_proj.weight") for e in range(count)]
                for part in ("gate", "up", "down")
            }
            pairs = zip(parts["gate"], parts["up"], strict=True)
            fused = torch.stack([torch.cat(pair) for pair in pairs])
            scores[f"{layer}.experts.gate_up_proj"] = fused
            scores[f"{layer}.experts.down_proj"] = torch.stack(parts["down"])
        save_file(scores, f"stacked-{number}.safetensors", {"kind": "fisher"})

    def of(form: str) -> dict[str, Any]:
        entries = [
            {"model": m.name, "importance": f"{form}{n}.safetensors"} for n, m in enumerate(models)
        ]
        return {"merge_method": "fisher", "models": entries}

    want, got = merged(of("")), merged(of("stacked-"), "other")
    assert all(got[name].equal(tensor) for name, tensor in want.items())


@pytest.mark.parametrize("method", ["regmean", "task_arithmetic"])
def test_numbers_of_channels(folder: Path, method: str) -> None:
    grams = [channels_of(read_tensors(Path(m)), n) for n, m in enumerate("ab")]
    for model, channels in zip("ab", grams, strict=True):
        given = {n.removesuffix(".weight") + ".gram": x for n, x in channels.items()}
        save_file(given, f"{model}-gram.safetensors", {"kind": "gram"})
    save_file(grams[0], "base.safetensors", {"kind": "activation"})
    base, a, b = (read_tensors(Path(m)) for m in ("base", "a", "b"))
    if method == "regmean":
        got = merged(recipe("a-gram.safetensors", "b-gram.safetensors", merge_method="regmean"))
    else:
        value = recipe(None, None, merge_method=method, importance="base.safetensors")
        got = merged(value | {"parameters": {"aim_omega": 0.2, "weight": 0.5}})
    for name, tensor in got.items():
        first, second = (channels.get(name) for channels in grams)
        mean = (a[name] + b[name]) / 2
        if method == "regmean":
            known = first is not None and second is not None
            want = (first * a[name] + second * b[name]) / (first + second) if known else mean
        else:
            factor = 1.0 if first is None else 1 - first / first.max() * 0.8
            want = base[name] + factor * (mean - base[name])
        assert torch.allclose(tensor, want, rtol=1e-5, atol=1e-6), name


FAULTS: list[tuple[dict[str, Any], str]] = [
    (recipe("nothing.safetensors"), "no such importance file"),
    (recipe("a"), "a model, not its importance"),
    (
        recipe("bad-shape.safetensors"),
        "1 tensor differs from those of the model: model.norm.weight is",
    ),
    (recipe("gram.safetensors"), "fisher reads squared gradients"),
    (recipe("other.safetensors"), "no importance of the tensors of a"),
    (recipe(3), "expected the path of an importance file, got 3"),
    (recipe(parameters={"importance": "a.safetensors"}), "belongs to one model"),
    (
        recipe(merge_method="ties", parameters={"weight": 1, "aim_omega": 0.2}),
        "needs the activations",
    ),
    (
        {**recipe(), "base_model": None, "importance": "a.safetensors"},
        "base_model, which is missing",
    ),
]


@pytest.mark.parametrize(("value", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_what_does_not_fit_is_refused(folder: Path, value: dict[str, Any], fault: str) -> None:
    save_file({"model.norm.weight": torch.ones(9)}, "bad-shape.safetensors")
    save_file({"model.norm.gram": torch.ones(8)}, "gram.safetensors", {"kind": "gram"})
    save_file({"x": torch.ones(8)}, "other.safetensors")
    with pytest.raises(Exception, match=fault):
        plan(value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda x: x.index_fill_(0, torch.tensor([0]), float("nan")), "is not finite"),
        (lambda x: x.neg_(), "is negative"),
        (lambda x: x.zero_(), "its importance is 0 in every tensor"),
    ],
)
def test_impossible_numbers_end_the_merge(
    folder: Path, change: Any, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({n: change(x) for n, x in load_file("a.safetensors").items()}, "a.safetensors")
    Path("recipe.yml").write_text(yaml.safe_dump(recipe()), encoding="utf-8")
    assert run("merge", "recipe.yml", "out", "--progress", "off") == 3
    assert fault in capsys.readouterr().err
    assert not Path("out/merge_manifest.json").exists()


def test_a_floor_that_drowns_importance_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged(recipe(merge_method="ota"))
    assert "the floor of ota exceeds half of the importance" in capsys.readouterr().err
    merged(recipe(merge_method="ota", parameters={"epsilon": 1e-24}), "fine")
    assert "floor" not in capsys.readouterr().err


def test_recipes_of_ota_merge_are_read(folder: Path) -> None:
    text = """
merge_method: ota
base_model: base
models:
- model: a
  parameters: {preconditioner_path: a.safetensors, precond_threshold: 2.6e-25, scaling_factor: 2}
- model: b
  parameters: {preconditioner_path: b.safetensors, precond_threshold: 5.9e-25}
parameters: {epsilon: 1e-28, normalise: global, power: 0.5, fallback_to_base: true, rescale: null}
dtype: float32
"""
    recipe_ = parse(text)
    assert recipe_.warnings == ()
    assert recipe_.importance_words() == ("a.safetensors", "b.safetensors")
    Path("ota.yml").write_text(text, encoding="utf-8")
    assert run("merge", "ota.yml", "out", "--strict", "--progress", "off") == 0
    base, got = read_tensors(Path("base")), read_tensors(Path("out"))
    kept = torch.cat([(got[n] == base[n]).view(-1) for n in got]).double().mean()
    assert 0 < float(kept) < 1


def test_paths_stay_out_of_what_is_published(folder: Path) -> None:
    value = recipe(str(folder / "a.safetensors"))
    merged(value)
    assert str(folder) not in (folder / "out" / "README.md").read_text(encoding="utf-8")
    assert str(folder) not in json.dumps(manifest(folder / "out"))
