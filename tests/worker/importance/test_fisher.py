"""Squared gradients, against a backward pass of the whole model for each sample."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_worker.errors import InputError
from merge_worker.importance import fisher as fisher_module
from merge_worker.inference.texts import Window
from support.checkpoint_factory import read_tensors
from support.language_models import loaded, make
from support.measured_models import measured, windows

FAMILIES = [
    ("LlamaForCausalLM", "llama", {}),
    ("LlamaForCausalLM", "llama", {"tie_word_embeddings": True, "mlp_bias": True}),
    ("Qwen3ForCausalLM", "qwen3", {}),
    ("Gemma2ForCausalLM", "gemma2", {"sliding_window": 5, "final_logit_softcapping": 2.0}),
    ("Gemma3ForCausalLM", "gemma3_text", {"sliding_window": 5}),
    ("MixtralForCausalLM", "mixtral", {}),
    ("Qwen3MoeForCausalLM", "qwen3_moe", {}),
    ("Phi3ForCausalLM", "phi3", {}),
    ("PhiForCausalLM", "phi", {}),  # a head with a bias
    ("GPT2LMHeadModel", "gpt2", {}),  # tied, positions, transposed matrices
    ("GraniteForCausalLM", "granite", {"logits_scaling": 3.0}),
    ("OPTForCausalLM", "opt", {}),
    ("BambaForCausalLM", "bamba", {}),  # not attention alone
]


def reference(folder: Path, samples: tuple[Window, ...]) -> dict[str, Tensor]:
    """Return the mean of squared gradients by the names on disk."""
    model = loaded(folder)
    sums: dict[str, Tensor] = {}
    for window in samples:
        model.zero_grad(set_to_none=True)
        logits = model(input_ids=torch.tensor([window.ids]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(window.labels)[1:]
        torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum").backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums.get(name, 0) + parameter.grad.double() ** 2
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(sums[name] / len(samples) if name in sums else 0 * parameter)
    model.save_pretrained(folder / "squares")  # by the names that files have
    return read_tensors(folder / "squares")


def assert_alike(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert set(got) == set(want)
    largest = max(float(values.abs().max()) for values in want.values())
    for name, values in want.items():
        assert got[name].dtype == torch.float32
        # The bias of keys has no influence at all: what is there is rounding.
        scale = max(float(values.abs().max()), 1e-9 * largest)
        worst = float((got[name] - values).abs().max()) if values.numel() else 0.0
        assert worst <= 1e-5 * scale, f"{name}: {worst} of {scale}"


@pytest.mark.parametrize(("name", "kind", "fields"), FAMILIES, ids=lambda value: str(value))
def test_a_backward_pass_for_each_sample(
    tmp_path: Path, name: str, kind: str, fields: dict[str, Any]
) -> None:
    folder = make(tmp_path / "model", name, kind, **fields)
    got = measured(folder, tmp_path / "f.safetensors")
    want = {n: t for n, t in reference(folder, windows()).items() if t.is_floating_point()}
    assert_alike(got, {name: want[name] for name in want if name in got or bool(want[name].any())})
    assert not list(tmp_path.glob(".f*")), "scratch files stay"


@pytest.mark.parametrize(
    ("name", "kind", "fields", "reason"),
    [
        ("Gemma3nForCausalLM", "gemma3n_text", {}, "its layers share a KVSharingDict"),
        ("Zamba2ForCausalLM", "zamba2", {}, "layers share weights"),
        (
            "Zamba2ForCausalLM",
            "zamba2",
            {"layers_block_type": ["mamba", "hybrid"], "num_hidden_layers": 2},
            "layers take more from the embeddings than hidden states",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_layers_that_do_not_stand_alone_are_refused(
    tmp_path: Path, name: str, kind: str, fields: dict[str, Any], reason: str
) -> None:
    if kind == "zamba2":
        fields = {"attention_hidden_size": 64, **fields}  # twice the hidden size
    folder = make(tmp_path / "model", name, kind, **fields)
    with pytest.raises(InputError, match=re.escape(f"cannot run one at a time ({reason})")):
        measured(folder, tmp_path / "f.safetensors")


def test_squares_are_of_samples_and_not_of_their_sum(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama")
    every = measured(folder, tmp_path / "every.safetensors")
    single = [
        measured(folder, tmp_path / f"{n}.safetensors", samples=(window,))
        for n, window in enumerate(windows())
    ]
    for name, values in every.items():
        mean = torch.stack([one[name] for one in single]).mean(0)
        torch.testing.assert_close(values, mean, rtol=1e-4, atol=float(mean.max()) * 1e-6)


def test_both_names_of_a_tied_head_on_disk(tmp_path: Path) -> None:
    """A file may have the head beside the embedding that the config ties it to."""
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama", tie_word_embeddings=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    got = measured(folder, tmp_path / "f.safetensors")
    want = reference(folder, windows())["model.embed_tokens.weight"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(got[name], want, rtol=1e-4, atol=float(want.max()) * 1e-6)


@pytest.mark.slow
def test_labels_of_the_model_are_drawn_from_its_probabilities(tmp_path: Path) -> None:
    """One layer-free quantity: the head's gradient is (p − y) xᵀ, so its mean over many draws of y
    is Σ over places of p (1 − p) x² where places are independent."""
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama")
    window = windows(1)[0]
    count, model = 300, loaded(folder)
    total = torch.zeros(())
    for seed in range(count // 30):
        file, many = tmp_path / f"{seed}.safetensors", (window,) * 30
        got = measured(folder, file, samples=many, labels="model", seed=seed)
        total = total + got["lm_head.weight"].double() / (count // 30)
    with torch.no_grad():
        output = model(input_ids=torch.tensor([window.ids]), output_hidden_states=True)
    p = output.logits[0, :-1].double().softmax(1)
    x = output.hidden_states[-1][0, :-1].double()
    want = (p * (1 - p)).T @ x.square()
    # Standard error of a mean of squares; the whole matrix together is far more precise.
    assert float(total.sum() / want.sum()) == pytest.approx(1, abs=0.06)
    channels = float(torch.corrcoef(torch.stack([total.sum(0), want.sum(0)]))[0, 1])
    assert channels > 0.9


def test_seeds_draw_other_labels_and_the_same_ones_again(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama")
    files = [
        measured(folder, tmp_path / f"{n}.safetensors", labels="model", seed=seed)
        for n, seed in enumerate((0, 0, 1))
    ]
    name = "model.layers.0.mlp.up_proj.weight"
    assert files[0][name].equal(files[1][name])
    assert not files[0][name].equal(files[2][name])


def test_slices_of_the_head_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "model", "GPT2LMHeadModel", "gpt2")
    whole = measured(folder, tmp_path / "whole.safetensors", labels="model")
    monkeypatch.setattr("merge_worker.inference.head.SLICE_BYTES", 7 * 32 * 4)
    monkeypatch.setattr("merge_worker.importance.samples.CHUNK", 3)
    cut = measured(folder, tmp_path / "cut.safetensors", labels="model")
    for name, values in whole.items():
        scale = float(values.max())
        torch.testing.assert_close(cut[name], values, rtol=1e-4, atol=scale * 1e-6)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [3, 11, 17, 30, 40, 48])
def test_stopped_and_continued_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama", tie_word_embeddings=True)
    whole = (tmp_path / "whole.safetensors",)
    measured(folder, *whole, labels="model")
    out = tmp_path / "f.safetensors"
    done: list[str] = []
    apply = fisher_module.Run.apply

    def failing(self: Any, call: Any, sample: int, hidden: Tensor) -> Tensor:
        done.append(f"{call.number}")
        if len(done) == at:
            raise Interrupted
        return apply(self, call, sample, hidden)

    monkeypatch.setattr(fisher_module.Run, "apply", failing)
    with pytest.raises(Interrupted):
        measured(folder, out, labels="model")
    assert not out.exists()
    before = len(done)
    measured(folder, out, labels="model")
    assert out.read_bytes() == whole[0].read_bytes()
    # What was finished is not repeated: at most the samples of one layer.
    assert len(done) <= 2 * 6 * len(windows()) + len(windows())
    assert len(done) - before <= 2 * 6 * len(windows()) - (at - 1) // 4 * 4


def test_by_hand(tmp_path: Path) -> None:
    """Two classes and one place: F = p (1 − p) x² where y is drawn, (p − y)² x² where it is given.

    A llama of zero attention and MLP is its embedding, a norm and the head.
    """
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama", vocab_size=2, pad_token_id=0)
    file = folder / "model.safetensors"
    tensors = {
        n: torch.zeros_like(t) if "_proj" in n else torch.ones_like(t)
        for n, t in load_file(file).items()
    }
    tensors["lm_head.weight"][0] = 0.5
    save_file(tensors, file, {"format": "pt"})
    width = tensors["lm_head.weight"].shape[1]
    p = 1 / (1 + math.exp(0.5 * width - 1.0 * width))  # of the second token
    got = measured(folder, tmp_path / "f.safetensors", samples=(Window(0, (1, 0), (-100, 0), 0),))
    assert got["lm_head.weight"][1].tolist() == pytest.approx([p**2] * width, rel=1e-4)
    assert got["lm_head.weight"][0].tolist() == pytest.approx([p**2] * width, rel=1e-4)
    # The norm is 1 for every channel, the head's rows differ by 0.5: (p · 0.5)².
    assert got["model.norm.weight"].tolist() == pytest.approx([(p / 2) ** 2] * width, rel=1e-3)
    assert not got["model.embed_tokens.weight"][0].any()


def test_a_base_with_its_adapter_is_the_merged_model(tmp_path: Path) -> None:
    from merge_worker.checkpoint.fp8 import dequantized
    from merge_worker.importance.measure import Measurement
    from merge_worker.inference.model import ModelOptions, open_model
    from merge_worker.planning.inputs import open_reference
    from merge_worker.system.progress import Progress
    from support.adapter_factory import write_adapter

    folder = make(tmp_path / "base", "LlamaForCausalLM", "llama")
    name = "model.layers.0.mlp.up_proj"
    tensors = load_file(folder / "model.safetensors")
    rows, columns = tensors[f"{name}.weight"].shape
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
    place = f"base_model.model.{name}"
    pairs = {f"{place}.lora_A.weight": a, f"{place}.lora_B.weight": b}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    write_adapter(tmp_path / "lora", config, pairs)
    disk, files, label = open_reference(f"{folder}+{tmp_path / 'lora'}", tmp_path)
    with open_model(dequantized(disk), files, label, ModelOptions("float32")) as model:
        Measurement(model, disk, windows(), "fisher", "x", 16, "data", 0).make(
            tmp_path / "f.safetensors", None, Progress("off", 0, ""), None
        )
    tensors[f"{name}.weight"] += 2 * b @ a
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert_alike(load_file(tmp_path / "f.safetensors"), reference(folder, windows()))
