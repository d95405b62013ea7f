"""One group of tensors from one form into another, by way of the single tensors of the group."""

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
    """The group in the form that is wanted. ValueError where shapes do not allow it.

    `want` has the shapes of the single tensors, where parts of one tensor are not equally large.
    """
    form, sources = have
    goal, shapes = want
    held = f"{{{rule.stacked}}}"
    singles: list[list[TensorSource]] = []  # by number in the stack, then by place in the group
    numbered = rule.stacks and held in form.names[0]
    if numbered:
        numbers = range(1 + max(number for _, number in sources))
        runs = [[sources[p, n] for p in range(len(form.names))] for n in numbers]
    else:
        whole = [sources[place, 0] for place in range(len(form.names))]
        runs = list(_unstacked(whole)) if rule.stacks else [whole]
    for run in runs:
        singles.append(_apart(run, form, rule.size, shapes if not rule.stacks else None))
    made = [_together(single, goal, rule.size) for single in singles]
    found: dict[str, TensorSource] = {}
    for place, template in enumerate(goal.names):
        if rule.stacks and held not in template:
            name = name_of(template, key, rule)
            found[name] = stack([each[place] for each in made], name)
        else:
            for number, each in enumerate(made):
                found[name_of(template, key, rule, number)] = each[place]
    return found


def _unstacked(whole: Sequence[TensorSource]) -> list[list[TensorSource]]:
    counts = {source.shape[0] if source.shape else 0 for source in whole}
    if len(counts) > 1 or min(counts) == 0:
        listed = ", ".join(f"{s.name} {list(s.shape)}" for s in whole)
        raise ValueError(f"{listed}: not stacks of one size")
    return [[_row(source, number) for source in whole] for number in range(counts.pop())]


def _row(source: TensorSource, number: int) -> TensorSource:
    part = slice_axis(source, 0, number, number + 1, source.name)
    return reshape(part, part.shape[1:], source.name)


def _apart(
    run: list[TensorSource], form: Layout, size: int, shapes: Shapes | None
) -> list[TensorSource]:
    """The single tensors, upright, of what a form has in one (or apart)."""
    if len(run) < size:
        run = _cut(run[0], form, size, shapes)
    return [transpose(part, part.name) for part in run] if form.transposed else run


def _cut(
    source: TensorSource, form: Layout, size: int, shapes: Shapes | None
) -> list[TensorSource]:
    axis = form.axis
    if axis >= len(source.shape):
        raise ValueError(f"{source.name} is {list(source.shape)}; it has no axis {axis}")
    extent = source.shape[axis]
    if form.interleaved or shapes is None:
        if extent % size:
            raise ValueError(f"{source.name} is {list(source.shape)}; not {size} equal parts")
        if form.interleaved:
            return [strided(source, axis, size, place, source.name) for place in range(size)]
        sizes = [extent // size] * size
    else:
        rank = len(source.shape)
        upright = {rank - 1: rank - 2, rank - 2: rank - 1}.get(axis, axis)
        sizes = [shape[upright if form.transposed else axis] for shape in shapes]
    if sum(sizes) != extent:
        listed = " + ".join(map(str, sizes))
        raise ValueError(f"{source.name} is {list(source.shape)}, whose parts would be {listed}")
    parts, begin, grouped = [], 0, _grouped(source, axis, form.groups)
    at = axis + (form.groups > 1)
    for taken in sizes:
        share = _share(source, taken, form.groups)
        part = slice_axis(grouped, at, begin, begin + share, source.name)
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


def _together(singles: list[TensorSource], form: Layout, size: int) -> list[TensorSource]:
    """The single tensors as the form has them."""
    if form.transposed:
        singles = [transpose(single, single.name) for single in singles]
    if len(form.names) == size:
        return singles
    name, axis = singles[0].name, form.axis
    if form.interleaved:
        return [interleave(singles, axis, name)]
    joined = concat(
        [_grouped(s, axis, form.groups) for s in singles], axis + (form.groups > 1), name
    )
    extent = sum(single.shape[axis] for single in singles)
    shape = (*singles[0].shape[:axis], extent, *singles[0].shape[axis + 1 :])
    return [reshape(joined, shape, name)]
