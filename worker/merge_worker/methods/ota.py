"""OTA merging: task vectors weighted and masked by second moments of gradients (2025)."""

from ..algorithms.curvature import OtaAlgorithm
from ..algorithms.curvature_parts import Curvature
from ..method import BaseRole, merge_method, per_model


@merge_method(
    OtaAlgorithm(),
    reference="https://arxiv.org/abs/2509.11167",
    base=BaseRole.OPTIONAL,
    experimental=True,
    importance="squares",
)
def ota(
    *,
    epsilon: float = 1e-8,
    power: float = 0.5,
    normalise: str = "none",
    density: list[float] = per_model(1.0),
    metric: str = "fisher",
    precond_threshold: list[float] = per_model(0.0),
    scaling_factor: list[float] = per_model(1.0),
    rank1_approx: list[bool] = per_model(False),
    rank: list[int] = per_model(0),
    fallback_to_base: bool = False,
    rescale: bool = False,
    approximate_norm: bool = False,
    rescale_relative_threshold: float = 1e-6,
    masked_task_vector_merge_method: str = "precond",
    ties_density: float = 1.0,
) -> Curvature:
    """Task vectors, masked and weighted by Adam's second moments of the gradients (OTA).

    δ_m = x_m − base, where kept; W_m = (v_m^power · scaling_factor_m / N_m + epsilon), where kept
    out = base + Σ W_m δ_m / Σ W_m; without a base, Σ W_m x_m / Σ W_m

    v_m is the `importance:` of the model (`preconditioner_path` in recipes of ota-merge, which are
    read unchanged): second moments of Adam, or squared gradients of another origin.

    density: fraction of each tensor to keep, by v_m δ_m² (v_m without a base): the int(density · n)
      largest, of equal ones the first. Thresholds that ota-merge takes differ from model to model
      by orders of magnitude; this does not.
    metric: fisher, or magnitude: keep by |δ_m|.
    precond_threshold: keep where v_m δ_m² is at least so large (v_m without a base); 0 keeps all.
    epsilon: added to the weights, absolute. The default is that of ota-merge, and larger than the
      square roots of second moments of large models: it leaves nearly a plain mean, which is
      reported. 1e-24 is a better value.
    power: 0.5 weighs as Adam's steps do; above 0.
    normalise: global divides the weights by N_m, their mean over the tensor (plus epsilon).
    scaling_factor: s_m, factor of the weights of a model.
    rank1_approx: replace v_m of matrices by (sum of row)(sum of column)/(sum of all).
    rank: replace v_m of matrices that are no embeddings by a truncated SVD, 0 where it is negative.
    masked_task_vector_merge_method: precond, as above; linear: the mean of all δ_m; ties: of the
      int(ties_density · n) largest of each δ_m, those with the sign of the sum (+ at 0), divided
      by the number of models.
    fallback_to_base: elements that no model keeps (Σ W_m ≤ 1.1 K epsilon) are those of the base;
      false gives the mean of the K models there.
    rescale: scale each δ_m so that masking does not shorten it: by the spectral norm of matrices,
      the longest column of embeddings and heads, the length of vectors. approximate_norm takes
      ten power iterations; what is shorter than rescale_relative_threshold times the whole is 0.

    Edge cases: a tensor without second moments in a model's file has v = 0 there (a warning names
      it). In ota-merge, `linear` and `ties` merge what the mask should drop unless `rescale` is
      set; here the mask holds.
    """
    return Curvature(
        epsilon,
        power,
        normalise,
        precond_threshold,
        scaling_factor,
        rank1_approx,
        rank,
        density,
        metric,
        masked_task_vector_merge_method,
        ties_density,
        fallback_to_base,
        rescale,
        approximate_norm,
        rescale_relative_threshold,
    )
