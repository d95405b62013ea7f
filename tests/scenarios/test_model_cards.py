"""The card of a result, as the Hub's library reads it, and the Python that the card shows, run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard, ModelCardData
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from support.recipes import run

pytestmark = pytest.mark.slow

FRONT = "---\nlicense: apache-2.0\nlanguage:\n- en\n- 'no'\n---\n"
SMALL: dict[str, Any] = {"vocab_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
WIDE = {**SMALL, "hidden_size": 32, "intermediate_size": 48}
T5 = {"vocab_size": 64, "num_layers": 2, "num_heads": 2, "d_model": 32, "d_kv": 16, "d_ff": 48}


def tokenizer(folder: Path) -> None:
    words = Tokenizer(WordLevel({f"w{n}": n for n in range(64)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast
    fast(tokenizer_object=words, unk_token="w0", pad_token="w1").save_pretrained(folder)


def of_transformers(name: str, config: str, **shape: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        model = getattr(transformers, name)(getattr(transformers, config)(**shape))
        model.save_pretrained(folder)
        tokenizer(folder)

    return save


def embedder(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    of_transformers("BertModel", "BertConfig", **WIDE)(bert := folder.with_name("bert"))
    parts = [modules.Transformer(str(bert)), modules.Pooling(32)]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder))


def cross_encoder(folder: Path) -> None:
    from sentence_transformers import CrossEncoder

    name = "BertForSequenceClassification"
    of_transformers(name, "BertConfig", num_labels=1, **WIDE)(bert := folder.with_name("bert"))
    CrossEncoder(str(bert), device="cpu").save_pretrained(str(folder))


def sparse_encoder(folder: Path) -> None:
    from sentence_transformers import SparseEncoder

    of_transformers("BertForMaskedLM", "BertConfig", **WIDE)(bert := folder.with_name("bert"))
    SparseEncoder(str(bert), device="cpu").save_pretrained(str(folder))


def autoencoder(folder: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(folder)


KINDS: dict[str, tuple[Callable[[Path], None], str, str | None, str]] = {
    "causal": (
        of_transformers("LlamaForCausalLM", "LlamaConfig", **WIDE),
        *("transformers", "text-generation", "LlamaForCausalLM"),
    ),
    "seq2seq": (
        of_transformers("T5ForConditionalGeneration", "T5Config", **T5),
        *("transformers", "text2text-generation", "T5ForConditionalGeneration"),
    ),
    "classifier": (
        of_transformers("BertForSequenceClassification", "BertConfig", **WIDE),
        *("transformers", "text-classification", "BertForSequenceClassification"),
    ),
    "encoder": (
        of_transformers("BertModel", "BertConfig", **WIDE),
        *("transformers", "feature-extraction", "BertModel"),
    ),
    "embedder": (
        embedder,
        *("sentence-transformers", "sentence-similarity", "SentenceTransformer"),
    ),
    "cross-encoder": (cross_encoder, "sentence-transformers", "text-ranking", "CrossEncoder"),
    "sparse": (sparse_encoder, "sentence-transformers", "feature-extraction", "SparseEncoder"),
    "diffusers": (autoencoder, "diffusers", None, "AutoencoderKL"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_hub_reads_it_and_its_python_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, library, task, loaded = KINDS[kind]
    for seed in (1, 2):
        torch.manual_seed(seed)
        save(tmp_path / f"m{seed}")
        (tmp_path / f"m{seed}" / "README.md").write_text(FRONT)
    monkeypatch.chdir(tmp_path)
    words = ("--weights", "0.25,0.75", "--progress", "off")
    assert run("average", "my-merge", "m1", "m2", *words) == 0

    card = ModelCard.load(tmp_path / "my-merge" / "README.md", ignore_metadata_errors=False)
    data = card.data.to_dict()
    assert data == {
        "license": "apache-2.0",
        "language": ["en", "no"],
        "library_name": library,
        **({"pipeline_tag": task} if task else {}),
        "tags": ["merge", "merge-launch"],
    }
    assert ModelCardData(**data).to_dict() == data
    recipe = card.text.partition("```yaml\n")[2].partition("```")[0]
    assert recipe == (
        "merge_method: linear\nmodels:\n"
        "- model: m1\n  parameters: {weight: 0.25}\n"
        "- model: m2\n  parameters: {weight: 0.75}\n"
    )
    assert yaml.safe_load(recipe)["merge_method"] == "linear"

    names: dict[str, Any] = {}
    exec(card.text.partition("```python\n")[2].partition("```")[0], names)
    assert type(names["model"]).__name__ == loaded
    if library == "transformers":
        assert names["tokenizer"]("w3 w4")["input_ids"] == [3, 4]
