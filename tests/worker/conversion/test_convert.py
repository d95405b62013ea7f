"""Conversion between layouts: every rule both ways, refusals, and merges of whole small models."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_worker import cli
from support.checkpoint_factory import load, read_tensors, ulps_from_mean, write_checkpoint
from support.layout_factory import LAYOUTS, OTHERS, exporter, save_pair
from support.model_parts import (
    COUNT,
    MIDDLE,
    H,
    Tensors,
    assert_mean,
    average,
    beginning,
    experts,
    fused,
    head_by_head,
    numbered,
    projections,
    stacked,
)


def in_turns(one: Tensor, two: Tensor) -> Tensor:
    return torch.stack([one, two], -1).flatten(-2)


def gpt_oss(separate: Tensors) -> Tensors:
    place = "model.layers.0.mlp"
    gate, up, down = (stacked(separate, place, w) for w in ("gate", "up", "down"))
    biases = [stacked(separate, place, w, "bias") for w in ("gate", "up", "down")]
    return {
        f"{place}.experts.gate_up_proj": in_turns(gate.mT, up.mT),
        f"{place}.experts.down_proj": down.mT.contiguous(),
        f"{place}.experts.gate_up_proj_bias": in_turns(biases[0], biases[1]),
        f"{place}.experts.down_proj_bias": biases[2],
    }


def llama4(separate: Tensors) -> Tensors:
    place = "model.layers.0.feed_forward"
    gate, up, down = (stacked(separate, place, w) for w in ("gate", "up", "down"))
    return {
        f"{place}.experts.gate_up_proj": torch.cat([gate.mT, up.mT], -1),
        f"{place}.experts.down_proj": down.mT.contiguous(),
        f"{place}.shared_expert.up_proj.weight": separate[f"{place}.shared_expert.up_proj.weight"],
    }


def shared(seed: int) -> Tensors:
    place = "model.layers.0.feed_forward"
    up = {f"{place}.shared_expert.up_proj.weight": numbered(MIDDLE, H, seed=seed + 50)}
    return experts(place, seed) | up


def language(seed: int) -> Tensors:
    return {f"model.layers.{n}.norm.weight": numbered(H, seed=seed + n) for n in range(3)}


def seeing(seed: int) -> Tensors:
    """Return a vision-language model as transformers holds it in memory."""
    words = {f"model.language_{n}": t for n, t in language(seed).items()}
    more = {"lm_head.weight": (4, H), "model.vision_tower.patch.weight": (H, 3)}
    more["model.multi_modal_projector.linear.bias"] = (H,)
    return words | {n: numbered(*s, seed=seed + len(n)) for n, s in more.items()}


def llava(tensors: Tensors) -> Tensors:
    """Return the model as released."""
    words = [
        ("model.language_model.", "language_model.model."),
        ("lm_head", "language_model.lm_head"),
    ]
    words += [("model.vision", "vision"), ("model.multi_modal", "multi_modal")]
    return renamed(tensors, *words)


def whole(seed: int) -> Tensors:
    """Return a model of one layer with the names of transformers."""
    outer = {"model.embed_tokens": (5, H), "model.norm": (H,), "lm_head": (5, H)}
    layer = {"self_attn.o_proj": (H, 8), "mlp.down_proj": (H, MIDDLE)}
    layer |= {"input_layernorm": (H,), "post_attention_layernorm": (H,)}
    shapes = outer | {f"model.layers.1.{name}": shape for name, shape in layer.items()}
    others = {f"{n}.weight": numbered(*s, seed=seed + i) for i, (n, s) in enumerate(shapes.items())}
    return projections(seed) | others


def renamed(tensors: Tensors, *words: tuple[str, str]) -> Tensors:
    result = {}
    for name, tensor in tensors.items():
        for old, new in words:
            name = name.replace(old, new)
        result[name] = tensor
    return result


def internlm2(separate: Tensors) -> Tensors:
    rest = {n: tensor for n, tensor in separate.items() if not re.search("[qkv]_proj", n)}
    for kind in ("weight", "bias"):
        form = f"model.layers.1.self_attn.{{}}_proj.{kind}"
        rest[f"model.layers.1.attention.wqkv.{kind}"] = head_by_head(separate, form, 2)
    words = [("self_attn.o_proj", "attention.wo"), ("mlp.gate_proj", "feed_forward.w1")]
    words += [("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2")]
    words += [("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm")]
    words += [("embed_tokens", "tok_embeddings"), ("lm_head", "output")]
    return renamed(rest, *words)


def glm(seed: int) -> Tensors:
    """Return the GLM of transformers, which also fuses gate and up."""
    separate = whole(seed)
    both = fused(projections(seed))["model.layers.1.mlp.gate_up_proj.weight"]
    rest = {n: tensor for n, tensor in separate.items() if not re.search("(gate|up)_proj", n)}
    return rest | {"model.layers.1.mlp.gate_up_proj.weight": both}


def chatglm(tensors: Tensors) -> Tensors:
    rest = {n: tensor for n, tensor in tensors.items() if not re.search("[qkv]_proj", n)}
    for kind in ("weight", "bias"):
        form = f"model.layers.1.self_attn.{{}}_proj.{kind}"
        rest[form.format("QKV")] = head_by_head(tensors, form, 1)
    words = [("self_attn.o_proj", "self_attn.dense"), ("QKV_proj", "query_key_value")]
    words += [("mlp.gate_up_proj", "mlp.dense_h_to_4h")]
    words += [("mlp.down_proj", "mlp.dense_4h_to_h"), ("self_attn", "self_attention")]
    words += [("model.layers", "transformer.encoder.layers")]
    words += [("model.norm", "transformer.encoder.final_layernorm")]
    words += [("model.embed_tokens", "transformer.embedding.word_embeddings")]
    words += [("lm_head", "transformer.output_layer")]
    return renamed(rest, *words)


def bert(seed: int) -> Tensors:
    place = "bert.encoder.layer.0.output.LayerNorm"
    return {f"{place}.{kind}": numbered(H, seed=seed + len(kind)) for kind in ("weight", "bias")}


def lengths(seed: int) -> Tensors:
    shapes = {"weight_g": (1, 1, 3), "weight_v": (H, MIDDLE, 3)}
    return {f"encoder.conv.{n}": numbered(*s, seed=seed + s[0]) for n, s in shapes.items()}


CONFIGS = {"InternLM 2": {"num_key_value_heads": 2}}
PAIRS: dict[str, tuple[Callable[[int], Tensors], Callable[[Tensors], Tensors]]] = {
    "gpt-oss": (lambda seed: experts("model.layers.0.mlp", seed, bias=True), gpt_oss),
    "Llama 4": (shared, llama4),
    "projections": (projections, fused),
    "InternLM 2": (whole, internlm2),
    "ChatGLM": (glm, chatglm),
    "BERT": (
        bert,
        lambda tensors: renamed(tensors, ("Norm.weight", "Norm.gamma"), ("Norm.bias", "Norm.beta")),
    ),
    "lengths": (
        lengths,
        lambda tensors: renamed(
            tensors,
            ("weight_g", "parametrizations.weight.original0"),
            ("weight_v", "parametrizations.weight.original1"),
        ),
    ),
    "LLaVA": (seeing, llava),
    "Qwen2-VL": (
        lambda seed: renamed(seeing(seed), ("vision_tower", "visual")),
        lambda tensors: renamed(
            tensors, ("model.language_model.", "model."), ("model.visual", "visual")
        ),
    ),
    "backbone": (language, beginning("model.", "backbone.")),
    "language model": (language, beginning("model.", "model.language_model.")),
    "old language model": (language, beginning("model.", "language_model.model.")),
    "bare": (language, beginning("model.", "")),
    "compiled": (language, beginning("", "_orig_mod.")),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("case", PAIRS)
def test_both_ways(case: str, swapped: bool, tmp_path: Path) -> None:
    make, change = PAIRS[case]
    one, two = make(0), make(1000)
    first, second = (change(one), two) if swapped else (one, change(two))
    assert average(tmp_path, first, second, **CONFIGS.get(case, {})) == 0
    assert_mean(tmp_path, first, change(two) if swapped else two)


def test_a_conversion_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert average(tmp_path, projections(0), fused(projections(9))) == 0
    error = capsys.readouterr().err
    assert f"{tmp_path / 'b'} is in another layout than {tmp_path / 'a'}" in error
    assert "8 tensors regrouped" in error


def test_layers_missing_from_the_first(tmp_path: Path) -> None:
    # The second model is deeper: its last layer goes on top, in the layout of the first.
    first, deep = projections(0), projections(5)
    first = {n.replace("layers.1", "layers.0"): tensor for n, tensor in first.items()}
    both = deep | {n.replace("layers.1", "layers.0"): t for n, t in projections(7).items()}
    write_checkpoint(tmp_path / "a", first)
    names = {"layers.0": fused(projections(7)), "layers.1": fused(deep)}
    second = {n.replace("layers.1", layer): t for layer, ts in names.items() for n, t in ts.items()}
    write_checkpoint(tmp_path / "b", second)
    (tmp_path / "r.yml").write_text(
        "merge_method: passthrough\nslices:\n"
        f"- sources: [{{model: {tmp_path / 'a'}, layer_range: [0, 1]}}]\n"
        f"- sources: [{{model: {tmp_path / 'b'}, layer_range: [1, 2]}}]\n"
    )
    command = ["merge", str(tmp_path / "r.yml"), str(tmp_path / "out"), "--progress", "off"]
    assert cli.main(command) == 0
    merged = read_tensors(tmp_path / "out")
    assert merged.keys() == both.keys()
    assert all(torch.equal(merged[name], deep[name]) for name in deep)


def test_two_forms_of_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = projections(1) | fused(projections(1))
    assert average(tmp_path, projections(0), second) == 3
    error = capsys.readouterr().err
    assert f"{tmp_path / 'b'}: there are both" in error
    assert "self_attn.q_proj.bias and model.layers.1.self_attn.qkv_proj.bias, two forms" in error


def test_a_part_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = projections(1)
    del second["model.layers.1.self_attn.k_proj.weight"]
    assert average(tmp_path, fused(projections(0)), second) == 3
    error = capsys.readouterr().err
    assert "model.layers.1.self_attn.k_proj.weight is not" in error
    assert "has model.layers.1.self_attn.qkv_proj.weight" in error


def test_an_expert_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = experts("model.layers.0.mlp")
    first = {
        "model.layers.0.mlp.experts.gate_up_proj": numbered(COUNT, 2 * MIDDLE, H, seed=1),
        "model.layers.0.mlp.experts.down_proj": numbered(COUNT, H, MIDDLE, seed=2),
    }
    del second["model.layers.0.mlp.experts.1.up_proj.weight"]
    assert average(tmp_path, first, second) == 3
    assert "experts.1.up_proj.weight is not" in capsys.readouterr().err


def test_parts_of_other_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = fused(projections(1))
    second["model.layers.1.self_attn.qkv_proj.weight"] = numbered(11, H, seed=1)
    assert average(tmp_path, projections(0), second) == 3
    assert "parts would be 8 + 2 + 2" in capsys.readouterr().err


def test_heads_that_do_not_divide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = internlm2(whole(9))
    assert average(tmp_path, whole(0), two, num_key_value_heads=4) == 3
    error = capsys.readouterr().err
    assert "wqkv.bias is [12]; 2 are not 4 equal groups" in error
    # Without heads in the config nothing is guessed.
    assert average(tmp_path / "bare", whole(0), two) == 3
    assert "model.layers.1.attention.wqkv" in capsys.readouterr().err


def test_rows_in_another_order_are_no_other_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = renamed(
        whole(9), ("self_attn.q_proj", "attention.wq"), ("self_attn.k_proj", "attention.wk")
    )
    for number, pair in enumerate(((whole(0), meta), (meta, whole(0)))):
        assert average(tmp_path / str(number), *pair) == 3
        error = capsys.readouterr().err
        assert "attention.wq.weight of" in error and "rows of queries and keys are in" in error
        assert "key_map" not in error and "Traceback" not in error


LAYOUT_PAIRS = [
    pytest.param(model_type, pair, marks=[pytest.mark.slow] if model_type in OTHERS else [])
    for model_type, layouts in LAYOUTS.items()
    for pair in itertools.permutations(layouts, 2)
]


@pytest.mark.parametrize(("model_type", "pair"), LAYOUT_PAIRS)
def test_every_pair_of_layouts(model_type: str, pair: tuple[str, str], tmp_path: Path) -> None:
    models = save_pair(tmp_path, model_type, pair)
    out = tmp_path / "out"
    assert cli.main(["average", str(out), *map(str, models), "--progress", "off"]) == 0
    assert read_tensors(out).keys() == read_tensors(models[0]).keys()
    merged, info = load(out)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    # In memory both inputs have one layout, whatever it was on disk.
    inputs = [load(path)[0].state_dict() for path in models]
    for name, tensor in merged.state_dict().items():
        assert ulps_from_mean(tensor, [tensors[name] for tensors in inputs]) <= 0.5, name
    tokens = torch.arange(3, 19)[None]
    assert torch.isfinite(merged(input_ids=tokens).logits).all()


def test_names_of_the_exporter(tmp_path: Path) -> None:
    """Expected results are recorded, since transformers loads none of these models."""
    models = save_pair(tmp_path, "olmo_hybrid", ("released", "released"))
    stacked = read_tensors(tmp_path / "1-stacked")
    exported = exporter(stacked)
    assert any("linear_attn.out_proj" in name for name in exported)
    config = json.loads((models[1] / "config.json").read_text())
    other = write_checkpoint(tmp_path / "exported", exported, config=config)
    for name, pair in {"one": models, "two": [models[0], other]}.items():
        words = ["average", str(tmp_path / name), *map(str, pair), "--progress", "off"]
        assert cli.main(words) == 0
    one, two = (read_tensors(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
