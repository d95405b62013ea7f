"""Synthetic tensors of parts of models, whole and in pieces, and merges of two of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from merge_worker import cli
from support.checkpoint_factory import read_tensors, write_checkpoint

Tensors = dict[str, Tensor]
H, MIDDLE, COUNT = 6, 4, 3


def numbered(*shape: int, seed: int) -> Tensor:
    return torch.randint(-512, 512, shape, generator=torch.Generator().manual_seed(seed)).float()


def experts(place: str, seed: int = 0, bias: bool = False) -> Tensors:
    tensors: Tensors = {}
    for e in range(COUNT):
        for number, word in enumerate(("gate", "up", "down")):
            shape = (H, MIDDLE) if word == "down" else (MIDDLE, H)
            name = f"{place}.experts.{e}.{word}_proj"
            tensors[f"{name}.weight"] = numbered(*shape, seed=seed + 9 * e + number)
            if bias:
                tensors[f"{name}.bias"] = numbered(shape[0], seed=seed + 100 + 9 * e + number)
    return tensors


def stacked(tensors: Tensors, place: str, word: str, kind: str = "weight") -> Tensor:
    return torch.stack([tensors[f"{place}.experts.{e}.{word}_proj.{kind}"] for e in range(COUNT)])


def projections(seed: int) -> Tensors:
    rows = {"q": 8, "k": 2, "v": 2}
    tensors = {
        f"model.layers.1.self_attn.{n}_proj.{kind}": numbered(*shape, seed=seed + ord(n))
        for n, count in rows.items()
        for kind, shape in (("weight", (count, H)), ("bias", (count,)))
    }
    for number, word in enumerate(("gate", "up")):
        tensors[f"model.layers.1.mlp.{word}_proj.weight"] = numbered(MIDDLE, H, seed=seed + number)
    return tensors


def fused(apart: Tensors) -> Tensors:
    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    tensors = {
        f"{attention}.qkv_proj.{kind}": torch.cat(
            [apart[f"{attention}.{n}_proj.{kind}"] for n in "qkv"]
        )
        for kind in ("weight", "bias")
    }
    parts = [apart[f"{mlp}.{word}_proj.weight"] for word in ("gate", "up")]
    return {**tensors, f"{mlp}.gate_up_proj.weight": torch.cat(parts)}


def head_by_head(tensors: Tensors, form: str, heads: int) -> Tensor:
    """Concatenate the queries, keys and values of one key head, then of the next."""
    parts = [tensors[form.format(n)].chunk(heads) for n in "qkv"]
    return torch.cat([torch.cat(head) for head in zip(*parts, strict=True)])


def beginning(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n.replace(old, new, 1): tensor for n, tensor in tensors.items()}


def average(
    folder: Path,
    first: Tensors,
    second: Tensors,
    recipe: str = "",
    options: Sequence[str] = (),
    **config: object,
) -> int:
    for name, tensors in (("a", first), ("b", second)):
        write_checkpoint(folder / name, tensors, config=config or None)
    path = folder / "r.yml"
    models = f"models: [{folder / 'a'}, {folder / 'b'}]\nparameters: {{weight: 1}}\n"
    path.write_text(f"merge_method: linear\n{models}{recipe}")
    return cli.main(["merge", str(path), str(folder / "out"), "--progress", "off", *options])


def assert_mean(folder: Path, first: Tensors, second: Tensors) -> None:
    merged = read_tensors(folder / "out")
    assert merged.keys() == first.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, (first[name] + second[name]) / 2), name
