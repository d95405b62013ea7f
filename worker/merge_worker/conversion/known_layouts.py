"""Layouts of the same tensors as converters and releases write them, from `known_layouts.yml`."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from ..recipe.key_map import ANY, Layout, LayoutRule

Pairs = Sequence[tuple[str, str]]


class KnownLayouts(NamedTuple):
    """The content of the file, whose comments explain each field."""

    rules: tuple[LayoutRule, ...]
    rules_by_head: tuple[LayoutRule, ...]
    prefixes: Pairs
    transposed_experts: Sequence[str]
    transposed_modules: str
    transposed_modules_of: Sequence[str]
    names_in_memory: Pairs

    def rules_of(self, config: Mapping[str, Any]) -> tuple[LayoutRule, ...]:
        """Return all rules, those by head only if the config has a number of heads of keys."""
        heads = config.get("num_key_value_heads")
        if not isinstance(heads, int) or heads < 1:
            return self.rules
        layouts = [rule.layouts for rule in self.rules_by_head]
        by_head = (LayoutRule((*x[:-1], x[-1]._replace(groups=heads))) for x in layouts)
        return (*self.rules, *by_head)

    def is_transposed(self, config: Mapping[str, Any], module: str) -> bool | None:
        """Return whether a linear module is stored as (in, out); None if its code is unknown."""
        sections = (config, *(value for value in config.values() if isinstance(value, dict)))
        if not any(section.get("model_type") in self.transposed_modules_of for section in sections):
            return None
        return re.fullmatch(self.transposed_modules, module) is not None


@cache
def known_layouts() -> KnownLayouts:
    """Read the file, if models differ in layout: 5 ms with libyaml, 35 ms without."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table = yaml.load(pkgutil.get_data(__package__, "known_layouts.yml") or b"", loader)
    for key in ("rules", "rules_by_head"):
        table[key] = tuple(
            LayoutRule(tuple(map(_layout, layouts)))
            for rules in table[key].values()
            for layouts in rules
        )
    return KnownLayouts(**table)


def _layout(given: Any) -> Layout:
    facts = dict(given) if isinstance(given, dict) else {"names": given}
    names = facts.pop("names")
    listed: Iterable[str] = [names] if isinstance(names, str) else names
    return Layout(tuple(n[1:] if n.startswith("^") else ANY + n for n in listed), **facts)
