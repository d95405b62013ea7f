"""Training of routers: AdamW on float32 copies, everything else of the model frozen.

The copies are rounded to the dtype of the files before each step, so the loss is always that of the
weights that would be written. Gradients are clipped to norm 1; the rate rises over the first ten
steps and falls to 0 at the last. Without weight decay: a router of zeros may be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..engine.device import OUT_OF_MEMORY
from ..errors import InputError, ResultError, UsageError
from ..messages import printable
from .balance import balance_term, count_choices, router_inputs
from .mixture import Router
from .pieces import IGNORED, Batch, Data, Order, Piece, collate

WARM_UP = 10
LARGEST_NORM = 1.0
LOGIT_STEP = 0.5
"""How far one step at full rate may move a logit whose inputs are about 1 (see `default_rate`)."""


@dataclass(frozen=True)
class Settings:
    """Options that determine the result, apart from model and data."""

    steps: int
    rate: float
    balance: float
    batch: int
    at_once: int
    length: int
    seed: int
    shared_gate: bool
    dtype: str

    def recorded(self) -> dict[str, Any]:
        """Return the options for the manifest and for comparing runs."""
        return {**vars(self)}


def default_rate(hidden: int) -> float:
    """Return the rate at which one step moves a logit by LOGIT_STEP at most.

    AdamW moves each of the H entries of a row by up to the rate, and normed inputs are about 1.
    """
    return LOGIT_STEP / hidden


@dataclass
class Progress:
    """Where a training stands: steps done, the copies and AdamW's two averages of each router."""

    step: int
    copies: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    loss_before: float = math.nan
    load_before: list[list[int]] = field(default_factory=list)

    @staticmethod
    def begin(routers: Sequence[Router]) -> Progress:
        copies = [router.parameter.detach().float().clone() for router in routers]
        zeros = [torch.zeros_like(copy) for copy in copies]
        return Progress(0, copies, zeros, [zero.clone() for zero in zeros])

    def on(self, routers: Sequence[Router]) -> Progress:
        """Move all tensors to the devices of the routers."""
        for tensors in (self.copies, self.first, self.second):
            pairs = enumerate(zip(tensors, routers, strict=True))
            for place, (tensor, router) in pairs:
                tensors[place] = tensor.to(router.parameter.device)
        return self


class Trainer:
    """Trains the routers of one model; `model` computes logits [B, T, V] as transformers does."""

    def __init__(self, model: Any, routers: list[Router], data: Data, settings: Settings) -> None:
        self.model, self.routers, self.data, self.settings = model, routers, data, settings
        self.scored = [router for router in routers if not router.is_shared_gate]
        self.sigmoid = False
        self.pad = 0
        self.stored = [router.parameter.dtype for router in routers]
        self.device = next(model.parameters()).device
        self._order = Order(data.training, settings.batch, settings.seed)

    def freeze(self) -> None:
        """Let gradients reach the routers alone."""
        self.model.eval()
        self.model.requires_grad_(False)
        for router in self.routers:
            router.parameter.requires_grad_(True)

    def run(self, at: Progress, after_step: Callable[[Progress, float], None]) -> None:
        """Train from where `at` stands to the last step; `after_step` gets each loss.

        Raises UsageError if no gradient reaches a router, ResultError if the loss is not finite.
        """
        for step in range(at.step, self.settings.steps):
            self.round_copies(at)
            loss = self._gradients(self._order.step(step), check=step == 0)
            self._update(at, step)
            at.step = step + 1
            after_step(at, loss)
        self.round_copies(at)

    def round_copies(self, at: Progress) -> None:
        """Put the copies into the model, rounded to the dtypes of the files (`stored`)."""
        with torch.no_grad():
            for router, copy, dtype in zip(self.routers, at.copies, self.stored, strict=True):
                router.parameter.copy_(copy.to(dtype))

    def held_out(self) -> tuple[float, list[list[int]]]:
        """Return the mean loss in nats on the held-out pieces, and choices by router and expert."""
        total, count = 0.0, 0
        load = [[0] * router.experts for router in self.scored]
        with torch.no_grad():
            for pieces in self._parts(self.data.held_out):
                batch = collate(pieces, self.pad, self.device)
                with router_inputs(self.scored) as inputs:
                    total += float(self._loss_sum(batch).double())
                real = batch.mask.bool()
                picked = count_choices(self.scored, inputs, real, self.sigmoid)
                pairs = zip(load, picked, strict=True)
                load = [[a + b for a, b in zip(*pair, strict=True)] for pair in pairs]
                count += sum(piece.predicted for piece in pieces)
        return total / count, load

    def _parts(self, pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
        size = self.settings.at_once
        return [pieces[start : start + size] for start in range(0, len(pieces), size)]

    def _loss_sum(self, batch: Batch) -> Tensor:
        """Return the sum of the losses of all labels, in float32. InputError if the model fails."""
        try:
            result = self.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        except OUT_OF_MEMORY:
            raise UsageError("the device is out of memory\n  lower --at-once or --length") from None
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = printable(str(error).strip().split("\n")[0])
            raise InputError(f"the model cannot run on the data: {reason}") from None
        labels = batch.labels[:, 1:].to(result.logits.device)
        wanted = labels != IGNORED
        logits = result.logits[:, :-1][wanted].float()
        return torch.nn.functional.cross_entropy(logits, labels[wanted], reduction="sum")

    def _gradients(self, pieces: Sequence[Piece], check: bool) -> float:
        """Leave the gradients of one step in the routers; return its loss in nats a token."""
        for router in self.routers:
            router.parameter.grad = None
        predicted = sum(piece.predicted for piece in pieces)
        tokens = sum(len(piece.ids) for piece in pieces)
        total = 0.0
        batches = [collate(part, self.pad, self.device) for part in self._parts(pieces)]
        for batch in batches:
            with router_inputs(self.scored) as inputs:
                loss = self._loss_sum(batch) / predicted
            total += float(loss.detach())
            if not math.isfinite(total):
                raise ResultError("the loss is not finite; the routers are left as they were")
            if not loss.requires_grad:
                raise UsageError("no gradient reaches the routers; this class cannot be trained")
            torch.autograd.backward(loss)
            if check:
                self._refuse_no_gradient()
                check = False
            if self.settings.balance:
                real = batch.mask.bool()
                term = balance_term(self.scored, inputs, real, self.sigmoid)
                weight = self.settings.balance * int(real.sum()) / tokens
                torch.autograd.backward(term * weight)
        return total

    def _refuse_no_gradient(self) -> None:
        grads = [router.parameter.grad for router in self.scored]
        if not any(grad is not None and bool(grad.any()) for grad in grads):
            raise UsageError(
                "no gradient reaches the routers: the weights of the chosen experts do not depend "
                "on them\n  build the model with more experts for each token"
            )

    def _update(self, at: Progress, step: int) -> None:
        """Apply one step of AdamW (without decay) to the copies."""
        grads = [self._gradient(router) for router in self.routers]
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))
        scale = min(1.0, LARGEST_NORM / max(norm, 1e-12))
        left = 1 - step / self.settings.steps
        rate = self.settings.rate * min(1.0, (step + 1) / WARM_UP) * left
        for place, grad in enumerate(grads):
            grad *= scale
            first, second = at.first[place], at.second[place]
            first.mul_(0.9).add_(grad, alpha=0.1)
            second.mul_(0.999).addcmul_(grad, grad, value=0.001)
            hat = second.div(1 - 0.999 ** (step + 1)).sqrt_().add_(1e-8)
            at.copies[place].addcdiv_(first, hat, value=-rate / (1 - 0.9 ** (step + 1)))

    @staticmethod
    def _gradient(router: Router) -> Tensor:
        grad = router.parameter.grad
        if grad is None:
            return torch.zeros_like(router.parameter, dtype=torch.float32)
        return grad.detach().float()
