"""Which layer counts of a config belong to a stack of layers, by the words of both names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import UsageError
from .layers import Count, counts, is_vision_or_audio


def counts_of(config: Mapping[str, Any], prefix: str, depth: int) -> list[Count]:
    """Return the layer counts of the stack, all in one section. Raises UsageError if unclear."""
    fields = _candidates(config, prefix, depth)
    if len({count.path[:-1] for count in fields}) > 1:
        raise _unclear(fields, prefix)
    return fields


def refuse_shared(
    config: Mapping[str, Any], prefix: str, depths: Mapping[str, int], alike: Collection[str]
) -> None:
    """Raise UsageError if the counts of a stack are also those of one that keeps its layers.

    `depths` are those of all stacks of the model, `alike` the stacks of which the same was taken.
    """
    depth, tower = depths[prefix], is_vision_or_audio(prefix)
    if "encoder" in prefix.lower() and not tower:
        # It may be the tower that the config has and no other stack of the model looks like.
        towers = [count for count in counts(config) if is_vision_or_audio(".".join(count.path))]
        found = any(is_vision_or_audio(stack) for stack in depths)
        if nameless := [count for count in towers if count.value == depth and not found]:
            raise _unclear([*_candidates(config, prefix, depth), *nameless], prefix)
    owned = {
        stack: {count.path for count in _candidates(config, stack, depth)}
        for stack, other in depths.items()
        if other == depth and "/" not in stack and is_vision_or_audio(stack) == tower
    }
    if prefix not in owned:  # of a module in a sub-folder
        return
    sharing = [s for s in owned if s != prefix and owned[s] & owned[prefix]]
    if not sharing:
        return
    taken = set().union(*owned.values())
    free = [count for count in _equal(config, prefix, depth) if count.path not in taken]
    if free:
        mine = [count for count in counts(config) if count.path in owned[prefix]]
        raise _unclear([*mine, *free], prefix)
    if kept := [f"{stack}*" for stack in sharing if stack not in alike]:
        field = ".".join(min(owned[prefix] & owned[kept[0][:-1]]))
        raise UsageError(
            f"config.json: {field} counts the layers of {prefix}* and of {', '.join(kept)}\n"
            f"  take the same layers of each, as 'modules:' of their own"
        )


def _equal(config: Mapping[str, Any], prefix: str, depth: int) -> list[Count]:
    """Return the counts with that number; of towers for towers only, as far as there are any."""
    fields = [count for count in counts(config) if count.value == depth]
    tower = is_vision_or_audio(prefix.lower())
    return [c for c in fields if tower == is_vision_or_audio(".".join(c.path))] or fields


def _candidates(config: Mapping[str, Any], prefix: str, depth: int) -> list[Count]:
    words = prefix.lower()
    fields = _equal(config, prefix, depth)
    ranks = [_words_shared(count, words) for count in fields]
    fields = [c for c, rank in zip(fields, ranks, strict=True) if rank == max(ranks)]
    if "encoder" in words or "decoder" in words:
        own, other = ("decoder", "encoder") if "decoder" in words else ("encoder", "decoder")
        fields = [c for c in fields if other not in ".".join(c.path)] or fields
        both = "num_hidden_layers" if own == "encoder" else own
        named = [c for c in fields if own in c.path[-1] or c.path[-1] == both]
        fields = named if any(own in c.path[-1] for c in named) else fields
    if not is_vision_or_audio(words):
        fields = [count for count in fields if count.main] or fields
    return fields


def _words_shared(count: Count, prefix: str) -> int:
    """Return how many of the sections around a count have all their words in the prefix."""
    words = set(re.split(r"[._]", prefix))
    sections = (set(key.removesuffix("_config").split("_")) for key in count.path[:-1])
    return sum(section <= words for section in sections)


def _unclear(fields: Collection[Count], prefix: str) -> UsageError:
    listed = ", ".join(".".join(count.path) for count in fields)
    return UsageError(f"config.json: {listed} could all be the layers of {prefix}*")
