"""Rules of a recipe (`key_map`) and suggested ones: they do what they say, or are refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.recipe.key_map import Layout, LayoutRule, find, match, parse_rule
from support.checkpoint_factory import read_tensors
from support.model_parts import (
    H,
    Tensors,
    assert_mean,
    average,
    beginning,
    experts,
    fused,
    head_by_head,
    projections,
    stacked,
)

RULES = {
    "renamed": (
        '- {from: "net.{n}.{x}", to: "model.layers.{n}.{x}"}',
        lambda t: {n.replace("model.layers.", "net."): v for n, v in t.items()},
    ),
    "split": (
        '- {from: "model.{x}.mix.{w}", to: '
        '["model.{x}.q_proj.{w}", "model.{x}.k_proj.{w}", "model.{x}.v_proj.{w}"]}',
        lambda t: {
            **{n: v for n, v in t.items() if "self_attn" not in n},
            **{
                f"model.layers.1.self_attn.mix.{k}": fused(t)[
                    f"model.layers.1.self_attn.qkv_proj.{k}"
                ]
                for k in ("weight", "bias")
            },
        },
    ),
    "head by head": (
        '- {from: "model.{x}.query_key_value.{w}", groups: 2, to: '
        '["model.{x}.q_proj.{w}", "model.{x}.k_proj.{w}", "model.{x}.v_proj.{w}"]}',
        lambda t: {
            **{n: v for n, v in t.items() if "self_attn" not in n},
            **{
                f"model.layers.1.self_attn.query_key_value.{k}": head_by_head(
                    t, f"model.layers.1.self_attn.{{}}_proj.{k}", 2
                )
                for k in ("weight", "bias")
            },
        },
    ),
    "transposed": (
        '- {from: "{x}.gate_t", to: "{x}.gate_proj.weight", transpose: true}',
        lambda t: {
            (n.replace("gate_proj.weight", "gate_t")): (v.T.contiguous() if "gate_" in n else v)
            for n, v in t.items()
        },
    ),
    "of one model": (
        '- {from: "{x}.UP", to: "{x}.up_proj.weight", model: MODEL}',
        lambda t: {n.replace("up_proj.weight", "UP"): v for n, v in t.items()},
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_rules_of_a_recipe(case: str, tmp_path: Path) -> None:
    rule, change = RULES[case]
    first, second = projections(0), projections(9)
    text = "key_map:\n" + rule.replace("MODEL", str(tmp_path / "b"))
    assert average(tmp_path, first, change(second), text) == 0
    assert_mean(tmp_path, first, second)


def test_a_rule_that_stacks_and_one_that_joins(tmp_path: Path) -> None:
    separate = experts("model.layers.0.mlp", 7)
    place = "model.layers.0.mlp"
    odd = {
        n.replace("experts.", "parts.").replace("_proj.weight", ""): v for n, v in separate.items()
    }
    words = [stacked(separate, place, word) for word in ("gate", "up", "down")]
    whole = {"pool.wide": torch.cat(words[:2], 1), "pool.down": words[2]}
    text = (
        "key_map:\n"
        '- {from: ["{x}.parts.{n}.gate", "{x}.parts.{n}.up"], to: "pool.wide"}\n'
        '- {from: "model.layers.0.mlp.parts.{n}.down", to: "pool.down"}\n'
    )
    first = {name: tensor + 2 for name, tensor in whole.items()}
    assert average(tmp_path, first, odd, text.replace("{x}", "model.layers.0.mlp")) == 0
    assert_mean(tmp_path, first, whole)


WRONG = {
    "{from: 'a.{x}', to: 'b.{y}'}": "{x}, {y} stand on one side only",
    "{from: a, to: [b, '{n}.c']}": "names of one side have different wildcards",
    "{from: [a, b], to: [c, d]}": "several names on both sides",
    "{from: 'a.{}', to: b}": "'{}' is not a wildcard",
    "{from: a}": "'to' is a tensor name",
    "{from: a, to: b, axis: -1}": "axis -1 is not 0",
    "{from: a, to: b, transpose: maybe}": "transpose 'maybe'",
    "{from: a, to: b, groups: 2}": "groups 2 is not a number of groups",
    "{from: a, to: [b, c], groups: 0}": "groups 0 is not a number of groups",
    "{from: 'a.{x}.{x}', to: 'b.{x}'}": "'{x}' stands twice in 'a.{x}.{x}'",
    "{from: a, to: b, axes: 1}": "'axes' is unknown in a rule",
}


@pytest.mark.parametrize("rule", WRONG)
def test_rules_that_are_none(rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert average(tmp_path, projections(0), projections(1), f"key_map:\n- {rule}\n") == 2
    error = capsys.readouterr().err
    assert "r.yml:5" in error and WRONG[rule] in error


def test_a_rule_that_fits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'key_map:\n- {from: "layers.{n}", to: "l.{n}"}'
    assert average(tmp_path, projections(0), projections(1), text) == 2
    assert "no tensor of the other models is called layers.{n}" in capsys.readouterr().err


def test_a_name_that_is_there_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'key_map:\n- {from: "{x}.up_proj.weight", to: "{x}.gate_proj.weight"}'
    assert average(tmp_path, projections(0), projections(1), text) == 3
    assert "both model.layers.1.mlp.gate_proj.weight and" in capsys.readouterr().err


TEMPLATES = st.lists(st.sampled_from(["{x}", "{y}", "{z}", *"ab.1", "ab", "weight"]), min_size=1)
NAMES = st.lists(st.sampled_from([*"ab.12", "weight"]), min_size=1).map("".join)


@given(st.sampled_from(["", "{_}"]), TEMPLATES, st.sampled_from(["", "{e}.", "{e}{_w}"]), NAMES)
def test_names_match_as_by_a_regular_expression(
    begin: str, words: list[str], end: str, name: str
) -> None:
    once = [word for n, word in enumerate(words) if "{" not in word or word not in words[:n]]
    template = "".join([begin, *once, end])
    known = {"_": "(?:.+[.])?", "_w": "weight|bias", "e": "[0-9]{1,5}"}
    parts = re.split(r"\{(\w+)\}", template)
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [f"(?P<{word}>{known.get(word, '.+')})" for word in parts[1::2]]
    expected = re.fullmatch("".join(parts), name)
    rule = LayoutRule((Layout((template,)),))
    found = match(rule, rule.layouts[0], name, [name])
    if expected is None or found is None:
        assert expected is None and found is None
    else:
        number = expected.groupdict().get("e")
        values = {**dict(found[0]), **({"e": number} if number else {})}
        assert values == expected.groupdict()
        assert found[2] == (int(number) if number else None)


def test_many_wildcards_and_long_names_take_no_time() -> None:
    template = ".".join(f"{{{letter}}}" for letter in "abcdfghi") + ".end"
    rule = LayoutRule((Layout((template,)),))
    assert match(rule, rule.layouts[0], "a." * 50_000 + "fin", []) is None
    assert match(rule, rule.layouts[0], "a." * 50_000 + "end", []) is not None


def test_numbers_that_count_no_tensors() -> None:
    rule = parse_rule({"from": "e.{n}.w", "to": "w"})
    assert find(rule, ["e.100000.w", f"e.{'9' * 5000}.w"]) == {}


SUGGESTED: dict[str, tuple[Callable[[Tensors], Tensors], list[str]]] = {
    "prefix": (beginning("model.", "llm.core."), ['{from: "llm.core.{b}", to: "model.{b}"}']),
    "no prefix": (beginning("model.layers.", "blocks."), ['"blocks.{b}", to: "model.layers.{b}"']),
    "words": (
        lambda t: {
            n.replace("self_attn", "attention").replace("mlp.gate_proj", "mlp.w1"): v
            for n, v in t.items()
        },
        [
            '{from: "{a}.attention.{b}", to: "{a}.self_attn.{b}"}',
            '{from: "{a}.w1.{b}", to: "{a}.gate_proj.{b}"}',
        ],
    ),
}


@pytest.mark.parametrize("case", SUGGESTED)
def test_rules_are_suggested_and_work(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, rules = SUGGESTED[case]
    first, second = projections(0), projections(9)
    first["lm_head.weight"], second["lm_head.weight"] = torch.ones(2, H), torch.zeros(2, H)
    assert average(tmp_path / "1", first, change(second)) == 3
    error = capsys.readouterr().err
    assert all(rule in error for rule in rules)
    text = error[error.index("key_map:") :]
    assert average(tmp_path / "2", first, change(second), text) == 0
    assert_mean(tmp_path / "2", first, second)


def test_nothing_is_suggested_where_two_could_be_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = {
        n.replace("q_proj.", "one.").replace("o_proj", "two"): t for n, t in projections(1).items()
    }
    second = {n.replace("k_proj", "p1").replace("v_proj", "p2"): t for n, t in second.items()}
    assert average(tmp_path, projections(0), second) == 3
    error = capsys.readouterr().err
    assert "are missing" in error and "key_map" not in error


def beside(tensors: Tensors, *places: str) -> Tensors:
    return tensors | {f"{place}.layers.0.w": torch.ones(3, 3) for place in places}


@pytest.mark.parametrize("swapped", [False, True])
def test_rules_for_a_part_of_a_model(
    swapped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two models in a file, fine-tuned alone; the layouts do not know the prefix."""
    whole = beside(beginning("model.", "mind.model.")(projections(0)), "mind.visual", "talker")
    whole = beside(whole, "mind.audio_tower", "token2wav")
    part = beside(projections(9), "visual", "audio_tower")
    pair = (part, whole) if swapped else (whole, part)
    assert average(tmp_path / "1", *pair) == 3
    error = capsys.readouterr().err
    text = error[error.index("key_map:") :]
    names = [("visual.{b}", "mind.visual.{b}"), ("audio_tower.{b}", "mind.audio_tower.{b}")]
    for old, new in (pair[::-1] if swapped else pair for pair in names):
        assert f'from: "{old}", to: "{new}"' in text
    option = ("--surplus", "drop") if swapped else ("--missing", "copy")
    assert f"add to the recipe, with {' '.join(option)} for the others:" in error
    assert average(tmp_path / "2", *pair, text, options=option) == 0
    merged = read_tensors(tmp_path / "2" / "out")
    assert merged.keys() == pair[0].keys()
    if not swapped:
        query = "model.layers.1.self_attn.q_proj.weight"
        assert torch.equal(merged[f"mind.{query}"], (whole[f"mind.{query}"] + part[query]) / 2)


def test_no_rule_drops_what_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = {n.replace("q_proj.", "q_proj.inner."): tensor for n, tensor in projections(1).items()}
    second["model.layers.1.self_attn.q_proj.down"] = torch.ones(2, H)
    assert average(tmp_path, projections(0), second) == 3
    assert "key_map" not in capsys.readouterr().err


@pytest.mark.parametrize("swapped", [False, True])
def test_a_known_part_of_a_model(swapped: bool, tmp_path: Path) -> None:
    """A thinker of Qwen Omni, fine-tuned alone, beside the whole that also talks."""
    part = beside(projections(9), "visual", "audio_tower") | {"lm_head.weight": torch.ones(4, 3)}
    whole = beside({f"thinker.{name}": tensor for name, tensor in part.items()}, "talker")
    option = ("--surplus", "drop") if swapped else ("--missing", "copy")
    pair = (part, whole) if swapped else (whole, part)
    assert average(tmp_path, *pair, options=option) == 0
    assert read_tensors(tmp_path / "out").keys() == pair[0].keys()
