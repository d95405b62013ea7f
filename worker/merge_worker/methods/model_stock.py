"""Model Stock: the mean of fine-tuned models, pulled to the base (Jang et al., 2024)."""

from collections.abc import Mapping
from typing import Any

from ..algorithms.gram import CANCELS, Lengths, Vectors
from ..algorithms.weighted_sum import LinearCombination
from ..method import BaseRole, Tensor, merge_method


def _vectors(values: Mapping[str, Any]) -> Vectors:
    return Vectors.ROWS if values["filter_wise"] else Vectors.TENSOR


@merge_method(
    LinearCombination(task_vectors=True, gram=True, vectors=_vectors, lengths=True),
    reference="https://arxiv.org/abs/2403.19522",
    base=BaseRole.REQUIRED,
    models=(2, None),
)
def model_stock(
    gram: Tensor, lengths_of: Lengths | None = None, *, filter_wise: bool = False
) -> list[Tensor]:
    """Average of fine-tuned models, pulled to the base the more, the less they agree.

    out = t · mean(x_1 … x_K) + (1−t) · base, with t = K c / (1 + (K−1) c)
    c = mean cosine between the K task vectors x_m − base

    filter_wise: compute c and t for each row (along the last axis) instead of for the tensor; in
      an embedding, for each token.

    There are no weights.

    Edge cases: task vectors that point apart (c < 0) give t < 0, away from the average. If the
    divisor is 0 (within 1e-6) the result is the base. Products of two lengths below 1e-6 count as
    1e-6, as in mergekit: two equal task vectors of length 1e-4 give c = 0.01 and nearly the base,
    which can concern norms and biases of lightly trained models.
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
    if lengths_of and float(divisor.abs()) < CANCELS["float32"]:
        lengths_of.must_be_exact()
    t = torch.where(divisor.abs() < 1e-6, 0.0, k * c / divisor)
    return [t / k] * k
