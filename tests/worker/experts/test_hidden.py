"""Gates of hidden states equal those that hooks on the whole model of transformers see."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from support.recipes import run
from support.specialists import PROMPTS, moe_recipe, write_dense, write_expert

LAYERS = 2
GOLDENS = Path(__file__).resolve().parents[2] / "goldens_mergekit"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dense(tmp_path_factory.mktemp("dense") / "base")


@pytest.fixture(scope="module")
def experts(base: Path) -> dict[str, Path]:
    return {n: write_expert(base, base.parent / n, i) for i, n in enumerate(PROMPTS, 1)}


def routers(folder: Path, *words: object, **keys: Any) -> Tensor:
    """Build a mixture and return its routers [layers, experts, width]."""
    base, experts = words
    assert isinstance(base, Path) and isinstance(experts, dict)
    recipe = moe_recipe(folder / "moe.yml", base, experts, **keys)
    assert run("merge", recipe, folder / "out", "--progress", "off") == 0
    tensors = load_file(folder / "out" / "model.safetensors")
    name = "model.layers.{}.block_sparse_moe.gate.weight"
    return torch.stack([tensors[name.format(layer)] for layer in range(LAYERS)]).clone()


def seen(base: Path, text: str, of_mlps: bool) -> Tensor:
    """Return what the whole model gives its layers, or their MLPs: float64 [layers, tokens, H]."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    found: list[Tensor] = []
    for layer in model.model.layers:
        module = layer.mlp if of_mlps else layer
        module.register_forward_pre_hook(lambda _, args: found.append(args[0][0].double()))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    return torch.stack(found)


def unit(rows: Tensor, center: bool) -> Tensor:
    rows = rows - rows.mean(1, keepdim=True) if center else rows
    return torch.nn.functional.normalize(rows, dim=-1)


def mlp_mean(base: Path, texts: list[str]) -> Tensor:
    tokens = torch.cat([seen(base, text, True) for text in texts], 1)
    return tokens.mean(1)


def test_mlp_input_is_what_a_hook_sees(base: Path, experts: Any, tmp_path: Path) -> None:
    gates = routers(tmp_path, base, experts, gate_mode="mlp_input")
    expected = unit(torch.stack([mlp_mean(base, texts) for texts in PROMPTS.values()], 1), True)
    assert (gates.double() - expected).abs().max() < 1e-6


def test_negative_prompts_are_taken_off_before_centring(
    base: Path, experts: Any, tmp_path: Path
) -> None:
    keys = {"gate_mode": "mlp_input", "gate_center": False, "negative_prompts": {"add": ["abc>"]}}
    gates = routers(tmp_path, base, experts, **keys)
    rows = [mlp_mean(base, texts) for texts in PROMPTS.values()]
    rows[0] = rows[0] - mlp_mean(base, ["abc>"])
    assert (gates.double() - unit(torch.stack(rows, 1), False)).abs().max() < 1e-6


def test_per_prompt_weighs_prompts_alike(base: Path, experts: Any, tmp_path: Path) -> None:
    gates = routers(tmp_path, base, experts, gate_mode="mlp_input", per_prompt=True)
    rows = [
        torch.stack([seen(base, text, True).mean(1) for text in texts]).mean(0)
        for texts in PROMPTS.values()
    ]
    assert (gates.double() - unit(torch.stack(rows, 1), True)).abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["hidden", "hidden_last"])
def test_hidden_is_the_last_token_entering_each_layer(
    mode: str, base: Path, experts: Any, tmp_path: Path
) -> None:
    gates = routers(tmp_path, base, experts, gate_mode=mode)
    rows = [
        torch.stack([seen(base, text, False)[:, -1] for text in texts]).mean(0)
        for texts in PROMPTS.values()
    ]
    assert (gates.double() - unit(torch.stack(rows, 1), False)).abs().max() < 1e-6


def test_hidden_avg_has_padding_in_it(base: Path, experts: Any, tmp_path: Path) -> None:
    import transformers

    gates = routers(tmp_path, base, experts, gate_mode="hidden_avg")
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.bos_token
    rows = []
    for texts in PROMPTS.values():
        lines = [f"{tokenizer.bos_token}{text}" for text in texts]
        inputs = tokenizer(lines, padding=True, add_special_tokens=False, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states[:-1]
        rows.append(torch.stack(states).double().mean(2).mean(1))
    assert (gates.double() - unit(torch.stack(rows, 1), False)).abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "hidden_neg", "hidden_avg_neg"])
def test_gates_are_those_of_mergekit(mode: str, base: Path, experts: Any, tmp_path: Path) -> None:
    """mergekit-moe 0.1.5, which computes in bfloat16, has made the golden of the same recipe."""
    golden = torch.tensor(json.loads((GOLDENS / "gates.json").read_text())[mode])
    negative = {"negative_prompts": {"add": ["abc>"]}} if mode.endswith("_neg") else {}
    gates = routers(
        tmp_path, base, experts, gate_mode=mode.removesuffix("_neg"), dtype="float32", **negative
    )
    assert (gates - golden).abs().max() < 0.006
    assert torch.nn.functional.cosine_similarity(gates, golden, dim=-1).min() > 0.9999


@pytest.mark.parametrize("mode", ["mlp_input", "hidden"])
def test_a_gate_does_not_depend_on_other_experts_prompts(
    mode: str, base: Path, experts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    keys = {"gate_mode": mode, "gate_center": False}
    before = routers(tmp_path / "one", base, experts, **keys)
    monkeypatch.setitem(PROMPTS, "count", [*PROMPTS["count"], "1,2,3,4,5,6,7,8,9,10,11,12,13,14;"])
    after = routers(tmp_path / "two", base, experts, **keys)
    assert (before[:, :2] - after[:, :2]).abs().max() < 1e-6
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-4


def test_alike_experts_are_warned_of_and_vanishing_ones_refused(
    base: Path,
    experts: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PROMPTS, "add", ["1+2=3;"])
    monkeypatch.setitem(PROMPTS, "count", ["1+2=3;", "1+2=3;"])
    keys: dict[str, Any] = {"gate_mode": "mlp_input", "gate_center": False}
    recipe = moe_recipe(tmp_path / "moe.yml", base, experts, **keys)
    capsys.readouterr()
    assert run("merge", recipe, tmp_path / "out", "--progress", "off") == 0
    assert "the router cannot tell them apart" in capsys.readouterr().err
    keys["negative_prompts"] = {"add": PROMPTS["add"]}
    recipe = moe_recipe(tmp_path / "no.yml", base, experts, **keys)
    assert run("merge", recipe, tmp_path / "none", "--progress", "off") == 2
    assert "give no direction" in capsys.readouterr().err
    assert not (tmp_path / "none" / "model.safetensors").exists()
