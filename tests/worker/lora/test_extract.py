"""Adapters extracted from fine-tunes: PEFT loads them, and they reproduce the fine-tune."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.lora.svd import RankLimit, low_rank
from support.adapter_factory import load_base, merged_by_peft, on_base, read_adapter, save_base
from support.checkpoint_factory import ARCHITECTURES, read_tensors, write_checkpoint
from support.recipes import average, run

CAUSAL = [name for name in ARCHITECTURES if name != "t5"]


def fine_tune(base: Path, out: Path, seed: int = 1, scale: float = 0.02) -> Path:
    model = load_base(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=scale)
    model.save_pretrained(out)
    return out


def extracted(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run("extract-lora", *words, "--json") == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


@pytest.mark.parametrize("model_type", CAUSAL)
def test_full_rank_reproduces_the_fine_tune(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base", model_type)
    tuned = fine_tune(base, tmp_path / "tuned")
    facts = extracted(capsys, base, tuned, tmp_path / "lora", "--rank", 512)
    assert facts["relative_error"] < 1e-5
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        on_base(base, tmp_path / "lora")
    assert not [str(w.message) for w in caught if "missing" in str(w.message)]
    wanted = read_tensors(tuned)
    peft = read_tensors(merged_by_peft(base, tmp_path / "lora", tmp_path / "peft"))
    assert average(tmp_path / "merged", [f"{base}+{tmp_path / 'lora'}"]) == 0
    merged = read_tensors(tmp_path / "merged")
    assert merged.keys() == wanted.keys() == peft.keys()
    for name, expected in wanted.items():
        for actual in (merged[name], peft[name]):
            assert float((actual - expected).abs().max()) < 1e-5, name


def spectra(rows: int, columns: int) -> dict[str, Tensor]:
    """Return typical differences: noise, few directions, few in noise, a power law, roundings."""
    torch.manual_seed(0)
    short = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, short))[0]
    right = torch.linalg.qr(torch.randn(columns, short))[0]
    noise, few = torch.randn(rows, columns), torch.randn(rows, 6) @ torch.randn(6, columns)
    return {
        "noise": noise,
        "few": few,
        "few_in_noise": few + 0.1 * noise,
        "power_law": (left * torch.arange(1.0, short + 1).pow(-0.5)) @ right.mT,
        "rounding": noise - noise.bfloat16().float(),
        "one": few[:, :1] @ few[:1],
    }


@pytest.mark.parametrize("kind", spectra(2, 2))
@pytest.mark.parametrize("sides", [(256, 256), (400, 160), (160, 400)])
def test_a_low_rank_part_is_the_best_within_a_hundredth(kind: str, sides: tuple[int, int]) -> None:
    matrix = spectra(*sides)[kind]
    squares = torch.linalg.svdvals(matrix.double()).square()
    for rank in (1, 8, 24, 120):
        factors = low_rank(matrix, RankLimit(rank), "name")
        assert factors.a.shape[0] == factors.b.shape[1] <= rank
        missed = float((matrix.double() - factors.b.double() @ factors.a.double()).norm())
        best = float(squares[rank:].sum().sqrt())
        assert missed <= 1.01 * best + 1e-5 * float(squares.sum().sqrt())


def test_energy_selects_the_smallest_sufficient_rank() -> None:
    matrix = spectra(384, 384)["power_law"]
    squares = torch.linalg.svdvals(matrix.double()).square()
    shares = squares.cumsum(0) / squares.sum()
    for energy in (0.5, 0.8, 0.95):
        least = int((shares >= energy).nonzero()[0]) + 1
        rank = low_rank(matrix, RankLimit(1000, energy), "name").a.shape[0]
        assert least <= rank <= least + 1
    assert low_rank(matrix, RankLimit(5, 0.9), "name").a.shape[0] == 5


def test_the_reported_error_is_that_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base")
    tuned = fine_tune(base, tmp_path / "tuned")
    before, after = read_tensors(base), read_tensors(tuned)
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        facts = extracted(capsys, base, tuned, out, "--rank", 4, "--dtype", dtype)
        config, tensors = read_adapter(out)
        assert config["r"] == config["lora_alpha"] == 4
        for module in facts["modules"]:
            name = f"base_model.model.{module['name']}"
            a, b = (tensors[f"{name}.lora_{x}.weight"].double() for x in "AB")
            weight = f"{module['name']}.weight"
            delta = after[weight].double() - before[weight].double()
            error = float((delta - b @ a).norm() / delta.norm())
            assert module["relative_error"] == pytest.approx(error, rel=1e-3)
            best = torch.linalg.svdvals(delta)[4:].norm() / delta.norm()
            assert error <= 1.01 * float(best)


def test_unchanged_tensors_are_not_in_the_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base", "qwen3_moe")
    tensors = read_tensors(base)
    tensors["model.layers.0.self_attn.q_proj.weight"][0] += 1
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"][3] += 1
    tuned = tmp_path / "tuned"
    write_checkpoint(tuned, tensors, config=json.loads((base / "config.json").read_text()))
    facts = extracted(capsys, base, tuned, tmp_path / "lora", "--rank", 2)
    assert facts["relative_error"] < 1e-6 and facts["whole"] == []
    config, factors = read_adapter(tmp_path / "lora")
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    assert len(factors) == 6
    merged = read_tensors(merged_by_peft(base, tmp_path / "lora", tmp_path / "peft"))
    for name, expected in tensors.items():
        assert float((merged[name] - expected).abs().max()) < 1e-5, name


def test_the_base_has_a_public_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.chdir(tmp_path)
    weights = {"w.weight": torch.randn(8, 8)}
    cached = Path("hub") / "models--org--base" / "snapshots" / commit
    for place, more in (("base", 0.0), (cached, 0.0), ("tuned", 1.0)):
        write_checkpoint(tmp_path / place, {n: w + more for n, w in weights.items()})
    for words, name, revision, start in (
        (["base"], "base", None, "---\nlibrary_name"),
        ([str(tmp_path / cached)], "org/base", commit, '---\nbase_model: "org/base"\n'),
        (["base", "--base-name", "org/it"], "org/it", None, '---\nbase_model: "org/it"\n'),
    ):
        base, *rest = words
        assert run("extract-lora", base, "tuned", "out", "--overwrite", *rest) == 0
        config = read_adapter(tmp_path / "out")[0]
        assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)
        card = (tmp_path / "out" / "README.md").read_text()
        assert card.startswith(start) and str(tmp_path) not in card


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("base", "base", "out"), 3, "no matrix differs"),
        (("base", "other", "out"), 3, "is it a fine-tune of this base?"),
        (("base", "tuned", "full"), 4, "--overwrite"),
        (("base", "tuned", "base", "--overwrite"), 4, "base: is the input base"),
        (("base", "tuned", "tuned/lora"), 4, "tuned/lora: is inside the input tuned"),
        (("base", "tuned", "."), 4, "contains the input base"),
        (("base", "nowhere", "out"), 3, "no such folder"),
        (("base", "tuned", "out", "--energy", "2"), 2, "must be above 0 and at most 1, got 2"),
    ],
)
def test_mistakes(
    words: tuple[str, ...],
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {"w.weight": torch.randn(8, 8), "v.weight": torch.randn(8, 4)}
    write_checkpoint(tmp_path / "base", weights)
    write_checkpoint(tmp_path / "tuned", {n: w + 1 for n, w in weights.items()})
    write_checkpoint(tmp_path / "other", {"w.weight": torch.randn(8, 8)})
    write_checkpoint(tmp_path / "full", weights)
    assert run("extract-lora", *words) == code
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_the_commands_in_new_processes(tmp_path: Path) -> None:
    """Run both commands in a new process, where torch loads only the parts that merges need."""
    torch.manual_seed(0)
    few = torch.randn(96, 2) @ torch.randn(2, 80)
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    write_checkpoint(base, {"w.weight": torch.zeros(96, 80)})
    write_checkpoint(tuned, {"w.weight": few})
    words = ["extract-lora", base, tuned, tmp_path / "out", "--rank", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "merge_worker", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "relative error 0.0000" in done.stdout
    words = ["merge-adapters", tmp_path / "2", tmp_path / "out", tmp_path / "out"]
    words += ["--method", "dare_linear", "--density", "0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "merge_worker", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
