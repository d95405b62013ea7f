"""Importance files for the models of a folder."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.checkpoint_factory import read_tensors


def importance_of(tensors: dict[str, Tensor], seed: int, size: float = 1e-19) -> dict[str, Tensor]:
    """Return squared gradients for every tensor, about as large as Adam's of a large model."""
    noise = torch.Generator().manual_seed(seed)
    return {n: torch.rand(x.shape, generator=noise) ** 4 * size for n, x in tensors.items()}


def channels_of(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return a number for each input channel of every tensor but the embedding."""
    noise = torch.Generator().manual_seed(seed)
    names = (n for n in tensors if "embed" not in n and tensors[n].ndim > 0)
    return {n: torch.rand(tensors[n].shape[-1:], generator=noise) for n in names}


def write_importance(folder: Path) -> None:
    """Write NAME-fisher, NAME-gram and NAME-activations beside every model in a folder."""
    for seed, model in enumerate(sorted(path.parent for path in folder.glob("*/config.json"))):
        tensors, place = read_tensors(model), str(folder / model.name)
        squares, channels = importance_of(tensors, seed), channels_of(tensors, seed)
        grams = {n.removesuffix(".weight") + ".gram": x for n, x in channels.items()}
        save_file(squares, f"{place}-fisher.safetensors", {"kind": "fisher"})
        save_file(grams, f"{place}-gram.safetensors", {"kind": "gram"})
        save_file(channels, f"{place}-activations.safetensors", {"kind": "activation"})
