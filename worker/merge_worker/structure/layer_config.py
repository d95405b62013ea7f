"""The `config.json` of a model whose layers were picked: fields about single layers follow them.

Found by the names of fields and by their lengths: the number of layers, lists and strings with an
entry per layer, lists of layer numbers, periods and counts. Fields that the model class computes
are written out where it would compute other values for the layers taken.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import UsageError
from ..messages import counted, first_names, printable
from .implied_fields import computed_from, forced_last, implied_fields, unknown_fields
from .layer_counts import counts_of, refuse_shared
from .layer_fields import (
    ANY_VALUE,
    ELSEWHERE,
    HANDLERS,
    INDEX_LIST,
    OVERRULED_BY,
    SUSPECT,
    Handler,
    Inexpressible,
    View,
    index_list,
    keep_phase,
    per_layer,
    says_each_layer,
)
from .layers import FIELDS, Count, Pick, Restacked, counts, depths, is_vision_or_audio

Parts = Mapping[int, frozenset[str]]
"""The names of the tensors of each layer."""


def layers_followed(
    configs: Sequence[Mapping[str, Any]], restacked: Sequence[Restacked], names: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the first model's config after all changes of its layers, and notes on that.

    `names` are those of its tensors. Raises UsageError where no config describes the layers.
    """
    config, notes = copy.deepcopy(dict(configs[0])), list[str]()
    changed = [change for change in restacked if config and not change.same]
    complete = _complete(config)
    stacks = depths(names) if changed else {}
    stacks |= {change.prefix: change.depths[0] for change in changed}
    followed: list[tuple[list[Count], tuple[Pick, ...]]] = []
    for change in changed:
        alike = [other.prefix for other in changed if other.picks == change.picks]
        refuse_shared(complete, change.prefix, stacks, alike)
        counted_by = counts_of(complete, change.prefix, change.depths[0])
        if (counted_by, change.picks) in followed:
            continue
        followed.append((counted_by, change.picks))
        config, new_notes = restacked_config(
            [config, *configs[1:]],
            change.prefix,
            change.depths,
            change.picks,
            {number: stack.parts() for number, stack in change.stacks.items()},
        )
        notes += new_notes
    return config, notes


def restacked_config(
    configs: Sequence[Mapping[str, Any]],
    prefix: str,
    depths: Mapping[int, int],
    picks: Sequence[Pick],
    parts: Mapping[int, Parts] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Return the first model's config for layers `picks` of the stack `prefix`, and notes.

    `depths` are the old layer counts and `parts` the names in each layer, by model. Raises
    UsageError for fields that cannot follow, and for layers that fit into their old places only.
    """
    if not configs[0] or list(picks) == [Pick(0, number) for number in range(depths[0])]:
        return copy.deepcopy(dict(configs[0])), []
    complete = {n: _complete(configs[n]) for n in {0, *(pick.model for pick in picks)}}
    config = copy.deepcopy(complete[0])
    fields = counts_of(config, prefix, depths[0])
    if not fields:
        if len(picks) == depths[0]:
            return copy.deepcopy(dict(configs[0])), []
        known = ", ".join(f"{'.'.join(c.path)} {c.value}" for c in counts(config)) or "none"
        raise UsageError(
            f"the config has no field with its {counted(depths[0], 'layers')} ({prefix}*); "
            f"fields with layer counts: {known}"
        )
    path = fields[0].path[:-1]
    section = _section(config, path)
    _refuse_unknown(section)
    sections = {
        n: _section(each, path) or _section(complete[0], path) for n, each in complete.items()
    }
    view = View(sections, picks, depths, _other_stack(config, prefix, section))
    notes = _follow(section, view, ".".join(path))
    for number in range(len(picks)) if parts else ():
        _refuse_misplaced(parts or {}, view, number, prefix)
    _refuse_forced(section)
    for count in fields:
        if not count.listed:
            section[count.path[-1]] = len(picks)
    _leave_out_implied(config, configs[0])
    return config, notes


def _complete(config: Mapping[str, Any], kind: Any = None) -> dict[str, Any]:
    """Return a config with the fields that its class, or `kind` if not named, would compute."""
    kind = config.get("model_type", kind)
    full = {
        k: _complete(v, f"{kind}_text") if isinstance(v, dict) else v for k, v in config.items()
    }
    return full | implied_fields(config, kind, _depth(config))


def _leave_out_implied(config: dict[str, Any], given: Mapping[str, Any], kind: Any = None) -> None:
    """Undo `_complete` where the class computes the same, so that the config stays as short."""
    kind = config.get("model_type", kind)
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(given.get(key), dict):
            _leave_out_implied(value, given[key], f"{kind}_text")
    added = [key for key in config if key not in given or given[key] in (None, [])]
    rest = {key: value for key, value in config.items() if key not in added}
    for key, value in implied_fields(rest, kind, _depth(config)).items():
        if config.get(key) == value:
            del config[key]
            if key in given:
                config[key] = given[key]


def _refuse_unknown(section: Mapping[str, Any]) -> None:
    """Raise UsageError if the class computes a field by a rule that is not known."""
    for key in unknown_fields(section):
        raise UsageError(
            f"config.json: {key} not given; model_type {section['model_type']} computes it from "
            f"the number of layers\n"
            f"  write it into config.json, as transformers does when it saves the model"
        )


def _refuse_forced(section: Mapping[str, Any]) -> None:
    """Raise UsageError if the class would change the kind of the last layer."""
    for key, last in forced_last(section).items():
        if section[key][-1:] != [last]:
            raise UsageError(
                f"config.json: {key} cannot follow the layers taken: model_type "
                f"{section['model_type']} always makes the last layer {last}"
            )


def _refuse_misplaced(parts: Mapping[int, Parts], view: View, number: int, prefix: str) -> None:
    """Raise UsageError if the class gives a layer in that place other tensors than it has.

    The first and last layer may have tensors of their own, as those before of the same kind show.
    """
    pick, end = view.picks[number], len(view.picks) - 1
    of_layer, last = parts[pick.model], view.depths[pick.model] - 1
    places: dict[str, Sequence[int]] = {"the first": (0,)} if number == 0 else {}
    places |= {"the last": (last,)} if number == end else {}
    for place, layers in (places or {"an inner": range(1, last)}).items():
        own = of_layer.get(pick.layer, frozenset())
        others = {of_layer.get(n, frozenset()): n for n in layers}
        if own in others:
            continue
        kind = _kind(view, pick)
        for names, layer in others.items():
            if kind and kind == _kind(view, Pick(pick.model, layer)):
                differ = first_names(sorted(name.lstrip(".") for name in names ^ own))
                raise UsageError(
                    f"{prefix}*: layer {pick.layer} cannot be {place} layer, which differs "
                    f"in {differ}\n  leave the first and the last layer in their places"
                )


SIZES_OF_STAGES = ("depths", "num_heads")


def _kind(view: View, pick: Pick) -> dict[str, Any] | None:
    """Return what the config says of a layer; None where it does not say that of single layers.

    Sizes of stages do not tell which tensors they have.
    """
    section = copy.deepcopy(dict(view.first))
    try:
        _follow(section, replace(view, picks=[pick]), "")
    except UsageError:
        return None
    return {key: value for key, value in section.items() if key not in SIZES_OF_STAGES}


def _depth(config: Mapping[str, Any]) -> int:
    return next((config[key] for key in FIELDS if type(config.get(key)) is int), 0)


def _other_stack(config: Mapping[str, Any], prefix: str, section: Mapping[str, Any]) -> str:
    """Return which of encoder and decoder was not sliced, where one section describes both."""
    if not (config.get("is_encoder_decoder") or section.get("is_encoder_decoder")):
        return ""
    return "encoder" if "decoder" in prefix.lower() else "decoder"


def _follow(section: dict[str, Any], view: View, path: str) -> list[str]:
    """Change every field of `section` about layers. Raises UsageError with all that cannot."""
    changed: dict[str, Any] = {}
    faults, notes = [], []
    for key, value in view.first.items():
        handler = _handler(key, value, view)
        if isinstance(value, dict) and _lists_layers(key, value):
            inner = {n: s.get(key, value) for n, s in view.sections.items()}
            notes += _follow(section[key], replace(view, sections=inner), f"{path}.{key}")
        elif handler is not None:
            try:
                changed |= _changed(handler, view, key)
            except Inexpressible as error:
                same = computed_from(view.first.get("model_type"), key)
                if not any(view.first.get(other) for other in (*same, *OVERRULED_BY.get(key, ()))):
                    name = f"{path}.{key}".strip(".")
                    faults.append(f"config.json: {name} cannot follow the layers taken: {error}")
            if handler is keep_phase and key not in HANDLERS:
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


def _lists_layers(key: str, value: Mapping[str, Any]) -> bool:
    """Whether a part of the section lists layer numbers, as Kimi's `linear_attn_config` does."""
    if is_vision_or_audio(key) or any(name in FIELDS for name in value):
        return False
    return any(INDEX_LIST.fullmatch(name) and isinstance(v, list) for name, v in value.items())


def _handler(key: str, value: Any, view: View) -> Handler | None:
    """Return the handler of a field, or None if the field does not describe layers."""
    if not value or key in ELSEWHERE or (view.other and view.other in key):
        return None
    named = HANDLERS.get(key)
    if named in ANY_VALUE:
        return named
    if isinstance(value, list | str):
        return _handler_of_entries(key, value, named, view.depths[0])
    if type(value) is not int:
        return None
    suspect = SUSPECT.fullmatch(key) and 1 < value <= max(view.depths.values())
    return named or (keep_phase if suspect else None)


def _handler_of_entries(
    key: str, value: list[Any] | str, named: Handler | None, depth: int
) -> Handler | None:
    """Return the handler of a list or text, which may have an entry per layer."""
    has_entries = len(value) == depth
    if named is not None:
        return per_layer if has_entries else named
    if isinstance(value, str):
        return per_layer if "pattern" in key and has_entries else None
    beyond = "ind" in key  # numbers beyond the last layer mean nothing yet
    numbers = all(type(n) is int and n >= 0 and (n <= depth or beyond) for n in value)
    if INDEX_LIST.fullmatch(key) and numbers and len(set(value)) == len(value):
        return index_list
    return per_layer if has_entries and says_each_layer(key, len(value)) else None


def _section(config: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    section: Any = config
    for key in path:
        section = section.get(key) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else {}
