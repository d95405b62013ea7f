"""RegMean: linear layers whose outputs are nearest to those of all models (Jin et al., 2023)."""

from ..algorithms.importance_average import Average, ImportanceAverage
from ..method import BaseRole, merge_method, per_model


@merge_method(
    ImportanceAverage(),
    reference="https://arxiv.org/abs/2212.09849",
    base=BaseRole.OPTIONAL,
    experimental=True,
    importance="gram",
)
def regmean(*, weight: list[float] = per_model(1.0)) -> Average:
    """Average of linear layers in which each input channel counts by the mean square of its input.

    out_ij = base_ij + Σ w_m g_mj (x_mij − base_ij) / Σ w_m g_mj; without a base, Σ w g x / Σ w g

    g_m is the `importance:` of the model, of kind gram: the diagonal of XᵀX / tokens of the inputs
    X of the layer, one number for each input channel, as `merge-worker importance --kind gram`
    writes it. Tensors without it, such as embeddings and norms, are the mean by the weights alone.

    weight: w_m, 0 or more.

    This is RegMean with `reduction: 0`: channels are taken as independent. Whole Gram matrices are
    twice as large as the model; `merge-worker regmean` computes and uses them layer by layer.

    Edge cases: a channel that is 0 in the data of all models stays as in the base (the published
    formula would set it to 0); without a base it is the mean of the models.
    """
    return Average(weight, keeps_base=True)
