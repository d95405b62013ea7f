"""Chat templates: the models' own, the built-in ones as their vendors render, texts and files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_worker.tokenizer.chat_template import BUILT_IN, own_template
from merge_worker.tokenizer.files import SideFiles
from support.recipes import average, run
from support.tokenizer_factory import TURNS, make_models, make_speakers, rendered, write_json

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_mergekit"
RECIPES = [
    pytest.param(recipe.pop("golden"), recipe, id=name)
    for recipe in yaml.safe_load_all((GOLDENS / "chat_templates.yml").read_text("utf-8"))
    if (name := recipe["golden"])
]
ASKED = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# What mergekit's templates render as well, but for its faults: no line break before the last
# `### Response:`, stray blanks around exaone's turns, line breaks after llama3's `<|eot_id|>`.
RENDERED = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye"
    "\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be brief.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]",
}


def merge(place: Path, template: str, models: str = "a b", more: str = "") -> int:
    listed = ", ".join(f"{{model: {model}}}" for model in models.split())
    (place / "r.yml").write_text(
        "merge_method: linear\nparameters: {weight: 1}\ntokenizer_source: union\n"
        f"models: [{listed}]\nchat_template: {json.dumps(template)}\n{more}"
    )
    words = ("--relative-to", place, "--progress", "off", "--overwrite")
    return run("merge", place / "r.yml", place / "out", *words)


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_models(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in(name: str, place: Path) -> None:
    assert merge(place, name) == 0
    loaded = tokenizer(place / "out")
    text = loaded.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert text == RENDERED[name]
    if name == "mistral":
        with pytest.raises(Exception, match="take turns"):
            loaded.apply_chat_template(TURNS[:2] + TURNS[3:], tokenize=False)


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_chats_are_put_as_mergekit_puts_them(
    name: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    make_speakers(tmp_path)
    path, out = tmp_path / "r.yml", tmp_path / "out"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    assert run("merge", path, out, "--relative-to", tmp_path, "--progress", "off") == 0
    golden = json.loads((GOLDENS / "chat_templates.json").read_text("utf-8"))[name]
    ours = rendered(out)
    if name in ("chat_alpaca", "chat_exaone", "chat_llama3"):
        # Its blanks and line breaks are not the vendors'; the words are.
        assert ours != golden
        ours, golden = ("".join(text.split()) for text in (ours, golden))
    assert ours == golden


def test_alone_without_a_system_message(place: Path) -> None:
    expected = {
        "exaone": "[|system|][|endofturn|]\n[|user|]Hi\n",
        "mistral": "<s> [INST] Hi [/INST]",
        "alpaca": "### Instruction:\nHi",
    }
    for name, text in expected.items():
        assert merge(place, name) == 0
        assert tokenizer(place / "out").apply_chat_template(TURNS[1:2], tokenize=False) == text


def test_texts_and_files(place: Path) -> None:
    assert merge(place, ASKED) == 0
    assert (place / "out" / "chat_template.jinja").read_text() == ASKED
    (place / "own.jinja").write_text(ASKED + "!\n")
    assert merge(place, "own.jinja") == 0
    assert own_template(SideFiles(place / "out")) == ASKED + "!\n"
    assert merge(place, str(place / "own.jinja")) == 0
    assert str(place) not in (place / "out" / "merge_manifest.json").read_text()
    write_json(place / "chat.json", {"chat_template": ASKED + "?"})
    assert merge(place, "chat.json") == 0
    assert tokenizer(place / "out").chat_template == ASKED + "?"


def test_every_file_that_has_one_follows(place: Path) -> None:
    settings = json.loads((place / "a" / "tokenizer_config.json").read_text())
    write_json(place / "a" / "tokenizer_config.json", {**settings, "chat_template": "old one"})
    write_json(place / "a" / "chat_template.json", {"chat_template": "old one"})
    assert merge(place, "chatml") == 0
    for name in ("tokenizer_config.json", "chat_template.json"):
        settings = json.loads((place / "out" / name).read_text())
        assert settings["chat_template"] == BUILT_IN["chatml"]
    assert tokenizer(place / "out").chat_template == BUILT_IN["chatml"]


def test_auto_takes_the_most_frequent(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "b" / "chat_template.jinja").write_text(f"\n{ASKED}\n")
    settings = json.loads((place / "c" / "tokenizer_config.json").read_text())
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": ASKED}]
    write_json(place / "c" / "tokenizer_config.json", {**settings, "chat_template": named})
    (place / "a" / "chat_template.jinja").write_text("something else")
    assert merge(place, "auto", "a b c") == 0
    assert (place / "out" / "chat_template.jinja").read_text() == ASKED
    # One each: that of the first model, whose file is not touched.
    assert merge(place, "auto", "a b") == 0
    assert (place / "out" / "chat_template.jinja").read_text() == "something else"
    assert merge(place, "auto", "base tied-base") == 0
    assert not (place / "out" / "chat_template.jinja").exists()


def test_with_the_tokenizer_as_it_is(place: Path) -> None:
    """Without a `tokenizer` in the recipe the files are copies, but for the template."""
    (place / "r.yml").write_text(
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: tied-a}]\n"
        "chat_template: chatml\n"
    )
    words = ("--relative-to", place, "--progress", "off")
    assert run("merge", place / "r.yml", place / "out", *words) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (place / "out" / name).read_bytes() == (place / "a" / name).read_bytes()
    assert tokenizer(place / "out").chat_template == BUILT_IN["chatml"]


def test_a_template_that_the_result_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_speakers(tmp_path)
    text = (
        "merge_method: linear\nparameters: {weight: 1}\ntokenizer_source: union\n"
        "models: [{model: base}, {model: a}, {model: b}]\n"
    )
    words = ("--relative-to", tmp_path, "--progress", "off", "--overwrite")
    (tmp_path / "r.yml").write_text(text)
    assert run("merge", tmp_path / "r.yml", tmp_path / "out", *words) == 0
    before, _, line = capsys.readouterr().err.partition("\n  add to the recipe: ")
    assert "the result: no chat template, since base has none, unlike a, b" in before
    (tmp_path / "r.yml").write_text(text + line.splitlines()[0] + "\n")
    assert run("merge", tmp_path / "r.yml", tmp_path / "out", *words) == 0
    assert own_template(SideFiles(tmp_path / "out")) == own_template(SideFiles(tmp_path / "a"))
    assert "chat template" not in capsys.readouterr().err
    # The tokenizer of a model that has one; of one that has none; and none anywhere.
    for source, models, label in (
        ("a", "base b", None),
        ("tied-a", "a tied-a", "tied-a"),
        ("base", "base tied-a", None),
    ):
        listed = ", ".join(f"{{model: {model}}}" for model in models.split())
        (tmp_path / "r.yml").write_text(
            f"merge_method: linear\nparameters: {{weight: 1}}\ntokenizer: {{source: {source}}}\n"
            f"models: [{listed}]\n"
        )
        assert run("merge", tmp_path / "r.yml", tmp_path / "out", *words) == 0
        err = capsys.readouterr().err
        assert ("no chat template" in err) == bool(label)
        assert f"since {label} has none" in err or not label


def test_the_template_of_an_average_without_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_speakers(tmp_path)
    assert average(tmp_path / "out", [tmp_path / "tied-a", tmp_path / "a"]) == 0
    text = capsys.readouterr().err
    assert "merge them by a recipe that says: chat_template: auto" in text
    (tmp_path / "a" / "tokenizer_config.json").write_text("{")
    (tmp_path / "a" / "chat_template.jinja").unlink()
    assert average(tmp_path / "other", [tmp_path / "tied-a", tmp_path / "a"]) == 0


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("chatm", "(did you mean 'chatml'?)"), ("no template at all, but long", ""), ("{{x}}", "")],
)
def test_neither_name_nor_file_nor_template(
    asked: str, hint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(place, asked) == 2
    text = capsys.readouterr().err
    assert f"chat_template '{asked}' is not one of auto, alpaca, chatml, " in text and hint in text
    assert not (place / "out").exists()
