"""The part of each model that a mixture of experts uses, and how far the rest is from the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.reader import sampled_difference
from ..dtypes import Kind
from ..messages import counted, printable
from ..structure.dense_mlp import DenseLayers
from ..tensors.source import StoredTensor, TensorSource


@dataclass(frozen=True)
class ExpertUse:
    """An expert as the plan knows it: its label, how many parameters it has, how many are used.

    `attention`: how far the rest of its layers, which is left out, is from the base's, relative to
    their norm; None if they have another form, or cannot be read here.
    """

    label: str
    parameters: int
    used: int
    prompts: int
    negative: int
    residual_scale: float
    noise_scale: float
    attention: float | None = None
    shared: bool = False
    is_base: bool = False

    @property
    def share(self) -> str:
        """Return the part of the model that is used, in percent."""
        return percent(self.used / max(1, self.parameters))

    def as_json(self) -> dict[str, Any]:
        """Return the facts for programs."""
        return {
            "model": self.label,
            "role": "shared" if self.shared else "expert",
            "parameters": self.parameters,
            "used_parameters": self.used,
            "attention_difference": None if self.attention is None else round(self.attention, 4),
            "prompts": self.prompts,
            "negative_prompts": self.negative,
            "residual_scale": self.residual_scale,
            "noise_scale": self.noise_scale,
        }


def attention_difference(base: DenseLayers, other: DenseLayers) -> float | None:
    """Return how far the matrices of the layers beside the MLP are from the base's, in samples.

    Relative to the base's norm; None if no two can be compared.
    """
    depth = base.stack.depth
    difference, norm = 0.0, 0.0
    for number in dict.fromkeys((0, depth // 3, 2 * depth // 3, depth - 1)):
        for rest, source in base.stack.layers[number].items():
            peer = other.stack.layers[number].get(rest)
            matrix = len(source.shape) == 2 and rest not in base.mlps[number].rests
            if not matrix or not isinstance(source, StoredTensor):
                continue
            if not isinstance(peer, StoredTensor):  # of another form, or changed by an adapter
                return None
            sums = sampled_difference(source, peer)
            if sums is None:
                return None
            difference, norm = difference + sums[0], norm + sums[1]
    return math.sqrt(difference / norm) if norm > 0 and math.isfinite(difference) else None


def left_out(uses: Sequence[ExpertUse], base: str) -> Iterator[str]:
    """Yield a note on experts whose attention is not the base's, and so is lost."""
    differing = {use.label: use for use in uses if use.attention is None or use.attention > 0}
    if differing:
        first = next(iter(differing.values()))
        by = f" by {percent(first.attention)}" if first.attention is not None else ""
        yield (
            f"of {counted(len(differing), 'experts')} only the MLPs are used ({first.share} of the "
            f"parameters of {printable(first.label)}): the attention, which differs from that of "
            f"{printable(base)}{by}, is left out"
        )


def percent(share: float) -> str:
    """Return a share in percent, with two digits below 10 %."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def parameters(sources: Iterable[TensorSource]) -> int:
    """Return the number of floating-point numbers in tensors."""
    return sum(source.count for source in sources if source.dtype.kind is Kind.FLOAT)
