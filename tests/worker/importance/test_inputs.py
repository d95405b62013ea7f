"""Mean magnitudes and mean squares of the inputs of matrices, against hooks on the whole model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from merge_worker.importance.inputs import ChannelMeans, Inputs, Place
from support.language_models import loaded, make
from support.measured_models import measured, windows

FAMILIES = [
    ("LlamaForCausalLM", "llama", {"mlp_bias": True}),
    ("Gemma3ForCausalLM", "gemma3_text", {"sliding_window": 5}),
    ("Phi3ForCausalLM", "phi3", {}),
    ("GPT2LMHeadModel", "gpt2", {}),
    ("FalconForCausalLM", "falcon", {}),
]


def watched(folder: Path, squares: bool) -> dict[str, Tensor]:
    """Return the means of all inputs in float64, by names of modules."""
    model, sums, counts = loaded(folder), dict[str, Tensor](), dict[str, int]()

    def hook(name: str) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().double().reshape(-1, args[0].shape[-1])
            total = (x.square() if squares else x.abs()).sum(0)
            sums[name] = sums.get(name, torch.zeros(())) + total
            counts[name] = counts.get(name, 0) + len(x)

        return add

    for name, module in model.named_modules():
        if getattr(module, "weight", None) is not None and not isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        for window in windows():
            model(input_ids=torch.tensor([window.ids]), use_cache=False)
    return {name: total / counts[name] for name, total in sums.items()}


@pytest.mark.parametrize(("name", "kind", "fields"), FAMILIES, ids=lambda value: str(value))
@pytest.mark.parametrize("squares", [False, True])
def test_means_of_every_matrix(
    tmp_path: Path, name: str, kind: str, fields: dict[str, Any], squares: bool
) -> None:
    folder = make(tmp_path / "model", name, kind, **fields)
    what = "gram-diagonal" if squares else "activation"
    got = measured(folder, tmp_path / "a.safetensors", what)
    want = watched(folder, squares)
    seen = 0
    for key, values in got.items():
        module = key.removesuffix(".weight")
        reference = want[module if module in want else module.removeprefix("transformer.")]
        torch.testing.assert_close(values.view(-1).double(), reference, rtol=1e-5, atol=1e-12)
        seen += 1
    layers = loaded(folder).config.num_hidden_layers
    assert seen >= 4 * layers
    norms = [key for key in got if "norm" in key or "ln_" in key]
    assert bool(norms) != squares, "norms have activations, and no Gram matrix"


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_have_the_tokens_routed_to_them(tmp_path: Path, kind: str) -> None:
    name = {"mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}[kind]
    folder = make(tmp_path / "model", name, kind)
    got = measured(folder, tmp_path / "a.safetensors", "gram-diagonal")
    model = loaded(folder)
    model.set_experts_implementation("eager")
    layer = model.model.layers[0].mlp
    experts, seen = layer.experts, dict[int, list[Tensor]]()
    with torch.no_grad():
        handle = experts.register_forward_pre_hook(
            lambda module, args: (
                [
                    seen.setdefault(e, []).append(args[0][(args[1] == e).any(1)])
                    for e in range(module.num_experts)
                ]
                and None
            )
        )
        for window in windows():
            model(input_ids=torch.tensor([window.ids]), use_cache=False)
        handle.remove()
    part = {"mixtral": "block_sparse_moe.experts.{}.w1", "qwen3_moe": "mlp.experts.{}.gate_proj"}
    for expert, inputs in seen.items():
        x = torch.cat(inputs).double()
        values = got[f"model.layers.0.{part[kind].format(expert)}.weight"].view(-1).double()
        want = x.square().mean(0) if len(x) else torch.zeros_like(values)
        torch.testing.assert_close(values, want, rtol=1e-5, atol=1e-12)


def test_matrices_with_one_input_come_together() -> None:
    layer = nn.ModuleDict({name: nn.Linear(3, 2, bias=False) for name in "qkvo"})
    seen: list[tuple[str, ...]] = []
    with (
        torch.no_grad(),
        Inputs(layer, lambda places, x: seen.append(tuple(p.name for p in places))) as inputs,
    ):
        x = torch.randn(1, 4, 3)
        q, *_ = (layer[name](x) for name in "qkv")
        layer["o"](torch.cat([q, q], -1)[..., :3])
        inputs.flush()
    assert seen == [("q.weight", "k.weight", "v.weight"), ("o.weight",)]


def test_means_by_hand() -> None:
    means = ChannelMeans(squares=True)
    place = Place("w", None, False)
    means.add((place,), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    means.add((place,), torch.tensor([[2.0, 1.0]]))
    found = means.of({"w": torch.zeros(5, 2)})["w"]
    assert found.tolist() == [pytest.approx([14 / 3, 5 / 3])]
