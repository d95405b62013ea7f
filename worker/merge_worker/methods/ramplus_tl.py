"""RAM+ with tensor-level factors: unique changes are amplified (arXiv:2601.13572)."""

from ..algorithms.ram import RamRule
from ..algorithms.task_vectors import task_vector_method


@task_vector_method("https://arxiv.org/abs/2601.13572")
def ramplus_tl(*, epsilon: float = 1e-5, r: float = 0.1, alpha: float = 0.2) -> RamRule:
    """Average the changes that several models share, amplify those of one model.

    out = base + mean of the shared changes, or λ_m (x_m − base) where only model m changed
    λ_m = 1 + r · clamp(shared/unique, 0, alpha), from the number of elements that model m changed
          together with others and alone, per tensor

    epsilon: magnitude above which a difference from the base is a change; absolute, as in ram.
    r, alpha: strength and limit of the amplification; the defaults amplify by at most 1.02.

    There are no weights. mergekit stores the result of 16-bit models as float32; here it has the
    dtype of the output.
    """
    return RamRule(epsilon, r, alpha)
