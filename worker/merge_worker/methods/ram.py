"""RAM: average shared changes, keep those of one model whole (arXiv:2601.13572)."""

from ..algorithms.ram import RamRule
from ..algorithms.task_vectors import task_vector_method


@task_vector_method("https://arxiv.org/abs/2601.13572")
def ram(*, epsilon: float = 1e-5) -> RamRule:
    """Average the changes that several models share, keep those of one model whole.

    out = base + mean of the x_m − base that exceed epsilon in magnitude

    epsilon: absolute; 1e-5 suits weights of usual size. Small weights, or float32 fine-tunes with
      tiny steps, need a smaller one.

    There are no weights: an element that only one model changed gets that change undiluted.
    """
    return RamRule(epsilon)
