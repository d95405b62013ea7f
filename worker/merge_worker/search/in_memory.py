"""Candidates that are merged into one model in memory and scored there; no weights are written."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, OutputError, Stopped, UsageError, WorkerError
from ..messages import printable
from ..output.files import output_errors
from ..planning.options import PlanOptions
from ..planning.plan import Plan, make_plan
from ..recipe import parse
from ..registry import OWN, Registry
from .candidates import Candidate
from .definition import Measure
from .scores import NoScore, Score, read_score
from .work import Failed, Workshop

if TYPE_CHECKING:
    from .resident import ResidentModel


@dataclass
class _Memory:
    """The model, the candidate whose weights it has, and functions by the text that names them."""

    model: ResidentModel | None = None
    holds: str | None = None
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """Options of `merge` for merges in this process."""

    plans: PlanOptions
    methods: Registry = OWN
    device: str = "auto"
    trust_remote_code: bool = False
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class MemoryWorkshop(Workshop):
    """A workshop whose candidates exist in memory only, one at a time.

    A measure with a command, as `validate` may have, gets a merge in the candidate's folder.
    """

    machine: Machine = field(kw_only=True)
    memory: _Memory = field(kw_only=True, default_factory=_Memory, repr=False)

    def make(self, candidate: Candidate) -> float:
        """Merge a candidate into the model; returns the seconds that it took. Raises Failed."""
        began = time.monotonic()
        self.deadline.check()
        self.memory.holds = None
        try:
            plan = self._plan(candidate)
            if self.memory.model is None or not self.memory.model.fits(plan):
                self.memory.model = None  # so that two are never in memory
                self.memory.model = self._new_model(plan)
            self.memory.model.load(plan, self.machine.allow_nonfinite)
        except (Stopped, OutputError):
            raise
        except WorkerError as error:
            raise Failed(f"merge: {error}", error.exit_code) from None
        self.memory.holds = candidate.name
        return time.monotonic() - began

    def _plan(self, candidate: Candidate) -> Plan:
        text = candidate.text
        if text is None:
            model = {"model": str(candidate.source), "parameters": {"weight": 1}}
            text = json.dumps({"merge_method": "linear", "models": [model]})
        recipe = parse(text, candidate.name, self.folder, self.machine.methods)
        plan = make_plan(recipe, self.machine.plans)
        if plan.stages:
            names = ", ".join(str(stage.recipe.name) for stage in plan.stages)
            raise UsageError(
                f"{candidate.name}: the intermediate result '{names}' must be stored, since its "
                f"method reads a tensor more than once; evaluate with a command instead"
            )
        return plan

    def _new_model(self, plan: Plan) -> ResidentModel:
        from .resident import ResidentModel

        return ResidentModel(plan, self.machine.device, self.machine.trust_remote_code)

    def score(self, candidate: Candidate, measure: Measure, name: str) -> tuple[Score, float]:
        """Score the model in memory, with the candidate's weights in it. Raises Failed."""
        if measure.command is not None:
            super().make(candidate)
            return super().score(candidate, measure, name)
        if self.memory.holds != candidate.name:
            self.make(candidate)
        began, output = time.monotonic(), self.place(candidate) / f"{name}.out"
        what = measure.function or "perplexity"
        with output_errors(output):
            stream = output.open("w", encoding="utf-8", errors="replace")
        try:
            with stream, contextlib.redirect_stdout(stream):
                value = self._value(measure)
                print(json.dumps(value))
            return self._found(measure, value), time.monotonic() - began
        except (NoScore, TypeError, ValueError) as error:
            raise Failed(f"{what}: {error}", UsageError.exit_code) from None

    def _found(self, measure: Measure, value: Any) -> Score:
        return read_score(measure, json.dumps(value), self.out / "no folder", {})

    def _value(self, measure: Measure) -> Any:
        model = self.memory.model
        assert model is not None
        if measure.function is None:
            data = self.folder / Path(measure.data or "").expanduser()
            try:
                return {"score": model.perplexity(data)}
            except WorkerError as error:
                raise Failed(f"perplexity: {error}", error.exit_code) from None
        function = self._function(measure.function)
        words = (model.model.module, *([model.tokenizer] if _wants_tokenizer(function) else []))
        try:
            return function(*words)
        except Exception as error:
            kind = type(error).__name__
            raise Failed(f"{measure.function}: {kind}: {error}", UsageError.exit_code) from error

    def _function(self, text: str) -> Callable[..., Any]:
        if text not in self.memory.functions:
            self.memory.functions[text] = read_function(text, self.folder)
        return self.memory.functions[text]


def read_function(text: str, folder: Path) -> Callable[..., Any]:
    """Return the function that `FILE.py:NAME` names. Raises Failed if it is not there."""
    file, _, name = text.rpartition(":")
    path = folder / Path(file).expanduser()
    spec = importlib.util.spec_from_file_location(f"search_function_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise Failed(f"{printable(str(path))}: no such Python file", InputError.exit_code)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        kind = type(error).__name__
        raise Failed(f"{printable(str(path))}: {kind}: {error}", UsageError.exit_code) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise Failed(f"{printable(str(path))}: no function '{name}'", UsageError.exit_code)
    found: Callable[..., Any] = function
    return found


def _wants_tokenizer(function: Callable[..., Any]) -> bool:
    """Return whether a function takes the tokenizer as a second argument."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(required) > 1
