"""Write the table of config fields that classes of transformers compute from the layer count.

Each config class is made with several depths and without the field; a search finds the rule that
gives the same values, and the fields that the values depend on. Run it with a new transformers:

    python scripts/layer_fields.py            # writes implied_fields.yml
    python scripts/layer_fields.py gemma2     # shows the rules of some model types
"""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from merge_worker.structure.implied_fields import implied_value
from merge_worker.structure.layer_fields import INDEX_LIST, NOT_PER_LAYER, PER_LAYER

TABLE = Path(__file__).parent.parent / "worker/merge_worker/structure/implied_fields.yml"
COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
)
DEPTHS = (24, 25, 31, 6)
FEW = (5, 4, 3, 2, 1)
SHALLOW = 7
"""Lists with fewer entries are not mistaken for lists of layers."""
COMPUTED = re.compile(r"stage_names|_?out_(features|indices)|.*_config|.*_init_.*")
"""Fields that classes always compute again, sections, and scales of new weights."""
INHERITED = re.compile(r"kwargs\.(?:pop|get|setdefault)\(\"(\w+)\"(?:, ?([^)\n]*))?\)")
"""Fields that a class reads though it does not declare them, and their defaults."""
SWITCH = {"use_sliding_window": True, "sliding_window": 64}
OTHER_FORMS = (
    *([1, 4, 7], [0, 1] * 12, [1, 0] * 12, [128, 4] * 12, "1,4,7", "FS" * 12),
    {"full_attn_layers": [*range(1, 25, 2)], "kda_layers": [*range(2, 25, 2)]},
)
"""Values of lists, texts and sections that classes compute other lists from."""

Sample = tuple[dict[str, Any], int, Any]  # fields given, depth, value


class Field:
    """A field of a config class whose value depends on the number of layers."""

    def __init__(self, cls: Any, count: str, key: str) -> None:
        self.cls, self.count, self.key = cls, count, key
        names = {name: getattr(cls, name, None) for name in dir(cls) if not name.startswith("_")}
        given = {name: value for name, value in names.items() if type(value) is int}
        source = INHERITED.findall(inspect.getsource(cls))
        given |= {name: int(value) for name, value in source if value.isdecimal()}
        self.numbers = {name: value for name, value in given.items() if name not in (count, key)}
        lists = {name for name, value in names.items() if value is None or isinstance(value, list)}
        self.lists = sorted(lists.union(name for name, _ in source) - {count, key})

    def value(self, given: Mapping[str, Any], depth: int) -> Any:
        """Return the value that the class computes; None if it refuses what is given."""
        return getattr(made(self.cls, {self.count: depth, **given}), self.key, None)

    def rule(self) -> Any:
        """Return the rule of the field, or None if it says nothing, or no rule gives it."""
        if [self.value({}, depth) for depth in DEPTHS] == list(DEPTHS):
            return {"depth": True}
        base: dict[str, Any] = {}
        rule = self._fitted(base)
        if not rule and "use_sliding_window" in {*dir(self.cls), *self.lists}:
            base = SWITCH
            rule = self._fitted(base)
            rule = rule and {"when": "use_sliding_window", **rule}
        if not rule:
            return None
        if isinstance(usual := self.value({}, 24), list) and (last := self._last(usual)):
            rule["last"] = last
        if unless := [name for name in self.lists if self._follows(name, base)]:
            rule["unless"] = unless
        return rule

    def _last(self, usual: list[Any]) -> Any:
        """Return the kind that the class gives the last layer whatever the list says, or None."""
        for word in filter(lambda word: isinstance(word, str), usual):
            made_of = self.value({self.key: [word] * 24}, 24)
            if made_of and made_of[:-1] == [word] * 23 and made_of[-1] != word:
                return made_of[-1]
        return None

    def _follows(self, name: str, base: Mapping[str, Any]) -> bool:
        """Whether the class computes the field from a list, text or section of another name."""
        usual = made(self.cls, {self.count: 24, **base})
        given = getattr(usual, name, None)
        values = [given[::-1]] if isinstance(given, list) and len(given) == 24 else OTHER_FORMS
        same: tuple[Any, ...] = (None, [], getattr(usual, self.key))
        return any(self.value({**base, name: value}, 24) not in same for value in values)

    def _drivers(self, base: Mapping[str, Any]) -> dict[str, int]:
        """Return the fields with numbers that change the list, and their defaults."""
        same = (None, self.value(base, 24))
        return {
            name: default
            for name, default in self.numbers.items()
            if name not in base
            and any(self.value({**base, name: number}, 24) not in same for number in (2, 3, 5))
        }

    def _fitted(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rule with some fields given; none if all layers are of one kind then."""
        usual = self.value(base, 24)
        if isinstance(usual, float):
            return {"unknown": True}
        if not isinstance(usual, list):
            return {}
        drivers = self._drivers(base)
        drivers |= self._drivers({**base, **dict.fromkeys(drivers, 3)}) if drivers else {}
        samples: list[Sample] = []
        settings = [
            {name: number for name, number in zip(drivers, numbers, strict=True) if number}
            for numbers in itertools.product((0, 1, 2, 3, 5), repeat=len(drivers))
        ]
        grid = [*itertools.product(DEPTHS, settings), *((depth, {}) for depth in FEW)]
        for depth, given in grid:
            value = self.value({**base, **given}, depth)
            if isinstance(value, list):
                samples.append((given, depth, value))
        numbers = INDEX_LIST.fullmatch(self.key) and all(type(number) is int for number in usual)
        if numbers:
            samples = [(f, d, [number in v for number in range(d)]) for f, d, v in samples]
        elif usual == list(range(24)):
            return {}  # each layer itself
        if all(len(set(map(str, value))) <= 1 for *_, value in samples):
            return {}
        if not numbers and not all(isinstance(word, str) or word in (0, 1) for word in usual):
            return {"unknown": True}  # also set by other values than numbers of layers
        for rule in candidates(samples, drivers):
            if all(gives(rule, *sample) for sample in samples):
                return {**rule, "numbers": True} if numbers else rule
        return {"unknown": True}


def rules(cls: Any) -> dict[str, Any]:
    """Return the rules of a config class by field."""
    found = {}
    for count in COUNTS:
        if type(getattr(cls, count, None)) is not int:
            continue
        first, second = (fields(cls, {count: depth}) for depth in DEPTHS[:2])
        for key in sorted(first.keys() & second.keys()):
            if key == count or COMPUTED.fullmatch(key) or first[key] == second[key]:
                continue
            if rule := Field(cls, count, key).rule():
                found[key] = rule
    return found


def candidates(samples: Sequence[Sample], drivers: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield rules, simple ones first, made of the words of the samples."""
    words = [w for w, _ in itertools.groupby(sorted((w for *_, v in samples for w in v), key=str))]
    numbers = [{name: default} for name, default in drivers.items()]
    # The longest sample of those with most kinds of layers.
    given, depth, usual = max(samples, key=lambda each: (len(set(map(str, each[2]))), each[1]))
    heads: list[Any] = [[]]
    heads += [{"count": field, "fill": word} for field in numbers for word in words]
    heads += [usual[:length] for length in range(1, 13)]
    tails = [[], *([word] for word in words)]
    cycles: list[tuple[str, Any]] = [
        (start, {"count": field, "fill": fill, "hit": hit, "at": at})
        for start in ("", "head", "end")
        for field in numbers
        for at in (-1, 0, *(other for other in numbers if other != field))
        for fill, hit in itertools.permutations(words, 2)
    ]
    for head, tail in itertools.product(heads, tails):
        counted = isinstance(head, dict) and next(iter(head["count"].items()))
        size = given.get(*counted) if counted else len(head)
        for length in range(1, 7):
            for start, offset in (("", 0), ("head", size), ("end", depth)):
                first = -(-max(size, 1) // length) * length + offset % length
                yield _rule(head, usual[first : first + length], tail, start)
        for start, cycle in cycles:
            yield _rule(head, cycle, tail, start)


def _rule(head: Any, cycle: Any, tail: Any, start: str) -> dict[str, Any]:
    parts = {"head": head, "cycle": cycle, "tail": tail, "from": start}
    return {name: part for name, part in parts.items() if part}


def gives(rule: Mapping[str, Any], given: dict[str, Any], depth: int, value: Any) -> bool:
    """Whether a rule gives the value that the class does."""
    try:
        return bool(implied_value(rule, given, depth) == value)
    except (ValueError, LookupError, ArithmeticError):
        return False


def made(cls: Any, given: Mapping[str, Any]) -> Any:
    """Return a config made with some fields; None if the class refuses them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return cls(**copy.deepcopy(dict(given)))
        except Exception:
            return None


def fields(cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a config made with some saves; none if the class refuses them."""
    config = made(cls, given)
    return {} if config is None else dict(config.to_dict())


def other_lists(classes: Sequence[Any]) -> list[str]:
    """Return the names of lists that no class fills with an entry per layer."""
    others: set[str] = set()
    per_layer: set[str] = set()
    for cls in classes:
        usual = fields(cls, {})
        depth = next((usual[count] for count in COUNTS if type(usual.get(count)) is int), None)
        for key, value in usual.items():
            if isinstance(value, list) and len(value) >= SHALLOW and depth:
                (per_layer if len(value) == depth else others).add(key)
    known = (INDEX_LIST, NOT_PER_LAYER, PER_LAYER)
    return sorted(k for k in others - per_layer if not any(name.fullmatch(k) for name in known))


def config_classes() -> dict[str, Any]:
    """Return the config classes of the installed transformers by model type."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    for name in CONFIG_MAPPING_NAMES:
        CONFIG_MAPPING[name]  # imports its module
    classes = sorted(_classes(transformers.PretrainedConfig), key=lambda cls: str(cls.__name__))
    return {str(cls.model_type): cls for cls in classes if cls.model_type}


def table(only: Sequence[str] = ()) -> dict[str, Any]:
    """Return the table: rules by model types, and lists that are not per layer."""
    classes = config_classes()
    rows: dict[str, dict[str, Any]] = {}
    for kind in sorted(classes):
        if (not only or kind in only) and (found := rules(classes[kind])):
            row = rows.setdefault(repr(found), {"models": [], **found})
            row["models"].append(kind)
    return {"rules": list(rows.values()), "other_lists": other_lists(list(classes.values()))}


def text(found: Mapping[str, Any]) -> str:
    """Return the table as the file has it, a rule in a line."""
    lines = ["rules:"]
    for row in found["rules"]:
        lines += wrapped("- models: ", row["models"])
        lines += [f"  {key}: {_line(rule)}" for key, rule in row.items() if key != "models"]
    return "\n".join([*lines, *wrapped("other_lists: ", found["other_lists"])]) + "\n"


def wrapped(start: str, names: Sequence[str]) -> list[str]:
    """Return a list of names in lines of moderate length."""
    indent = " " * (len(start) - len(start.lstrip("- ")) + 2)
    return textwrap.wrap(
        f"{start}[{', '.join(names)}]",
        width=100,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _line(rule: Any) -> str:
    dumped = yaml.safe_dump(rule, sort_keys=False, default_flow_style=True, width=10**6)
    return str(dumped).partition("\n")[0]


def _classes(cls: Any) -> Iterator[Any]:
    for child in cls.__subclasses__():
        if child.__module__.startswith("transformers.models."):
            yield child
        yield from _classes(child)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    written = text(table(sys.argv[1:]))
    if sys.argv[1:]:
        print(written)
    else:
        comment = [c for c in TABLE.read_text("utf-8").splitlines(True) if c.startswith("#")]
        TABLE.write_text("".join(comment) + written, encoding="utf-8")
