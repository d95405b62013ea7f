"""The `config.json` of a model whose layers were picked: fields about single layers follow them.

Found by the names of fields and by their lengths, not by architectures: the number of layers,
lists and strings with an entry per layer, lists of layer numbers, periods and counts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..messages import counted, printable
from .components import is_vision_or_audio
from .layer_fields import (
    HANDLERS,
    INDEX_LIST,
    OVERRULED_BY,
    SUSPECT,
    Handler,
    Inexpressible,
    View,
    index_list,
    per_layer,
    says_each_layer,
)
from .layers import Count, Pick, counts


def restacked_config(
    configs: Sequence[Mapping[str, Any]],
    prefix: str,
    depths: Mapping[int, int],
    picks: Sequence[Pick],
) -> tuple[dict[str, Any], list[str]]:
    """Return the first model's config for layers `picks` of the stack `prefix`, and notes.

    `depths` are the old layer counts by model. Raises UsageError for fields that cannot follow.
    """
    config = copy.deepcopy(dict(configs[0]))
    if not config or list(picks) == [Pick(0, number) for number in range(depths[0])]:
        return config, []
    fields = _fields(config, prefix, depths[0])
    if not fields:
        if len(picks) == depths[0]:
            return config, []
        known = ", ".join(f"{'.'.join(c.path)} {c.value}" for c in counts(config)) or "none"
        raise UsageError(
            f"the config has no field with its {counted(depths[0], 'layers')} ({prefix}*); "
            f"fields with layer counts: {known}"
        )
    path = fields[0].path[:-1]
    models = {0, *(pick.model for pick in picks)}
    sections = {n: _section(configs[n], path) or _section(config, path) for n in models}
    view = View(sections, picks, depths)
    section = _section(config, path)
    notes = _follow(section, view, ".".join(path))
    for count in fields:
        if not count.listed:
            section[count.path[-1]] = len(picks)
    return config, notes


def _follow(section: dict[str, Any], view: View, path: str) -> list[str]:
    """Change every field of `section` about layers. Raises UsageError with all that cannot."""
    changed: dict[str, Any] = {}
    faults, notes = [], []
    for key, value in view.first.items():
        handler = _handler(key, value, view)
        if isinstance(value, dict) and any(map(INDEX_LIST.fullmatch, value)):
            # A section with lists of layer numbers, such as Kimi's linear_attn_config.
            inner = {n: s.get(key, value) for n, s in view.sections.items()}
            notes += _follow(section[key], View(inner, view.picks, view.depths), f"{path}.{key}")
        elif handler is not None:
            try:
                changed |= _changed(handler, view, key)
            except Inexpressible as error:
                if not any(view.first.get(other) for other in OVERRULED_BY.get(key, ())):
                    name = f"{path}.{key}".strip(".")
                    faults.append(f"config.json: {name} cannot follow the layers taken: {error}")
        elif SUSPECT.fullmatch(key) and type(value) is int and value > 1:
            notes.append(f"config.json: {path}{'.' * bool(path)}{key} is kept as it is")
    if faults:
        raise UsageError("\n".join(faults))
    section.update(changed)
    return notes


def _changed(handler: Handler, view: View, key: str) -> dict[str, Any]:
    """Return the fields a handler gives. Raises Inexpressible also for values it cannot read."""
    try:
        return handler(view, key)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
        shown = printable(str(view.first[key]))[:60]
        raise Inexpressible(f"{shown} is not a value that models have there") from None


def _handler(key: str, value: Any, view: View) -> Handler | None:
    """Return the handler of a field, or None if the field does not describe layers."""
    has_entries = isinstance(value, list | str) and len(value) == view.depths[0]
    if key in HANDLERS and value and not isinstance(value, bool):
        if has_entries:
            return per_layer
        if isinstance(value, int | list):
            return HANDLERS[key]
    if isinstance(value, list) and value:
        numbers = all(type(n) is int for n in value)
        if INDEX_LIST.fullmatch(key) and numbers and len(set(value)) == len(value):
            return index_list
        return per_layer if has_entries and says_each_layer(key, len(value)) else None
    return per_layer if isinstance(value, str) and "pattern" in key and has_entries else None


def _fields(config: Mapping[str, Any], prefix: str, depth: int) -> list[Count]:
    """Return the layer counts of the stack, all in one section. Raises UsageError if unclear."""
    words = prefix.lower()
    fields = [count for count in counts(config) if count.value == depth]
    sees = is_vision_or_audio(words)
    fields = [c for c in fields if sees == is_vision_or_audio(".".join(c.path))] or fields
    if config.get("is_encoder_decoder"):
        own, other = ("decoder", "encoder") if "decoder" in words else ("encoder", "decoder")
        both = "num_hidden_layers" if own == "encoder" else own
        named = [c for c in fields if own in c.path[-1] or c.path[-1] == both]
        fields = named or [c for c in fields if other not in c.path[-1]]
    elif not sees:
        fields = [count for count in fields if count.main] or fields
    if len({count.path[:-1] for count in fields}) > 1:
        listed = ", ".join(".".join(count.path) for count in fields)
        raise UsageError(f"config.json: {listed} could all be the layers of {prefix}*")
    return fields


def _section(config: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    section: Any = config
    for key in path:
        section = section.get(key) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else {}
