"""Results load wherever the inputs load: sentence-transformers and diffusers, beside others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from support.recipes import average, manifest

pytestmark = pytest.mark.slow

TEXTS = ["w3 w4 w5", "w60"]
WIDTH = 32


def save_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=64, hidden_size=WIDTH, **shape)).save_pretrained(folder)
    tokenizer(folder).save_pretrained(folder)
    return folder


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({f"w{n}": n for n in range(64)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1")


def transformer_and(folder: Path, *others: Callable[[Any], Any]) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    chain = [modules.Transformer(str(save_bert(folder))), *(make(modules) for make in others)]
    return SentenceTransformer(modules=chain, device="cpu")


def pooling(modules: Any) -> Any:
    return modules.Pooling(WIDTH)


def static(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    words = tokenizer(folder).backend_tokenizer
    embedding = modules.StaticEmbedding(words, embedding_dim=WIDTH)
    return SentenceTransformer(modules=[embedding, modules.Dense(WIDTH, 16)], device="cpu")


EMBEDDERS: dict[str, Callable[[Path], Any]] = {
    "dense": lambda folder: transformer_and(
        folder, pooling, lambda m: m.Dense(WIDTH, 16), lambda m: m.Normalize()
    ),
    "two dense": lambda folder: transformer_and(
        folder, pooling, lambda m: m.Dense(WIDTH, 48), lambda m: m.Dense(48, 16)
    ),
    "layer norm": lambda folder: transformer_and(folder, pooling, lambda m: m.LayerNorm(WIDTH)),
    "convolutions": lambda folder: transformer_and(
        folder, lambda m: m.CNN(WIDTH, 16), lambda m: m.Pooling(48)
    ),
    "static": static,
}


def change(model: torch.nn.Module, seed: int) -> None:
    """Move the weights, as training does."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_sentence_transformers(kind: str, tmp_path: Path) -> None:
    """Compare the result with the model whose parameters are the means."""
    from sentence_transformers import SentenceTransformer

    model = EMBEDDERS[kind](tmp_path / "bert")
    states = []
    for seed in (1, 2):
        change(model, seed)
        model.save(str(tmp_path / f"m{seed}"))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    out = tmp_path / "out"
    assert average(out, [tmp_path / "m1", tmp_path / "m2"]) == 0
    first, second = states
    model.load_state_dict({n: (first[n] + second[n]) / 2 for n in first})
    merged = SentenceTransformer(str(out), device="cpu")
    assert merged.state_dict().keys() == first.keys()
    np.testing.assert_allclose(merged.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    assert manifest(out)["counts"]["missing"] == 0


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_diffusers(variant: str | None, tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    states = []
    for seed in (1, 2):
        change(model, seed)
        model.save_pretrained(tmp_path / f"m{seed}", variant=variant)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    out = tmp_path / "out"
    assert average(out, [tmp_path / "m1", tmp_path / "m2"]) == 0
    merged, notes = UNet2DModel.from_pretrained(
        out, variant=variant, use_safetensors=True, output_loading_info=True
    )
    assert not any(notes.values())
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    assert [path.name for path in out.glob("*.safetensors")] == [
        f"diffusion_pytorch_model{'.' + variant if variant else ''}.safetensors"
    ]
    assert "library_name: diffusers" in (out / "README.md").read_text()
    assert load_file(next(out.glob("*.safetensors"))).keys() == states[0].keys()
