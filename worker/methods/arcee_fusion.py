"""The elements of another model that differ most where it matters."""

from __future__ import annotations

from ._define import Base, merge_method
from ._fusion import Fusion


@merge_method(
    Fusion(),
    reference="https://www.arcee.ai/blog/"
    "meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
    base=Base.REQUIRED,
    models=(1, 1),
)
def arcee_fusion(lower: float, median: float, upper: float) -> float:
    """out = other where I ≥ Q(½) + 1.5 (Q(¾) - Q(¼)), else base; I = |other - base| · KL.

    KL is the divergence of softmax(other) from softmax(base) along the last axis (each with 1e-8
    added), one number per row; Q(f) is the element of rank floor(f (n-1)) of I in rising order.

    The quartiles are those of all elements, where mergekit draws a random million of a larger
    tensor. The result has the dtype that was asked for, where mergekit writes float32. Where all
    importances are equal, every element is the other model's. A source that stands alone in its
    slice is copied.
    """
    return median + 1.5 * (upper - lower)
