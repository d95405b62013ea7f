"""Selection by chance that grows with the rank of a magnitude in its row (DELLA's MagPrune).

An element of rank r (0 … L−1, ascending) is kept if u < d − ε + 2ε r/(L−1), that is, if r exceeds
t = (u − d + ε)(L−1)/2ε. So nobody needs ranks: the magnitude of rank ⌈t⌉ in the sorted row is
compared with the element's own. Equal magnitudes share their ranks: half of the draws count the
first of them, half the last, which makes the probability that of the rank in the middle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._define import Block, Task
from ._random import Stream, above
from ._select import base_of, delta_of

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 1 << 15
"""Elements of as many whole rows as stay in a core's own cache with eight buffers of scratch."""


def row_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """`(L, S)`: the extent ranked over and that of the axes behind it, for one index of axis 0.

    Ranks are along axis 1, or along the only one. Axes of extent 1 between the first and the next
    larger one are passed over, so that the kernels [C, 1, K] of convolutions have ranks along K.
    """
    inner = list(shape[1:]) or [shape[0] if shape else 1]
    while len(inner) > 1 and inner[0] == 1:
        inner.pop(0)
    behind = 1
    for extent in inner[1:]:
        behind *= extent
    return inner[0], behind


def ranked_mask(block: Block, task: Task, model: int, density: float, epsilon: float) -> Tensor:
    """Of every element of a block of whole rows whether it is kept; flat, in scratch."""
    import torch

    rows, row = block.tensors[0].shape
    keep = block.scratch.take(f"keep{model}", rows * row, "bool")
    stream = Stream.of(task.seed, task.name, model)
    step = max(1, ROWS // row) if keep.device.type == "cpu" else rows
    for first in range(0, rows, step):
        here = [values[first : first + step] for values in block.tensors]
        part = Block(here, block.start + first * row, block.scratch)
        # y{model} is filled again by the pass that asks for the mask.
        size = delta_of(part, model, base_of(part, task.work), f"y{model}").abs_()
        draw = stream.fill(part, block.scratch.take("uniform", size.numel(), "float32"))
        out = keep[first * row : first * row + size.numel()]
        shape = row_shape(task.shape)
        if shape[0] == 1:
            torch.gt(draw, above(density), out=out)
        else:
            _draw_rows(part, size, draw, out, shape, (density, epsilon))
    return keep


def _draw_rows(
    part: Block,
    size: Tensor,
    draw: Tensor,
    out: Tensor,
    shape: tuple[int, int],
    chances: tuple[float, float],
) -> None:
    import torch

    length, behind = shape
    # For numbers that are not negative the order of the bits is the order of the values.
    keys = size.view(torch.int32 if size.dtype == torch.float32 else torch.int64)
    keys, draw = _rows(keys, length, behind), _rows(draw, length, behind)
    bounds = _bounds(part, keys, draw, *chances)
    if behind == 1:
        torch.ge(keys, bounds, out=out.view(-1, length))
    else:
        kept = torch.ge(keys, bounds).view(-1, behind, length)
        out.view(-1, length, behind).copy_(kept.transpose(1, 2))


def _rows(values: Tensor, length: int, behind: int) -> Tensor:
    if behind == 1:
        return values.view(-1, length)
    return values.view(-1, length, behind).transpose(1, 2).reshape(-1, length)


def _bounds(block: Block, keys: Tensor, draw: Tensor, density: float, epsilon: float) -> Tensor:
    """The smallest key with which each element would be kept, given its own draw."""
    import torch

    rows, length = keys.shape
    scratch = block.scratch
    dtype = str(keys.dtype).removeprefix("torch.")
    ladder = scratch.take("ladder", rows * (length + 1), dtype).view(rows, length + 1)
    ladder[:, 0] = -1
    _sort_rows(keys, ladder[:, 1:])
    # 2t + 3 with u = (2^31 − draw)/2^32: its half is the place in the ladder, its last bit tells
    # whether the first or the last of equal magnitudes counts.
    steps = (length - 1) / epsilon
    draw.mul_(-steps * 2.0**-32).add_((0.5 - density + epsilon) * steps + 3.0)
    draw.clamp_(1, 2 * length + 1)
    place = scratch.take("words", draw.numel(), "int32").view(rows, length).copy_(draw)
    odd = scratch.take("odd", draw.numel(), "int32").view(rows, length)
    torch.bitwise_and(place, 1, out=odd)
    place.bitwise_right_shift_(1)
    first = torch.arange(rows, dtype=torch.int32, device=place.device) * (length + 1)
    place.add_(first[:, None])
    bounds = scratch.take("bounds", draw.numel(), dtype)
    torch.index_select(ladder.view(-1), 0, place.view(-1), out=bounds)
    return bounds.view(rows, length).add_(odd)


def _sort_rows(keys: Tensor, out: Tensor) -> None:
    """Both ways give the same; numpy is twenty times faster but may be absent."""
    import torch

    if keys.device.type == "cpu":
        try:
            import numpy  # noqa: F401
        except ImportError:
            pass
        else:
            out.copy_(keys).numpy().sort(axis=1)
            return
    out.copy_(torch.sort(keys, dim=1).values)
