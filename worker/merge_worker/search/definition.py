"""SEARCH.yml → Search: a recipe, the values that vary, and how a candidate is scored.

    recipe: base.yml                # or the recipe itself
    out: runs                       # the folder that gets one folder for each candidate
    space:                          # paths into the recipe, as in a sweep
      models.1.parameters.weight: [0, 1]
      parameters.density: {low: 0.05, high: 1, log: true}
      merge_method: {choices: [ties, dare_ties]}
    evaluate: 'python evaluate.py'  # or perplexity: FILE
    score: results.mine.acc         # or several with weights
    trials: 60

`read_search` is for both command lines: merge-launch checks the file before it submits, and sends
`resolved_text`, which needs no other file, to the nodes. Models are not opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..messages import printable
from ..recipe import parse
from ..recipe.other_files import is_evolve_file
from ..recipe.places import Place, base_recipe, recipe_text
from ..recipe.schema import Recipe, find_method
from ..recipe.yaml_document import Document, read_documents
from ..registry import OWN, Registry
from .choices import CATEGORY, GREEDY, greedy_space, weighted_models, with_weights
from .evolve import layer_count, translate
from .fields import (
    MeasureFacts,
    Reader,
    inline_scores,
    names_file,
    read_measure,
    read_scores,
)
from .probes import probe
from .score_table import ScoreTable
from .soups import THRESHOLD
from .space import Coordinates, Dimension, is_number, shown

MAXIMIZE, MINIMIZE = "maximize", "minimize"
SAMPLERS = ("auto", "tpe", "gp", "cmaes", "nsga2", "qmc", "random", "grid", GREEDY, CATEGORY)
KEYS = (
    *("recipe", "out", "space", "start", "evaluate", "perplexity", "function", "score"),
    *("direction", "trials", "sampler", "scores", "threshold", "seed", "keep", "validate"),
    *("repeat", "batch"),
)
KEEP_WORDS: Mapping[str, int | None] = {"best": 1, "all": None, "none": 0}
TRIALS = 60
MOST_TRIALS, MOST_AT_ONCE = 100_000, 100


@dataclass(frozen=True)
class Measure:
    """A way to score a folder with a model.

    `command` is a line for bash; without one, `data` is the file whose perplexity is the score, or
    `function` is FILE.py:NAME, which is called with the model. With `in_memory`, candidates are
    merged into a model in memory and never written. `score` holds paths into the JSON that the
    command printed or wrote, with their weights; without paths the score is the only number there,
    or the last line that was printed.
    """

    command: str | None
    data: str | None
    score: tuple[tuple[str, float], ...] = ()
    function: str | None = None
    in_memory: bool = False

    def facts(self) -> dict[str, Any]:
        """Return all that the scores depend on, for digests."""
        score = [list(s) for s in self.score]
        facts = {"command": self.command, "data": self.data, "score": score}
        return facts if self.function is None else {**facts, "function": self.function}


@dataclass(frozen=True)
class Search:
    """A search file that was read; `where` is its name in messages.

    `base` is the recipe as plain values, `stands` the same recipe parsed, or None if it is complete
    only with the values of a candidate. `start` holds coordinates that are tried first; those that
    are left out are drawn. `keep` is how many of the best candidates keep their weights, None for
    all; `batch` how many a worker merges in one pass over the inputs. `table` has scores of the
    models, higher is better, by which a sampler chooses them, and `threshold` is the correlation
    from which two tasks belong to one group.
    """

    where: str
    base: dict[str, Any] = field(repr=False)
    space: tuple[Dimension, ...]
    start: tuple[Coordinates, ...]
    measure: Measure
    validation: Measure | None
    stands: Recipe | None
    example: Recipe
    out: str | None = None
    direction: str = MAXIMIZE
    trials: int = TRIALS
    sampler: str = "auto"
    seed: int = 0
    keep: int | None = 1
    repeat: int = 0
    batch: int = 1
    warnings: tuple[str, ...] = ()
    table: ScoreTable | None = field(default=None, repr=False)
    threshold: float = THRESHOLD

    @property
    def maximizes(self) -> bool:
        return self.direction == MAXIMIZE

    @property
    def key(self) -> str:
        """Digest of what makes trials comparable: recipe, space, score and direction."""
        axes = [(d.place.text, repr(d)) for d in self.space]
        facts = [self.base, axes, self.measure.facts()["score"], self.direction]
        if self.sampler == CATEGORY:  # which decides what varies
            facts += [repr(self.table), self.threshold]
        return digest(facts)

    def text_of(self, values: Mapping[Place, Any]) -> str:
        """Return the recipe of a candidate."""
        return recipe_text(self.base, values)


def digest(value: Any) -> str:
    """Return a short SHA-256 of plain values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def read_search(text: str, where: str, folder: Path, methods: Registry = OWN) -> Search:
    """Read the text of a search file; relative paths start at `folder`.

    `methods` are those that its recipes can name. Raises UsageError with every fault, each with its
    line.
    """
    document, table, notes = _read_table(text, where, folder)
    reader = Reader(document, folder)
    base = base_recipe(table["recipe"], where, str(folder))
    settings = _settings(reader, table)
    chooses = settings["sampler"] in (GREEDY, CATEGORY)
    if chooses:
        base = with_weights(base)
    space = [] if chooses else reader.space(table.get("space"), base)
    start = reader.start(table.get("start"), space)
    measure = read_measure(reader, table, (), required=True)
    validation = _validation(reader, table.get("validate"), measure)
    if measure is not None and measure.data is not None:
        if table.get("direction") == MAXIMIZE:
            reader.fault(("direction",), "a perplexity is minimized; drop this key")
        settings["direction"] = MINIMIZE
    if measure is not None and measure.in_memory and settings["batch"] > 1:
        reader.fault(
            ("batch",), "not with 'evaluate: in-memory', which has one model; drop this key"
        )
    reader.refuse()
    if measure is None:
        raise AssertionError("a file without 'evaluate' is refused above")
    stands, example, warnings = probe(
        base, space, lambda recipe: parse(recipe, where, folder, methods), document.where
    )
    search = Search(
        where=where,
        base=base,
        space=tuple(space),
        start=tuple(start),
        measure=Measure(*measure),
        validation=None if validation is None else Measure(*validation),
        stands=stands,
        example=example,
        # Of a translated file, the recipe is not the user's, but what mergekit writes.
        warnings=tuple(warnings if notes is None else notes),
        **settings,
    )
    return _with_choices(search) if chooses else search


def _settings(reader: Reader, table: Mapping[str, Any]) -> dict[str, Any]:
    """Read the keys that are fields of a Search as they are."""
    sampler = reader.word("sampler", table.get("sampler", "auto"), SAMPLERS)
    _refuse_unread(reader, table, sampler)
    directions = (MAXIMIZE, MINIMIZE)
    return {
        "out": reader.string("out", table.get("out")),
        "direction": reader.word("direction", table.get("direction", MAXIMIZE), directions),
        "trials": reader.whole("trials", table.get("trials", TRIALS), 1, MOST_TRIALS),
        "sampler": sampler,
        "table": read_scores(reader, table.get("scores")),
        "threshold": _threshold(reader, table.get("threshold", THRESHOLD)),
        "seed": reader.whole("seed", table.get("seed", 0), 0, 2**31),
        "keep": _keep(reader, table.get("keep", "best")),
        "repeat": reader.whole("repeat", table.get("repeat", 0), 0, 1000),
        "batch": reader.whole("batch", table.get("batch", 1), 1, MOST_AT_ONCE),
    }


def _with_choices(search: Search) -> Search:
    """Return a search whose sampler chooses models, with what varies in it as far as it is known.

    Raises UsageError for a recipe or a table that the sampler cannot use.
    """
    where = search.where
    method = find_method(search.example.method, where, search.example.methods)
    models = weighted_models(search.base, method, where)
    if search.sampler == GREEDY:
        # One model alone, and then one average for each of the others.
        space = tuple(greedy_space(search.base, models))
        return replace(search, space=space, trials=len(models))
    if search.table is not None:
        return replace(search, table=search.table.of(list(models.values()), f"{where}: scores"))
    if len(search.measure.score) < 2:
        fact = "requires 'scores: TABLE.csv', or a 'score' of several paths"
        raise UsageError(f"{where}: sampler {CATEGORY} {fact}")
    return search


def _read_table(
    text: str, where: str, folder: Path
) -> tuple[Document, dict[str, Any], list[str] | None]:
    """Return a search file and its content, and notes if it is translated from mergekit-evolve."""
    documents, notes = read_documents(text, where), None
    if len(documents) == 1 and is_evolve_file(documents[0].value):
        translation = translate(documents[0].value, where, partial(layer_count, folder))
        documents = read_documents(_dumped(translation.search, where), where)
        notes = [f"{where}: {note}" for note in translation.notes]
    table = documents[0].value if len(documents) == 1 else None
    if not isinstance(table, dict) or "recipe" not in table:
        raise UsageError(
            f"{where}: a search is a mapping with 'recipe', 'space' and 'evaluate' or 'perplexity'"
        )
    reader = Reader(documents[0], Path())
    reader.refuse_unknown((), table, KEYS)
    for path in documents[0].duplicates:
        reader.faults.append(f"{documents[0].place(path)} is given twice")
    reader.refuse()
    return documents[0], table, notes


def _validation(reader: Reader, given: Any, measure: MeasureFacts | None) -> MeasureFacts | None:
    """Read `validate`: a command, or a mapping with the keys of a score of its own."""
    if given is None:
        return None
    if isinstance(given, str):
        given = {"evaluate": given}
    if not isinstance(given, dict):
        reader.fault(("validate",), "expected a command, or a mapping with 'perplexity: FILE'")
        return None
    reader.refuse_unknown(("validate",), given, ("evaluate", "perplexity", "function", "score"))
    found = read_measure(reader, given, ("validate",), required=True)
    if found is None or measure is None:
        return found
    if found.in_memory and not measure.in_memory:
        fact = "in-memory is for all candidates; give it as 'evaluate' of the search too"
        reader.fault(("validate", "evaluate"), fact)
    if "score" in given or found.command is None:
        return found
    # A command without paths of its own prints the same values as `evaluate`.
    return found._replace(score=measure.score if measure.command is not None else ())


def _refuse_unread(reader: Reader, table: Mapping[str, Any], sampler: str) -> None:
    """Add a fault for each key that the sampler does not read."""
    for key in ("space", "start"):
        if sampler in (GREEDY, CATEGORY) and table.get(key) is not None:
            reader.fault(
                (key,), f"sampler {sampler} varies the weights of the models; drop this key"
            )
    for key in ("scores", "threshold"):
        if sampler != CATEGORY and table.get(key) is not None:
            reader.fault((key,), f"only sampler {CATEGORY} reads this key")


def _threshold(reader: Reader, given: Any) -> float:
    if is_number(given) and 0 < given <= 1:
        return float(given)
    reader.fault(("threshold",), f"expected a correlation above 0 and up to 1, got {shown(given)}")
    return THRESHOLD


def _keep(reader: Reader, given: Any) -> int | None:
    if isinstance(given, str) and given in KEEP_WORDS:
        return KEEP_WORDS[given]
    if given is None:  # `keep: none` is text, `keep: null` and `keep: ~` are not
        return 0
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    reader.fault(("keep",), "expected best, all, none or a number")
    return 1


def resolved_text(text: str, where: str, folder: Path, batch: int | None = None) -> str:
    """Return a search file that needs no other file: with the recipe instead of its path.

    `batch` replaces that of the file.
    """
    _, table, notes = _read_table(text, where, folder)
    whole = isinstance(table["recipe"], dict) and not names_file(table.get("scores"))
    if whole and notes is None and batch is None:
        return text
    table = {**table, "recipe": base_recipe(table["recipe"], where, str(folder))}
    if table.get("scores") is not None:
        reader = Reader(read_documents(text, where)[0], folder)
        table["scores"] = inline_scores(reader, table["scores"])
        reader.refuse()
    return _dumped(table if batch is None else {**table, "batch": batch}, where)


def _dumped(table: dict[str, Any], where: str) -> str:
    """Return a mapping as YAML if that reads back unchanged, else as JSON."""
    import yaml

    text: str = yaml.safe_dump(table, sort_keys=False, allow_unicode=True)
    same = repr(read_documents(text, where)[0].value) == repr(table)
    return text if same else json.dumps(table, indent=1, default=str) + "\n"


def out_of(search: Search, given: str | None, where: str) -> str:
    """Return the folder of the candidates: as given, else as in the file, else by its name."""
    return given or search.out or printable(Path(where).stem)
