"""Fisher-weighted averaging: every weight counts by its importance (Matena and Raffel, 2022)."""

from ..algorithms.importance_average import Average, ImportanceAverage
from ..method import BaseRole, merge_method, per_model


@merge_method(
    ImportanceAverage(),
    reference="https://arxiv.org/abs/2111.09832",
    base=BaseRole.OPTIONAL,
    importance="squares",
)
def fisher(
    *,
    weight: list[float] = per_model(1.0),
    normalize: str = "model",
    floor: float = 1e-6,
    power: float = 1.0,
    lambda_: float = 1.0,
    base_weight: float = 1.0,
) -> Average:
    """Average in which every element of a model counts by its importance (Fisher merging).

    W_m = w_m (F_m / N_m + ε)^power
    out = base + lambda · Σ W_m (x_m − base) / Σ W_m; without a base, Σ W_m x_m / Σ W_m

    F_m is the `importance:` of the model: squared gradients, element by element, as
    `merge-worker importance` writes them, or Adam's second moments, which are about as good
    (arXiv:2507.18807).

    weight: w_m, 0 or more.
    normalize: N_m. model: the norm of F_m over all merged tensors, so that no model counts more
      because its gradients are larger; tensor: the norm in each tensor; none: 1.
    floor: ε as a share of the mean of F_m / N_m over the tensor and the models. A floor that is
      not relative is a trap: second moments of large models are 1e-19, and with 1e-8 added every
      merge is a plain mean. A floor that outweighs the importance is reported.
    power: 0.5 weighs as Adam's steps do; 1 is the Fisher information.
    lambda: factor of the merged task vector; takes a base.
    base_weight: weight of the base, if it has importance of its own; it then counts as one more
      model, which holds the result to it.

    Edge cases: a tensor without importance in a model's file counts with 0 for that model (a
    warning names it). Elements of no importance at all, and all of them if a model has no file,
    are the mean by the weights alone. Values of F down to 1e-44 are told apart.
    """
    return Average(weight, power, normalize, floor, lambda_, base_weight)
