"""Runs mergekit on the recipes of tests/goldens_mergekit; `scripts/golden` calls this."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import save_file
from tokenizers import Tokenizer

from support import tokenizer_factory
from support.checkpoint_factory import read_tensors
from support.golden_models import SIXTEEN_BITS, make_models, make_models_of_16_bits

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "goldens_mergekit"
SEEDS = 24
LARGEST = 2_000_000
WORDS = {"source": ("union", "base")}


def recipes(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for recipe in yaml.safe_load_all((GOLDENS / name).read_text(encoding="utf-8")):
        yield recipe.pop("golden"), recipe


def placed(value: Any, models: Path) -> Any:
    """Return the recipe with the local paths of models."""
    if isinstance(value, dict):
        result = {key: placed(item, models) for key, item in value.items()}
        for key in ("model", "base_model", "source"):
            if isinstance(result.get(key), str) and result[key] not in WORDS.get(key, ()):
                parts = result[key].split("+")  # a model, and an adapter of it
                result[key] = "+".join(str(models / part) for part in parts)
        return result
    return [placed(item, models) for item in value] if isinstance(value, list) else value


def merged(recipe: dict[str, Any], models: Path, out: Path, seed: int) -> dict[str, torch.Tensor]:
    shutil.rmtree(out, ignore_errors=True)
    options = MergeOptions(
        copy_tokenizer=False,
        write_model_card=False,
        random_seed=seed,
        quiet=True,
        lora_merge_cache=str(models / "with adapters"),
    )
    run_merge(MergeConfiguration.model_validate(placed(recipe, models)), str(out), options)
    return read_tensors(out)


def with_tokens(recipe: dict[str, Any], models: Path, out: Path, file: Path) -> None:
    """Save the vocabulary tensors of a merge, with the tokens of their rows."""
    everything = merged(recipe, models, out, 1)
    words = ("embed_tokens", "lm_head")
    tensors = {name: t for name, t in sorted(everything.items()) if any(w in name for w in words)}
    ids = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    rows = json.loads((out / "config.json").read_text())["vocab_size"]
    tokens = json.dumps({"rows": rows, "ids": ids}, ensure_ascii=False)
    save_file(tensors, file, metadata={"tokens": tokens})


def statistics(recipe: dict[str, Any], models: Path, out: Path) -> dict[str, Any]:
    """Return the average result of a random method over many seeds, per tensor."""
    base = read_tensors(models / recipe["base_model"])
    sums: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        for name, tensor in merged(recipe, models, out, seed).items():
            delta = tensor.double() - base[name].double()
            means = [
                float((delta != 0).double().mean()),
                float(delta.abs().sum()),
                float(delta.norm()),
            ]
            sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * 3), means, strict=True)]
    return {name: [value / SEEDS for value in values] for name, values in sums.items()}


def main(wanted: list[str]) -> None:
    folder = Path(tempfile.mkdtemp())
    make_models(folder)
    for name, recipe in recipes("recipes.yml"):
        if not wanted or name in wanted:
            tensors = merged(recipe, folder, folder / "out", 1)
            save_file(dict(sorted(tensors.items())), GOLDENS / f"{name}.safetensors")
            print(name, len(tensors))
    make_models_of_16_bits(folder / "16 bits")
    for name, recipe in recipes("recipes.yml"):
        if name in SIXTEEN_BITS and (not wanted or f"bfloat16-{name}" in wanted):
            tensors = merged(recipe, folder / "16 bits", folder / "out", 1)
            save_file(dict(sorted(tensors.items())), GOLDENS / f"bfloat16-{name}.safetensors")
            print(f"bfloat16-{name}", {str(tensor.dtype) for tensor in tensors.values()})
    tokenizer_factory.make_models(folder / "with tokens")
    for name, recipe in recipes("tokenizers.yml"):
        if not wanted or name in wanted:
            place = folder / "with tokens"
            with_tokens(recipe, place, folder / "out", GOLDENS / f"{name}.safetensors")
            print(name)
    spoken = {}
    tokenizer_factory.make_speakers(folder / "speakers")
    for name, recipe in recipes("chat_templates.yml"):
        merged(recipe, folder / "speakers", folder / "out", 1)
        spoken[name] = tokenizer_factory.rendered(folder / "out")
    text = json.dumps(spoken, indent=1, sort_keys=True)
    (GOLDENS / "chat_templates.json").write_text(text + "\n", encoding="utf-8")
    path = GOLDENS / "statistics.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, recipe in recipes("random.yml"):
        if not wanted or name in wanted:
            stored[name] = statistics(recipe, folder, folder / "out")
            print(name)
    rounded = {
        n: {k: [float(f"{x:.7g}") for x in v] for k, v in s.items()} for n, s in stored.items()
    }
    path.write_text(json.dumps(rounded, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in GOLDENS.iterdir())
    shutil.rmtree(folder)
    if size > LARGEST:
        sys.exit(f"{size} bytes in {GOLDENS}, more than {LARGEST}; leave recipes or tensors out")


if __name__ == "__main__":
    main(sys.argv[1:])
