"""Mixtures of experts as they are known from headers: their tensors, their config, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.errors import InputError, UsageError, WorkerError
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from support.checkpoint_factory import write_checkpoint
from support.mixtures import HIDDEN, LAYERS, WIDTH, build, llama_tensors, recipe, write_llama


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(tmp_path / name, seed)
    return tmp_path


def planned(folder: Path, base: str = "base", experts: Any = ("a", "b"), **keys: Any) -> Plan:
    text = recipe(folder, base, experts, **keys).read_text()
    return make_plan(parse(text, "moe.yml", folder), PlanOptions(relative_to=folder))


def refusal(kind: type[WorkerError], *given: Any, **keys: Any) -> str:
    with pytest.raises(kind) as caught:
        planned(*given, **keys)
    return str(caught.value)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_tensors(folder: Path, name: str, more: dict[str, torch.Tensor]) -> str:
    config = json.loads((folder / "base" / "config.json").read_text())
    write_checkpoint(folder / name, {**llama_tensors(7), **more}, config=config)
    return name


def test_names_shapes_and_order(models: Path) -> None:
    plan = planned(models)
    names = [step.name for step in plan.steps]
    prefix = "model.layers.0.block_sparse_moe."
    assert {f"{prefix}experts.{e}.w{n}.weight" for e in (0, 1) for n in (1, 2, 3)} <= {*names}
    shapes = {step.name: step.shape for step in plan.steps}
    assert shapes[f"{prefix}gate.weight"] == (2, HIDDEN)
    assert shapes[f"{prefix}experts.1.w2.weight"] == (HIDDEN, WIDTH)
    assert not any(".mlp." in name for name in names)
    assert {step.dtype.torch_name for step in plan.steps} == {"bfloat16"}


def test_parameters_in_total_and_at_work(models: Path) -> None:
    plan = planned(models, experts=("base", "a", "b"), experts_per_token=2)
    mixture = plan.mixture
    assert mixture is not None
    expert = 3 * HIDDEN * WIDTH * LAYERS
    dense = sum(tensor.numel() for tensor in llama_tensors(0).values())
    assert mixture.total == dense + 2 * expert + 3 * HIDDEN * LAYERS
    assert mixture.active == mixture.total - expert
    assert mixture.total == sum(step.grid.count for step in plan.steps)
    uses = {use.label: use for use in mixture.experts}
    assert uses["a"].used == expert and uses["a"].parameters == dense


def test_attention_that_is_left_out(models: Path) -> None:
    same = {name: tensor for name, tensor in llama_tensors(0).items() if "attn" in name}
    name = with_tensors(models, "same", same)
    plan = planned(models, experts=("base", "a", name))
    assert plan.mixture is not None
    base, other, alike = (use.attention for use in plan.mixture.experts)
    assert base == alike == 0.0
    # Two independent matrices of one size: √2.
    assert other == pytest.approx(2**0.5, rel=0.2)
    (note,) = [line for line in plan.warnings if "left out" in line]
    assert (note.startswith("of 1 expert only the MLPs are used (") and "141 %" in note) or note


def test_the_config_is_the_base_s_with_the_fields_of_the_target(models: Path) -> None:
    edit(models / "base", rope_scaling={"type": "linear", "factor": 2.0}, mlp_bias=False)
    config = planned(models, experts_per_token=1).config
    assert config["model_type"] == "mixtral" and config["architectures"] == ["MixtralForCausalLM"]
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (2, 1)
    assert config["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert "mlp_bias" not in config and config["sliding_window"] is None
    # The class of a Llama has these where its file is silent; that of Mixtral has others.
    assert config["num_key_value_heads"] == 2 and config["rms_norm_eps"] == 1e-6
    assert config["max_position_embeddings"] == 2048 and config["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("Mixtral", "mixtral"), ("mix", "mixtral"), ("Qwen MoE", "qwen2_moe"),
        ("qwen2", "qwen2_moe"), ("granitemoe", "granitemoe"), ("DeepSeek MoE", "glm4_moe"),
        ("glm4_moe", "glm4_moe"), ("qwen", "qwen2_moe"),
    ],
)  # fmt: skip
def test_names_of_targets(models: Path, word: str, name: str) -> None:
    plan = planned(models, architecture=word)
    assert plan.mixture is not None and plan.mixture.target.name == name
    assert any("glm4_moe" in line for line in plan.warnings) == (word == "DeepSeek MoE")


def test_a_shared_expert_decides_the_target(models: Path) -> None:
    plan = planned(models, shared_experts=["b"], gate_mode="zeros")
    assert plan.mixture is not None and plan.mixture.target.name == "qwen2_moe"
    assert plan.config["shared_expert_intermediate_size"] == WIDTH
    assert plan.mixture.gates.shared_row


def test_experts_of_another_type_and_layout(models: Path) -> None:
    tensors = llama_tensors(5)
    fused = {n: t for n, t in tensors.items() if "gate_proj" not in n and "up_proj" not in n}
    for layer in range(LAYERS):
        parts = [tensors[f"model.layers.{layer}.mlp.{n}_proj.weight"] for n in ("gate", "up")]
        fused[f"model.layers.{layer}.mlp.gate_up_proj.weight"] = torch.cat(parts)
    write_checkpoint(models / "fused", fused, config={"model_type": "phi3", "hidden_act": "silu"})
    out = models / "out"
    assert build(recipe(models, "base", ["a", "fused"]), out) == 0
    from support.checkpoint_factory import read_tensors

    result = read_tensors(out)
    for number, part in enumerate(("gate", "down", "up"), 1):
        mine = result[f"model.layers.1.block_sparse_moe.experts.1.w{number}.weight"]
        assert torch.equal(mine, tensors[f"model.layers.1.mlp.{part}_proj.weight"])


def test_other_layers_and_shapes(models: Path) -> None:
    write_llama(models / "deep", layers=3)
    write_llama(models / "wide", width=24)
    text = refusal(InputError, models, experts=("deep", "wide"))
    assert text.splitlines() == [
        "deep has 3 layers, base has 2; an expert has an MLP for each layer of the base",
        f"wide: model.layers.0.mlp.gate_proj.weight is [24, {HIDDEN}], in base "
        f"[{WIDTH}, {HIDDEN}]; the MLPs of experts have the shape of the base's",
    ]


def test_other_activation(models: Path) -> None:
    edit(models / "a", hidden_act="gelu")
    assert "a: its MLPs have the activation gelu" in refusal(InputError, models)
    edit(models / "a", hidden_act="swish")
    planned(models)


def test_biases(models: Path) -> None:
    bias = "model.layers.1.mlp.up_proj.bias"
    name = with_tensors(models, "biased", {bias: torch.zeros(WIDTH)})
    assert refusal(InputError, models, experts=("a", name)).startswith(f"biased: {bias}: ")
    other = "model.layers.0.self_attn.q_proj.bias"
    name = with_tensors(models, "queries", {other: torch.zeros(HIDDEN)})
    text = refusal(InputError, models, base=name, experts=("a",))
    assert text == f"queries: mixtral has no place for 1 tensor of its layers: {other}"
    planned(models, experts=(name, "a"))  # its attention is left out in any case


def test_models_without_such_an_mlp(models: Path) -> None:
    tensors = {n: t for n, t in llama_tensors(3).items() if "gate_proj" not in n}
    write_checkpoint(models / "plain", tensors, config={"model_type": "llama"})
    assert "plain: model.layers.0.* has no MLP of gate" in refusal(
        InputError, models, experts=("plain", "a")
    )


def test_a_mixture_is_no_expert(models: Path) -> None:
    assert build(recipe(models, "base", ["a", "b"]), models / "mixed") == 0
    for given in ({"base": "mixed"}, {"experts": ("a", "mixed")}):
        text = refusal(InputError, models, **given)
        assert text.startswith("mixed: is a mixture of experts already (model.layers.")
        assert "num_local_experts: 2 in its config" in text


def test_no_target_fits(models: Path) -> None:
    edit(models / "base", model_type="gemma")
    first, second = refusal(InputError, models).splitlines()
    assert "no mixture of experts can be made of base (model_type gemma): its embeddings" in first
    assert "mixtral of llama, mistral, phi3" in second and "cohere2_moe of cohere2" in second
    edit(models / "base", model_type="phi3", rope_scaling={"type": "longrope"})
    text = refusal(InputError, models)
    assert "mixtral: its rotary embedding is of the kind 'longrope'" in text
    edit(models / "base", rope_scaling=None, partial_rotary_factor=0.5)
    assert "mixtral: partial_rotary_factor is 0.5" in refusal(InputError, models)
    edit(models / "base", model_type="qwen3", use_sliding_window=True, partial_rotary_factor=None)
    assert "qwen3_moe: use_sliding_window is true" in refusal(InputError, models)


def test_a_base_without_a_type(models: Path) -> None:
    edit(models / "base", model_type=None)
    assert "base: no model_type in its config.json" in refusal(InputError, models)


def test_words_that_are_no_target(models: Path) -> None:
    text = refusal(UsageError, models, architecture="mixtrl")
    assert "unknown 'mixtrl' (did you mean 'mixtral'?); one of mixtral, qwen2_moe" in text
    text = refusal(InputError, models, architecture="mixtral", shared_experts=["b"])
    assert "mixtral: has no shared expert" in text
    text = refusal(UsageError, models, shared_experts=["a", "b"])
    assert "shared_experts[1]: a second shared expert" in text


def test_prompts_without_a_tokenizer(models: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (models / "base" / name).unlink()
    experts = [{"source_model": n, "positive_prompts": [n]} for n in ("a", "b")]
    text = refusal(InputError, models, experts=experts, gate_mode="cheap_embed")
    assert text == "base: no tokenizer, by which gate_mode: cheap_embed reads the prompts"


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        ({"experts_per_token": 1}, "experts_per_token is 1"),
        ({"gate_mode": "zeros"}, "all experts tie"),
        ({"experts": ("a", "a")}, "all experts are a"),
    ],
)
def test_warnings(models: Path, keys: dict[str, Any], warning: str) -> None:
    assert any(warning in line for line in planned(models, **keys).warnings)
    assert not any(warning in line for line in planned(models).warnings)


def test_another_tokenizer_is_told(models: Path) -> None:
    from support.mixtures import TOKENS
    from support.tokenizer_factory import bpe, save_tokenizer

    save_tokenizer(models / "a", bpe((*TOKENS[:3], *reversed(TOKENS[3:]))), bos_token=None)
    lines = [line for line in planned(models).warnings if "tokenizer" in line]
    assert len(lines) == 1 and lines[0].startswith("a: its tokenizer is not that of base")


def test_files_of_prompts(models: Path) -> None:
    (models / "a.txt").write_text("one\n\n  two\n")
    lines = [{"text": "x"}, {"prompt": "y"}, {"messages": [{"role": "user", "content": "z"}]}]
    (models / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    experts = [
        {"source_model": "a", "prompts_file": "a.txt"},
        {"source_model": "b", "prompts_file": "b.jsonl", "positive_prompts": ["first"]},
    ]
    plan = planned(models, experts=experts, gate_mode="cheap_embed")
    assert plan.mixture is not None
    one, two = plan.mixture.gates.rows
    assert one.positive == ("one", "  two")
    assert two.positive == ("first", "x", "y", (("user", "z"),))
    before = plan.key
    (models / "a.txt").write_text("three\n")
    assert planned(models, experts=experts, gate_mode="cheap_embed").key != before


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("none.txt", None, "No such file or directory"),
        ("empty.txt", b"\n \n", "no prompts in it"),
        ("odd.txt", b"\xff\xfe\xfa", "not text in UTF-8"),
        ("odd.jsonl", b"{", "odd.jsonl:1: not a line of JSON"),
        ("odd.jsonl", b'{"text": 3}', "odd.jsonl:1: neither 'text', 'prompt' nor 'messages'"),
        ("odd.jsonl", b'{"messages": [{"role": 1}]}', "odd.jsonl:1: neither 'text'"),
    ],
)
def test_files_that_hold_no_prompts(
    models: Path, name: str, content: bytes | None, fault: str
) -> None:
    if content is not None:
        (models / name).write_bytes(content)
    experts = [{"source_model": "a", "prompts_file": name}, {"model": "b", "positive_prompts": "x"}]
    text = refusal(InputError, models, experts=experts, gate_mode="cheap_embed")
    assert "experts[0].prompts_file" in text and fault in text and len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"experts": ["deep"]}, 3),
        ({"experts": ["a", "nowhere"]}, 3),
        ({"architecture": "nothing"}, 2),
        ({"architecture": "qwen3_moe"}, 3),
        ({"experts_per_token": 3}, 2),
        ({"gate_mode": "best"}, 2),
        ({"gate_mode": "cheap_embed"}, 2),
        ({"shared_experts": ["a", "b"]}, 2),
    ],
)
def test_refusals_are_short_and_leave_nothing(
    models: Path, keys: dict[str, Any], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llama(models / "deep", layers=3)
    path = recipe(models, "base", keys.get("experts", ["a", "b"]))
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    before = {file: file.stat().st_mtime_ns for file in models.rglob("*")}
    assert build(path, models / "out") == code
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3 and not any("Traceback" in line for line in lines)
    assert before == {file: file.stat().st_mtime_ns for file in models.rglob("*")}
