"""Config fields that model classes compute from the layer count where the config leaves them out.

`implied_fields.yml` has a rule for each, by model type; `scripts/layer_fields.py` derives the rules
from the config classes of transformers. No model code runs here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

Section = Mapping[str, Any]
Rule = Mapping[str, Any]
PARTS = ("head", "cycle", "tail")
MOST = 10_000
"""A config with more layers is damaged; its lists are not written out."""


def implied_fields(section: Section, model_type: Any, depth: int) -> dict[str, Any]:
    """Return the fields that the class of `model_type` adds to a section of `depth` layers."""
    fields: dict[str, Any] = {}
    if not 0 < depth <= MOST:
        return fields
    for key, rule in _missing(section, model_type):
        try:
            fields[key] = implied_value(rule, section, depth)
        except (TypeError, ValueError, LookupError, ArithmeticError):
            continue
    return fields


def unknown_fields(section: Section) -> list[str]:
    """Return the fields that the class adds by a rule that is not known."""
    missing = _missing(section, section.get("model_type"))
    return [key for key, rule in missing if "unknown" in rule]


def forced_last(section: Section) -> dict[str, Any]:
    """Return the lists whose last entry the class changes, and the entry it changes that to."""
    rules = rules_of(str(section.get("model_type")))
    return {k: rule["last"] for k, rule in rules.items() if "last" in rule and k in section}


def computed_from(model_type: Any, key: str) -> list[str]:
    """Return the fields that the class computes from the number in `key`."""
    return [
        field
        for field, rule in rules_of(str(model_type)).items()
        if any(key in names for names in _numbers(rule))
    ]


def implied_value(rule: Rule, section: Section, depth: int) -> Any:
    """Return the value a rule gives; `implied_fields.yml` explains its parts."""
    if "depth" in rule:
        return depth
    parts = (rule[part] if part == "cycle" else rule.get(part, []) for part in PARTS)
    head, cycle, tail = (_entries(part, section) for part in parts)
    start = {"head": len(head), "end": depth}.get(rule.get("from", ""), 0)
    values = [cycle[(number - start) % len(cycle)] for number in range(depth)]
    values[: len(head)] = head[:depth]
    if tail:
        values[-len(tail) :] = tail[-depth:]
    if rule.get("numbers"):
        return [number for number, flag in enumerate(values) if flag]
    return values


def _missing(section: Section, model_type: Any) -> Iterator[tuple[str, Rule]]:
    """Yield the fields that the class computes, since neither they nor their sources are given."""
    for key, rule in rules_of(str(model_type)).items():
        # An empty list stands for the default too, as `no_rope_layers` in releases of Llama 4.
        given = any(section.get(n) not in (None, []) for n in (key, *rule.get("unless", ())))
        if not given and ("when" not in rule or section.get(rule["when"])):
            yield key, rule


@cache
def rules_of(model_type: str) -> Mapping[str, Rule]:
    """Return the rules of a model type by field; none if the type is unknown."""
    rows = (row for row in _table()["rules"] if model_type in row["models"])
    return {key: rule for row in rows for key, rule in row.items() if key != "models"}


@cache
def other_lists() -> frozenset[str]:
    """Return the names of lists that do not have an entry per layer in any model class."""
    return frozenset(_table()["other_lists"])


@cache
def _table() -> Mapping[str, Any]:
    """Read the file, when layers are taken: 5 ms with libyaml, 35 ms without."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table: Mapping[str, Any] = yaml.load(
        pkgutil.get_data(__package__, "implied_fields.yml") or b"", loader
    )
    return table


def _entries(part: Any, section: Section) -> list[Any]:
    """Return the entries of a head, cycle or tail, of which one field may tell the number."""
    if isinstance(part, list):
        return part
    number = min(_number(part["count"], section), MOST)
    values = [part["fill"]] * number
    if "at" in part:
        at = _number(part["at"], section)
        if at < number:
            values[at] = part["hit"]
    return values


def _numbers(rule: Rule) -> Iterator[Mapping[str, int]]:
    """Yield the fields that the parts of a rule take numbers from."""
    parts = (rule.get(part) for part in PARTS)
    for part in parts:
        if isinstance(part, dict):
            yield from (part[fact] for fact in ("count", "at") if isinstance(part.get(fact), dict))


def _number(given: Any, section: Section) -> int:
    """Return a number, or the one in a field: `{name: default}`."""
    if isinstance(given, int):
        return given
    ((name, default),) = given.items()
    value = section.get(name)
    return int(default if value is None else value)
