"""One group of tensors from one layout into another, by way of the single tensors of the group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..recipe.key_map import Key, Layout, LayoutRule, name_of
from ..tensors.source import TensorSource
from ..tensors.views import concat, interleave, reshape, slice_axis, stack, strided, transpose

Shapes = Sequence[tuple[int, ...]]


def regroup(
    rule: LayoutRule,
    key: Key,
    have: tuple[Layout, Mapping[tuple[int, int], TensorSource]],
    want: tuple[Layout, Shapes | None],
) -> dict[str, TensorSource]:
    """Return the group in the layout that is wanted. Raises ValueError if shapes do not allow it.

    `want` has the shapes of the single tensors, where parts of one tensor are not equally large.
    """
    layout, sources = have
    goal, shapes = want
    places = range(len(layout.names))
    if rule.is_numbered(layout.names[0]):
        numbers = range(1 + max(number for _, number in sources))
        runs = [[sources[place, number] for place in places] for number in numbers]
    else:
        whole = [sources[place, 0] for place in places]
        runs = _unstacked(whole) if rule.stacks else [whole]
    groups = [_fused(_split(run, layout, rule.size, shapes), goal, rule.size) for run in runs]
    result: dict[str, TensorSource] = {}
    for place, template in enumerate(goal.names):
        members = [group[place] for group in groups]
        if rule.stacks and not rule.is_numbered(template):
            name = name_of(template, key, rule)
            members = [stack(members, name)]
        result |= {name_of(template, key, rule, n): member for n, member in enumerate(members)}
    return result


def _unstacked(stacks: Sequence[TensorSource]) -> list[list[TensorSource]]:
    counts = {source.shape[0] if source.shape else 0 for source in stacks}
    if len(counts) > 1 or min(counts) == 0:
        listed = ", ".join(f"{s.name} {list(s.shape)}" for s in stacks)
        raise ValueError(f"{listed}: not stacks of one size")
    return [
        [reshape(slice_axis(s, 0, n, n + 1, s.name), s.shape[1:], s.name) for s in stacks]
        for n in range(counts.pop())
    ]


def _split(
    run: list[TensorSource], layout: Layout, size: int, shapes: Shapes | None
) -> list[TensorSource]:
    """Return the single tensors, upright, of what a layout has split or fused."""
    if len(run) < size:
        run = _parts(run[0], layout, size, shapes)
    return [transpose(part, part.name) for part in run] if layout.transposed else run


def _parts(
    source: TensorSource, layout: Layout, size: int, shapes: Shapes | None
) -> list[TensorSource]:
    axis, rank = layout.axis, len(source.shape)
    if axis >= rank:
        raise ValueError(f"{source.name} is {list(source.shape)}; it has no axis {axis}")
    extent = source.shape[axis]
    if layout.interleaved or shapes is None:
        if extent % size:
            raise ValueError(f"{source.name} is {list(source.shape)}; not {size} equal parts")
        if layout.interleaved:
            return [strided(source, axis, size, place, source.name) for place in range(size)]
        sizes = [extent // size] * size
    else:
        exchanged = {rank - 1: rank - 2, rank - 2: rank - 1} if layout.transposed else {}
        sizes = [shape[exchanged.get(axis, axis)] for shape in shapes]
    if sum(sizes) != extent:
        listed = " + ".join(map(str, sizes))
        raise ValueError(f"{source.name} is {list(source.shape)}, whose parts would be {listed}")
    parts, begin, grouped = [], 0, _grouped(source, axis, layout.groups)
    for taken in sizes:
        share = _share(source, taken, layout.groups)
        part = slice_axis(grouped, axis + (layout.groups > 1), begin, begin + share, source.name)
        shape = (*source.shape[:axis], taken, *source.shape[axis + 1 :])
        parts.append(reshape(part, shape, source.name))
        begin += share
    return parts


def _share(source: TensorSource, extent: int, groups: int) -> int:
    if extent % groups:
        raise ValueError(
            f"{source.name} is {list(source.shape)}; {extent} are not {groups} equal groups"
        )
    return extent // groups


def _grouped(source: TensorSource, axis: int, groups: int) -> TensorSource:
    """Split `axis` in two: the groups, then the elements of each group."""
    if groups == 1:
        return source
    inner = _share(source, source.shape[axis], groups)
    shape = (*source.shape[:axis], groups, inner, *source.shape[axis + 1 :])
    return reshape(source, shape, source.name)


def _fused(singles: list[TensorSource], layout: Layout, size: int) -> list[TensorSource]:
    """Return the single tensors as a layout has them, split or fused."""
    if layout.transposed:
        singles = [transpose(single, single.name) for single in singles]
    if len(layout.names) == size:
        return singles
    name, axis, groups = singles[0].name, layout.axis, layout.groups
    if layout.interleaved:
        return [interleave(singles, axis, name)]
    joined = concat([_grouped(s, axis, groups) for s in singles], axis + (groups > 1), name)
    extent = sum(single.shape[axis] for single in singles)
    shape = (*singles[0].shape[:axis], extent, *singles[0].shape[axis + 1 :])
    return [reshape(joined, shape, name)]
