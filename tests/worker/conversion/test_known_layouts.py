"""The table of known layouts: every row can be applied, and stands in it once."""

import re
from collections import Counter

from merge_worker.conversion.known_layouts import known_layouts
from merge_worker.recipe.key_map import LayoutRule

CONFIG = {"num_key_value_heads": 2}


def carried(rule: LayoutRule) -> set[frozenset[str]]:
    """Return the wildcards that each name of a rule carries over."""
    names = [name for layout in rule.layouts for name in layout.names]
    return {frozenset(re.findall(r"{(\w+)}", name)) - {rule.stacked} for name in names}


def test_every_name_of_a_rule_has_the_same_wildcards() -> None:
    for rule in known_layouts().rules_of(CONFIG):
        assert len(carried(rule)) == 1, rule


def test_every_layout_is_split_or_fused() -> None:
    for rule in known_layouts().rules_of(CONFIG):
        assert {len(layout.names) for layout in rule.layouts} <= {1, rule.size}, rule


def test_no_row_stands_there_twice() -> None:
    known = known_layouts()
    for rows in (known.rules, map(tuple, known.prefixes)):
        assert max(Counter(rows).values()) == 1


def test_rules_by_head_need_a_number_of_heads() -> None:
    known = known_layouts()
    assert known.rules_of({}) == known.rules_of({"num_key_value_heads": "2"}) == known.rules
    assert [rule.layouts[-1].groups for rule in known.rules_of(CONFIG)[len(known.rules) :]] == [2]
