"""FP8 weights with scales, read as the values they represent while they stream.

A value is its code times the scale of its block; a block is a part of a matrix, a row, or the whole
matrix. Weights packed in other ways (GPTQ, AWQ, bitsandbytes, MX) are refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from ..dtypes import BY_NAME, FLOATS, DType, Kind, from_torch_name
from ..errors import InputError
from ..messages import counted, first_names, printable
from ..tensors.source import BufferSize, DerivedTensor, Reader, TensorSource, buffer_size
from ..tensors.views import by_row
from .folder import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
SCALE_SUFFIXES = ("_scale_inv", "_scale")
_SUFFIXES = (
    *(".qweight", ".qzeros", ".g_idx", ".weight_scale", ".weight_scale_inv"),
    *(".weight_packed", ".absmax", ".quant_state", ".SCB"),
)
_SCALE = re.compile(r"scale|absmax|SCB|codebook", re.IGNORECASE)
_UNUSED = (".input_scale", ".weight_scale_ub", ".activation_scale", ".output_scale")
"""Scales of activations, which plain weights do not need."""


_OF_TRANSFORMERS = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit", "higgs")
"""The methods whose quantizers in transformers (5.23) implement `dequantize`."""


def is_quantized(checkpoint: Checkpoint) -> str | None:
    """Return the reason why the weights cannot be averaged as stored, or None."""
    label = checkpoint.quantization
    codes = _codes(checkpoint.tensors, labeled=bool(label))
    if not codes:
        return None
    if method := _method(checkpoint):
        return f"quantized ({printable(method)})"
    return f"quantized: {first_names(codes)}"


def _method(checkpoint: Checkpoint) -> str:
    """Return what has quantized a model, "" if its config does not say so."""
    label = checkpoint.quantization
    if not label:
        return ""
    return str(label.get("quant_method") or f"MLX, {label.get('bits', 'some')} bits")


def way_out(checkpoint: Checkpoint, label: str) -> str:
    """Return how a quantized model becomes one that can be merged: a command, where one exists."""
    method = _method(checkpoint)
    if method.startswith("MLX"):
        place = shlex.join(["mlx_lm.convert", "--hf-path", label, "--mlx-path", "OUT"])
        return f"dequantize it first: {place} --dequantize"
    if method == "mxfp4":
        option = "quantization_config=Mxfp4Config(dequantize=True)"
        return f"dequantize it first: load it with transformers, {option}, save_pretrained(…)"
    if method in _OF_TRANSFORMERS:
        return "dequantize it first: load with transformers, model.dequantize(), save_pretrained(…)"
    return "name the model that it was quantized from"


def obsolete_labels(models: Sequence[Checkpoint], labels: Sequence[str]) -> list[str]:
    """Return a warning for each model whose config says quantized, although its weights are not."""
    return [
        f"{label}: config.json says quantized, but its weights are plain; merged as they are, "
        f"without that field"
        for model, label in zip(models, labels, strict=True)
        if model.quantization
        and not any(isinstance(source, DequantizedTensor) for source in model.tensors.values())
    ]


def _codes(tensors: Mapping[str, TensorSource], labeled: bool) -> list[str]:
    """Return the tensors that stand for other values: packed ones, and integers beside scales.

    Integers of 64 bits are indices. With a label in the config, other matrices of integers count.
    """
    codes = [n for n, source in tensors.items() if source.dtype.kind is Kind.PACKED]
    codes += [n for n in tensors if n.endswith(_SUFFIXES)]
    small = [
        n
        for n, source in tensors.items()
        if source.dtype.kind is Kind.INTEGER
        and source.dtype.bits <= 32
        and source.dtype.name != "BOOL"
        and len(source.shape) > 1
    ]
    parts = [n.rpartition(".") for n in tensors]
    owners = {module for module, _, last in parts if _SCALE.search(last)}
    codes += [n for n in small if labeled or n in owners or n.rpartition(".")[0] in owners]
    return codes


def refuse_quantized(models: Sequence[Checkpoint], labels: Sequence[str]) -> None:
    """Raise InputError for models whose weights cannot be merged as stored."""
    reasons = {n: why for n, model in enumerate(models) if (why := is_quantized(model))}
    if reasons:
        faults = [f"{labels[n]}: {why}" for n, why in reasons.items()]
        hints = dict.fromkeys(way_out(models[n], labels[n]) for n in reasons)
        hint = "\n  ".join(hints)
        if all(any(scales_of(models[n].tensors)) for n in reasons):
            hint = "add --dequantize, or 'dequantize: true' in the recipe, to read FP8 with scales"
        raise InputError("\n".join([*faults, f"  {hint}"]))


def scales_of(tensors: Mapping[str, TensorSource]) -> dict[str, str]:
    """Return the name of the scales of every FP8 tensor."""
    return {
        name: name + end
        for name, source in tensors.items()
        for end in SCALE_SUFFIXES
        if source.dtype.name in FP8_DTYPES and name + end in tensors
    }


class Blocks(NamedTuple):
    """Rows and columns of a matrix and of its grid of scales, and the size of one block."""

    rows: int
    columns: int
    scale_rows: int
    scale_columns: int
    height: int
    width: int


_ONE = Blocks(1, 1, 1, 1, 1, 1)


@dataclass(frozen=True)
class DequantizedTensor(DerivedTensor):
    """The float32 values of FP8 codes and their scales, its two inputs."""

    kind = "Dequantised"

    blocks: Blocks = _ONE

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        b = self.blocks
        out.copy_(reader.read(self.inputs[0], start, stop, slot + "0"))
        for begin, end in by_row(start, stop, b.columns):
            while begin < end:
                row, column = divmod(begin, b.columns)
                matrix, inside = divmod(row, b.rows)
                left = b.height - inside % b.height  # rows with the same scales
                last = min(end, (row + min(left, b.rows - inside)) * b.columns)
                at = (matrix * b.scale_rows + inside // b.height) * b.scale_columns
                scales = reader.read(self.inputs[1], at, at + b.scale_columns, slot + "1").float()
                wide = scales.repeat_interleave(b.width)[: b.columns]
                here = out[begin - start : last - start].view(-1, min(b.columns, last - begin))
                here.mul_(wide[column : column + here.shape[1]])
                begin = last

    def fingerprint(self) -> object:
        return self.blocks

    def buffer_size(self) -> BufferSize:
        codes, scales = (buffer_size(part) for part in self.inputs)
        row = self.blocks.scale_columns * (scales.per_element + 4 + 4 * self.blocks.width)
        return BufferSize(codes.per_element, codes.fixed + scales.fixed + row)


def dequantized(model: Checkpoint) -> Checkpoint:
    """Return the model with plain weights, unchanged if it has no FP8.

    Raises InputError for packed tensors without scales.
    """
    pairs = scales_of(model.tensors)
    if not pairs:
        return model
    declared = _plain_dtype(model)
    used = set(pairs.values())
    tensors: dict[str, TensorSource] = {}
    for name, source in model.tensors.items():
        if name in pairs:
            inputs = (source, model.tensors[pairs[name]])
            blocks = _blocks(model, *inputs)
            tensors[name] = DequantizedTensor(
                source.name, BY_NAME["F32"], source.shape, inputs, declared, blocks
            )
        elif name not in used and not name.endswith(_UNUSED):
            tensors[name] = source
    packed = [name for name, source in tensors.items() if source.dtype.kind is Kind.PACKED]
    if packed:
        raise InputError(
            f"{model.path}: {counted(len(packed), 'tensors have no scales')}: {first_names(packed)}"
        )
    return replace(model, tensors=tensors)


def _plain_dtype(model: Checkpoint) -> DType:
    """Return the dtype that the config declares for plain weights."""
    text = model.config.get("text_config")
    places = [model.config, text if isinstance(text, dict) else {}]
    for name in (str(place.get(key)) for place in places for key in ("dtype", "torch_dtype")):
        if name.removeprefix("torch.") in FLOATS:
            return from_torch_name(name)
    return BY_NAME["BF16"]


def _blocks(model: Checkpoint, codes: TensorSource, scales: TensorSource) -> Blocks:
    """Return how scales are laid over codes. Raises InputError if they do not fit."""
    rows, columns = (1, 1, *codes.shape)[-2:]
    matrices = prod(codes.shape[:-2])
    grid = scales.shape
    if prod(grid) == 1:
        grid, matrices, rows = (1, 1), 1, rows * matrices
    elif prod(grid) == prod(codes.shape[:-1]):  # one per row
        grid = (*codes.shape[:-1], 1)
    elif prod(grid) == matrices:  # one per matrix of a stack
        grid = (*codes.shape[:-2], 1, 1)
    down, across = (1, 1, *grid)[-2:]
    size = model.quantization.get("weight_block_size")
    named = size if isinstance(size, list) and len(size) == 2 else [128, 128]
    height, width = _block_size(rows, down, named[0]), _block_size(columns, across, named[1])
    fits = -(-rows // max(1, height)) == down and -(-columns // max(1, width)) == across
    if not fits or prod(grid[:-2]) != matrices or scales.dtype.bits < 8:
        raise InputError(
            f"{model.path}: {printable(scales.name)} has shape {list(scales.shape)}, "
            f"which is not a grid of scales for {printable(codes.name)} {list(codes.shape)}"
        )
    return Blocks(rows, columns, down, across, height, width)


def _block_size(extent: int, count: int, declared: object) -> int:
    """Return the declared size if `count` such blocks cover the extent, else an equal share."""
    if type(declared) is int and declared > 0 and -(-extent // declared) == count:
        return declared
    return -(-extent // max(1, count))
