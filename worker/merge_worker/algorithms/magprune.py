"""MagPrune (DELLA): random pruning that keeps an element more likely the higher its rank.

An element whose magnitude has rank r in its row of L (0 … L−1, ascending) is kept if a uniform
u < d − ε + 2ε r/(L−1), that is, if r exceeds t = (u − d + ε)(L−1)/2ε. This takes no rank per
element: the magnitude of rank ⌈t⌉ in the sorted row is compared with the element's own. Equal
magnitudes share their ranks: half of the draws use the first of them, half the last, so that
the probability is that of the rank in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..method import Block, Granularity, Task, Tensor
from .order_statistics import Threshold
from .random_masks import RandomStream, keep_bound, stream_bytes
from .rank_search import as_integers, dtype_name, has_numpy, scalar
from .sparsify import KEEP_ALL, KEEP_NONE, Mask, RandomDrop, Sparsifier

FINEST = 2.0**-32
"""Step between the probabilities that random words distinguish."""


def magprune(density: float, epsilon: float) -> Sparsifier:
    """Keep each element with probability density − epsilon … density + epsilon, by its rank."""
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be 0 or more (a spread of probabilities), got {epsilon:g}")
    if density >= 1:
        return KEEP_ALL
    if density <= 0:
        return KEEP_NONE
    if not (density - epsilon > 0 and density + epsilon < 1):
        raise ValueError(
            f"density {density:g} with epsilon {epsilon:g} gives probabilities outside (0, 1): "
            f"epsilon must be smaller than {min(density, 1 - density):g}"
        )
    return MagPrune(density, epsilon) if epsilon >= FINEST else RandomDrop(density)


@dataclass(frozen=True)
class MagPrune(Sparsifier):
    """The sparsifier of `magprune`; it needs whole rows."""

    density: float
    epsilon: float
    granularity: Granularity = Granularity.ROW

    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], twice: bool) -> Mask:
        stream = RandomStream.of(task.seed, task.name, model)
        kept = twice and _is_remembered(task)
        return MagPruneMask(stream, task.shape, self.density, self.epsilon, kept)

    def mask_bytes(self, task: Task, block: int, twice: bool) -> int:
        count = math.prod(task.shape)
        kept = count // 8 if twice and _is_remembered(task) else 0
        copied = 13 * block // task.models if row_shape(task.shape)[1] > 1 else 0
        return stream_bytes(count) + kept + copied


def _is_remembered(task: Task) -> bool:
    return math.prod(task.shape) * task.models <= REMEMBERED


def row_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return `(L, S)`: the extent of the ranked axis, and the product of the axes behind it.

    Ranks are along axis 1, or along the only axis. Axes of extent 1 between the first axis and the
    next larger one are skipped, so that the kernels [C, 1, K] of convolutions have ranks along K.
    """
    inner = list(shape[1:]) or [shape[0] if shape else 1]
    while len(inner) > 1 and inner[0] == 1:
        inner.pop(0)
    return inner[0], math.prod(inner[1:])


REMEMBERED = 1 << 28
"""Elements of the largest tensor, over all models, whose masks are kept between passes, at one bit
each; embeddings of 32,000 tokens fit for four models."""


@dataclass
class MagPruneMask(Mask):
    """The mask of one model's task vector; with `twice`, masks are kept for the second pass."""

    stream: RandomStream
    shape: tuple[int, ...]
    density: float
    epsilon: float
    twice: bool
    _packed: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def apply(self, part: Block, vector: Tensor, bits: Tensor) -> None:
        """Set the dropped elements of a part of whole rows to zero."""
        import torch

        count, scratch = vector.numel(), part.scratch
        packed = self._packed.get(part.start)
        if packed is None:
            flags = scratch.take("flags", count, "bool")
            self._draw(part, vector, flags)
            if self.twice and vector.device.type == "cpu" and has_numpy():
                self._packed[part.start] = pack_flags(flags)
        else:
            flags = unpack_flags(packed, count)
        # A product with integers 0 and 1: products with bool are ten times slower.
        bits.mul_(scratch.take("words", count, "int32").copy_(flags.view(torch.uint8)))

    def _draw(self, part: Block, vector: Tensor, out: Tensor) -> None:
        import torch

        length, behind = row_shape(self.shape)
        words = self.stream.words(part)
        if length == 1:
            torch.ge(words, keep_bound(self.density), out=out)
            return
        # For non-negative floats the order of the bits is the order of the values.
        work = dtype_name(vector.dtype)
        sizes = torch.abs(vector, out=part.scratch.take("mask", vector.numel(), work))
        keys, words = _rows(as_integers(sizes), length, behind), _rows(words, length, behind)
        bounds = self._bounds(part, keys, words)
        if behind > 1:
            kept = torch.ge(keys, bounds).view(-1, behind, length)
            out.view(-1, length, behind).copy_(kept.transpose(1, 2))
        elif keys.device.type == "cpu" and has_numpy():
            import numpy

            numpy.greater_equal(keys.numpy(), bounds.numpy(), out=out.view(-1, length).numpy())
        else:
            torch.ge(keys, bounds, out=out.view(-1, length))

    def _bounds(self, part: Block, keys: Tensor, words: Tensor) -> Tensor:
        """Return the smallest key with which each element is kept, given its random word."""
        import torch

        rows, length = keys.shape
        scratch = part.scratch
        dtype = dtype_name(keys.dtype)
        ladder = scratch.take("ladder", rows * (length + 1), dtype).view(rows, length + 1)
        ladder[:, 0] = -1
        if keys.device.type == "cpu" and has_numpy():
            ladder[:, 1:].copy_(keys).numpy().sort(axis=1)
        else:
            ladder[:, 1:].copy_(torch.sort(keys, dim=1).values)
        # 2t + 3 with u = (2^31 − word)/2^32: its half is the index in the ladder, its last bit
        # chooses whether the first or the last of equal magnitudes counts.
        steps = (length - 1) / self.epsilon
        lowest = torch.tensor((0.5 - self.density + self.epsilon) * steps + 3.0).to(words.device)
        draw = scratch.take("uniform", words.numel(), "float32").view(rows, length).copy_(words)
        torch.add(lowest, draw, alpha=-steps * 2.0**-32, out=draw).clamp_(1, 2 * length + 1)
        place = words.copy_(draw)
        odd = scratch.take("odd", words.numel(), "int32").view(rows, length)
        torch.bitwise_and(place, scalar(1, "int32"), out=odd)
        place.bitwise_right_shift_(scalar(1, "int32"))
        first = torch.arange(rows, dtype=torch.int32, device=place.device) * (length + 1)
        place.add_(first[:, None])
        bounds = scratch.take("bounds", words.numel(), dtype)
        torch.index_select(ladder.view(-1), 0, place.view(-1), out=bounds)
        return bounds.view(rows, length).add_(odd)


def _rows(values: Tensor, length: int, behind: int) -> Tensor:
    if behind == 1:
        return values.view(-1, length)
    return values.view(-1, length, behind).transpose(1, 2).reshape(-1, length).contiguous()


def pack_flags(flags: Tensor) -> Tensor:
    """Pack eight flags into a byte."""
    import numpy
    import torch

    return torch.from_numpy(numpy.packbits(flags.numpy()))


def unpack_flags(packed: Tensor, count: int) -> Tensor:
    """Return the first `count` flags of the bytes that pack_flags made."""
    import numpy
    import torch

    return torch.from_numpy(numpy.unpackbits(packed.numpy(), count=count)).view(torch.bool)
