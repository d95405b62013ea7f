"""Average of fine-tuned models, drawn to the base by how much they disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..algorithms.gram import Vectors
from ..algorithms.weighted_sum import Span
from ..method import BaseRole, merge_method

if TYPE_CHECKING:
    from torch import Tensor


def _vectors(values: Mapping[str, Any]) -> Vectors:
    return Vectors.ROWS if values["filter_wise"] else Vectors.WHOLE


@merge_method(
    Span(deltas=True, gram=True, vectors=_vectors),
    reference="https://arxiv.org/abs/2403.19522",
    base=BaseRole.REQUIRED,
    models=(2, None),
)
def model_stock(gram: Tensor, *, filter_wise: bool = False) -> list[Tensor]:
    """out = t · mean(x_1 … x_K) + (1-t) · base with t = K c / (1 + (K-1) c).

    c is the mean cosine between the K differences from the base, K the models without the base.
    `filter_wise` takes each run along the last axis for itself: for an embedding, each token.

    Traps: differences that point apart (c < 0) give t < 0, away from the average. Where the
    divisor vanishes (within 1e-6) the result is the base. Products of two lengths below 1e-6
    count as 1e-6, as in mergekit: two equal differences of length 1e-4 give c = 0.01 and nearly
    the base, which can touch norms and biases of lightly trained models. There are no weights.
    """
    import torch

    k = len(gram)
    length = [gram[i, i].sqrt() for i in range(k)]
    cosines = [
        (gram[i, j] / (length[i] * length[j]).clamp(min=1e-6)).clamp(-1, 1)
        for i in range(k)
        for j in range(i + 1, k)
    ]
    c = torch.stack(cosines).mean(0)
    divisor = 1 + (k - 1) * c
    t = torch.where(divisor.abs() < 1e-6, 0.0, k * c / divisor)
    return [t / k] * k
