"""The name of a parameter in one layout → the tensors of a model that hold it in another. No torch.

Adapters name the modules of a model in memory; files begin names otherwise, split and rename them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count

from ..recipe.key_map import Key, Layout, LayoutRule, match, name_of
from ..tensors.source import TensorSource
from .in_memory import Holders, Part, in_memory
from .known_layouts import known_layouts


class Locator:
    """The tensors of a model, found by the names of other layouts."""

    def __init__(self, tensors: Mapping[str, TensorSource], config: Mapping[str, object]) -> None:
        self.present = frozenset(tensors)
        self.memory = in_memory(tensors, config)
        self.memory_names = sorted(self.memory.names())
        self.names = sorted(self.present.union(self.memory_names))
        self.rules = known_layouts().rules_of(config)

    def holders(self, name: str) -> Iterator[Holders]:
        """Yield the tensors that hold `name`: as the class has it, that of the same name, then
        those of each rule."""
        if name in self.memory.holders:
            yield self.memory.holders[name]
        if name in self.present:
            yield ((name,),)
        for rule, layout, other, (key, place, number) in self._layouts(name):
            numbered = rule.is_numbered(other.names[0])
            if len(other.names) < len(layout.names) or (number is not None and not numbered):
                continue  # part of a tensor
            fused = len(layout.names) < len(other.names)
            places = range(len(other.names)) if fused else (place,)
            experts: list[tuple[str, ...]] = []
            for expert in count() if numbered and number is None else (number or 0,):
                parts = tuple(name_of(other.names[part], key, rule, expert) for part in places)
                if not self.present.issuperset(parts):
                    break
                experts.append(parts)
                if not numbered:
                    break
            if experts:
                yield tuple(experts)

    def parts(self, name: str) -> Iterator[Part]:
        """Yield the parts of single tensors that hold `name`."""
        if name in self.memory.parts:
            yield self.memory.parts[name]
        for rule, layout, other, (key, place, number) in self._layouts(name):
            expert = None if rule.is_numbered(other.names[0]) else number
            fused = len(other.names) < len(layout.names)
            if (fused or expert is not None) and not layout.transposed and not other.transposed:
                size = len(layout.names) if fused else 1
                holder = name_of(other.names[0 if fused else place], key, rule, number or 0)
                if holder in self.present:
                    yield Part(holder, place if fused else 0, size, expert)

    def _layouts(
        self, name: str
    ) -> Iterator[tuple[LayoutRule, Layout, Layout, tuple[Key, int, int | None]]]:
        """Yield the rules that know `name`, its layout, every other layout, and the match."""
        for rule in self.rules:
            plain = [layout for layout in rule.layouts if _is_plain(layout)]
            for layout in plain:
                if hit := match(rule, layout, name, self.names):
                    begin = dict(hit[0]).get("_", "")
                    for other in plain:
                        if other != layout and self._begins(begin + other.sibling):
                            yield rule, layout, other, hit

    def agreed(self, fits: Mapping[str, Callable[[str], bool]]) -> dict[str, str]:
        """Return names as this model begins them, by the given names.

        Names that begin alike (up to a number) are renamed alike, so that each fits; they stay as
        they are if none or not all of them can be found. Raises ValueError for two renamings.
        """
        groups: dict[str, list[str]] = {}
        for name in fits:
            groups.setdefault(re.split(r"(?<=\.)\d+\.", name, maxsplit=1)[0], []).append(name)
        renamed = {name: name for name in fits}
        for begin, names in groups.items():
            for level in self._beginnings(begin):
                good = [
                    new for new in level if all(fits[n](new + n.removeprefix(begin)) for n in names)
                ]
                # Of a name in memory and one in files, the former is meant.
                good = [new for new in good if self._begins(new, self.memory_names)] or good
                if len(good) > 1:
                    listed = " or ".join(f"'{new}…'" for new in good)
                    raise ValueError(f"'{begin}…' could mean {listed}")
                if good:
                    renamed |= {name: good[0] + name.removeprefix(begin) for name in names}
                    break
        return renamed

    def _beginnings(self, begin: str) -> Iterator[list[str]]:
        """Yield what a beginning may be: itself, then with one prefix replaced, then with two."""
        level, seen = [begin], {begin}
        pairs = [x for pair in known_layouts().prefixes for x in (pair, pair[::-1])]
        for _ in range(3):
            # A name without a number is whole, and its end may be called otherwise, too.
            whole = not begin.endswith(".")
            yield [new for new in level if whole or new == begin or self._begins(new)]
            replaced = (
                new + word.removeprefix(old)
                for word in level
                for old, new in pairs
                if word.startswith(old)
            )
            level = [word for word in dict.fromkeys(replaced) if word not in seen]
            seen.update(level)

    def _begins(self, beginning: str, names: Sequence[str] | None = None) -> bool:
        listed = self.names if names is None else names
        place = bisect_left(listed, beginning)
        return place < len(listed) and listed[place].startswith(beginning)


def _is_plain(layout: Layout) -> bool:
    """Whether each part of a tensor lies in one piece."""
    return not layout.interleaved and layout.groups == 1
