"""Adapters on their bases while they stream, against PEFT's own `merge_and_unload`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from support.adapter_factory import (
    LINEARS,
    adapt,
    load_base,
    merged_by_peft,
    on_base,
    read_adapter,
    save_base,
    write_adapter,
)
from support.checkpoint_factory import (
    load,
    make_model,
    read_tensors,
    ulps_from_mean,
    write_checkpoint,
)
from support.layout_factory import small
from support.recipes import average

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": LINEARS}),
    "alpha": ("llama", {"target_modules": ["q_proj"], "lora_alpha": 7}),
    "regex": ("llama", {"target_modules": r".*layers\.1\..*(q|v)_proj", "r": 3}),
    "rank_pattern": (
        "llama",
        {
            "target_modules": LINEARS,
            "rank_pattern": {"q_proj": 2, r"layers\.1\..*up_proj": 6},
            "alpha_pattern": {"q_proj": 5, "^model.layers.0.mlp.down_proj": 1},
        },
    ),
    "rslora": ("llama", {"target_modules": LINEARS, "use_rslora": True}),
    "dora": ("llama", {"target_modules": LINEARS, "use_dora": True}),
    "dora_embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "bias": ("llama", {"target_modules": ["q_proj"], "bias": "all"}),
    "lora_bias": ("llama", {"target_modules": ["q_proj"], "lora_bias": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "modules_to_save": (
        "llama",
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d_dora": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "token_rows": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": [7, 3, 100, 4]},
    ),
    "token_rows_tied": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [99, 2]}},
    ),
    "experts_by_old_names": ("qwen3_moe", {"target_modules": LINEARS, "use_rslora": True}),
    "experts_by_old_names_of_mixtral": (
        "mixtral",
        {"target_modules": ["q_proj", "w1", "w2", "w3"], "rank_pattern": {"down_proj": 3}},
    ),
    "every_linear_layer_and_expert": ("mixtral", {"target_modules": "all-linear"}),
    "kimi_linear": ("kimi_linear", {"target_modules": "all-linear"}),
    "olmo_hybrid": ("olmo_hybrid", {"target_modules": "all-linear"}),
    "qwen3_next": ("qwen3_next", {"target_modules": "all-linear", "target_parameters": EXPERTS}),
    "jamba": ("jamba", {"target_modules": ["in_proj", "x_proj", "q_proj"]}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            "target_modules": ["in_proj", "q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "router.weight"],
        },
    ),
    "nemotron_h": ("nemotron_h", {"target_modules": ["in_proj", "q_proj", "embeddings"]}),
    "qwen3_moe": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "mixtral": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": [*EXPERTS, "mlp.gate.weight"],
            "rank_pattern": {"experts.down_proj": 2},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_applied_as_peft_does(case: str, tmp_path: Path) -> None:
    model_type, config = CASES[case]
    options = {"attention_bias": True} if "bias" in case else {}
    options |= {"tie_word_embeddings": True} if "tied" in case else {}
    base = save_base(tmp_path / "base", model_type, **small(model_type), **options)
    adapter = adapt(base, tmp_path / "adapter", **config)
    peft = read_tensors(merged_by_peft(base, adapter, tmp_path / "peft"))
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 0
    ours, before = read_tensors(tmp_path / "out"), read_tensors(base)
    assert ours.keys() == peft.keys()
    changed = [name for name in peft if not peft[name].equal(before[name])]
    assert changed, "the adapter changes nothing"
    for name, expected in peft.items():
        step = 2.0**-21 * float(expected.abs().max())
        assert ours[name].dtype == expected.dtype
        assert float((ours[name] - expected).abs().max()) <= step, name
    _, info = load(tmp_path / "out")
    assert {kind: keys for kind, keys in info.items() if keys} == {}


def test_a_square_matrix_of_conv1d_follows_its_class(tmp_path: Path) -> None:
    """PEFT keeps the flag of the module it adapted last, which may be another kind of module."""
    base = save_base(tmp_path / "base", "gpt2", **small("gpt2"))
    adapter = adapt(base, tmp_path / "adapter", target_modules=["c_proj"], fan_in_fan_out=True)
    peft = read_tensors(merged_by_peft(base, adapter, tmp_path / "peft"))
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": False}))
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 0
    ours = read_tensors(tmp_path / "out")
    for name, expected in peft.items():
        torch.testing.assert_close(ours[name], expected)


def test_an_average_of_adapters_is_rounded_once(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_model("llama").save_pretrained(base)
    adapters = [adapt(base, tmp_path / f"a{n}", n, target_modules=LINEARS) for n in range(2)]
    models = [f"{base}+{adapter}" for adapter in adapters]
    assert average(tmp_path / "out", models) == 0
    before, merged = read_tensors(base), read_tensors(tmp_path / "out")
    factors = [read_adapter(adapter)[1] for adapter in adapters]
    for name, tensor in merged.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        peers = [before[name].double()] * 2
        if key.format("A") in factors[0]:
            peers = [
                peers[0] + 2 * f[key.format("B")].double() @ f[key.format("A")].double()
                for f in factors
            ]
        assert tensor.dtype == torch.bfloat16
        # The sums are made in float32, which is 2^-16 of the last place.
        assert ulps_from_mean(tensor, peers) <= 0.5 + 2**-10, name
    words = (tmp_path / "out" / "README.md", tmp_path / "out" / "mergekit_config.yml")
    assert str(tmp_path) not in words[0].read_text() and "base+a1" in words[0].read_text()


def test_memory_and_threads_do_not_change_a_bit(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", hidden_size=64, intermediate_size=352)
    adapter = adapt(base, tmp_path / "adapter", target_modules=LINEARS, use_dora=True, r=8)
    outs = []
    for n, options in enumerate((["--threads", 1], ["--threads", 3, "--memory", "1MiB"])):
        outs.append(tmp_path / f"out{n}")
        assert average(outs[-1], [f"{base}+{adapter}", base], *options) == 0
    first, second = (read_tensors(out) for out in outs)
    assert all(first[name].equal(second[name]) for name in first)


def test_a_head_of_its_own_on_a_tied_base(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    config, tensors = read_adapter(adapt(base, tmp_path / "a", target_modules=["v_proj"]))
    head = torch.randn(4, 32), torch.randn(128, 4)
    tensors |= {
        f"base_model.model.lm_head.lora_{x}.weight": f for x, f in zip("AB", head, strict=True)
    }
    adapter = write_adapter(tmp_path / "adapter", config, tensors)
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 0
    model, info = load(tmp_path / "out")
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    embedding = read_tensors(base)["model.embed_tokens.weight"]
    assert model.model.embed_tokens.weight.equal(embedding)
    assert torch.allclose(model.lm_head.weight, embedding + 2 * head[1] @ head[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns of tied embeddings
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["lm_head"], "ensure_weight_tying": True},
    ],
)
def test_factors_of_a_tied_head_keep_what_the_model_computes(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """PEFT's own merge adds the factors of head and embedding to both, as they are one tensor."""
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = adapt(base, tmp_path / "adapter", **config)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        expected = on_base(base, adapter)(tokens).logits
        assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 0
        found = load_base(tmp_path / "out")(tokens).logits
        before = load_base(base)(tokens).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2)


def test_a_stored_head_that_was_trained_apart_from_its_embedding(tmp_path: Path) -> None:
    """The config ties both, and the file has a copy of the head all the same."""
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    tensors = read_tensors(base)
    embedding = tensors["model.embed_tokens.weight"]
    settings = json.loads((base / "config.json").read_text())
    shutil.rmtree(base)
    write_checkpoint(base, {**tensors, "lm_head.weight": embedding.clone()}, config=settings)
    plain = {"target_modules": ["v_proj"]}
    for name, more in (("whole", {"modules_to_save": ["lm_head"]}), ("factors", {})):
        adapter = adapt(base, tmp_path / name, **plain, **more)
        head = torch.randn(embedding.shape)
        delta = torch.randn(4, 32), torch.randn(128, 4)
        config, own = read_adapter(adapter)
        own = {k: v for k, v in own.items() if "lm_head" not in k}
        if more:
            own["base_model.model.lm_head.weight"] = head
        else:
            head = embedding + 2 * delta[1] @ delta[0]
            for part, factor in zip("AB", delta, strict=True):
                own[f"base_model.model.lm_head.lora_{part}.weight"] = factor
        adapter = write_adapter(tmp_path / f"{name}-head", config, own)
        assert average(tmp_path / f"out-{name}", [f"{base}+{adapter}"]) == 0
        model, _ = load(tmp_path / f"out-{name}")
        assert torch.allclose(model.lm_head.weight, head, atol=1e-5)
        assert model.model.embed_tokens.weight.equal(embedding)


VOCABULARIES: list[tuple[bool, int | None, dict[str, Any]]] = [
    (False, 131, {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    (False, 131, {"modules_to_save": ["embed_tokens"]}),
    (False, 131, {"trainable_token_indices": [128, 130, 5]}),
    (True, 131, {"target_modules": ["embed_tokens", "v_proj"]}),
    (True, 131, {"modules_to_save": ["embed_tokens"]}),
    (True, 131, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    (True, 131, {"trainable_token_indices": [128, 130, 5]}),
    (True, None, {"modules_to_save": ["embed_tokens"]}),
    (True, None, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    (True, None, {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [7, 2]}}),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns of tied embeddings
@pytest.mark.parametrize(("tied", "rows", "config"), VOCABULARIES)
def test_a_vocabulary_that_was_trained_or_resized(
    tied: bool, rows: int | None, config: dict[str, Any], tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=tied)
    adapter = adapt(
        base, tmp_path / "adapter", rows=rows, **{"target_modules": ["v_proj"]} | config
    )
    compare_with_peft(base, adapter, tmp_path / "out", rows)


def test_a_head_that_encoder_and_decoder_share_is_not_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"is_encoder_decoder": True, "tie_word_embeddings": True}
    shared = {"shared.weight": torch.randn(6, 8)}
    base = write_checkpoint(tmp_path / "base", shared, config=settings)
    names = [f"base_model.model.lm_head.lora_{x}.weight" for x in "AB"]
    factors = dict(zip(names, (torch.randn(2, 8), torch.randn(6, 2)), strict=True))
    adapter = write_adapter(tmp_path / "adapter", {"peft_type": "LORA", "r": 2}, factors)
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 3
    assert "ties both to those of encoder and decoder" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [None, 131])
def test_an_adapter_that_only_has_rows_of_tokens(rows: int | None, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    adapt(base, tmp_path / "adapter", rows=rows, token_indices=[7, rows - 1 if rows else 2])
    compare_with_peft(base, tmp_path / "adapter", tmp_path / "out", rows)


def compare_with_peft(base: Path, adapter: Path, out: Path, rows: int | None) -> None:
    """Merge an adapter with its base, and compare the model that loads with PEFT's merge."""
    expected = on_base(base, adapter, rows).merge_and_unload().state_dict()
    assert average(out, [f"{base}+{adapter}"]) == 0
    model, info = load(out)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    found, before = model.state_dict(), load_base(base).state_dict()
    assert found.keys() == expected.keys()
    assert not all(expected[name].equal(before[name]) for name in before)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name


def test_an_embedding_that_got_rows_without_its_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base")
    rows = torch.randn(131, 32)
    tensors = {"base_model.model.model.embed_tokens.weight": rows}
    config = {"peft_type": "LORA", "r": 4, "modules_to_save": ["embed_tokens"]}
    adapter = write_adapter(tmp_path / "adapter", config, tensors)
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 3
    text = capsys.readouterr().err
    assert f"has 131 rows of tokens, but none for lm_head.weight of {base}, which has 128" in text
    tied = save_base(tmp_path / "tied", tie_word_embeddings=True)
    assert average(tmp_path / "out", [f"{tied}+{adapter}"]) == 0
    model, _ = load(tmp_path / "out")
    assert model.lm_head.weight.equal(rows)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peft_type": "IA3"}, "the adapter is IA3, and only LORA"),
        ({"peft_type": "LOHA"}, "the adapter is LOHA"),
        ({"peft_type": None}, "of no peft_type"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"r": 5}, "has rank 4, adapter_config.json says 5"),
        ({"use_dora": True}, "DoRA without lora_magnitude_vector"),
        ({"alpha_pattern": {"[": 3}}, "not a table of patterns"),
        ({"alpha_pattern": {"(?=a)a": 3}}, "too complex to match safely: it looks ahead"),
        ({"rank_pattern": {"a{9999}": 3}}, "too complex to match safely: it has too many parts"),
        ({"lora_alpha": "many"}, "'many' is not a number"),
        ({"lora_alpha": 10**400}, "is not a number"),
    ],
)
def test_adapters_that_are_refused(
    change: dict[str, Any], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_checkpoint(tmp_path / "base", {"v_proj.weight": torch.randn(6, 8)})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **change}
    tensors = {"base_model.model.v_proj.lora_A.weight": torch.randn(4, 8)}
    tensors["base_model.model.v_proj.lora_B.weight"] = torch.randn(6, 4)
    adapter = write_adapter(tmp_path / "adapter", config, tensors)
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 3
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "shapes", "text"),
    [
        (("k_proj.lora_A.weight", "k_proj.lora_B.weight"), ((4, 8), (6, 4)), "nothing in"),
        (("v_proj.lora_A.weight",), ((4, 8),), "only one of lora_A and lora_B"),
        (("v_proj.lora_A.weight", "v_proj.lora_B.weight"), ((4, 9), (6, 4)), "does not fit"),
        (("v_proj.lora_A.weight", "v_proj.lora_B.weight"), ((4, 8), (6, 3)), "do not multiply"),
        (("v_proj.weight",), ((6, 9),), "does not fit"),
        (("score.weight",), ((2, 8),), "nothing in"),
        (("v_proj.hada_w1_a",), ((2, 8),), "nothing in"),
    ],
)
def test_weights_that_do_not_fit(
    names: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = write_checkpoint(tmp_path / "base", {"v_proj.weight": torch.randn(6, 8)})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    tensors = {f"base_model.model.{n}": torch.randn(s) for n, s in zip(names, shapes, strict=True)}
    adapter = write_adapter(tmp_path / "adapter", config, tensors)
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 3
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error


def test_what_is_no_adapter_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_checkpoint(tmp_path / "base", {"v_proj.weight": torch.randn(6, 8)})
    assert average(tmp_path / "out", [f"{base}+{base}"]) == 3
    assert "no adapter_config.json" in capsys.readouterr().err
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"PK")
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'pickled'}"]) == 3
    assert "only adapter_model.bin" in capsys.readouterr().err
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'nowhere'}"]) == 3
    assert "nowhere" in capsys.readouterr().err


def square_experts(folder: Path, stacked: bool, **config: Any) -> tuple[Path, torch.Tensor]:
    """Save a base with square experts and an adapter on them. Return BASE+ADAPTER, and B A."""
    experts, size, rank = 3, 8, 2
    weights = torch.randn(experts, size, size)
    name = "model.layers.0.mlp.experts"
    tensors = {f"{name}.{e}.down_proj.weight": w.clone() for e, w in enumerate(weights)}
    base = write_checkpoint(folder / "base", {f"{name}.down_proj": weights} if stacked else tensors)
    a, b = torch.randn(experts * rank, size), torch.randn(size, rank * experts)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, **config}
    settings["target_parameters"] = ["down_proj"]
    factors = {f"base_model.model.{name}.lora_{x}.weight": f for x, f in (("A", a), ("B", b))}
    adapter = write_adapter(folder / "adapter", settings, factors)
    # PEFT's own reshaping: B has the experts of each rank side by side.
    apart = a.view(experts, rank, size), b.view(size, rank, experts)
    return Path(f"{base}+{adapter}"), torch.einsum("eri,ore->eoi", *apart)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("version", ["0.18.1", "0.19.0", "1.0.0.dev0"])
def test_the_version_of_peft_tells_the_sides_of_square_experts(
    version: str, stacked: bool, tmp_path: Path
) -> None:
    model, delta = square_experts(tmp_path, stacked, peft_version=version)
    assert average(tmp_path / "out", [model]) == 0
    before, after = read_tensors(tmp_path / "base"), read_tensors(tmp_path / "out")
    change = torch.stack([after[name] - before[name] for name in sorted(before)])
    expected = delta.mT if version.startswith("0.18") else delta
    torch.testing.assert_close(change.view_as(expected), expected, atol=1e-5, rtol=1e-5)


def test_square_experts_of_an_unknown_version_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = square_experts(tmp_path, stacked=True)
    assert average(tmp_path / "out", [model]) == 3
    assert "has no peft_version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([3, 6], "does not fit"),
        ([3], "does not fit"),
        (None, "does not list the tokens of 'embed_tokens.weight'"),
        ({"wte": [1, 2]}, "does not list the tokens"),
        ([-1, 2], "does not list the tokens"),
    ],
)
def test_rows_of_tokens_that_do_not_fit(
    indices: object, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_checkpoint(tmp_path / "base", {"embed_tokens.weight": torch.randn(6, 8)})
    config = {"peft_type": "LORA", "r": 4, "trainable_token_indices": indices}
    name = "base_model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    adapter = write_adapter(tmp_path / "adapter", config, {name: torch.randn(2, 8)})
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 3
    assert text in capsys.readouterr().err
