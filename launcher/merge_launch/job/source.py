"""The SOURCE words of a command → a Merge: recipe and output folder. Models are not opened."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merge_worker.errors import UsageError as RecipeError
from merge_worker.errors import WorkerError
from merge_worker.messages import printable
from merge_worker.output.files import MANIFEST, RECIPE
from merge_worker.recipe.recipe_file import WEIGHTS, recipe_in
from merge_worker.recipe.yaml_document import COMMAND
from merge_worker.registry import OWN, Registry, read_registry, split_words

from ..errors import UsageError
from ..settings.groups import MergeOptions
from ..settings.options import options_of

if TYPE_CHECKING:
    from merge_worker.recipe.schema import Recipe

FORMS = "give OUT MODEL MODEL… or RECIPE.yml [OUT]"
RECIPE_SUFFIXES = (".yml", ".yaml", ".json")
LONGEST_NAME = 80
LONGEST_STEM = 200
"""Bytes of a name that leave room for an ending: file systems take 255."""


@dataclass(frozen=True)
class Merge:
    """A recipe and its output folder. Paths are absolute; `text` is the recipe as given.

    `folder` is the folder that relative paths in the recipe start at. `job_name` is the name of the
    job, if that is not the name of OUT.
    """

    text: bytes
    recipe: Recipe
    out: str
    folder: str
    job_name: str | None = None

    def local_models(self) -> tuple[str, ...]:
        """Return the paths of models and adapters that are folders, and of files beside them."""
        from merge_worker.checkpoint.importance import hub_place

        names = [name for name in self._models() if not is_on_hub(name)]
        names += [word for word in self.recipe.importance_words() if hub_place(word) is None]
        names += self.recipe.data_words()
        return tuple(absolute(name, self.folder) for name in names)

    def hub_models(self) -> tuple[str, ...]:
        """Return the names of the models and adapters on the Hub."""
        return tuple(name for name in self._models() if is_on_hub(name))

    def _models(self) -> list[str]:
        refs = self.recipe.model_refs()
        return list(dict.fromkeys(name for ref in refs for name in (ref.path, ref.lora) if name))

    def title(self) -> str:
        """Return one line about the merge: its method and the first models."""
        models = [Path(name).name for name in self._models()]
        more = f" and {len(models) - 4} more" if len(models) > 4 else ""
        return printable(f"{self.recipe.method} of {', '.join(models[:4])}{more}")


def is_on_hub(word: str) -> bool:
    """Return whether a word names a model of the Hub."""
    from merge_worker.checkpoint.folder import is_hub_id

    return is_hub_id(word)


def current_folder(variables: Mapping[str, str]) -> str:
    """Return the current folder as the user named it: links may differ on the nodes."""
    real, named = Path.cwd(), variables.get("PWD", "")
    try:
        same = Path(named).is_absolute() and Path(named).samefile(real)
    except OSError:
        same = False
    return named if same else str(real)


def absolute(word: str, folder: str) -> str:
    """Return a path as seen from a folder, with `~` expanded and links kept."""
    return str(Path(folder) / Path(word).expanduser())


def known_methods(files: str | None, variables: Mapping[str, str]) -> Registry:
    """Return our methods and those of files: of --methods, or else of MERGE_WORKER_METHODS.

    Raises the worker's UsageError.
    """
    words = split_words(files) or split_words(variables.get("MERGE_WORKER_METHODS"))
    return read_registry(words) if words else OWN


def read_sources(
    words: Sequence[str],
    options: MergeOptions,
    dtype: str | None,
    folder: str,
    methods: Registry = OWN,
) -> tuple[Merge, ...]:
    """Read SOURCE words: `OUT MODEL MODEL…`, `OUT RUN` with steps, or `RECIPE.yml [OUT]`.

    There are several merges where windows or schedules ask for several results. `methods` are those
    that the recipe can name. Raises UsageError, or the worker's errors with every fault of the
    recipe.
    """
    from merge_worker.recipe import RecipeText, parse

    if words and names_recipe(words[0]):
        text, where = recipe_in(_read_recipe(words, options), words[0]), words[0]
        recipes, out = {"": text}, _one_out(words[1:], options)
    else:
        models, out = _direct(words, options)
        direct = _direct_recipes(models, options, dtype, folder, methods)
        recipes, where = {name: RecipeText(text) for name, text in direct.items()}, COMMAND
    merges = []
    for inner, text in recipes.items():
        recipe = parse(text, where, Path(folder), methods)
        name = out or default_name(recipe.method, [ref.path for ref in recipe.model_refs()])
        target = Path(absolute(name, folder))
        job_name = target.name if inner else None
        merges.append(Merge(text.text.encode(), recipe, str(target / inner), folder, job_name))
    return tuple(merges)


def names_recipe(word: str) -> bool:
    """Return whether a word names a recipe: by its ending, or a file that does not hold weights."""
    if word.endswith(RECIPE_SUFFIXES):
        return True
    return not word.lower().endswith(WEIGHTS) and Path(word).expanduser().is_file()


def add_missing_models(error: WorkerError, words: Sequence[str], folder: str) -> WorkerError:
    """Return an error of a recipe extended by the models of the recipe that do not exist."""
    from merge_worker.planning.inputs import with_missing_models

    if not isinstance(error, RecipeError) or not names_recipe(words[0]):
        return error
    try:
        text = recipe_in(Path(words[0]).expanduser().read_text("utf-8"), words[0]).text
    except (OSError, UnicodeDecodeError, WorkerError):
        return error
    return with_missing_models(error, text, Path(folder))


def _read_recipe(words: Sequence[str], options: MergeOptions) -> str:
    if len(words) > 2:
        raise UsageError(f"{words[2]}: a recipe names its models and takes one OUT; {FORMS}")
    for option in options_of(MergeOptions):
        if option.name != "out" and getattr(options, option.name) != option.default:
            raise UsageError(f"{option.flag} is for a direct merge; write it into {words[0]}")
    if Path(words[0]).name == MANIFEST:
        raise UsageError(
            f"{words[0]}: the manifest of a merge; 'merge-worker merge {words[0]} OUT' repeats it, "
            f"and a job takes the {RECIPE} beside it"
        )
    try:
        return decoded(Path(words[0]).expanduser().read_bytes(), words[0])
    except OSError as error:
        raise UsageError(f"{words[0]}: {error.strerror}; {FORMS}") from None


def _one_out(words: Sequence[str], options: MergeOptions) -> str | None:
    if words and options.out is not None and words[0] != options.out:
        raise UsageError(f"OUT is given twice: {words[0]} and --out {options.out}; drop one")
    return words[0] if words else options.out


def _direct(words: Sequence[str], options: MergeOptions) -> tuple[list[str], str | None]:
    """Return models and OUT; with --out all words are models."""
    from merge_worker.output.target import refuse_model_as_out
    from merge_worker.recipe.shorthand import names_run

    out = options.out or next(iter(words), None)
    models = list(words) if options.out else list(words[1:])
    if len(models) < 2 and not (models and names_run(models, vars(options))):
        given = f"{printable(' '.join(words))}: " if words else ""
        raise UsageError(
            f"{given}a merge needs at least two models; {FORMS}\n"
            f"  of a folder of checkpoints, --last 8 takes the newest"
        )
    if not options.out:
        refuse_model_as_out(words[0], models)
    return models, out


def _direct_recipes(
    models: Sequence[str],
    options: MergeOptions,
    dtype: str | None,
    folder: str,
    methods: Registry,
) -> dict[str, str]:
    from merge_worker.recipe.shorthand import recipes_from_values

    base = None if options.base_model is None else _located(options.base_model, folder)
    located = [_located(word, folder) for word in models]
    values = {**vars(options), "base_model": base, "dtype": dtype}
    return recipes_from_values(located, values, methods)


def _located(word: str, folder: str) -> str:
    """Make the paths of a base and its adapter absolute; what is not a model stays as it is."""
    from merge_worker.recipe.schema import ModelRef, parse_model

    try:
        ref = parse_model(word, Path(folder))
    except ValueError:  # reported with the faults of the recipe
        return word
    parts = [str(ModelRef(ref.path, ref.revision))]
    parts += [str(ModelRef(ref.lora, ref.lora_revision))] if ref.lora else []
    return "+".join(part if is_on_hub(part) else absolute(part, folder) for part in parts)


def decoded(text: bytes, where: str) -> str:
    """Decode a recipe, with or without a byte order mark. Raises UsageError."""
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8 text; is it a recipe?") from None


def default_name(method: str, models: Sequence[str]) -> str:
    """Return the name of an output folder that was not given: `linear-m1-m2-m3`."""
    words = [method, *(Path(path).name for path in models)]
    return safe_name("-".join(words))[:LONGEST_NAME].rstrip("-.")


def safe_name(text: str) -> str:
    """Return a name that files, schedulers and shells all accept; it begins with a letter."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")
    return plain if re.match(r"[A-Za-z]", plain) else f"merge-{plain}".rstrip("-")


def own_name(text: str) -> str:
    """Return a safe name that no other text has: one that had to be changed ends with a digest."""
    name = safe_name(text)
    if name == text and len(text) <= LONGEST_STEM:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name[:LONGEST_STEM].rstrip('-.')}-{digest}"


def job_folder(out: str) -> Path:
    """Return the folder beside OUT for the texts of jobs, their logs and exit codes."""
    return Path(out).with_name(f"{own_name(Path(out).name)}.job")
