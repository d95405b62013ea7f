"""Recipes from text: what is understood, and every fault with its line, all at once."""

from pathlib import Path

import pytest
import yaml

from merge_worker.errors import UsageError
from merge_worker.recipe import parse
from merge_worker.recipe.schema import ModelRef, Recipe, parse_model
from merge_worker.recipe.shorthand import direct_recipe


def faults(text: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse(text, "r.yml")
    return str(caught.value).splitlines()


def with_models(*lines: str, method: str = "linear") -> str:
    return "\n".join([f"merge_method: {method}", "models: [a, b]", *lines])


def test_whole_models() -> None:
    recipe = parse(
        """
merge_method: task_arithmetic
base_model: base
models:
  - model: a
    parameters: {weight: 0.5}
  - model: org/name@rev
parameters: {lambda: 0.7, weight: 1}
dtype: torch.bfloat16
"""
    )
    (part,) = recipe.modules[0].slices
    assert [str(source.model) for source in part.sources] == ["a", "org/name@rev", "base"]
    assert [source.implied for source in part.sources] == [False, False, True]
    assert [str(ref) for ref in recipe.model_refs()] == ["base", "a", "org/name@rev"]
    assert (recipe.method, recipe.dtype, recipe.warnings) == ("task_arithmetic", "bfloat16", ())
    assert part.sources[0].parameters["weight"].place == "recipe:6: models[0].parameters.weight"


def test_a_listed_base_is_not_added() -> None:
    recipe = parse("{merge_method: slerp, models: [a, b], base_model: a, parameters: {t: 0.1}}")
    assert [str(s.model) for s in recipe.modules[0].slices[0].sources] == ["a", "b"]


def test_slices_and_modules() -> None:
    text = """
merge_method: linear
modules:
  decoder:
    slices:
      - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [2, 4]}]
        base_model: b
        parameters: {weight: 1}
    parameters: {normalize: false}
  encoder:
    models: [{model: a, parameters: {weight: 1}}]
"""
    decoder, encoder = parse(text).modules
    assert (decoder.sliced, encoder.sliced) == (True, False)
    assert decoder.slices[0].length == 2
    assert decoder.slices[0].base == ModelRef("b")
    assert decoder.parameters["normalize"].setting is False
    assert [s.layers for s in decoder.slices[0].sources] == [(0, 2), (2, 4)]


@pytest.mark.parametrize(
    ("word", "ref"),
    [
        ("org/name", ModelRef("org/name")),
        ("./dir@r1", ModelRef("./dir", "r1")),
        ("a@r+b@s", ModelRef("a", "r", "b", "s")),
        ("a+b", ModelRef("a", None, "b")),
    ],
)
def test_names_of_models(word: str, ref: ModelRef) -> None:
    assert parse_model(word) == ref
    assert str(ref) == word


def test_a_path_that_exists_is_that_path(tmp_path: Path) -> None:
    for name in ("step1+2", "user@site/m", "m", "a+b+c", "a"):
        (tmp_path / name).mkdir(parents=True)
    for word, expected in {
        "step1+2": ModelRef("step1+2"),
        "step1+2+m": ModelRef("step1+2", lora="m"),
        "m+step1+2": ModelRef("m", lora="step1+2"),
        "user@site/m": ModelRef("user@site/m"),
        "user@site/m@v2": ModelRef("user@site/m", "v2"),
        "user@site/m+m": ModelRef("user@site/m", lora="m"),
        "a+b+c": ModelRef("a+b+c"),
        "a+x": ModelRef("a", lora="x"),
        "org/name@main+m": ModelRef("org/name", "main", "m"),
    }.items():
        assert parse_model(word, tmp_path) == expected, word
    models = "[step1+2, {model: {model: {path: m+m}}}, {model: {model: a+b+c}}]"
    text = f"merge_method: linear\nmodels: {models}"
    sources = parse(text, folder=tmp_path).modules[0].slices[0].sources
    assert [source.model.path for source in sources] == ["step1+2", "m+m", "a+b+c"]
    with pytest.raises(ValueError, match="more than one '\\+'"):
        parse_model("x+y+z", tmp_path)


def test_anchors_under_a_repeated_key_of_their_own() -> None:
    text = (
        "const: &A a\nconst: &B b\nmerge_method: linear\nmodels: [*A, *B]\nparameters: {weight: 1}"
    )
    recipe = parse(text, "r.yml")
    assert [str(source.model) for source in recipe.modules[0].slices[0].sources] == ["a", "b"]
    assert "r.yml:1: const: nothing reads this key" in recipe.warnings


def test_an_empty_slice_between_others_is_named() -> None:
    slices = "".join(
        f"\n- sources: [{{model: a, layer_range: [{n}, {m}]}}]" for n, m in ((0, 2), (2, 2), (2, 3))
    )
    recipe = parse(f"merge_method: passthrough\nslices:{slices}", "r.yml")
    assert recipe.warnings == ("r.yml:4: slices[1]: takes no layers, so it has no effect",)


def test_models_written_out() -> None:
    text = """
merge_method: linear
models:
  - model: {model: {path: x, revision: r}, lora: y@s, override_architecture: ZForCausalLM}
parameters: {weight: 1}
"""
    (ref,) = parse(text).model_refs()
    assert ref == ModelRef("x", "r", "y", "s", "ZForCausalLM")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: [a]", "r.yml:1: merge_method: missing; one of "),
        (
            with_models(method="dare-linear"),
            "r.yml:1: merge_method: unknown method 'dare-linear' (did you mean 'dare_linear'?)",
        ),
        (
            with_models("dtype: bf16"),
            "r.yml:3: dtype: unknown dtype 'bf16' (did you mean 'bfloat16'?)",
        ),
        (
            "merge_method: linear",
            "r.yml:1: a recipe has one of 'models', 'slices' or 'modules'; found none of them",
        ),
        (
            with_models("slices: [x]"),
            "r.yml:1: a recipe has one of 'models', 'slices' or 'modules'; found 'models' and 'sl",
        ),
        (with_models("models: [c]"), "r.yml:2: models: stands twice; the first would be lost"),
        (
            with_models("parameters:", "  weight: heavy"),
            "r.yml:4: parameters.weight: 'heavy' is not a number",
        ),
        (
            with_models("parameters: {normalize: [1, 2]}"),
            "r.yml:3: parameters.normalize: 2 is neither true nor false",
        ),
        (
            with_models("parameters: {weight: .nan}"),
            "r.yml:3: parameters.weight: nan is not a finite number",
        ),
        (
            with_models("parameters: 3"),
            "r.yml:3: parameters: 'parameters' is a mapping of names to values, not 3",
        ),
        (
            "merge_method: linear\nmodels:\n- a\n- a",
            "r.yml:4: models[1]: model 'a' is listed twice; give one larger weight",
        ),
        ("merge_method: linear\nmodels:\n- weight: 1", "r.yml:3: models[0]: no 'model' in it"),
        (
            "merge_method: linear\nmodels: a",
            "r.yml:2: models: a list with at least one entry belongs here",
        ),
        (
            "merge_method: linear\nmodels: [a+b+c]",
            "r.yml:2: models[0].model: 'a+b+c' has more than one '+'",
        ),
        (with_models(method="ties"), "r.yml: ties needs a base: add 'base_model: …'"),
        (
            "merge_method: slerp\nbase_model: x\nmodels: [a, b]\nparameters: {t: 0}",
            "r.yml:3: models: slerp merges 1 model beside the base; found 2",
        ),
        (
            "merge_method: passthrough\nbase_model: x\nmodels: [a]",
            "r.yml:3: models: passthrough merges 1 model; found 2; base_model 'x' is one",
        ),
        (
            with_models("tokenizer: {}", "tokenizer_source: base"),
            "r.yml:4: tokenizer_source: stands beside 'tokenizer'",
        ),
        ("- 1", "r.yml:1: a recipe is a mapping of names to values, not [1]"),
        ("", "r.yml: empty; a recipe is one YAML document, or several"),
    ],
)
def test_faults(text: str, expected: str) -> None:
    assert any(line.startswith(expected) for line in faults(text)), faults(text)


SLICE = "merge_method: {}\nbase_model: x\nslices:\n- sources:\n{}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            SLICE.format("linear", "  - {model: a}"),
            "r.yml:5: slices[0].sources[0].layer_range: None is not [first, last)",
        ),
        (
            SLICE.format("linear", "  - {model: a, layer_range: [4, 3]}"),
            "r.yml:5: slices[0].sources[0].layer_range: [4, 3] is not [first, last)",
        ),
        (
            SLICE.format("linear", "  - {model: a, layer_range: [4, 4]}"),
            "r.yml:3: slices: no layers at all; a layer_range is [first, last)",
        ),
        (
            SLICE.format(
                "linear", "  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [0, 3]}"
            ),
            "r.yml:6: slices[0].sources[1]: takes 3 layers, the first source of this slice 4",
        ),
        (
            SLICE.format(
                "linear", "  - {model: a, layer_range: [0, 4]}\n  - {model: a, layer_range: [0, 4]}"
            ),
            "r.yml:6: slices[0].sources[1]: model 'a' is listed twice with layers [0, 4]",
        ),
        (
            SLICE.format(
                "ties", "  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [0, 4]}"
            ),
            "r.yml:4: slices[0]: the base 'x' is not among the sources of this slice",
        ),
        (
            SLICE.format("linear", "  - a"),
            "r.yml:5: slices[0].sources[0]: a source is a mapping of names to values, not 'a'",
        ),
    ],
)
def test_faults_of_slices(text: str, expected: str) -> None:
    assert any(line.startswith(expected) for line in faults(text)), faults(text)


def test_all_faults_at_once() -> None:
    text = """
merge_method: lineer
models:
  - model: a
    parameters: {weight: [1, {value: 2}]}
  - {modle: b}
dtype: half
chat_template: [1]
"""
    lines = faults(text)
    for start in ("r.yml:2", "r.yml:5", "r.yml:6", "r.yml:7", "r.yml:8"):
        assert any(line.startswith(f"{start}: ") for line in lines), lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "tokeniser_source: base",
            "r.yml:3: tokeniser_source: nothing reads this key (did you mean 'tokenizer_source'?)",
        ),
        (
            "parameters: {weight: 1, wieght: 1}",
            "r.yml:3: parameters.wieght: linear does not read it (did you mean 'weight'?)",
        ),
        (
            "parameters: {weight: 1, int8_mask: true}",
            "r.yml:3: parameters.int8_mask: linear does not read it",
        ),
    ],
)
def test_what_nothing_reads_is_a_warning(line: str, expected: str) -> None:
    assert parse(with_models(line), "r.yml").warnings == (expected,)


def test_parameters_in_the_wrong_place_are_warnings() -> None:
    text = """merge_method: ties
base_model: x
models:
- model: x
  parameters: {weight: 1}
- model: a
  layer_range: [0, 3]
  parameters: {normalize: false, weight: 1}
"""
    assert parse(text, "r.yml").warnings == (
        "r.yml:5: models[0].parameters.weight: the base of ties has none",
        "r.yml:7: models[1].layer_range: not read here; layers are picked under 'slices'",
        "r.yml:8: models[1].parameters.normalize: one value for all models; it belongs under "
        "'parameters:' of the recipe",
    )


def test_a_base_that_joins_the_models_has_parameters() -> None:
    text = "{merge_method: linear, base_model: a, models: [{model: a, parameters: {weight: 1}}, b]}"
    assert parse(text).warnings == ()


def direct(*models: str, **options: object) -> Recipe:
    return parse(direct_recipe(models, **options))  # type: ignore[arg-type]


def test_a_direct_recipe_says_the_same() -> None:
    recipe = direct("m1", "m2", weights=[2, 1], dtype="float16", parameters={"normalize": False})
    (part,) = recipe.modules[0].slices
    assert [s.parameters["weight"].setting for s in part.sources] == [2, 1]
    assert (recipe.out_dtype, recipe.dtype) == ("float16", None)
    assert direct("m1", "m2", dtype="same").out_dtype is None
    assert direct("b", "m", method="slerp", base_model="b", parameters={"t": 1}).base
    assert yaml.safe_load(direct_recipe(["ü"]))["models"][0]["model"] == "ü"


@pytest.mark.parametrize(
    ("models", "options", "expected"),
    [
        ([], {}, "no models given"),
        (["a", "b"], {"weights": [1.0]}, "--weights has 1 value for 2 models (a, b)"),
        (["a"], {"method": "linaer"}, "--method: unknown method 'linaer' (did you mean 'linear'?)"),
        (
            ["a", "b"],
            {"method": "karcher", "weights": [1.0, 2.0]},
            "--weights: the method 'karcher' takes no weights",
        ),
    ],
)
def test_direct_recipes_that_make_no_sense(
    models: list[str], options: dict[str, object], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        direct_recipe(models, **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(expected)
