"""NearSwap: the other model where it is close to the base (alchemonaut)."""

from ..algorithms.elementwise import ELEMENTWISE
from ..method import BaseRole, Tensor, merge_method


@merge_method(
    ELEMENTWISE,
    reference="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    base=BaseRole.REQUIRED,
    models=(1, 1),
)
def nearswap(other: Tensor, base: Tensor, weight: Tensor, *, t: float) -> Tensor:
    """Take the other model where it is close to the base, else move the base a step towards it.

    out = w · other + (1−w) · base, with w = min(1, t / |other − base|) for each element

    t: the step, absolute; 1e-4 is usual. Elements that differ by up to t become those of the
      other model, the rest move by t towards it. A negative t gives w = 0.

    Differences below 1e-6 count as 1e-6. A source that is alone in its slice is copied.
    """
    import torch

    torch.sub(other, base, out=weight)
    weight.abs_().clamp_(min=1e-6).reciprocal_().mul_(t).clamp_(0, 1)
    return torch.lerp(base, other, weight, out=weight)
