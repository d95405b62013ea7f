"""How evenly tokens reach the experts: a term of the loss, and shares for the record.

Each router is judged alone, with N · Σ_e f_e P_e over its N experts: f_e is the share of the
choices that fall on e, P_e the mean of its scores, scaled to add up to 1 for each token. The term
is 1 where all experts get as much, and N where one gets all (Fedus et al., Switch Transformers,
arXiv 2101.03961, equation 4, for any k).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .mixture import Router, chosen, scores


@contextmanager
def router_inputs(routers: Sequence[Router]) -> Iterator[dict[str, Tensor]]:
    """Collect the input of each router, by its name, in forward passes within the block.

    Inputs are detached: the term of a router pulls at that router alone.
    """
    inputs: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(module: object, arguments: tuple[Tensor, ...]) -> None:
            inputs[name] = arguments[0].detach()

        return keep

    handles = [r.module.register_forward_pre_hook(hook(r.name)) for r in routers]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def balance_term(
    routers: Sequence[Router], inputs: dict[str, Tensor], real: Tensor, sigmoid: bool
) -> Tensor:
    """Return the mean term of the routers, of the tokens that `real` [B, T] marks."""
    terms = []
    for router in routers:
        values = scores(router, _rows(inputs[router.name], real), sigmoid)
        share = (values / values.sum(-1, keepdim=True)).mean(0)
        count = torch.bincount(chosen(router, values).reshape(-1), minlength=router.experts)
        terms.append(router.experts * (share * count / count.sum()).sum())
    return torch.stack([term.to(terms[0].device) for term in terms]).mean()


def count_choices(
    routers: Sequence[Router], inputs: dict[str, Tensor], real: Tensor, sigmoid: bool
) -> list[list[int]]:
    """Return for each router how many choices fall on each expert."""
    counts = []
    for router in routers:
        values = scores(router, _rows(inputs[router.name], real), sigmoid)
        picked = chosen(router, values).reshape(-1)
        counts.append([int(n) for n in torch.bincount(picked, minlength=router.experts)])
    return counts


def _rows(x: Tensor, real: Tensor) -> Tensor:
    """Return the rows of real tokens [T, H] of an input of any leading shape."""
    return x.reshape(-1, x.shape[-1])[real.reshape(-1).to(x.device)]
