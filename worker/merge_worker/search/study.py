"""The study of a search: coordinates of trials and their scores, in one file that workers share.

Optuna keeps it as a journal, which is only appended to. Every call here is made by the worker that
holds the lock of the search, so that a journal is repaired, and a trial claimed, without a race.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..system.packages import missing_package
from .choices import CATEGORY
from .definition import Search
from .space import Axis, Coordinates, Interval, Options

JOURNAL, NAME, PREPARED = "journal.log", "search", "prepared"
STALE_S = 5
"""Age of the journal's own lock after which its owner is dead: ours has kept all others away."""
GP_VALUES, GP_TRIALS, GP_RANDOM = 20, 200, 10
"""Up to so many values and trials a Gaussian process is chosen; its first trials are random."""
DRAWS = 1_000_003
"""Of the random numbers of a trial: a prime, so that seeds and numbers of trials do not meet."""


@dataclass(frozen=True)
class OpenTrial:
    """A trial that has no result in the study."""

    number: int
    coordinates: Coordinates
    is_whole: bool
    """Whether all coordinates are there; a worker may have died while it asked."""


class Study:
    """The study in a folder, which is created unless it is there."""

    def __init__(self, search: Search, folder: Path) -> None:
        self._search = search
        self._axes = {n: a for d in search.space for n, a in d.axes.items()}
        self._path = folder / JOURNAL
        self._optuna = _imported()
        _repair(self._path)
        self._sampler = chosen_sampler(search)
        with _quiet(self._optuna), _readable(self._path):
            journal = self._optuna.storages.journal
            lock = journal.JournalFileSymlinkLock(str(self._path), grace_period=STALE_S)
            backend = journal.JournalFileBackend(str(self._path), lock_obj=lock)
            self._study = self._optuna.create_study(
                storage=self._optuna.storages.JournalStorage(backend),
                study_name=NAME,
                direction=search.direction,
                load_if_exists=True,
                sampler=self._optuna.samplers.RandomSampler(search.seed),
            )
        self._distributions = {n: _distribution(self._optuna, a) for n, a in self._axes.items()}

    def prepare(self) -> None:
        """Queue the start points, and the points of a grid, unless that was done."""
        with _quiet(self._optuna):
            if PREPARED in self._study.user_attrs:
                return
            queued = list(self._search.start)
            if self._sampler == "grid":
                queued += grid_points(self._axes, self._search.trials)
            for coordinates in queued:
                self._study.enqueue_trial(coordinates, skip_if_exists=True)
            self._study.set_user_attr(PREPARED, True)

    @property
    def planned(self) -> int:
        """The number of trials of the whole search: a grid may have fewer points."""
        if self._sampler != "grid":
            return self._search.trials
        points = len(grid_points(self._axes, self._search.trials))
        return min(self._search.trials, points + len(self._search.start))

    def asked(self) -> int:
        """Return the number of trials that were asked for, without those that got no values."""
        return sum(set(trial.params) >= set(self._axes) for trial in self._trials())

    def open_trials(self) -> list[OpenTrial]:
        """Return the trials without a result."""
        running = self._optuna.trial.TrialState.RUNNING
        return [
            OpenTrial(trial.number, dict(trial.params), set(trial.params) >= set(self._axes))
            for trial in self._trials()
            if trial.state == running
        ]

    def coordinates(self) -> dict[int, Coordinates]:
        """Return the coordinates of all trials that were asked for, by their numbers."""
        trials = self._trials()
        return {t.number: dict(t.params) for t in trials if set(t.params) >= set(self._axes)}

    def ask(self, fixed: Coordinates | None = None) -> OpenTrial:
        """Return a new trial, with `fixed` coordinates or such as the sampler proposes."""
        with _quiet(self._optuna), _readable(self._path):
            # By trial, so that workers that start at the same time do not draw the same values.
            seed = (self._search.seed * DRAWS + len(self._trials())) % 2**32
            self._study.sampler = _sampler(self._optuna, self._sampler, self._search.seed, seed)
            if fixed is not None:
                self._study.enqueue_trial(fixed)
            trial = self._study.ask(dict(self._distributions))
            return OpenTrial(trial.number, dict(trial.params), True)

    def tell(self, number: int, score: float | None) -> None:
        """Add the score of a trial, or that it has none, if the study does not have it yet."""
        with _quiet(self._optuna), _readable(self._path):
            state = self._optuna.trial.TrialState
            told = state.FAIL if score is None else state.COMPLETE
            self._study.tell(number, score, told, skip_if_finished=True)

    def _trials(self) -> list[Any]:
        with _quiet(self._optuna), _readable(self._path):
            waiting = self._optuna.trial.TrialState.WAITING
            return [t for t in self._study.get_trials(deepcopy=False) if t.state != waiting]


def chosen_sampler(search: Search) -> str:
    """Return the name of the sampler; `auto` is a Gaussian process where that is the best."""
    axes = [axis for dimension in search.space for axis in dimension.axes.values()]
    if search.sampler not in ("auto", CATEGORY):
        return search.sampler
    small = len(axes) <= GP_VALUES and search.trials <= GP_TRIALS
    numeric = all(isinstance(axis, Interval) for axis in axes)
    return "gp" if small and numeric and find_spec("scipy") else "tpe"


def grid_points(axes: dict[str, Axis], most: int) -> list[Coordinates]:
    """Return the points of a grid, the last axis fastest.

    Axes with steps and choices have all of their values; the others share what `most` leaves, two
    at least.
    """
    values = {name: _all_values(axis) for name, axis in axes.items()}
    free = [name for name, found in values.items() if found is None]
    taken = math.prod(len(found) for found in values.values() if found is not None)
    each = max(2, int((most / taken) ** (1 / len(free)) + 1e-9)) if free else 0
    for name in free:
        axis = axes[name]
        if isinstance(axis, Interval):
            values[name] = _spread(axis, each)
    lists = [found or [] for found in values.values()]
    points = itertools.islice(itertools.product(*lists), most)
    return [dict(zip(values, point, strict=True)) for point in points]


def _all_values(axis: Axis) -> list[Any] | None:
    if isinstance(axis, Options):
        return list(axis.options)
    if axis.step is None:
        return None
    count = round((axis.high - axis.low) / axis.step) + 1
    return [axis.low + number * axis.step for number in range(count)]


def _spread(axis: Interval, count: int) -> list[Any]:
    parts = [number / (count - 1) for number in range(count)]
    if axis.log:
        inner = [axis.low * (axis.high / axis.low) ** part for part in parts[1:-1]]
    else:
        inner = [axis.low + (axis.high - axis.low) * part for part in parts[1:-1]]
    return [axis.low, *inner, axis.high]


def _imported() -> Any:
    try:
        import optuna
    except ImportError:
        raise missing_package("search", "optuna", "cmaes", "scipy") from None
    return optuna


def _sampler(module: Any, name: str, seed: int, draw: int) -> Any:
    """Return a sampler for one trial: `draw` is the seed of this trial, `seed` that of all."""
    samplers = module.samplers
    try:
        if name == "gp":
            return samplers.GPSampler(seed=draw, n_startup_trials=GP_RANDOM)
        if name == "tpe":
            return samplers.TPESampler(seed=draw, multivariate=True, constant_liar=True)
        if name == "cmaes":
            return samplers.CmaEsSampler(seed=draw)
    except ImportError as error:
        package = error.name or "scipy"
        raise missing_package(f"sampler {name}", package) from None
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=draw)
    if name == "qmc":
        # The sequence is one for all trials; the study counts how much of it is used.
        return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=draw)


def _distribution(module: Any, axis: Axis) -> Any:
    kinds = module.distributions
    if isinstance(axis, Options):
        return kinds.CategoricalDistribution(axis.options)
    if axis.integer:
        return kinds.IntDistribution(int(axis.low), int(axis.high), step=int(axis.step or 1))
    return kinds.FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def _repair(path: Path) -> None:
    """Remove a last line without an end: its writer died, or the disk was full."""
    try:
        with path.open("r+b") as file:
            data = file.read()
            if data and not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _quiet(module: Any) -> Iterator[None]:
    """Keep the messages of optuna away: samplers that it calls experimental, trials that failed."""
    level = module.logging.get_verbosity()
    module.logging.set_verbosity(module.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        module.logging.set_verbosity(level)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: damaged: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
