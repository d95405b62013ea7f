"""Advice on merging, from the figures: findings with their evidence, and a recipe to start from.

Advice is a suggestion, not a measurement: only an evaluation shows whether the merged model works.
Every rule is a threshold on a figure that the finding quotes. Reasons:

- Unrelated vectors of equal length are √2 = 1.41 lengths apart, so a model that is more than about
  1 from its base was not trained from it.
- By chance half of the signs conflict. ties and dare_ties resolve conflicts (arXiv:2306.01708,
  arXiv:2311.03099), dare only if changes are small. A lambda of 0.5 is suggested, below the papers'
  1, which was worse than both 0.3 and 0.5 for the specialists of scripts/demo.
- Task arithmetic adds 0.3 to 0.5 of each of 2 to 8 vectors (arXiv:2212.04089), which is close to
  their mean, hence lambda 1 with normalize.
- Reinforcement learning leaves most elements exactly as they were (arXiv:2601.13572). Trimming and
  electing signs has little to do there, so the simple methods go first (arXiv:2511.21437).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import yaml

from ..messages import counted, first_names
from .figures import Comparison, Facts
from .metrics import mean, shown
from .search_file import search_text

UNRELATED = 1.0
FAR = 0.4
PARALLEL = 0.8
CONFLICTING = 0.35
SMALL = 0.02
SPARSE = 0.2
UNEVEN = 2.0
MOSTLY_ZERO = 0.5
MOST_NAMED = 6


@dataclass(frozen=True)
class Advice:
    """Warnings, findings, and the YAML of a suggested recipe and of a search, or None."""

    warnings: tuple[str, ...]
    findings: tuple[str, ...]
    recipe: str | None
    search: str | None = None
    question: str = "Can they be merged?"


def advise(comparison: Comparison, paths: Sequence[str]) -> Advice:
    """Derive advice. `paths` name the models in the recipe, the base first if there is one."""
    warnings = tuple(_warnings(comparison))
    models, facts = comparison.models, comparison.total.facts
    kept = _distinct(comparison)
    related = [(0, i) for i in models.own] if models.has_base else models.pairs
    unrelated = any(facts.relative[i][j] > UNRELATED for i, j in related)
    blocked = not models.mergeable or any(facts.nonfinite) or unrelated
    if blocked or len(kept) < 2:
        reason = "nothing to merge" if len(kept) < 2 and not blocked else "see the warnings"
        return Advice(warnings, (f"no recipe is suggested: {reason}",), None)
    if models.has_base:
        findings, lines = _with_base(comparison, kept, [paths[i] for i in (0, *kept)])
    else:
        findings, lines = _without_base(facts, kept, [paths[i] for i in kept])
    text = "\n".join(["# a suggestion from the figures above, not measured on any task", *lines])
    return Advice(warnings, tuple(findings), text + "\n", search_text(yaml.safe_load(text)))


def _warnings(comparison: Comparison) -> Iterator[str]:
    models, facts = comparison.models, comparison.total.facts
    names = models.labels
    for i, j in models.pairs:
        if facts.equal[i][j] == 1:
            yield f"{names[i]} and {names[j]} are IDENTICAL: merging them changes nothing"
    for i in models.own if models.has_base else ():
        if facts.equal[0][i] == 1:
            yield f"{names[i]} is IDENTICAL to the base {names[0]}: its task vector is zero"
        elif facts.relative[0][i] > UNRELATED:
            yield (
                f"{names[i]} does not come from {names[0]}: its task vector is "
                f"{facts.relative[0][i]:.2f} times as long as the base itself (unrelated models: "
                f"1.41); give the base it was trained from"
            )
        elif facts.relative[0][i] > FAR:
            yield (
                f"{names[i]} is far from {names[0]}: {_percent(facts.relative[0][i])} of the "
                f"base's length; is it the right base, and not an earlier one?"
            )
    for i, j in models.pairs if not models.has_base else ():
        if facts.relative[i][j] > UNRELATED:
            yield (
                f"{names[i]} and {names[j]} are unrelated: {facts.relative[i][j]:.2f} of their "
                f"length apart (1.41 by chance); the merge would be noise"
            )
    for name, count in zip(names, facts.nonfinite, strict=True):
        if count:
            yield f"{name} has {count} NaN or Inf values: repair it before merging"
    if not models.mergeable:
        yield "not mergeable as they are: " + "; ".join(
            line for line in models.left_out if "integers" not in line
        )


def _distinct(comparison: Comparison) -> list[int]:
    """Return the models that differ from the base and from all earlier models."""
    models, equal = comparison.models, comparison.total.facts.equal
    kept: list[int] = []
    for i in models.own:
        if not any(equal[i][j] == 1 for j in kept) and not (models.has_base and equal[0][i] == 1):
            kept.append(i)
    return kept


def _with_base(
    comparison: Comparison, kept: Sequence[int], paths: Sequence[str]
) -> tuple[list[str], list[str]]:
    facts = comparison.total.facts
    pairs = list(combinations(kept, 2))
    cosine = mean(facts.cosine[i][j] for i, j in pairs)
    conflict = mean(0.0 if math.isnan(c := facts.conflict[i][j]) else c for i, j in pairs)
    overlap = mean(facts.overlap[i][j] for i, j in pairs)
    moved = [facts.relative[0][i] for i in kept]
    findings = [
        f"the models moved by {_span(moved)} of the base's length",
        f"their task vectors have a cosine of {cosine:.2f}; {_percent(conflict)} of the signs "
        f"conflict where two models changed the same element (50% is chance)",
    ]
    weights = _weights(facts, kept)
    if len(set(weights)) > 1:
        findings.append(
            f"the longest task vector is {max(moved) / min(moved):.1f} times the shortest: weights "
            f"inverse to the lengths keep one model from dominating the others"
        )
    sparse = [i for i in kept if facts.equal[0][i] > MOSTLY_ZERO]
    if sparse:
        findings.append(_about_zeros(comparison, sparse))
    base = paths[:1]
    parameters: dict[str, float | bool] = {"lambda": 1.0, "normalize": True}
    if cosine >= PARALLEL:
        finding = "nearly parallel task vectors, as from one training run: an average loses nothing"
        method, base, parameters = "linear", [], {}
    elif overlap < SPARSE:
        finding = (
            f"they share only {_percent(overlap)} of the elements that they changed: their sum "
            f"keeps all changes"
        )
        method, weights = "task_arithmetic", [1.0] * len(kept)
        parameters["normalize"] = False
    elif sparse:
        finding = "simple methods first: the mean of the task vectors; try lambda up to 1.5 as well"
        method = "task_arithmetic"
    elif conflict >= CONFLICTING:
        method = "dare_ties" if len(kept) > 2 and max(moved) < SMALL else "ties"
        small = " (dare: the changes are small)" if method == "dare_ties" else ""
        finding = (
            f"many conflicts: elect signs and keep the larger changes{small}; try lambda from 0.3 "
            f"to 1, and first linear and task_arithmetic for comparison (arXiv:2511.21437)"
        )
        parameters = {"density": 0.5, "lambda": 0.5, "normalize": True}
    else:
        finding = "few conflicts: the mean of the task vectors; try lambda up to 1.5 as well"
        method = "task_arithmetic"
    return [*findings, finding], _recipe(method, base, paths[1:], weights, parameters)


def _about_zeros(comparison: Comparison, sparse: Sequence[int]) -> str:
    """Return the finding on task vectors that are zero in most elements; `sparse` have these."""
    names, facts = comparison.models.labels, comparison.total.facts
    shares = [f"{names[i]} {_percent(facts.equal[0][i])}" for i in sparse]
    tensors = comparison.tensors
    same = sum(all(row.facts.equal[0][i] == 1 for i in sparse) for row in tensors)
    whole = f" ({same} of {counted(len(tensors), 'tensors')} did not change at all)" if same else ""
    return (
        f"most elements of these task vectors are exactly zero: "
        f"{first_names(shares, MOST_NAMED)}{whole}. Reinforcement learning leaves such vectors, "
        f"and papers disagree whether these experts merge: arXiv:2601.13572 for (method ram), "
        f"arXiv:2606.18521 against. Otherwise linear and task_arithmetic first (arXiv:2511.21437)"
    )


def _without_base(
    facts: Facts, kept: Sequence[int], paths: Sequence[str]
) -> tuple[list[str], list[str]]:
    apart = [facts.relative[i][j] for i, j in combinations(kept, 2)]
    findings = [
        f"the models are {_span(apart)} of their length apart (1.41 for unrelated ones)",
        "to compare task vectors, give the model they were trained from: --base MODEL",
    ]
    if max(apart) > FAR:
        findings.append("far apart: an average may land where neither works; evaluate it")
    if len(kept) == 2:
        findings.append("two models without a base: halfway on the arc between them")
        return findings, _recipe("slerp", paths[:1], paths, None, {"t": 0.5})
    return findings, _recipe("linear", [], paths, [1.0] * len(kept), {})


def _weights(facts: Facts, kept: Sequence[int]) -> list[float]:
    """Return weights with mean 1: inverse to the task vectors' lengths if uneven, else equal."""
    lengths = [facts.distance[0][i] for i in kept]
    if max(lengths) <= UNEVEN * min(lengths):
        return [1.0] * len(kept)
    inverse = [1 / length for length in lengths]
    return [round(w * len(inverse) / sum(inverse), 2) for w in inverse]


def _recipe(
    method: str,
    base: Sequence[str],
    models: Sequence[str],
    weights: Sequence[float] | None,
    parameters: Mapping[str, float | bool],
) -> list[str]:
    """Return the lines of a recipe; `base` is empty if the method takes none."""
    lines = [f"merge_method: {method}", *(f"base_model: {_yaml_text(path)}" for path in base)]
    lines.append("models:")
    for number, path in enumerate(models):
        lines.append(f"- model: {_yaml_text(path)}")
        if weights is not None:
            lines.append(f"  parameters: {{weight: {weights[number]:g}}}")
    if parameters:
        settings = ", ".join(f"{k}: {json.dumps(v)}" for k, v in parameters.items())
        lines.append(f"parameters: {{{settings}}}")
    return lines


def _yaml_text(path: str) -> str:
    """Return the path, in quotes unless YAML reads it as the same text without."""
    try:
        plain = yaml.safe_load(f"{{a: {path}}}") == {"a": path}
    except yaml.YAMLError:
        plain = False
    return path if plain else json.dumps(path)


def _percent(value: float) -> str:
    return shown(value, True)


def _span(values: Sequence[float]) -> str:
    low, high = _percent(min(values)), _percent(max(values))
    return low if low == high else f"{low} to {high}"
