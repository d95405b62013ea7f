"""Pages that are made from the code, and recipes of a page that are planned.

`pytest tests/docs/test_reference_pages.py --update-goldens` writes methods.md and migration.md.
"""

import re
from pathlib import Path

import pytest

from merge_worker import methods
from merge_worker.commands import mergekit_options
from merge_worker.commands.methods import method_page, mixture_page
from merge_worker.recipe.parser import TOP_LEVEL_KEYS
from support.error_cases import make_world
from support.importance_files import write_importance
from support.recipes import run

DOCS = Path(__file__).resolve().parents[2] / "docs"

METHODS = """# Methods

The output of `merge-worker methods NAME` for every method, generated from the code.
[Recipes](recipes.md) shows how to use them, [From Python](python.md#methods-of-your-own) how to add
one in a file of yours.

## What methods are worth on trained specialists

Losses (nats per token) of a small llama trained on three tasks for a while, of three specialists
that went on from there, one task each, and of their merges, on texts that made none of them: mean
and standard deviation over three seeds. No value is tuned: weights are equal, `task_arithmetic` has
0.5, `ties` a density of 0.5, the others their defaults. `fisher` has squared gradients of 64 texts
of each task, `regmean` these texts, `ota` the `optimizer.pt` that AdamW left after training, as the
Trainer writes it. From a clone of the repository,

```sh
"$(scripts/env)/bin/python" scripts/method_losses.py FOLDER --seeds 3
```

trains, merges and prints this (26 minutes on two busy cores). Other processors round otherwise, so
their specialists differ.

| | adder | reverser | counter | mean of the three |
|---|---|---|---|---|
| base | 1.439 ± 0.020 | 1.795 ± 0.080 | 1.127 ± 0.041 | 1.454 ± 0.035 |
| adder | 1.320 ± 0.023 | 2.214 ± 0.421 | 2.477 ± 0.341 | 2.004 ± 0.250 |
| reverser | 2.692 ± 1.338 | 1.707 ± 0.021 | 2.864 ± 1.780 | 2.421 ± 1.033 |
| counter | 3.283 ± 0.701 | 3.643 ± 2.653 | 0.457 ± 0.023 | 2.461 ± 1.099 |
| linear | 1.498 ± 0.011 | 1.828 ± 0.126 | 1.278 ± 0.100 | 1.535 ± 0.072 |
| task_arithmetic | 1.651 ± 0.098 | 2.016 ± 0.449 | 1.827 ± 0.364 | 1.832 ± 0.132 |
| ties | 2.093 ± 0.429 | 2.482 ± 0.915 | 2.516 ± 1.252 | 2.364 ± 0.380 |
| nde | 2.270 ± 0.306 | 2.436 ± 0.620 | 3.167 ± 1.766 | 2.624 ± 0.582 |
| geomedian | 1.485 ± 0.025 | 1.789 ± 0.054 | 1.305 ± 0.155 | 1.526 ± 0.057 |
| fisher, `importance:` of texts | 1.461 ± 0.016 | 2.334 ± 0.478 | 0.976 ± 0.117 | 1.590 ± 0.195 |
| ota, `importance:` of training | 1.648 ± 0.028 | 2.267 ± 0.462 | 0.786 ± 0.092 | 1.567 ± 0.183 |
| regmean, with `data:` | 1.457 ± 0.019 | 1.871 ± 0.235 | 1.057 ± 0.050 | 1.462 ± 0.095 |

The specialists forget the other tasks, and no merge is as good on the mean as the base, which has
seen all three. `regmean` comes nearest; `geomedian`, `linear`, `ota` and `fisher` differ by less
than their spread, the last two by serving one task more than another. Sums of whole task vectors
are too long here, and `nde`, which also drops at random, loses most. Models of this size say little
about large ones: try several methods, and [search](search.md) for values.
"""

MIGRATION = """# From mergekit

Recipes need no change: every key and method of mergekit 0.1.5 is supported, and results agree
within rounding (`tests/worker/methods/test_mergekit_goldens.py`). Scripts have
[a table of their own](python.md#from-mergekit). The command line differs, but mergekit's options
are accepted too:

```console
$ merge-launch local recipe.yml out/ --cuda --lazy-unpickle --copy-tokenizer --out-shard-size 1B
```

| mergekit | here |
|---|---|
| `mergekit-yaml recipe.yml out` | `merge-launch local recipe.yml out` |
| `mergekit-multi` | the same command: several documents are one recipe |
| `mergekit-extract-lora` | `merge-worker extract-lora MODEL OUT --base-model BASE` |
| mergekit itself, in a job | `merge-launch … --engine mergekit` |

## Options

Each is accepted, also in its `--no-…` form, with a note on standard error about its meaning here.

| mergekit | here | |
|---|---|---|
"""
PROGRAMS = {
    "`mergekit-moe config.yml out`": "`merge-launch local config.yml out`: its files are read as "
    "they are, in fourteen [model types](moe.md#model-types), with the names of published models; "
    "DeepSeek is written as `glm4_moe`",
    "`mergekit-evolve`": "`merge-launch search`: its files are read; see [search](search.md)",
    "`mergekit-legacy out --merge A --merge B --method ties --density 0.5`": "`merge-launch local "
    "out A B --method ties --param density=0.5`",
    "`mergekit-pytorch`": "single files are models here: `merge-launch local out a.bin b.bin`; "
    "`--missing copy` and `--surplus drop` for tensors that not all have",
    "`mergekit-layershuffle`": "a recipe with [slices](recipes.md); ten lines of Python write one "
    "with random layers",
    "`mergekit-tokensurgeon`": "not here: `tokenizer:` gives models one vocabulary, and invents no "
    "rows",
    "`bakllama`": "a recipe with [slices](recipes.md) says the same",
}
ENDING = """
## What is different

- The result has the tensors of the base (or first model), in its layout and with its names;
  nothing is left out silently.
- Random masks depend on seed and tensor name only, not on threads, devices or the order of files;
  they differ from mergekit's bit for bit.
- An interrupted merge resumes; a finished one is not repeated; a folder that holds another merge
  is refused.
- NaN and Inf stop a merge; models that are probably unrelated are reported.
"""


def methods_page() -> str:
    parts = [METHODS]
    for name in methods.names():
        title, _, body = method_page(methods.get(name)).partition("\n")
        parts.append(f"## {title}\n\n```text\n{body.strip()}\n```\n")
    title, _, body = mixture_page().partition("\n")
    parts.append(f"## {title}\n\n```text\n{body.strip()}\n```\n")
    return "\n".join(parts)


def migration_page() -> str:
    rows = []
    for row in mergekit_options.TABLE:
        value = " …" if row.takes_value else ""
        replacement = f"`{row.replacement}{value}`" if row.replacement else ""
        rows.append(f"| `{row.option}{value}` | {replacement} | {row.note} |\n")
    programs = "".join(f"| {theirs} | {ours} |\n" for theirs, ours in PROGRAMS.items())
    last = "| mergekit itself"
    return MIGRATION.replace(last, programs + last) + "".join(rows) + ENDING


@pytest.mark.parametrize(
    ("name", "text"), [("methods.md", methods_page()), ("migration.md", migration_page())]
)
def test_pages_are_made_from_the_code(name: str, text: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-goldens", default=False):
        (DOCS / name).write_text(text, encoding="utf-8")
    assert (DOCS / name).read_text(encoding="utf-8") == text


def blocks() -> dict[str, str]:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^```yaml (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", blocks())
def test_recipes_of_the_page(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(make_world(tmp_path))
    write_importance(tmp_path)
    (tmp_path / name).write_text(blocks()[name], encoding="utf-8")
    assert run("merge", name, "out", "--strict", "--progress", "off") == 0, capsys.readouterr().err
    assert run("verify", "out") == 0


def test_the_page_has_every_key() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert [key for key in TOP_LEVEL_KEYS if f"`{key}`" not in text] == []


@pytest.mark.parametrize("row", mergekit_options.TABLE, ids=lambda row: row.option)
def test_every_option_is_taken(row: mergekit_options.Row) -> None:
    given = [row.option, "2B"] if row.takes_value else [row.option]
    translation, note = mergekit_options.translated(["merge", *given, "recipe.yml", "out"])
    value = "=2GB" if row.takes_value else ""
    replacement = [row.replacement + value] if row.replacement else []
    assert translation == ["merge", *replacement, "recipe.yml", "out"]
    assert note.startswith(f"{row.option}: ")
    if row.takes_value and row.option.startswith("--"):
        assert mergekit_options.translated([f"{row.option}=2B"])[0] == replacement
    elif not row.takes_value and row.option.startswith("--"):
        assert mergekit_options.translated([row.option.replace("--", "--no-", 1)])[0] == []


def test_several_options_make_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["merge", "--cuda", "--lazy-unpickle", "--out-shard-size", "1B", "r.yml", "out"]
    note = (
        "options of mergekit: --out-shard-size is --shard-size=1GB here; "
        "--cuda, --lazy-unpickle are not needed"
    )
    cpu = "no GPU is visible here: the CPU merges"
    monkeypatch.setattr(mergekit_options, "has_accelerator", lambda: False)
    assert mergekit_options.translated(words)[1] == f"{note}; {cpu}"
    assert mergekit_options.translated(words, merges_here=False)[1] == note
    assert mergekit_options.translated(["merge", "--cuda"])[1] == f"--cuda: {cpu}"
    monkeypatch.setattr(mergekit_options, "has_accelerator", lambda: True)
    assert mergekit_options.translated(words)[1] == note


def test_our_own_words_stay() -> None:
    words = ["merge", "r.yml", "out", "--device", "cuda", "--threads=2", "--no-resume", "--no-x"]
    assert mergekit_options.translated(words) == (words, "")
