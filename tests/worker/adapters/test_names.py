"""Adapters whose modules are called otherwise than the tensors of the base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.adapter_factory import (
    adapt,
    load_base,
    merged_by_peft,
    read_adapter,
    save_base,
    save_with_vision,
    write_adapter,
)
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import average

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def adapter_on(folder: Path, modules: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Save an adapter on modules with the given sides. Return what it adds, by module."""
    factors: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}
    for module, (rows, columns) in modules.items():
        a, b = torch.randn(2, columns), torch.randn(rows, 2)
        factors |= {
            f"base_model.model.{module}.lora_{x}.weight": f for x, f in (("A", a), ("B", b))
        }
        deltas[module] = 2 * b @ a
    write_adapter(folder, CONFIG, factors)
    return deltas


@pytest.mark.parametrize(
    ("in_file", "in_adapter"),
    [
        ("model.language_model.layers.", "model.layers."),
        ("language_model.model.layers.", "model.layers."),
        ("language_model.model.layers.", "model.language_model.layers."),
        ("model.layers.", "model.language_model.layers."),
        ("thinker.model.layers.", "model.layers."),
        ("thinker.model.layers.", "model.language_model.layers."),
        ("thinker.visual.blocks.", "model.visual.blocks."),
        ("visual.blocks.", "model.visual.blocks."),
        ("h.", "transformer.h."),
        ("transformer.h.", "h."),
        ("encoder.layer.", "bert.encoder.layer."),
        ("roberta.encoder.layer.", "encoder.layer."),
        ("layers.", "gpt_neox.layers."),
        ("model.llm.layers.", "model.layers."),
        ("language_model.model.blocks.", "model.language_model.layers."),
        ("language_model.model.blocks.", "model.layers."),
        ("blocks.", "model.visual.blocks."),
        ("model.sam_model.blocks.", "model.vision_tower.sam_encoder.layers."),
        ("roberta.encoder.layers.", "roberta.layers."),
        ("encoder.encoder.layer.", "encoder.encoder.layers."),
        ("paligemma_with_expert.gemma_expert.model.layers.", "model.dit.layers."),
    ],
)
def test_names_that_begin_otherwise(in_file: str, in_adapter: str, tmp_path: Path) -> None:
    mine = {f"{in_file}{n}.attn.{x}.weight": torch.randn(6, 8) for n in (0, 11) for x in "qk"}
    # A tower beside it, with layers of the same names and other sizes.
    other = {f"audio.layers.{n}.attn.{x}.weight": torch.randn(4, 8) for n in (0, 11) for x in "qk"}
    base = write_checkpoint(tmp_path / "base", mine | other)
    modules = {f"{in_adapter}{n}.attn.q": (6, 8) for n in (0, 11)}
    deltas = adapter_on(tmp_path / "adapter", modules)
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'adapter'}"]) == 0
    expected = mine | other
    for module, delta in deltas.items():
        expected[in_file + module.removeprefix(in_adapter) + ".weight"] += delta
    result = read_tensors(tmp_path / "out")
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("in_file", "in_adapter"),
    [
        ("encoder.layer.3.attention.attention.query", "layers.3.attention.q_proj"),
        ("encoder.encoder.layer.3.attention.output.dense", "encoder.layers.3.attention.o_proj"),
        ("a.encoder.layer.3.attention.output", "a.encoder.layer.3.attention.o_proj"),
        ("encoder.layer.3.intermediate.dense", "layers.3.mlp.fc1"),
        ("encoder.layer.3.output.dense", "layers.3.mlp.fc2"),
        ("transformer.decoder.layers.0.linear1", "decoder.layers.0.mlp.fc1"),
        ("layers.0.self_attn.to_out", "model.language_model.layers.0.self_attn.o_proj"),
        (
            "model.transf_decoder._decoder.layers.0.second_sub_layer.key_net",
            "model.decoder.layers.0.encoder_attn.k_proj",
        ),
        ("model.encoder_decoder_proj", "model.decoder.proj"),
        ("mlp_AR.linear_1", "model.projector.linear_1"),
        ("model.projector.layers", "model.multi_modal_projector"),
        ("state_proj", "embed_action_time.state_proj"),
        ("mm_projector.proj.2", "model.mm_projector.out_proj"),
        ("model.vision_tower.patchifier", "model.vision_tower.patch_embed"),
        (
            "pixel_level_module.encoder.encoder.layers.0.blocks.1.attention.self.query",
            "pixel_level_module.encoder.swin.encoder.layers.0.blocks.1.attention.q_proj",
        ),
        (
            "model.encoder.encoder.layers.0.blocks.1.output.dense",
            "model.encoder.swin.encoder.layers.0.blocks.1.mlp.fc2",
        ),
        (
            "encoder.encoder.layers.0.downsample.reduction",
            "encoder.swin.encoder.layers.0.downsample.reduction",
        ),
        ("radio_model.model.blocks.0.attn.proj", "encoder.layer.0.attention.o_proj"),
        ("vision_model.radio_model.model.blocks.0.mlp.fc1", "vision_model.encoder.layer.0.mlp.fc1"),
        ("radio_model.model.patch_generator.embedder", "embeddings.patch_projection"),
        ("new.encoder.layer.0.mlp.down_proj", "new.layers.0.mlp.down_proj"),
        ("vision_model.encoder.layers.0.mlp.fc2", "model.vision_tower.layers.0.mlp.fc2"),
        ("mlp1.3", "model.multi_modal_projector.linear_2"),
        ("mlp1.1", "multi_modal_projector.linear_1"),
        (
            "model.layers.3.share_expert.up_proj",
            "model.language_model.layers.3.mlp.shared_experts.up_proj",
        ),
        ("vit_large_projector", "model.multi_modal_projector"),
        ("vision_tower.encoder.blocks.0.mlp.fc0", "model.vision_tower.layers.0.mlp.fc1"),
        ("vision_tower.encoder.blocks.0.mlp.fc1", "model.vision_tower.layers.0.mlp.fc2"),
        ("patch_merge_mlp.linear_1", "model.multi_modal_projector.merge_linear_1"),
        (
            "language_model.backbone.layers.0.mixer.o_proj",
            "language_model.model.layers.0.mixer.o_proj",
        ),
        ("model.vision_projector", "model.projector"),
        ("head.linear1", "projection_head.linear1"),
    ],
)
def test_modules_that_the_file_calls_otherwise(
    in_file: str, in_adapter: str, tmp_path: Path
) -> None:
    weight = torch.randn(6, 8)
    base = write_checkpoint(tmp_path / "base", {f"{in_file}.weight": weight})
    delta = adapter_on(tmp_path / "adapter", {in_adapter: (6, 8)})[in_adapter]
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'adapter'}"]) == 0
    torch.testing.assert_close(read_tensors(tmp_path / "out")[f"{in_file}.weight"], weight + delta)


@pytest.mark.parametrize(
    ("in_file", "in_adapter"),
    [
        ("decoder.layers.0.self_attn.in_proj_weight", "decoder.layers.0.self_attn.k_proj"),
        ("new.encoder.layer.0.attention.qkv_proj.weight", "new.layers.0.self_attn.k_proj"),
        ("radio_model.model.blocks.0.attn.qkv.weight", "encoder.layer.0.attention.k_proj"),
        (
            "vision_model.encoder.layers.0.attn.qkv.weight",
            "model.vision_tower.layers.0.attention.k_proj",
        ),
    ],
)
def test_projections_that_files_have_as_one_parameter(
    in_file: str, in_adapter: str, tmp_path: Path
) -> None:
    fused = torch.randn(18, 8)
    base = write_checkpoint(tmp_path / "base", {in_file: fused})
    delta = adapter_on(tmp_path / "adapter", {in_adapter: (6, 8)})[in_adapter]
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'adapter'}"]) == 0
    expected = fused + torch.cat([torch.zeros(6, 8), delta, torch.zeros(6, 8)])
    torch.testing.assert_close(read_tensors(tmp_path / "out")[in_file], expected)


def test_a_module_whose_parts_the_file_has_under_another_name(tmp_path: Path) -> None:
    place = "language_model.model.layers.0.block_sparse_moe.shared_experts"
    names = [f"{place}.{part}_proj.weight" for part in ("gate", "up")]
    before = {name: torch.randn(6, 8) for name in names}
    base = write_checkpoint(tmp_path / "base", before)
    module = "model.language_model.layers.0.mlp.shared_experts.gate_up_proj"
    delta = adapter_on(tmp_path / "adapter", {module: (12, 8)})[module]
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'adapter'}"]) == 0
    after = read_tensors(tmp_path / "out")
    for name, part in zip(names, delta.chunk(2), strict=True):
        torch.testing.assert_close(after[name], before[name] + part)


def test_layers_that_share_a_module_cannot_be_trained_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base has the module once; a layer that it lacks is one of another model."""
    own = {f"model.layers.{n}.mamba.q.weight": torch.randn(6, 8) for n in (0, 1)}
    shared = {"model.layers.0.shared.q.weight": torch.randn(6, 8)}
    base = write_checkpoint(tmp_path / "base", own | shared)
    for layer, text in ((1, "trains apart what modules of"), (2, "matches nothing in")):
        modules = dict.fromkeys([f"model.layers.{n}.shared.q" for n in (0, layer)], (6, 8))
        adapter_on(tmp_path / f"adapter-{layer}", modules)
        assert average(tmp_path / "out", [f"{base}+{tmp_path / f'adapter-{layer}'}"]) == 3
        assert text in capsys.readouterr().err


def test_a_part_of_another_size_than_the_heads_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config has no number of heads that would tell where the queries end."""
    name = "model.layers.0.self_attn"
    base = write_checkpoint(tmp_path / "base", {f"{name}.qkv_proj.weight": torch.randn(20, 8)})
    adapter_on(tmp_path / "adapter", {f"{name}.q_proj": (12, 8)})
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'adapter'}"]) == 3
    assert "1 tensor of the adapter matches nothing" in capsys.readouterr().err


@pytest.mark.parametrize("model_type", ["gemma3", "llava"])
def test_an_adapter_of_the_language_model_alone(model_type: str, tmp_path: Path) -> None:
    text = save_with_vision(tmp_path / "base", tmp_path / "text", model_type)
    adapter = adapt(text, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    peft = read_tensors(merged_by_peft(text, adapter, tmp_path / "peft"))
    assert average(tmp_path / "out", [f"{tmp_path / 'base'}+{adapter}"]) == 0
    before, after = read_tensors(tmp_path / "base"), read_tensors(tmp_path / "out")
    ends = {name.removeprefix("model."): tensor for name, tensor in peft.items()}
    adapted = 0
    for name, tensor in before.items():
        end = next((e for e in ends if name.endswith(f".{e}") and "vision" not in name), "")
        expected = ends[end] if end.startswith("layers.") else tensor
        torch.testing.assert_close(after[name], expected, atol=1e-5, rtol=1e-5)
        adapted += not after[name].equal(tensor)
    assert adapted == len(read_adapter(adapter)[1]) // 2 > 0


REFUSED: dict[str, tuple[list[str], list[str], str]] = {
    "two meanings": (
        ["model.language_model.layers.0.q", "model.text_model.layers.0.q"],
        ["model.layers.0.q"],
        "'model.layers.…' could mean 'model.language_model.layers.…' or 'model.text_model.",
    ),
    "a layer too many": (
        ["language_model.model.layers.0.q"],
        ["model.layers.0.q", "model.layers.1.q"],
        "2 tensors of the adapter match nothing",
    ),
    "found in two places": (
        ["model.layers.0.q", "model.language_model.layers.0.q", "model.language_model.layers.1.q"],
        ["model.layers.0.q", "model.layers.1.q"],
        "",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_are_not_clear(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_file, in_adapter, text = REFUSED[case]
    tensors = {f"{name}.weight": torch.randn(6, 8) for name in in_file}
    base = write_checkpoint(tmp_path / "base", tensors)
    deltas = adapter_on(tmp_path / "adapter", dict.fromkeys(in_adapter, (6, 8)))
    code = average(tmp_path / "out", [f"{base}+{tmp_path / 'adapter'}"])
    if text:
        assert code == 3 and text in capsys.readouterr().err
        return
    # Only one beginning has all layers: the other tensor of the same name is left alone.
    result = read_tensors(tmp_path / "out")
    assert result["model.layers.0.q.weight"].equal(tensors["model.layers.0.q.weight"])
    expected = tensors["model.language_model.layers.0.q.weight"] + deltas["model.layers.0.q"]
    torch.testing.assert_close(result["model.language_model.layers.0.q.weight"], expected)


def test_projections_that_the_file_has_fused(tmp_path: Path) -> None:
    heads, key_heads, size = 4, 2, 3
    fused = torch.randn((heads + 2 * key_heads) * size, 8)
    name = "model.layers.0.self_attn"
    tensors = {
        f"{name}.qkv_proj.weight": fused,
        "model.layers.0.mlp.gate_up_proj.weight": fused.clone(),
    }
    config = {"num_attention_heads": heads, "num_key_value_heads": key_heads}
    base = write_checkpoint(tmp_path / "base", tensors, config=config)
    modules = {f"{name}.q_proj": (12, 8), f"{name}.v_proj": (6, 8)}
    modules["model.layers.0.mlp.up_proj"] = (12, 8)
    deltas = list(adapter_on(tmp_path / "adapter", modules).values())
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'adapter'}"]) == 0
    result = read_tensors(tmp_path / "out")
    attention = fused + torch.cat([deltas[0], torch.zeros(6, 8), deltas[1]])
    torch.testing.assert_close(result[f"{name}.qkv_proj.weight"], attention)
    mlp = fused + torch.cat([torch.zeros(12, 8), deltas[2]])
    torch.testing.assert_close(result["model.layers.0.mlp.gate_up_proj.weight"], mlp)


def test_heads_whose_halves_the_file_interleaves(tmp_path: Path) -> None:
    heads, size = 2, 4
    rows = heads * size
    fused, name = torch.randn(3 * rows, 8), "vision_tower.encoder.blocks.0.wqkv.weight"
    config = {
        "architectures": ["Kimi_K25ForConditionalGeneration"],
        "vision_config": {"num_attention_heads": heads},
    }
    base = write_checkpoint(tmp_path / "base", {name: fused}, config=config)
    place = "model.vision_tower.layers.0.attn"
    modules = {f"{place}.{part}_proj": (rows, 8) for part in "kv"}
    in_memory, plain = adapter_on(tmp_path / "adapter", modules).values()
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'adapter'}"]) == 0
    pairs_first = in_memory.view(heads, 2, size // 2, 8).transpose(1, 2).reshape(rows, 8)
    expected = fused + torch.cat([torch.zeros(rows, 8), pairs_first, plain])
    torch.testing.assert_close(read_tensors(tmp_path / "out")[name], expected)


def test_experts_that_the_file_has_stacked(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "qwen3_moe")
    stacked = tmp_path / "stacked"
    load_base(base).save_pretrained(stacked, save_original_format=False)
    shapes: dict[str, Any] = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in read_tensors(base).items()
        if ".experts." in name or "q_proj" in name
    }
    adapter_on(tmp_path / "adapter", shapes)
    for name in ("base", "stacked"):
        model = f"{tmp_path / name}+{tmp_path / 'adapter'}"
        assert average(tmp_path / f"{name}-out", [model]) == 0
    apart, together = (load_base(tmp_path / f"{n}-out").state_dict() for n in ("base", "stacked"))
    changed = 0
    for name, tensor in apart.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=1e-5)
        changed += not tensor.equal(load_base(base).state_dict()[name])
    assert changed == 2 * 3  # queries, gates with ups, downs in two layers


def test_a_module_that_layers_share_is_adapted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model.layers.1.shared.q"
    base = write_checkpoint(tmp_path / "base", {f"{name}.weight": torch.zeros(6, 8)})
    delta = adapter_on(tmp_path / "one", {name: (6, 8)})[name]
    config, factors = read_adapter(tmp_path / "one")
    again = {n.replace("layers.1.", "layers.5."): tensor.clone() for n, tensor in factors.items()}
    shared = write_adapter(tmp_path / "shared", config, factors | again)
    assert average(tmp_path / "out", [f"{base}+{shared}"]) == 0
    torch.testing.assert_close(read_tensors(tmp_path / "out")[f"{name}.weight"], delta)
    again = {n: tensor + 1 for n, tensor in again.items()}
    different = write_adapter(tmp_path / "different", config, factors | again)
    assert average(tmp_path / "none", [f"{base}+{different}"]) == 3
    assert "1 tensor of the adapter matches nothing" in capsys.readouterr().err
