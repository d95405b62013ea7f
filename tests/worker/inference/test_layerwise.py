"""Layers run one at a time give what the whole model of transformers gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.errors import InputError
from merge_worker.inference.head import Head, token_losses
from merge_worker.inference.layerwise import LayerPass
from merge_worker.inference.model import open_model
from merge_worker.planning.inputs import open_reference
from support.adapter_factory import write_adapter
from support.checkpoint_factory import read_tensors
from support.language_models import loaded, make, opened, reference_losses

FAMILIES = [
    ("LlamaForCausalLM", "llama", {}),
    ("LlamaForCausalLM", "llama", {"tie_word_embeddings": True, "mlp_bias": True}),
    ("Qwen3ForCausalLM", "qwen3", {}),
    ("Gemma2ForCausalLM", "gemma2", {"sliding_window": 5, "final_logit_softcapping": 2.0}),
    ("Gemma3ForCausalLM", "gemma3_text", {"sliding_window": 5}),
    ("Gemma3ForConditionalGeneration", "gemma3", {}),
    ("Gemma3nForCausalLM", "gemma3n_text", {}),  # keys and values shared by layers
    ("MixtralForCausalLM", "mixtral", {}),
    ("Qwen3MoeForCausalLM", "qwen3_moe", {}),
    ("Phi3ForCausalLM", "phi3", {}),
    ("PhiForCausalLM", "phi", {}),  # a head with a bias
    ("GPT2LMHeadModel", "gpt2", {}),
    ("GraniteForCausalLM", "granite", {"logits_scaling": 3.0}),
    ("Lfm2ForCausalLM", "lfm2", {}),
    ("FalconH1ForCausalLM", "falcon_h1", {}),
    ("Qwen3_5ForCausalLM", "qwen3_5_text", {}),
    ("BambaForCausalLM", "bamba", {}),  # layers that return a tuple
    ("MambaForCausalLM", "mamba", {}),
    ("OPTForCausalLM", "opt", {}),
    ("BartForCausalLM", "bart", {}),
]
SHARES_STATE = {"gemma3n_text"}


def tokens(count: int = 12, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 60, (2, count), generator=generator)


@pytest.mark.parametrize(("name", "kind", "fields"), FAMILIES, ids=lambda value: str(value))
def test_losses_and_hidden_states_are_those_of_transformers(
    tmp_path: Path, name: str, kind: str, fields: dict[str, Any]
) -> None:
    folder = make(tmp_path / "model", name, kind, **fields)
    batches = [tokens(12), tokens(12, 6), tokens(7, 7)[:1]]
    reference = loaded(folder)
    entering: list[Tensor] = []
    head = reference.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    wanted = [reference_losses(reference, ids) for ids in batches]
    handle.remove()
    with opened(folder) as model:
        states = LayerPass(model, batches)
        assert states.separable == (kind not in SHARES_STATE), states.reason
        states.run()
        for number, final in enumerate(entering):
            torch.testing.assert_close(states.final(number), final, rtol=1e-5, atol=1e-6)
        losses = token_losses(states, batches)
    for found, want in zip(losses, wanted, strict=True):
        assert torch.equal(found[:, 0], torch.zeros(len(found)))
        torch.testing.assert_close(found[:, 1:], want, rtol=1e-5, atol=2e-6)
    others = [n for n in (p.device.type for p in model.layers.parameters()) if n != "meta"]
    assert others == [], "weights stay in memory after their layer"


def test_bfloat16_is_rounded_where_transformers_rounds(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama")
    reference = loaded(folder, torch.bfloat16)
    with opened(folder, dtype="bfloat16") as model:
        states = LayerPass(model, [tokens()])
        states.run()
        losses = token_losses(states, [tokens()])
    torch.testing.assert_close(losses[0][:, 1:], reference_losses(reference, tokens()))


def test_shards_and_adapters_are_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "base", "LlamaForCausalLM", "llama")
    loaded(folder).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    name = "model.layers.0.mlp.up_proj"
    rows, columns = read_tensors(folder)[f"{name}.weight"].shape
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
    place = f"base_model.model.{name}"
    pairs = {f"{place}.lora_A.weight": a, f"{place}.lora_B.weight": b}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    write_adapter(tmp_path / "lora", config, pairs)
    reference = loaded(folder)
    reference.model.layers[0].mlp.up_proj.weight.data += 2 * b @ a
    word = f"{tmp_path / 'sharded'}+{tmp_path / 'lora'}"
    with open_model(*open_reference(word, tmp_path)) as model:
        states = LayerPass(model, [tokens()])
        states.run()
        losses = token_losses(states, [tokens()])
    torch.testing.assert_close(losses[0][:, 1:], reference_losses(reference, tokens()))


def test_hooks_see_every_batch_once(tmp_path: Path) -> None:
    for kind, name in (("llama", "LlamaForCausalLM"), ("gemma3n_text", "Gemma3nForCausalLM")):
        folder = make(tmp_path / kind, name, kind)
        with opened(folder) as model:
            states = LayerPass(model, [tokens(), tokens(9)])
            seen: list[tuple[int, int, int]] = []

            def watch(number: int, states: LayerPass, seen: list[tuple[int, int, int]]) -> Any:
                def hook(module: object, args: tuple[Tensor, ...]) -> None:
                    seen.append((number, states.batch, args[0].shape[1]))

                return hook

            for number, layer in enumerate(model.layers):
                layer.mlp.register_forward_pre_hook(watch(number, states, seen))
            done: list[int] = []
            states.run(after=lambda call, done=done: done.append(call.layer))
            depth = len(model.layers)
        wanted = {(n, b, size) for n in range(depth) for b, size in enumerate((12, 9))}
        assert sorted(seen) == sorted(wanted)
        assert done == list(range(depth))


def test_a_pass_ends_after_the_last_layer_of_interest(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama")
    with opened(folder) as model:
        states = LayerPass(model, [tokens()])
        before = model.weights.bytes_read
        states.run(last=1)
        assert model.weights.bytes_read - before == model.layer_bytes(0) + model.layer_bytes(1)


def test_backward_through_one_layer_at_a_time_is_that_of_the_whole_model(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "Qwen3ForCausalLM", "qwen3", tie_word_embeddings=False)
    ids = tokens()[:1]
    reference = loaded(folder)
    reference(input_ids=ids, labels=ids).loss.backward()
    with opened(folder) as model:
        states = LayerPass(model, [ids])
        inputs = []
        for call in states.calls:
            inputs.append(states.hidden[0])
            with model.loaded(call.layer), torch.no_grad():
                states.hidden[0] = states.apply(call, 0, states.hidden[0])
        leaving = states.hidden[0].detach().requires_grad_()
        with torch.enable_grad():
            final = states.final(0, leaving)
            (part,) = Head(model).slices()
            logits = Head(model).logits(final[0, :-1], part)
            torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
        gradient = leaving.grad
        wanted = dict(reference.named_parameters())
        for call in reversed(states.calls):
            with model.loaded(call.layer, trainable=True) as layer, torch.enable_grad():
                entering = inputs[call.number].detach().requires_grad_()
                states.apply(call, 0, entering).backward(gradient)
                gradient = entering.grad
                for name, parameter in layer.named_parameters():
                    want = wanted[f"model.layers.{call.layer}.{name}"].grad
                    torch.testing.assert_close(parameter.grad, want, rtol=1e-4, atol=1e-7)


def test_faults_are_told_in_a_line(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "LlamaForCausalLM", "llama")
    with opened(folder) as model, pytest.raises(InputError, match=r"token id 999.*128 rows"):
        LayerPass(model, [torch.tensor([[3, 999]])])
    encoder = make(tmp_path / "bert", "BertForMaskedLM", "bert")
    with pytest.raises(InputError, match="BertForMaskedLM does not predict the next token"):
        opened(encoder)
    both = make(tmp_path / "t5", "T5ForConditionalGeneration", "t5")
    with pytest.raises(InputError, match="is an encoder with a decoder"):
        opened(both)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        opened(folder)
