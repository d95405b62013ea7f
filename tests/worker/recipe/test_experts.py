"""Documents that make mixtures of experts, and the files of mergekit-moe."""

import pytest

from merge_worker.errors import UsageError
from merge_worker.recipe import parse
from merge_worker.recipe.schema import ModelRef

PEER = """
base_model: mistralai/Mistral-7B-v0.1
gate_mode: cheap_embed
dtype: bfloat16
experts_per_token: 2
experts:
  - source_model: teknium/math@v1
    positive_prompts: ["solve for x", "prove that"]
  - source_model: {model: {path: code}, lora: {path: code-lora}}
    positive_prompts: [write a function]
    negative_prompts: [tell me a story]
    residual_scale: 0.8
    noise_scale: 1e-3
shared_experts:
  - source_model: chat
    positive_prompts: [hello]
    residual_scale: 0.1
"""


def faults(text: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse(text, "r.yml")
    return str(caught.value).splitlines()


def test_a_file_of_mergekit_moe() -> None:
    recipe = parse(PEER)
    mixture = recipe.mixture
    assert mixture is not None and recipe.method == "moe" and recipe.warnings == ()
    assert recipe.base == ModelRef("mistralai/Mistral-7B-v0.1") and recipe.dtype == "bfloat16"
    assert [str(ref) for ref in recipe.own_refs()] == [
        "mistralai/Mistral-7B-v0.1", "teknium/math@v1", "code+code-lora", "chat",
    ]  # fmt: skip
    first, second = mixture.experts
    assert first.positive == ("solve for x", "prove that") and first.negative == ()
    assert (second.residual_scale, second.noise_scale) == (0.8, 1e-3)
    assert second.negative == ("tell me a story",)
    assert mixture.shared[0].residual_scale == 0.1
    assert (mixture.gate_mode, mixture.experts_per_token) == ("cheap_embed", 2)


@pytest.mark.parametrize(
    ("given", "mode"), [("hidden_last", "hidden"), ("Random", "random"), (None, "hidden")]
)
def test_names_of_gate_modes(given: str | None, mode: str) -> None:
    line = f"gate_mode: {given}" if given else ""
    text = f"base_model: b\n{line}\nexperts: [{{model: a, positive_prompts: x}}]"
    mixture = parse(text).mixture
    assert mixture is not None and mixture.gate_mode == mode
    assert mixture.experts[0].positive == ("x",)


def test_the_method_may_be_written_out() -> None:
    assert parse("{merge_method: MoE, base_model: b, gate_mode: zeros, experts: [a]}").mixture


def test_a_recipe_of_another_method_has_no_experts() -> None:
    recipe = parse("{merge_method: linear, models: [a], experts: [b]}")
    assert recipe.mixture is None and "experts: nothing reads this key" in recipe.warnings[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{merge_method: moe, experts: [a], gate_mode: zeros}", "base_model: missing"),
        ("{merge_method: moe, base_model: b, gate_mode: zeros}", "experts: missing"),
        ("{base_model: b, experts: []}", "experts: a list with at least one entry"),
        ("{base_model: b, experts: 3}", "experts: a list with at least one entry"),
        ("{base_model: b, experts: [3]}", "experts[0]: an expert is a mapping"),
        ("{base_model: b, experts: [{}]}", "experts[0]: no 'source_model' in it"),
        ("{base_model: b, experts: [{model: a, source_model: a}]}", "both 'source_model' and"),
        ("{base_model: b, gate_mode: hiden, experts: [a]}", "did you mean 'hidden'?"),
        ("{base_model: b, gate_mode: 3, experts: [a]}", "gate_mode: expected a string"),
        ("{base_model: b, experts: [a]}", "experts[0]: no 'positive_prompts'"),
        (
            "{base_model: b, experts: [{model: a, positive_prompts: [3]}]}",
            "experts[0].positive_prompts[0]: a prompt is a text, not 3; put it in quotes",
        ),
        (
            "{base_model: b, experts: [{model: a, positive_prompts: ['  ']}]}",
            "positive_prompts[0]: an empty prompt",
        ),
        (
            "{base_model: b, experts: [{model: a, positive_prompts: {a: b}}]}",
            "positive_prompts: expected a list of texts",
        ),
        (
            "{base_model: b, experts: [{model: a, positive_prompts: [x]},"
            " {model: c, positive_prompts: [x]}]}",
            "all experts have the same prompts",
        ),
        ("{base_model: b, gate_mode: zeros, experts: [a], experts_per_token: 0}", "at least 1"),
        ("{base_model: b, gate_mode: zeros, experts: [a], experts_per_token: true}", "at least 1"),
        (
            "{base_model: b, gate_mode: zeros, experts: [a], experts_per_token: 2}",
            "experts_per_token: 2 for each token, but the recipe has 1 expert",
        ),
        (
            "{base_model: b, gate_mode: zeros, experts: [{model: a, residual_scale: .nan}]}",
            "experts[0].residual_scale: expected a number, got nan",
        ),
        (
            "{base_model: b, gate_mode: zeros, experts: [{model: a, noise_scale: -1}]}",
            "experts[0].noise_scale: expected a number of at least 0, got -1",
        ),
        ("{base_model: b, gate_mode: random, gate_std: x, experts: [a]}", "gate_std: expected"),
        ("{base_model: b, gate_mode: zeros, experts: [a], gate_center: 3}", "neither true nor"),
        ("{base_model: b, gate_mode: zeros, experts: [a], dtype: bf16}", "did you mean 'bfloat16'"),
        ("{base_model: b, experts: [{model: a, prompts_file: [x]}]}", "expected a path"),
    ],
)  # fmt: skip
def test_faults_with_their_place(text: str, expected: str) -> None:
    found = faults(text)
    assert any(expected in line for line in found), found
    assert all(line.startswith("r.yml:1") for line in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{base_model: b, gate_mode: zeros, expert: [a], experts: [a]}", "did you mean 'experts'?"),
        (
            "{base_model: b, gate_mode: zeros, experts: [{model: a, positve_prompts: [x]}]}",
            "experts[0].positve_prompts: nothing reads this key (did you mean 'positive_prompts'?)",
        ),
        (
            "{base_model: b, gate_mode: random, experts: [{model: a, positive_prompts: [x]}]}",
            "random reads no prompts",
        ),
        ("{base_model: b, gate_mode: zeros, experts: [a], gate_std: 2}", "only gate_mode: random"),
        ("{base_model: b, gate_mode: zeros, experts: [a], per_prompt: true}", "does not read it"),
    ],
)  # fmt: skip
def test_warnings_of_what_is_not_read(text: str, expected: str) -> None:
    assert expected in "\n".join(parse(text, "r.yml").warnings)


def test_an_unknown_method_may_be_meant_as_moe() -> None:
    assert "did you mean 'moe'?" in faults("{merge_method: mo, models: [a]}")[0]


def test_a_base_that_another_document_makes() -> None:
    recipe = parse(
        "{name: body, merge_method: linear, models: [{model: a, parameters: {weight: 1}}]}\n---\n"
        "{base_model: body, gate_mode: zeros, experts: [a, c]}"
    )
    assert recipe.mixture and [stage.name for stage in recipe.stages] == ["body"]
    assert [str(ref) for ref in recipe.model_refs()] == ["a", "c"]
