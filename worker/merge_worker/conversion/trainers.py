"""Tensors under the names of a trainer → under those of transformers, given the config. No torch.

The table is `trainers.yml`, whose comments explain each field.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

from ..messages import counted, first_names
from ..recipe.key_map import ANY, Key, Layout, LayoutRule, find, match, missing
from ..structure.embeddings import config_vocab_size
from ..tensors.source import TensorSource
from ..tensors.views import concat, reshape, slice_axis, strided
from .regroup import Shapes, regroup

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


class TrainerRule(NamedTuple):
    """A rule of the table: `layouts` are the trainer's names and those of transformers."""

    layouts: LayoutRule
    types: tuple[str, ...] = ()
    by_group: bool = False
    rope: str = ""
    rows: bool = False


@dataclass(frozen=True)
class Trainer:
    """A trainer of the table; `rules` hold for every type that they do not exclude."""

    name: str
    mark: str
    types: tuple[str, ...]
    rules: tuple[TrainerRule, ...]
    layers: str = ""
    ignored: tuple[str, ...] = ()

    def prefix(self, names: Sequence[str]) -> str | None:
        """Return what stands before the names of a checkpoint of this trainer; None if not its."""
        marks = [self.mark]
        if self.layers:  # all layers in one tensor
            marks.append(self.mark.replace(f"{self.layers}{{n}}.", self.layers))
        for mark in marks:
            rule = LayoutRule((Layout((ANY + mark,)),))
            for name in names:
                if hit := match(rule, rule.layouts[0], name, names):
                    return dict(hit[0])["_"]
        return None


def trainer_of(names: Sequence[str]) -> Trainer | None:
    """Return the trainer whose names a checkpoint has; None if it has those of another program."""
    listed = sorted(names)
    return next((trainer for trainer in trainers() if trainer.prefix(listed) is not None), None)


def as_transformers(
    tensors: Mapping[str, TensorSource], trainer: Trainer, config: Mapping[str, Any]
) -> dict[str, TensorSource]:
    """Return the tensors of a trainer's checkpoint under the names of transformers.

    Raises ValueError for a type that the table does not have, for tensors that do not fit the
    config or that no rule knows, and for layers that lack some.
    """
    kind = config.get("model_type")
    if kind not in trainer.types:
        raise ValueError(
            f"its names are those of {trainer.name}, whose rules are for the types "
            f"{', '.join(trainer.types)}; the config is of type {kind}"
        )
    prefix = trainer.prefix(sorted(tensors)) or ""
    own = dict(_own(tensors, trainer, prefix))
    result: dict[str, TensorSource] = {}
    for rule in trainer.rules:
        if rule.types and kind not in rule.types:
            continue
        layouts = _by_group(rule, config)
        for key, instance in find(layouts, sorted(own)).items():
            members = instance.get(layouts.layouts[0])
            if members is None:
                continue
            if absent := missing(layouts, layouts.layouts[0], members, key):
                raise ValueError(f"tensor {prefix}{absent[0]} is missing")
            sources = {place: own[name] for place, name in members.items()}
            changed = _converted(rule, layouts, key, sources, config)
            if doubled := result.keys() & changed.keys():
                raise ValueError(f"two tensors would be {min(doubled)}")
            result |= changed
            for name in members.values():
                del own[name]
    if own:
        raise ValueError(
            f"{counted(len(own), 'tensors')} of {trainer.name} have no place in a model of type "
            f"{kind}: {first_names(sorted(own))}"
        )
    _check(result, config)
    return result


def _own(
    tensors: Mapping[str, TensorSource], trainer: Trainer, prefix: str
) -> Iterator[tuple[str, TensorSource]]:
    """Yield the tensors by name without prefix, each layer by itself, without computed ones."""
    for full, source in tensors.items():
        name = full.removeprefix(prefix)
        rest = name.removeprefix(trainer.layers)
        if any(fnmatchcase(name, pattern) for pattern in trainer.ignored):
            continue
        if not trainer.layers or rest == name or rest.partition(".")[0].isdecimal():
            yield name, source
            continue
        for number in range(source.shape[0] if source.shape else 0):
            layer = slice_axis(source, 0, number, number + 1, full)
            yield f"{trainer.layers}{number}.{rest}", reshape(layer, source.shape[1:], full)


def _by_group(rule: TrainerRule, config: Mapping[str, Any]) -> LayoutRule:
    """Return the layouts of a rule, with as many groups as the config has."""
    if not rule.by_group:
        return rule.layouts
    before, after = rule.layouts.layouts
    return LayoutRule((before._replace(groups=_heads(config, "num_key_value_heads")), after))


def _converted(
    rule: TrainerRule,
    layouts: LayoutRule,
    key: Key,
    sources: Mapping[tuple[int, int], TensorSource],
    config: Mapping[str, Any],
) -> dict[str, TensorSource]:
    before, after = layouts.layouts
    shapes: Shapes | None = None
    if rule.by_group:
        heads, groups = (_heads(config, f"num_{w}_heads") for w in ("attention", "key_value"))
        source = sources[0, 0]
        size = config.get("head_dim") or config.get("hidden_size", 0) // heads
        shapes = [(n * size, *source.shape[1:]) for n in (heads, groups, groups)]
    result = regroup(layouts, key, (before, sources), (after, shapes))
    if rule.rope:
        heads = _heads(config, rule.rope)
        return {name: _halves_apart(source, heads) for name, source in result.items()}
    if rule.rows and (rows := config_vocab_size(config)):
        return {name: _cut(source, rows) for name, source in result.items()}
    return {name: reshape(source, source.shape, name) for name, source in result.items()}


def _heads(config: Mapping[str, Any], field: str) -> int:
    """Return a number of heads; that of keys is the number of queries where it is not given."""
    heads = config.get(field) or config.get("num_attention_heads")
    if type(heads) is not int or heads < 1:
        raise ValueError(f"the config has no {field}")
    return heads


def _halves_apart(source: TensorSource, heads: int) -> TensorSource:
    """Put the first rows of all pairs of a head before the second ones."""
    rows, *rest = source.shape or (0,)
    if rows % (2 * heads):
        raise ValueError(f"{source.name} is {list(source.shape)}; not {heads} heads of pairs")
    shape, name = (heads, rows // heads // 2, *rest), source.name
    pair = [reshape(strided(source, 0, 2, place, name), shape, name) for place in (0, 1)]
    return reshape(concat(pair, 1, name), source.shape, name)


def _cut(source: TensorSource, rows: int) -> TensorSource:
    """Leave out the rows that fill a vocabulary up. Raises ValueError if some are missing."""
    have = source.shape[0] if source.shape else 0
    if have < rows:
        raise ValueError(f"{source.name} has {have} rows, the config's vocabulary {rows}")
    return slice_axis(source, 0, 0, rows, source.name)


def _check(tensors: Mapping[str, TensorSource], config: Mapping[str, Any]) -> None:
    """Raise ValueError unless all layers of the config are there and alike, of its width."""
    layers, width = config.get("num_hidden_layers"), config.get("hidden_size")
    there: dict[int, set[str]] = {}
    for name in tensors:
        if hit := _LAYER.match(name):
            there.setdefault(int(hit[1]), set()).add(name[hit.end() :])
    if (found := max(there, default=-1) + 1) != layers:
        raise ValueError(f"it has {found} layers, the config says {layers}")
    kinds: dict[bool, set[str]] = {}  # some layers may have an MLP where others have experts
    for names in there.values():
        kinds.setdefault(_has_experts(names), set()).update(names)
    for number in range(found):
        names = there.get(number, set())
        if lacking := sorted(kinds.get(_has_experts(names), {"…"}) - names):
            raise ValueError(f"tensor model.layers.{number}.{lacking[0]} is missing")
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise ValueError("tensor model.embed_tokens.weight is missing")
    if embedding.shape[-1:] != (width,):
        raise ValueError(
            f"{embedding.name} is {list(embedding.shape)}, the config says a width of {width}"
        )


def _has_experts(names: Iterable[str]) -> bool:
    return any(name.startswith("mlp.experts.") for name in names)


@cache
def trainers() -> tuple[Trainer, ...]:
    """Return the trainers of the table."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table = yaml.load(pkgutil.get_data(__package__, "trainers.yml") or b"", loader)
    return tuple(
        Trainer(
            name,
            facts["mark"],
            tuple(facts["types"]),
            tuple(map(_rule, facts["rules"])),
            facts.get("layers", ""),
            tuple(facts.get("ignored", ())),
        )
        for name, facts in table.items()
    )


def _rule(given: Any) -> TrainerRule:
    facts = dict(given) if isinstance(given, dict) else {"from": given[0], "to": given[1]}
    before, after = (
        (names,) if isinstance(names, str) else tuple(names)
        for names in (facts.pop("from"), facts.pop("to"))
    )
    facts["types"] = tuple(facts.get("types", ()))
    return TrainerRule(LayoutRule((Layout(before), Layout(after))), **facts)
