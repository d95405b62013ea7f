"""The model card: Hub ids, no local paths, the recipe as written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from merge_worker.output.model_card import markdown, model_card, public_name
from merge_worker.recipe.schema import ModelRef
from support.recipes import average, plan_of, run, some_models


def front_matter(text: str) -> dict[str, object]:
    _, head, _ = text.split("---\n", 2)
    value: dict[str, object] = yaml.safe_load(head)
    return value


def test_the_text_of_the_card(tmp_path: Path, models: list[Path]) -> None:
    assert average(tmp_path / "my-merge", models) == 0
    text = (tmp_path / "my-merge" / "README.md").read_text()
    head = front_matter(text)
    assert head["tags"] == ["merge", "merge-launch"]
    assert "base_model" not in head, "these are folders, the hub does not know them"
    assert "# my-merge\n" in text
    assert "[linear](https://arxiv.org/abs/2203.05482)" in text
    assert "- m0\n- m1\n- m2\n" in text
    assert "| merged | 6 |\n| copied | 2 |\n" in text
    assert str(tmp_path) not in text, "no folder of this machine"


def test_paths_leave_card_and_manifest_but_not_the_recipe(
    tmp_path: Path, models: list[Path]
) -> None:
    assert average(tmp_path / "out", models) == 0
    assert str(tmp_path) not in (tmp_path / "out" / "merge_manifest.json").read_text()
    assert str(tmp_path) in (tmp_path / "out" / "mergekit_config.yml").read_text()


@pytest.mark.parametrize("word", [".", "..", "m", "/tmp", "./a"])
def test_short_paths_do_not_garble_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    home = some_models(tmp_path / "here", 1)[0]
    places = {".": home, "..": home / "deep", "m": home.parent, "./a": home.parent}
    (home / "deep").mkdir()
    for name in ("m", "a"):
        (home.parent / name).symlink_to(home)
    monkeypatch.chdir(places.get(word, home))
    given = str(home) if word == "/tmp" else word
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        f"merge_method: linear\nmodels:\n- model: {json.dumps(given)}\n"
        "  parameters: {weight: 0.5}\n# ./b m/x a.m /models\n"
    )
    assert run("merge", recipe, tmp_path / "out", "--progress", "off") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "weight: 0.5" in text and "# ./b m/x a.m /models" in text
    assert "merge_method: linear" in text and "  parameters:" in text
    assert str(tmp_path) not in text


def test_names_of_models() -> None:
    assert public_name(ModelRef("/data/models/llama/")) == "llama"
    assert public_name(ModelRef("org/name")) == "org/name"
    assert public_name(ModelRef("org/name", "main")) == "org/name@main"
    assert public_name(ModelRef("../x")) == "x"


def test_folders_below_another_start_are_no_hub_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_models(tmp_path / "org", 2)
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        "merge_method: linear\nparameters: {weight: 1}\n"
        "models: [{model: org/m0}, {model: org/m1}]\n"
    )
    monkeypatch.chdir("/")
    words = ("--relative-to", tmp_path, "--progress", "off")
    assert run("merge", recipe, tmp_path / "out", *words) == 0
    assert "base_model" not in front_matter((tmp_path / "out" / "README.md").read_text())


def test_a_title_from_any_folder_name(tmp_path: Path, models: list[Path]) -> None:
    assert "# x y\n" in model_card(plan_of(models), "x y")


def test_names_are_text_and_a_recipe_cannot_end_its_block(tmp_path: Path) -> None:
    (first, second) = some_models(tmp_path / "in", 2)
    odd = first.rename(first.with_name("<img src=x>[a](b)`\x1b[2J\n# b"))
    plan = plan_of([odd, second])
    plan = replace(plan, recipe=replace(plan.recipe, text="a: 1\n````\n<script>\n"))
    text = model_card(plan, "*t*")
    assert "\n# \\*t\\*\n" in text
    assert "\n- \\<img src=x\\>\\[a\\](b)\\`\\\\x1b\\[2J\\\\n# b\n" in text
    assert "\n`````yaml\na: 1\n````\n<script>\n`````\n" in text


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("license: mit", "mit"),
        ("license: 'mit'  # free", "mit"),
        ("license:\tmit ", "mit"),
        ("license:mit", None),
        ("license: [mit]", None),
        ("license: &a mit", None),
        ("license: # none", None),
        ("license: a" + " " * 900_000 + "b#", "a" + " " * 900_000 + "b"),
        ("license: " + " " * 900_000 + "#", None),
    ],
)
def test_a_license_in_a_card(models: list[Path], line: str, value: str | None) -> None:
    for model in models:
        (model / "README.md").write_text(f"---\n{line}\nother: x\n---\n")
    text = model_card(plan_of(models), "x")
    assert front_matter(text).get("license") == value


@pytest.mark.parametrize(
    ("config", "task", "code"),
    [
        (
            {"architectures": ["LlamaForCausalLM"]},
            "text-generation",
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("x")\n'
            'tokenizer = AutoTokenizer.from_pretrained("x")\n',
        ),
        (
            {"architectures": ["BertForSequenceClassification"]},
            "text-classification",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n",
        ),
        (
            {"architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": {}},
            "image-text-to-text",
            'processor = AutoProcessor.from_pretrained("x")\n',
        ),
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "text2text-generation",
            'AutoModelForSeq2SeqLM.from_pretrained("x")\n',
        ),
        ({"architectures": 3}, None, 'model = AutoModel.from_pretrained("x")\n'),
        (
            {"architectures": ["T5EncoderModel"]},
            None,
            'model = T5EncoderModel.from_pretrained("x")\n',
        ),
        (
            {"architectures": ["MyModel"], "auto_map": {"AutoModel": "my.MyModel"}},
            None,
            'model = AutoModel.from_pretrained("x")\n',
        ),
        ({"_class_name": "UNet2DModel"}, None, 'model = UNet2DModel.from_pretrained("x")\n'),
        ({"_class_name": "os; x"}, None, 'model = AutoModel.from_pretrained("x")\n'),
    ],
)
def test_how_a_result_is_loaded(
    models: list[Path], config: dict[str, object], task: str | None, code: str
) -> None:
    for model in models:
        (model / "config.json").write_text(json.dumps(config))
    text = model_card(plan_of(models), "x")
    assert front_matter(text).get("pipeline_tag") == task
    assert code in text.partition("```python\n")[2].partition("```")[0]


def test_a_name_cannot_end_the_block_of_code(models: list[Path]) -> None:
    text = model_card(plan_of(models), 'a```"b')
    assert 'from_pretrained("a\\x60\\x60\\x60\\"b")' in text


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a_b", "a_b"),
        ("_a_", "\\_a\\_"),
        ("a|b", "a\\|b"),
        ("~~a~~", "\\~\\~a\\~\\~"),
    ],
)
def test_markdown_shows_names_as_they_are(name: str, line: str) -> None:
    assert markdown(name) == line


@pytest.mark.parametrize(
    ("given", "languages"),
    [
        (["language: en", "language:\n- 'no'\n- de"], ["en", "no", "de"]),
        (["language: [en, pt-BR]", "language: multilingual"], ["en", "pt-BR", "multilingual"]),
        (["language: en", "license: mit"], None),
    ],
)
def test_languages(models: list[Path], given: list[str], languages: list[str] | None) -> None:
    for number, model in enumerate(models):
        (model / "README.md").write_text(f"---\n{given[min(number, 1)]}\ntags: [x]\n---\n")
    assert front_matter(model_card(plan_of(models), "x")).get("language") == languages
