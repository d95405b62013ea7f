"""Files of mergekit-evolve (`genome`, `tasks`) → a search file with the same recipes.

At equal values the recipe is the one that mergekit 0.1.5 makes, which goldens record. Its values
are folded into ranges (`abs`, then at most 1); here the ranges are those of the recipe.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.header import CONFIG
from ..checkpoint.hub import Hub
from ..checkpoint.json_files import read_json
from ..errors import UsageError, WorkerError
from ..messages import nearest, printable
from ..planning.inputs import locate
from ..recipe.schema import parse_model
from ..structure.layers import counts

METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
WITH_BASE = ("task_arithmetic", "ties", "dare_ties")
WITH_DENSITY = ("ties", "dare_ties")
NORMALIZED = ("linear", "ties", "dare_ties")
"""Methods that divide by the sum of the weights unless the file says otherwise."""

GENOME_KEYS = (
    "models", "merge_method", "base_model", "tokenizer_source", "layer_granularity", "normalize",
    "allow_negative_weights", "filters", "smooth",
)  # fmt: skip
TASK_KEYS = ("name", "weight", "metric")
KEYS = (
    "genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template",
    "fewshot_as_multiturn",
)  # fmt: skip
FLAGS = ("shuffle", "random_init", "apply_chat_template", "fewshot_as_multiturn")
METRIC = "acc,none"
TRIALS = 100
"""The default of its `--max-fevals`."""

BENCHMARKS = (
    "mmlu", "hendrycks", "agieval", "gsm8k", "hellaswag", "winogrande", "arc_", "ai2_arc",
    "truthfulqa", "bigbench", "piqa", "openbookqa", "leaderboard",
)  # fmt: skip
DIGITS = 4

LayerCount = Callable[[str], int | None]
"""Returns the number of layers of a model, or None if its config is not here."""


@dataclass(frozen=True)
class Translation:
    """A search as the mapping of a search file, and notes on what is different in it."""

    search: dict[str, Any]
    notes: tuple[str, ...]


def translate(value: Mapping[str, Any], where: str, layers_of: LayerCount) -> Translation:
    """Translate the content of such a file. Raises UsageError with every fault.

    `layers_of` is asked for the first model only, and only unless `smooth` is set.
    """
    reader = _Reader(where)
    genome = reader.genome(value)
    tasks = list(reader.tasks(value))
    options = reader.options(value)
    if reader.faults:
        raise UsageError("\n".join(reader.faults))
    groups = _groups(genome, where, layers_of)
    recipe, space = _Builder(genome, groups).build()
    search: dict[str, Any] = {
        "recipe": recipe,
        "space": space,
        "evaluate": _command(tasks, options),
        "score": _score(tasks),
        "direction": "maximize",
        "trials": TRIALS,
        "seed": 0,
    }
    return Translation(search, (*reader.notes, *_notes(genome, tasks, options)))


@dataclass(frozen=True)
class _Genome:
    """The checked content of `genome`."""

    models: tuple[str, ...]
    method: str
    base: str | None
    tokenizer_source: str | None
    granularity: int
    normalize: bool
    negative: bool
    filters: tuple[str, ...]
    smooth: bool


@dataclass(frozen=True)
class _Task:
    name: str
    weight: float
    metric: str


@dataclass
class _Reader:
    """Reads the keys of the file and collects faults."""

    where: str
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fault(self, place: str, text: str) -> None:
        self.faults.append(f"{self.where}: {place}: {text}")

    def unknown(self, body: Mapping[str, Any], keys: tuple[str, ...], prefix: str) -> None:
        for key in body:
            if key not in keys:
                self.fault(
                    f"{prefix}{printable(str(key))}", f"unknown key{nearest(str(key), keys)}"
                )

    def genome(self, value: Mapping[str, Any]) -> _Genome:
        body = value.get("genome")
        if not isinstance(body, Mapping):
            self.fault("genome", "expected a mapping with 'models' and 'merge_method'")
            body = {"models": ["?"], "merge_method": "linear"}
        self.unknown(body, GENOME_KEYS, "genome.")
        method, base = body.get("merge_method"), body.get("base_model")
        if method not in METHODS:
            hint = nearest(method, METHODS) if isinstance(method, str) else ""
            shown = "missing" if method is None else f"'{printable(str(method))}' is not known here"
            self.fault("genome.merge_method", f"{shown}{hint}; one of {', '.join(METHODS)}")
        if base is not None and not isinstance(base, str):
            self.fault("genome.base_model", "expected the name of a model")
        if method in WITH_BASE and not base:
            self.fault("genome.base_model", f"missing; {method} requires it")
        genome = _Genome(
            models=self.names(body.get("models"), "genome.models", "models"),
            method=str(method),
            base=str(base) if base else None,
            tokenizer_source=self.text(body, "tokenizer_source"),
            granularity=self.granularity(body.get("layer_granularity") or 0),
            normalize=self.flag(body, "normalize", method in NORMALIZED, "genome."),
            negative=self.flag(body, "allow_negative_weights", False, "genome."),
            filters=self.names(
                body.get("filters") or [], "genome.filters", "words of tensor names"
            ),
            smooth=self.flag(body, "smooth", False, "genome."),
        )
        if not genome.models:
            self.fault("genome.models", "missing; give a list of models")
        if method == "slerp":
            self.slerp(genome)
        return genome

    def slerp(self, genome: _Genome) -> None:
        if len(genome.models) != 2:
            self.fault(
                "genome.models",
                f"slerp merges two models, and these are {len(genome.models)}; mergekit takes the "
                f"two with the largest values of each candidate, which is not a range of t",
            )
        for key, value in (("filters", genome.filters), ("smooth", genome.smooth)):
            if value:
                self.fault(f"genome.{key}", "not for slerp")

    def granularity(self, value: object) -> int:
        if type(value) is int and value >= 0:
            return value
        self.fault("genome.layer_granularity", "expected the number of layers of a group, or 0")
        return 0

    def names(self, value: object, place: str, kind: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self.fault(place, f"expected a list of {kind}")
            return ()
        if len(set(value)) < len(value):
            self.fault(place, "one stands twice")
        return tuple(value)

    def text(self, body: Mapping[str, Any], key: str) -> str | None:
        value = body.get(key)
        if value is not None and not isinstance(value, str):
            self.fault(f"genome.{key}", "expected text")
        return value if isinstance(value, str) else None

    def flag(self, body: Mapping[str, Any], key: str, default: bool, prefix: str = "") -> bool:
        value = default if body.get(key) is None else body[key]
        if not isinstance(value, bool):
            self.fault(f"{prefix}{key}", "expected true or false")
        return value is True

    def tasks(self, value: Mapping[str, Any]) -> Iterator[_Task]:
        entries = value.get("tasks")
        if not isinstance(entries, list) or not entries:
            self.fault("tasks", "missing; give a list of tasks of lm-evaluation-harness")
            return
        for number, entry in enumerate(entries):
            place = f"tasks[{number}]"
            body = {"name": entry} if isinstance(entry, str) else entry
            if not isinstance(body, Mapping):
                self.fault(place, "expected the name of a task, or a mapping with 'name'")
                continue
            self.unknown(body, TASK_KEYS, f"{place}.")
            name, metric = body.get("name"), body.get("metric", METRIC)
            weight = body.get("weight", 1.0)
            if not isinstance(name, str) or not name:
                self.fault(f"{place}.name", "expected the name of a task")
            elif isinstance(weight, bool) or not isinstance(weight, int | float):
                self.fault(f"{place}.weight", "expected a number")
            elif not isinstance(metric, str) or not metric:
                self.fault(f"{place}.metric", f"expected a metric such as '{METRIC}'")
            else:
                yield _Task(name, float(weight), metric)

    def options(self, value: Mapping[str, Any]) -> dict[str, Any]:
        self.unknown(value, KEYS, "")
        defaults = {"apply_chat_template": True, "fewshot_as_multiturn": True}
        options: dict[str, Any] = {
            key: self.flag(value, key, defaults.get(key, False)) for key in FLAGS
        }
        for key in ("limit", "num_fewshot"):
            number = value.get(key)
            if number is not None and (type(number) is not int or number < 0):
                self.fault(key, "expected a number from 0")
            options[key] = number
        return options


def _groups(genome: _Genome, where: str, layers_of: LayerCount) -> list[tuple[int, int]]:
    """Return the first layer of every group and the one after its last; none if unknown."""
    layers = None if genome.smooth and not genome.granularity else layers_of(genome.models[0])
    if layers is None:
        if genome.granularity:
            raise UsageError(
                f"{where}: genome.layer_granularity: the number of layers of "
                f"{printable(genome.models[0])} is not known here\n"
                f"  give a model whose config.json can be read, or layer_granularity: 0"
            )
        return []
    size = genome.granularity or layers
    if layers % size:
        divisors = ", ".join(str(n) for n in range(1, layers + 1) if layers % n == 0)
        raise UsageError(
            f"{where}: genome.layer_granularity: {size} does not divide the {layers} layers of "
            f"{printable(genome.models[0])}; one of {divisors}"
        )
    return [(first, first + size) for first in range(0, layers, size)]


@dataclass
class _Builder:
    """Builds the recipe, and the ranges of its values by path."""

    genome: _Genome
    groups: list[tuple[int, int]]
    space: dict[str, Any] = field(default_factory=dict)

    def build(self) -> tuple[dict[str, Any], dict[str, Any]]:
        genome = self.genome
        recipe: dict[str, Any] = {"merge_method": genome.method}
        if genome.base and genome.method in WITH_BASE:
            recipe["base_model"] = genome.base
        if genome.method == "slerp" and not self.groups:
            recipe |= {
                "base_model": genome.models[0],
                "models": [{"model": m} for m in genome.models],
            }
        elif genome.smooth or not self.groups:
            recipe["models"] = self.sources("models", None)
        else:
            recipe["slices"] = [self.slice(n, group) for n, group in enumerate(self.groups)]
        # mergekit writes int8_mask whether or not the method reads it.
        recipe["parameters"] = {"int8_mask": True, "normalize": genome.normalize}
        if genome.method == "slerp" and not self.groups:
            recipe["parameters"]["t"] = 0.5
            self.space["parameters.t"] = [0, 1]
        recipe["dtype"] = "bfloat16"
        if genome.tokenizer_source:
            recipe["tokenizer_source"] = genome.tokenizer_source
        return recipe, self.space

    def slice(self, number: int, layers: tuple[int, int]) -> dict[str, Any]:
        place = f"slices.{number}"
        if self.genome.method != "slerp":
            return {"sources": self.sources(f"{place}.sources", layers)}
        self.space[f"{place}.parameters.t"] = [0, 1]
        sources = [{"layer_range": list(layers), "model": name} for name in self.genome.models]
        first = self.genome.models[0]
        return {"base_model": first, "parameters": {"t": 0.5}, "sources": sources}

    def sources(self, place: str, layers: tuple[int, int] | None) -> list[dict[str, Any]]:
        genome = self.genome
        base = genome.base if genome.method in WITH_BASE else None
        names = list(genome.models)
        if base and base not in names:
            names.append(base)
        start: dict[str, Any] = {"layer_range": list(layers)} if layers else {}
        entries = []
        for number, name in enumerate(names):
            entry = {**start, "model": name}
            if name != base:
                entry["parameters"] = self.parameters(f"{place}.{number}.parameters")
            entries.append(entry)
        return entries

    def parameters(self, place: str) -> dict[str, Any]:
        """Return the values at the start, one for each filter; their ranges go into the space."""
        genome = self.genome
        high = 1 if genome.method == "linear" else 2
        spans = {"weight": (-high if genome.negative else 0, high)}
        if genome.method in WITH_DENSITY:
            spans["density"] = (0, 1)
        start = {"weight": round(1 / len(genome.models), DIGITS), "density": 1.0}
        points = max(1, len(self.groups)) if genome.smooth else 1
        values: dict[str, Any] = {}
        for name, (low, high) in spans.items():
            value: Any = start[name] if points == 1 else [start[name]] * points
            span: Any = [low, high] if points == 1 else {"low": low, "high": high, "points": points}
            values[name] = value
            paths = [f"{place}.{name}"]
            if genome.filters:
                values[name] = [
                    *({"filter": word, "value": value} for word in genome.filters),
                    {"value": value},
                ]
                paths = [f"{place}.{name}.{n}.value" for n in range(len(genome.filters) + 1)]
            self.space.update(dict.fromkeys(paths, span))
        return values


def _command(tasks: list[_Task], options: Mapping[str, Any]) -> str:
    names = shlex.quote(",".join(dict.fromkeys(task.name for task in tasks)))
    words = [
        "lm-eval run --model hf --model_args pretrained=.,dtype=bfloat16",
        f"--tasks {names} --batch_size auto --output_path eval",
    ]
    for key in ("limit", "num_fewshot"):
        if options[key] is not None:
            words.append(f"--{key} {options[key]}")
    if options["apply_chat_template"]:
        words.append("--apply_chat_template")
        if options["fewshot_as_multiturn"] and options["num_fewshot"]:
            words.append("--fewshot_as_multiturn")
    return " ".join(words)


def _score(tasks: list[_Task]) -> str | dict[str, float]:
    score: dict[str, float] = {}
    for task in tasks:
        path = f"results.{task.name}.{task.metric}"
        score[path] = score.get(path, 0.0) + task.weight
    (first, weight), *rest = score.items()
    return first if not rest and weight == 1 else score


def _notes(genome: _Genome, tasks: list[_Task], options: Mapping[str, Any]) -> Iterator[str]:
    if genome.base and genome.method not in WITH_BASE:
        yield f"genome.base_model is left out: {genome.method} has no base beside its models"
    if genome.base in genome.models and genome.method in WITH_BASE:
        yield f"{printable(str(genome.base))} is the base, so no weight of it varies"
    if genome.method == "slerp":
        yield "t varies from 0 to 1 (mergekit: at most 0.5, from the model with the larger value)"
    for key in ("shuffle", "random_init"):
        if options[key]:
            yield f"{key} has no effect here"
    known = [
        t.name for t in tasks if t.name.startswith(BENCHMARKS) and not t.name.endswith("_train")
    ]
    if known:
        yield (
            f"{printable(', '.join(known))}: a model chosen by a benchmark is no longer measured "
            f"by it; search with other data, and validate with these"
        )


def layer_count(folder: Path, model: str) -> int | None:
    """Return the number of layers of a model; None if its config is not on this machine."""
    try:
        config = read_json(locate(parse_model(model, folder), folder, Hub()) / CONFIG)
    except (WorkerError, ValueError):
        return None
    found = counts(config) if isinstance(config, dict) else []
    return next((count.value for count in found if count.main), None)
