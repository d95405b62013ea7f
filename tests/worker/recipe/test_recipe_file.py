"""The recipe in a file: as it is, or in a block of a model card, with the lines of the file."""

import pytest

from merge_worker.errors import UsageError
from merge_worker.recipe import parse, recipe_in

CARD = """---
tags: [merge]
---
# A model

```python
print("no recipe")
```

```yaml
merge_method: linear
models:
- {model: a, parameters: {weight: 1}}
- {model: b, parameters: {weihgt: 1}}
```

```yaml
widget: []
```
"""


def test_a_card_gives_its_block_and_the_line_of_it() -> None:
    text = recipe_in(CARD, "README.md")
    assert text.text.startswith("merge_method: linear\n") and text.text.endswith("1}}\n")
    assert text.first_line == 11
    recipe = parse(text, "README.md")
    assert recipe.text == text.text
    assert recipe.warnings[0].startswith("README.md:14: models[1].parameters.weihgt: ")


def test_other_files_are_taken_as_they_are() -> None:
    for name in ("r.yml", "recipe.txt", "recipe"):
        assert recipe_in(CARD, name) == (CARD, 1)


def test_faults_of_yaml_have_the_lines_of_the_card() -> None:
    with pytest.raises(UsageError, match=r"^c\.md:12: not valid YAML"):
        parse(recipe_in("\n" * 9 + "```yaml\nmerge_method: [\n}\n```\n", "c.md"), "c.md")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# nothing", "no recipe in this text; a model card has it in a YAML block"),
        (
            "```yaml\nmerge_method: a\n```\n\n~~~yml\nmerge_method: b\n~~~\n",
            "several recipes, on lines 2, 6; save one",
        ),
    ],
)
def test_cards_without_one_recipe(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"^CARD.MD: {told}"):
        recipe_in(text, "CARD.MD")
