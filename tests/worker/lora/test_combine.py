"""Adapters merged into one, compared with PEFT's `add_weighted_adapter`."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.lora.combine import CombineOptions, WeightedFactors, combine
from support.adapter_factory import LINEARS, adapt, merged_by_peft, on_base, read_adapter, save_base
from support.checkpoint_factory import read_tensors
from support.recipes import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a base and three adapters: two alike, one of another rank on more modules."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_base(folder / "base")
    targets = ["q_proj", "down_proj", "embed_tokens"]
    adapt(base, folder / "one", 1, target_modules=targets, lora_alpha=6)
    adapt(base, folder / "two", 2, target_modules=targets, use_rslora=True)
    adapt(base, folder / "wide", 3, target_modules=LINEARS, r=6, lora_alpha=3)
    return folder


def deltas(folder: Path) -> dict[str, Tensor]:
    """Return the delta of each module in float64, from the adapter's file and config."""
    config, tensors = read_adapter(folder)
    deltas = {}
    for name, a in tensors.items():
        if ".lora_A." in name or name.endswith("lora_embedding_A"):
            module = name.removeprefix("base_model.model.").partition(".lora_")[0]
            rank = config["rank_pattern"].get(module, config["r"])
            alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
            assert a.shape[0] == rank and not config["use_rslora"]
            b = tensors[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
            deltas[module] = (b.double() @ a.double()) * alpha / rank
    return deltas


def by_peft(folder: Path, names: list[str], weights: list[float], **how: Any) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = on_base(folder / "base", folder / names[0])
        for name in names[1:]:
            model.load_adapter(folder / name, name)
        loaded = ["default", *names[1:]]
        model.add_weighted_adapter(loaded, weights, "merged", **how)
    # The scale of the result is 1, unless the first adapter uses rsLoRA.
    merged = {}
    for name, module in model.base_model.model.named_modules():
        if "merged" in getattr(module, "lora_A", {}):
            a, b = module.lora_A["merged"].weight, module.lora_B["merged"].weight
            merged[name] = b.detach().double() @ a.detach().double()
        elif "merged" in getattr(module, "lora_embedding_A", {}):
            a, b = module.lora_embedding_A["merged"], module.lora_embedding_B["merged"]
            merged[name] = b.detach().double() @ a.detach().double()
    return merged


def check(folder: Path, out: Path, names: list[str], weights: list[float], **how: Any) -> None:
    words: list[object] = ["--method", how["combination_type"]]
    for key, flag in (("density", "--density"), ("svd_rank", "--rank")):
        words += [flag, how[key]] if key in how else []
    words += ["--majority-sign", how.get("majority_sign_method", "total")]
    listed = "--weights=" + ",".join(map(str, weights))
    assert run("merge-adapters", out, *(folder / name for name in names), listed, *words) == 0
    expected, actual = by_peft(folder, names, weights, **how), deltas(out)
    assert actual.keys() == expected.keys()
    for name, delta in expected.items():
        # PEFT computes its SVD in float32, which is inexact where singular values lie close.
        share = 2e-5 if "svd" in how["combination_type"] else 2e-6
        step = share * float(delta.abs().max())
        assert float((actual[name] - delta).abs().max()) <= step, name
    # PEFT loads the result without warnings.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        on_base(folder / "base", out)
    assert not [w for w in caught if "missing" in str(w.message)]


@pytest.mark.parametrize("method", ["linear", "cat", "svd"])
@pytest.mark.parametrize("weights", [[0.7, 0.5], [1.0, -0.4]])
def test_like_peft(method: str, weights: list[float], folder: Path, tmp_path: Path) -> None:
    check(folder, tmp_path / "out", ["one", "two"], weights, combination_type=method)


@pytest.mark.parametrize("method", ["ties", "magnitude_prune", "ties_svd", "magnitude_prune_svd"])
@pytest.mark.parametrize("majority", ["total", "frequency"])
def test_thinned_like_peft(method: str, majority: str, folder: Path, tmp_path: Path) -> None:
    how = {"combination_type": method, "density": 0.4, "majority_sign_method": majority}
    check(folder, tmp_path / "out", ["one", "two"], [0.7, 0.5], **how)


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_other_ranks_and_modules(method: str, folder: Path, tmp_path: Path) -> None:
    names, weights = ["one", "wide", "two"], [0.5, 0.3, -0.2]
    check(folder, tmp_path / "out", names, weights, combination_type=method)
    check(folder, tmp_path / "2", names, weights, combination_type="svd", svd_rank=2)


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_biases_are_added_up(method: str, tmp_path: Path) -> None:
    """Biases are summed, while PEFT merges only the factors and leaves zeros for biases."""
    base = save_base(tmp_path / "base", attention_bias=True)
    adapt(base, tmp_path / "plain", 1, target_modules=["q_proj", "v_proj"], lora_alpha=6)
    adapt(base, tmp_path / "biased", 2, target_modules=["q_proj"], lora_bias=True, use_rslora=True)
    given = [tmp_path / "plain", tmp_path / "biased"]
    words = ["--weights=0.5,-0.3", "--method", method, *(["--rank", 8] if method == "svd" else [])]
    assert run("merge-adapters", tmp_path / "out", *given, *words) == 0
    before = read_tensors(base)
    alone = [
        read_tensors(merged_by_peft(base, adapter, tmp_path / f"{adapter.name}-merged"))
        for adapter in given
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        on_base(base, tmp_path / "out")
    assert not [w for w in caught if "missing" in str(w.message)]
    both = read_tensors(merged_by_peft(base, tmp_path / "out", tmp_path / "merged"))
    moved = 0
    for name, tensor in before.items():
        plain, biased = (tensors[name].double() - tensor.double() for tensors in alone)
        expected = 0.5 * plain - 0.3 * biased
        moved += bool(expected.any())
        assert float((both[name] - tensor - expected).abs().max()) <= 1e-6, name
    assert moved == 6


@pytest.mark.parametrize(
    ("kind", "config", "method", "text"),
    [
        ("dora", {"use_dora": True}, "cat", "DoRA magnitudes belong to"),
        (
            "biased",
            {"lora_bias": True},
            "linear",
            "lora_bias is supported by cat and svd, not by linear",
        ),
        (
            "experts",
            {"target_modules": [], "target_parameters": ["q_proj.weight"]},
            "svd",
            "target_parameters (experts) are not supported\n  merge the adapted models",
        ),
    ],
)
def test_adapters_that_cannot_be_merged(
    kind: str,
    config: dict[str, Any],
    method: str,
    text: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = adapt(folder / "base", tmp_path / kind, **{"target_modules": ["q_proj"], **config})
    words = (tmp_path / "out", folder / "one", adapter, "--method", method)
    assert run("merge-adapters", *words) == 3
    error = capsys.readouterr().err
    assert kind in error and text in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd"])
def test_dare_drops_at_random_and_rescales(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(s, generator=generator, dtype=torch.float64) for s in ((8, 300), (200, 8)))
    given = [WeightedFactors(a, b, 1.0, 1.0)]
    dense = method.endswith("_svd")
    merged = combine(given, CombineOptions(method, density=0.5, rank=200), "m")
    thinned, original = (merged[1] @ merged[0], b @ a) if dense else (merged[0], a)
    kept = thinned.abs() > 1e-9
    assert float(kept.double().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(thinned[kept], 2 * original[kept])
    again = combine(given, CombineOptions(method, density=0.5, rank=200), "m")
    other = combine(given, CombineOptions(method, density=0.5, rank=200, seed=1), "m")
    assert merged[0].equal(again[0]) and not merged[0].equal(other[0])


def test_inputs_are_not_changed(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for out in ("one", "one/out", "."):
        assert run("merge-adapters", out, "one", "two", "--overwrite") == 4
        assert "inputs are never changed" in capsys.readouterr().err
    # A link with the name of a partial file is removed, not followed.
    (tmp_path / "out").mkdir()
    trap = tmp_path / "out" / ".adapter_model.safetensors.partial"
    trap.symlink_to(folder / "one" / "adapter_model.safetensors")
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    assert run("merge-adapters", tmp_path / "out", "one", "two", "--overwrite") == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("one", "wide", "--method", "linear"), 3, "ranks 4, 6 differ"),
        (("one", "two", "--method", "ties"), 2, "requires --density"),
        (("one", "two", "--density", "0.5"), 2, "takes no --density"),
        (("one", "two", "--weights", "1"), 2, "1 value for 2 adapters"),
        (("one", "base"), 3, "no adapter_config.json"),
        (("one", "two", "--method", "nearest"), 2, "'nearest'"),
    ],
)
def test_mistakes(
    words: tuple[str, ...],
    code: int,
    text: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert run("merge-adapters", tmp_path / "out", *words) == code
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error
