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
def regmean(
    *,
    weight: list[float] = per_model(1.0),
    reduction: float = 0.9,
    ridge: float = 1e-6,
    samples: int = 256,
    length: int = 512,
) -> Average:
    """Linear layers whose outputs are nearest to those of each model on its own texts.

    With `data:` beside each model, a file of texts that it is run on, before the merge:
    Wᵀ = W₀ᵀ + (Σ w_m Ĝ_m)⁻¹ Σ w_m Ĝ_m (W_m − W₀)ᵀ, with W₀ the base, or the mean of the models
    Ĝ_m = XᵀX / tokens of the inputs X of the layer, elements beside the diagonal times reduction

    With `importance:` of kind gram, a file with g_m = diagonal of XᵀX / tokens, one number for each
    input channel (`merge-worker importance --kind gram-diagonal`), which is reduction 0:
    out_ij = base_ij + Σ w_m g_mj (x_mij − base_ij) / Σ w_m g_mj; without a base, Σ w g x / Σ w g

    All other tensors (embeddings, norms, biases, the head) are the mean by the weights.

    weight: w_m, 0 or more.
    reduction: with data; 0.9 in the paper, 0.1 for T5, 0.5 to 0.9 elsewhere. 1 takes XᵀX as it is.
    ridge: with data; added to the diagonal, as a share of its mean, where the sum is nearly
      singular: with reduction 1 and fewer tokens than channels.
    samples, length: with data; the first samples of a file, and the first tokens of each.

    Gram matrices are computed and solved layer by layer and never stored. Queries, keys and values
    share one, gate and up too. It takes transformers, one layer of each model at a time, and for
    the widest layer three matrices of its inputs in float64; more than the merge itself.
    Experts that saw fewer tokens than they have channels are the mean, with a note.

    Edge cases: a channel that is 0 in the data of all models stays as in W₀ (the published formula
    would set it to 0). Equal models are the result exactly.
    """
    if not 0 <= reduction <= 1 or not ridge > 0:
        raise ValueError("regmean: reduction is from 0 to 1, and ridge above 0")
    if samples < 1 or length < 2:
        raise ValueError("regmean: samples must be 1 or more, and length 2 or more")
    return Average(weight, keeps_base=True)
