"""The SOURCE words of a command → what is merged, and where to. Reads the recipe, no model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merge_worker.errors import UsageError as OfRecipe
from merge_worker.errors import WorkerError
from merge_worker.messages import printable
from merge_worker.output.files import MANIFEST, RECIPE

from ..errors import UsageError
from ..settings.groups import MergeOptions
from ..settings.options import options_of

if TYPE_CHECKING:
    from merge_worker.recipe.schema import Recipe


FORMS = "give OUT MODEL MODEL… or RECIPE.yml [OUT]"
RECIPE_ENDS = (".yml", ".yaml", ".json")
LONGEST_NAME = 80


@dataclass(frozen=True)
class Merge:
    """One merge as it was asked for. Paths are absolute; `text` is the recipe as given."""

    text: bytes
    recipe: Recipe
    out: str
    folder: str

    def local_models(self) -> tuple[str, ...]:
        """Paths of the models (and adapters) that are folders rather than names on the hub."""
        return tuple(absolute(w, self.folder) for w in self._words() if not _on_hub(w))

    def hub_models(self) -> tuple[str, ...]:
        return tuple(word for word in self._words() if _on_hub(word))

    def _words(self) -> list[str]:
        refs = self.recipe.model_refs()
        return list(dict.fromkeys(word for ref in refs for word in (ref.path, ref.lora) if word))

    def title(self) -> str:
        models = [Path(word).name for word in self._words()]
        more = f" and {len(models) - 4} more" if len(models) > 4 else ""
        return printable(f"{self.recipe.method} of {', '.join(models[:4])}{more}")


def _on_hub(word: str) -> bool:
    from merge_worker.checkpoint.folder import is_hub_id

    return is_hub_id(word)


def current_folder(variables: os._Environ[str] | dict[str, str]) -> str:
    """The current folder by the name the user went there by: links may differ on the nodes."""
    real, named = Path.cwd(), variables.get("PWD", "")
    try:
        same = Path(named).is_absolute() and Path(named).samefile(real)
    except OSError:
        same = False
    return named if same else str(real)


def absolute(word: str, folder: str) -> str:
    path = Path(folder) / Path(word).expanduser()
    return str(path)


def read_source(
    words: Sequence[str], options: MergeOptions, dtype: str | None, folder: str
) -> Merge:
    from merge_worker.recipe import parse

    if words and words[0].endswith(RECIPE_ENDS) and not words[0].endswith("/"):
        text, where = _read_recipe(words, options), words[0]
        out = _one_out(words[1:], options)
    else:
        models, out = _direct(words, options)
        text, where = _direct_recipe(models, options, dtype, folder), "the command"
    recipe = parse(decoded(text, where), where)
    name = out or default_name(recipe.method, [ref.path for ref in recipe.model_refs()])
    return Merge(text, recipe, absolute(name, folder), folder)


def add_missing_models(error: WorkerError, words: Sequence[str], folder: str) -> WorkerError:
    """The faults of a recipe, and the models that are not here: all at once."""
    from merge_worker.planning.missing_models import with_missing_models

    if not isinstance(error, OfRecipe) or not words[0].endswith(RECIPE_ENDS):
        return error
    try:
        text = Path(words[0]).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return error
    return with_missing_models(error, text, Path(folder))


def _read_recipe(words: Sequence[str], options: MergeOptions) -> bytes:
    if len(words) > 2:
        raise UsageError(f"{words[2]}: a recipe takes one OUT and names its models itself; {FORMS}")
    for each in options_of(MergeOptions):
        if each.name != "out" and getattr(options, each.name) is not None:
            raise UsageError(f"{each.flag} is for a direct merge; write it into {words[0]}")
    if Path(words[0]).name == MANIFEST:
        raise UsageError(
            f"{words[0]}: the manifest of a merge; 'merge-worker merge {words[0]} OUT' makes it "
            f"again, a job takes the {RECIPE} beside it"
        )
    try:
        return Path(words[0]).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"{words[0]}: {error.strerror}; {FORMS}") from None


def _one_out(words: Sequence[str], options: MergeOptions) -> str | None:
    if words and options.out is not None and words[0] != options.out:
        raise UsageError(f"OUT is given twice: {words[0]} and --out {options.out}; drop one")
    return words[0] if words else options.out


def _direct(words: Sequence[str], options: MergeOptions) -> tuple[list[str], str | None]:
    """With --out all words are models."""
    out = options.out or next(iter(words), None)
    models = list(words) if options.out else list(words[1:])
    if len(models) < 2:
        given = f"{printable(' '.join(words))}: " if words else ""
        raise UsageError(f"{given}two models or more make a merge; {FORMS}")
    return models, out


def _direct_recipe(
    models: Sequence[str], options: MergeOptions, dtype: str | None, folder: str
) -> bytes:
    from merge_worker.recipe.shorthand import recipe_from_values

    base = None if options.base_model is None else _located(options.base_model, folder)
    located = [_located(word, folder) for word in models]
    values = {**vars(options), "base_model": base, "dtype": dtype}
    return recipe_from_values(located, values).encode()


def _located(word: str, folder: str) -> str:
    """Of BASE+ADAPTER both parts; a folder with the sign in its name has to be in a recipe."""
    parts = word.split("+")
    return "+".join(part if _on_hub(part) else absolute(part, folder) for part in parts)


def decoded(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8 text; is it a recipe?") from None


def default_name(method: str, models: Sequence[str]) -> str:
    """`linear-m1-m2-m3`: what a folder is called when nobody named it."""
    words = [method, *(Path(path).name for path in models)]
    return safe_name("-".join(words))[:LONGEST_NAME].rstrip("-.")


def safe_name(text: str) -> str:
    """A name that files, schedulers and shells all take as it is; it begins with a letter."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")
    return plain if re.match(r"[A-Za-z]", plain) else f"merge-{plain}".rstrip("-")
