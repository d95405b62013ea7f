"""Selection by chance that grows with the rank of a magnitude in its row (DELLA's MagPrune).

An element of rank r (0 … L−1, ascending) is kept if u < d − ε + 2ε r/(L−1), that is, if r exceeds
t = (u − d + ε)(L−1)/2ε. So nobody needs ranks: the magnitude of rank ⌈t⌉ in the sorted row is
compared with the element's own. Equal magnitudes share their ranks: half of the draws count the
first of them, half the last, which makes the probability that of the rank in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..method import Block, Granularity, Task
from .order_statistics import Threshold
from .random_masks import Stream, least
from .rank_search import bits, dtype_name, has_numpy, scalar
from .sparsify import KEEP_ALL, KEEP_NONE, Apply, Chance, Mask, Sparsifier

if TYPE_CHECKING:
    from torch import Tensor


def ranked_chance(density: float, epsilon: float) -> Sparsifier:
    """Each element with a probability from density − epsilon to density + epsilon, by rank."""
    if not epsilon >= 0:
        raise ValueError(f"epsilon is {epsilon:g}; it is a spread of probabilities, 0 or more")
    if density >= 1:
        return KEEP_ALL
    if density <= 0:
        return KEEP_NONE
    if not (density - epsilon > 0 and density + epsilon < 1):
        raise ValueError(
            f"density {density:g} with epsilon {epsilon:g} gives probabilities outside (0, 1): "
            f"epsilon must be smaller than {min(density, 1 - density):g}"
        )
    return RankedChance(density, epsilon) if epsilon > 0 else Chance(density)


@dataclass(frozen=True)
class RankedChance(Sparsifier):
    density: float
    epsilon: float
    granularity: Granularity = Granularity.ROW

    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], again: bool) -> Mask:
        stream = Stream.of(task.seed, task.name, model)
        return RankedMask(stream, task.shape, self.density, self.epsilon, again)


def row_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """`(L, S)`: the extent ranked over and that of the axes behind it, for one index of axis 0.

    Ranks are along axis 1, or along the only one. Axes of extent 1 between the first and the next
    larger one are passed over, so that the kernels [C, 1, K] of convolutions have ranks along K.
    """
    inner = list(shape[1:]) or [shape[0] if shape else 1]
    while len(inner) > 1 and inner[0] == 1:
        inner.pop(0)
    return inner[0], math.prod(inner[1:])


REMEMBERED = 1 << 26
"""Elements of the largest tensor whose draws are kept between passes, a bit for each: embeddings
of 32,000 tokens are among them."""


@dataclass
class RankedMask(Mask):
    """Draws for the rows of one model's delta. `again` says that every part is asked for twice."""

    stream: Stream
    shape: tuple[int, ...]
    density: float
    epsilon: float
    again: bool
    _kept: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def on(self, block: Block) -> Apply:
        return self.draw

    def draw(self, part: Block, delta: Tensor, bits: Tensor) -> None:
        """Set what is not kept of a part of whole rows to zero."""
        import torch

        count, scratch = delta.numel(), part.scratch
        known = self._kept.get(part.start)
        if known is None:
            flags = scratch.take("flags", count, "bool")
            self._decide(part, delta, flags)
            if self.again and self._remembers(delta):
                self._kept[part.start] = packed(flags)
        else:
            flags = unpacked(known, count)
        # A product with 0 or 1 as whole numbers: products with bool are ten times slower.
        keep = scratch.take("words", count, "int32").copy_(flags.view(torch.uint8))
        bits.mul_(keep)

    def _remembers(self, delta: Tensor) -> bool:
        few = math.prod(self.shape) <= REMEMBERED
        return few and delta.device.type == "cpu" and has_numpy()

    def _decide(self, part: Block, delta: Tensor, out: Tensor) -> None:
        import torch

        length, behind = row_shape(self.shape)
        words = self.stream.words(part)
        if length == 1:
            torch.ge(words, least(self.density), out=out)
            return
        # For numbers that are not negative the order of the bits is the order of the values.
        work = dtype_name(delta)
        keys = torch.abs(delta, out=part.scratch.take("mask", delta.numel(), work))
        keys, words = _rows(bits(keys), length, behind), _rows(words, length, behind)
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
        """The smallest key with which each element would be kept, given its own word."""
        import torch

        rows, length = keys.shape
        scratch = part.scratch
        dtype = dtype_name(keys)
        ladder = scratch.take("ladder", rows * (length + 1), dtype).view(rows, length + 1)
        ladder[:, 0] = -1
        _sort_rows(keys, ladder[:, 1:])
        # 2t + 3 with u = (2^31 − word)/2^32: its half is the place in the ladder, its last bit
        # tells whether the first or the last of equal magnitudes counts.
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


def _sort_rows(keys: Tensor, out: Tensor) -> None:
    import torch

    if keys.device.type == "cpu" and has_numpy():
        out.copy_(keys).numpy().sort(axis=1)
    else:
        out.copy_(torch.sort(keys, dim=1).values)


def packed(flags: Tensor) -> Tensor:
    """Eight flags to a byte."""
    import numpy
    import torch

    return torch.from_numpy(numpy.packbits(flags.numpy()))


def unpacked(packed: Tensor, count: int) -> Tensor:
    """The reverse of `packed`."""
    import numpy
    import torch

    return torch.from_numpy(numpy.unpackbits(packed.numpy(), count=count)).view(torch.bool)
