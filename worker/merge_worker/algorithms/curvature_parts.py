"""Parameters of OTA merging, and the norms by which it restores what masking took away."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..method import Tensor

MERGES = ("precond", "linear", "ties")
METRICS = ("fisher", "magnitude")
ITERATIONS = 10

_VOCABULARY = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|lm_head|embed_out)\."
)


@dataclass(frozen=True)
class Curvature:
    """The parameters of `ota`, one value per model where they are sequences."""

    epsilon: float
    power: float
    normalise: str
    precond_threshold: Sequence[float]
    scaling_factor: Sequence[float]
    rank1_approx: Sequence[bool]
    rank: Sequence[int]
    density: Sequence[float]
    metric: str
    merges: str
    ties_density: float
    fallback_to_base: bool
    rescale: bool
    approximate_norm: bool
    rescale_relative_threshold: float

    def __post_init__(self) -> None:
        if self.normalise not in ("none", "global"):
            raise ValueError(f"normalise must be global or none, got '{self.normalise}'")
        if self.merges not in MERGES:
            raise ValueError(
                f"masked_task_vector_merge_method must be one of {', '.join(MERGES)}, "
                f"got '{self.merges}'"
            )
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got '{self.metric}'")
        if not self.power > 0:
            raise ValueError(f"power must be above 0, got {self.power:g}")
        for name, values in (
            ("epsilon", [self.epsilon]),
            ("precond_threshold", self.precond_threshold),
            ("scaling_factor", self.scaling_factor),
            ("rank", self.rank),
            ("rescale_relative_threshold", [self.rescale_relative_threshold]),
        ):
            if any(value < 0 for value in values):
                raise ValueError(f"{name} must be 0 or more, got {min(values):g}")
        for name, values in (("density", self.density), ("ties_density", [self.ties_density])):
            if not all(0 <= value <= 1 for value in values):
                raise ValueError(f"{name} must be between 0 and 1, got {min(values):g}")

    @property
    def normalizes(self) -> bool:
        return self.normalise == "global"

    @property
    def trims(self) -> bool:
        """Whether only the largest elements of the masked task vectors are merged."""
        return self.merges == "ties" and self.ties_density < 1

    def refuse_without_base(self) -> None:
        """Raise ValueError for what takes task vectors."""
        for asked, what in (
            (self.merges != "precond", f"masked_task_vector_merge_method: {self.merges}"),
            (self.rescale, "rescale"),
            (self.metric == "magnitude" and min(self.density) < 1, "metric: magnitude"),
        ):
            if asked:
                raise ValueError(f"{what} needs task vectors; add base_model")


def is_vocabulary(name: str) -> bool:
    """Return whether a tensor is an embedding of tokens or a head, by its name."""
    return _VOCABULARY.search(name) is not None


def norms_of(values: Tensor, name: str, approximate: bool) -> Tensor:
    """Return the norm of each matrix of a tensor, up to a factor that depends on its shape.

    The spectral norm of matrices, the largest length of a column of embeddings and heads, the
    length of anything else. `approximate` takes ITERATIONS power iterations.
    """
    import torch

    norm: Tensor
    if values.dim() == 2 and is_vocabulary(name):
        norm = torch.linalg.vector_norm(values, dim=0).max().reshape(1)
        return norm
    if values.dim() not in (2, 3) or not values.numel():
        norm = torch.linalg.vector_norm(values).reshape(1)
        return norm
    stacked = values.reshape(-1, *values.shape[-2:])
    if not approximate:
        if not bool(stacked.isfinite().all()):
            return stacked.new_full((len(stacked),), float("nan"))
        norm = torch.linalg.matrix_norm(stacked, ord=2)
        return norm
    # From the mean of the rows' directions: a fixed start, which no seed can change.
    vector = stacked.abs().sum(1).unsqueeze(-1)
    for _ in range(ITERATIONS):
        vector = stacked.mT @ (stacked @ _unit(vector))
    norm = torch.linalg.vector_norm(stacked @ _unit(vector), dim=(1, 2))
    return norm


def _unit(vector: Tensor) -> Tensor:
    import torch

    length = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    return vector / torch.where(length > 0, length, torch.ones_like(length))
