"""The loop of a worker: take a candidate, make it, score it, until the search is finished.

Workers share the folder of the search and nothing else. Whoever holds the lock of the study decides
for itself what is next: a fixed candidate, a trial whose worker died, or a new trial. The lock of
the chosen candidate is taken before that of the study is released, so that a trial without a result
and without a living owner is always one that has to be taken over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import InputError, OutputError, UsageError
from ..messages import first_names, print_line, printable
from ..output.files import output_errors, write_file
from ..output.lock import Lock, Watch
from ..recipe.places import PlaceError
from .candidates import (
    LOCK,
    MODEL,
    PARENT,
    RECIPE,
    SCORE,
    TRIAL,
    TWIN,
    Candidate,
    fixed_candidates,
    trial_candidate,
    trial_name,
)
from .choices import CATEGORY, GREEDY
from .definition import Search, digest
from .finish import finish
from .results import Result, ranked, read_result, read_results, write_result
from .selection import greedy_proposals, with_experts
from .space import Coordinates
from .study import OpenTrial, Study
from .work import Workshop, drop_weights

STUDY, DEFINITION, WAITING = "study", "search.json", "waiting"
POLL_S = 0.5
MOST_ALIKE = 3
"""Failures in a row with the same message that end the search."""


@dataclass(frozen=True)
class Claim:
    """A candidate in hand, whose lock is held."""

    candidate: Candidate
    lock: Lock


class Loop:
    """One worker of a search."""

    def __init__(self, search: Search, workshop: Workshop) -> None:
        self.search = search
        self.trials = search
        self.workshop = workshop
        self.out = workshop.out
        self.began = time.time()
        self.watch = Watch()
        self.fixed = fixed_candidates(search, workshop.folder)
        self.evaluation = digest(search.measure.facts())

    def run(self) -> None:
        """Work until nothing is left, or only what other workers have in hand.

        Raises UsageError or InputError after failures that repeat, OutputError, and Stopped.
        """
        with self._alone():
            self._check_definition()
        with contextlib.ExitStack() as waiting:
            waits = False
            while True:
                self.workshop.deadline.check()
                claim, is_over = self._next()
                if claim is not None:
                    waiting.close()
                    waits = False
                    with contextlib.ExitStack() as held:
                        held.push(claim.lock)
                        self._work_on([claim.candidate, *self._others(held)])
                elif is_over:
                    break
                elif waits or (waits := self._watches(waiting)):
                    time.sleep(POLL_S)
                else:
                    self._say("nothing is left but what others have in hand; one of them waits")
                    return
        finish(self.search, self.workshop, self.watch)

    def _others(self, held: contextlib.ExitStack) -> Iterator[Candidate]:
        """Yield candidates for the same pass over the inputs, as many as `batch` allows."""
        for _ in range(self.search.batch - 1):
            claim, _ = self._next()
            if claim is None:
                return
            held.push(claim.lock)
            yield claim.candidate

    def _work_on(self, candidates: Sequence[Candidate]) -> None:
        """Make all candidates, several in one pass over the inputs, then score one by one."""
        seconds = self.workshop.make_together(candidates) if len(candidates) > 1 else {}
        for candidate in candidates:
            self.workshop.deadline.check()
            self._work(candidate, seconds.get(candidate.name, 0.0))

    def _say(self, text: str) -> None:
        print_line(f"merge-worker: {text}", sys.stderr)

    def _watches(self, waiting: contextlib.ExitStack) -> bool:
        """Take the place of the worker that waits for others; False if it is taken.

        One is enough to take over a trial whose worker dies.
        """
        lock = self.watch.take(self.out / STUDY / WAITING)
        if lock is None:
            return False
        waiting.push(lock)
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the study."""
        path = self.out / STUDY / LOCK
        with output_errors(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
        while (lock := self.watch.take(path)) is None:
            self.workshop.deadline.check()
            time.sleep(POLL_S / 10)
        with contextlib.ExitStack() as held:
            held.push(lock)
            yield

    def _check_definition(self) -> None:
        """Refuse a folder with the trials of another search."""
        path = self.out / STUDY / DEFINITION
        with output_errors(path):
            if not path.exists():
                write_file(path, f'{{"key": "{self.search.key}"}}\n')
            known = path.read_text()
        if self.search.key not in known:
            raise OutputError(
                f"{self.out}: holds another search: its recipe, space, score or direction differ\n"
                f"  choose another 'out', or remove this folder"
            )
        older = {r.evaluation for r in read_results(self.out) if r.is_done} - {self.evaluation}
        if older:
            self._say(f"warning: {self.out}: some scores are of another evaluation than this one")

    def _next(self) -> tuple[Claim | None, bool]:
        """Return a candidate to work on, and whether the search is over without one."""
        with self._alone():
            results = {result.name: result for result in read_results(self.out)}
            self._stop_if_alike(list(results.values()))
            is_busy = False
            for candidate in self.fixed:
                if self._is_settled(results.get(candidate.name)):
                    continue
                if claim := self._claim(candidate):
                    return claim, False
                is_busy = True
            if not self._has_trials(results, is_busy):
                return None, False
            study = Study(self.trials, self.out / STUDY)
            study.prepare()
            held: list[OpenTrial] = []
            for trial in study.open_trials():
                claim, state = self._resume(study, trial, results)
                if claim is not None:
                    return claim, False
                is_busy |= state == "busy"
                held += [trial] if state == "held" else []
            for fixed in self._proposals(study, results):
                if claim := self._claim_new(study, results, fixed):
                    return claim, False
            if not is_busy:
                for trial in held:
                    study.tell(trial.number, None)
            self._drop(list(results.values()))
            # What a greedy soup tries next depends on failures that are told only now.
            goes_on = bool(held) and self.search.sampler == GREEDY
            return None, not is_busy and not goes_on

    def _has_trials(self, results: dict[str, Result], is_busy: bool) -> bool:
        """Whether it is known what varies: experts may follow from the scores of all parents."""
        if self.search.sampler == CATEGORY and self.trials is self.search:
            if is_busy and self.search.table is None:
                return False
            self.trials = with_experts(self.search, self.workshop.folder, results)
            self._say(self.trials.warnings[-1])
        return True

    def _proposals(self, study: Study, results: dict[str, Result]) -> Iterator[Coordinates | None]:
        """Yield coordinates for new trials, None where the sampler is to propose them."""
        if self.search.sampler != GREEDY:
            while study.asked() < study.planned:
                yield None
            return
        folder = self.workshop.folder
        # A score that is copied from an equal recipe may decide what comes next.
        while proposed := greedy_proposals(self.search, folder, results, study.coordinates()):
            yield proposed[0]

    def _is_settled(self, result: Result | None) -> bool:
        """Whether a result stands: a failure of an earlier run of the command is tried again."""
        return result is not None and (result.is_done or result.ended >= self.began)

    def _resume(
        self, study: Study, trial: OpenTrial, results: dict[str, Result]
    ) -> tuple[Claim | None, str]:
        """Tell a trial its score, or take it over; else return whether it is busy or held.

        A failure is held back as long as it may be the first of several that are the same: then the
        search stops, and the trial is tried again by the next run of the command.
        """
        if not trial.is_whole:
            study.tell(trial.number, None)
            return None, "told"
        candidate = self._candidate(trial)
        if candidate is None:
            study.tell(trial.number, None)
            return None, "told"
        result = results.get(candidate.name)
        twin = self._twin_of(candidate)
        if result is None and twin is not None:
            result = self._copied(candidate, twin, results.get(twin))
            if result is None:
                return None, "busy"
        if result is not None and result.is_done:
            study.tell(trial.number, result.score)
            self._drop(list({**results, result.name: result}.values()))
            return None, "told"
        if result is not None and result.ended >= self.began:
            if result.name in {r.name for r in self._alike(list(results.values()))}:
                return None, "held"
            study.tell(trial.number, None)
            return None, "told"
        claim = self._claim(candidate)
        return claim, "busy" if claim is None else "claimed"

    def _candidate(self, trial: OpenTrial) -> Candidate | None:
        with contextlib.suppress(PlaceError, KeyError, StopIteration):
            return trial_candidate(self.trials, trial.number, trial.coordinates)
        return None

    def _claim(self, candidate: Candidate) -> Claim | None:
        """Take the lock of a candidate and write its recipe; None if another worker has it."""
        place = self.workshop.place(candidate)
        with output_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        lock = self.watch.take(place / LOCK)
        if lock is None:
            return None
        with contextlib.ExitStack() as held:
            held.push(lock)
            if self._is_settled(read_result(place / SCORE)):
                return None  # finished by its owner since the results were read
            self.workshop.claim(candidate)
            held.pop_all()
            return Claim(candidate, lock)

    def _claim_new(
        self, study: Study, results: dict[str, Result], fixed: Coordinates | None
    ) -> Claim | None:
        """Ask for a trial; None if another candidate has the same recipe."""
        trial = study.ask(fixed)
        candidate = self._candidate(trial)
        if candidate is None:
            raise AssertionError("a trial that was just asked for has values")
        twin = self._find_twin(candidate)
        if twin is None:
            return self._claim(candidate)
        self.workshop.claim(candidate)
        place = self.workshop.place(candidate)
        with output_errors(place):
            write_file(place / TWIN, twin + "\n")
        copied = self._copied(candidate, twin, results.get(twin))
        if copied is not None:
            study.tell(trial.number, copied.score if copied.is_done else None)
            results[candidate.name] = copied
        return None

    def _find_twin(self, candidate: Candidate) -> str | None:
        """Return the first candidate with the same recipe, which is merged and scored only once."""
        others = [each for each in self.fixed if each.text is not None]
        for number in range(candidate.trial or 0):
            place = self.out / trial_name(number)
            with contextlib.suppress(OSError):
                if not (place / TWIN).exists():
                    text = (place / RECIPE).read_text(encoding="utf-8")
                    others.append(Candidate(place.name, TRIAL, text))
        identity = candidate.identity
        return next((each.name for each in others if each.identity == identity), None)

    def _twin_of(self, candidate: Candidate) -> str | None:
        try:
            return (self.workshop.place(candidate) / TWIN).read_text().strip()
        except OSError:
            return None

    def _copied(self, candidate: Candidate, twin: str, result: Result | None) -> Result | None:
        """Write the result of the twin as that of a candidate, once it is there."""
        if result is None or not self._is_settled(result):
            return None
        copied = dataclasses.replace(
            result,
            name=candidate.name,
            kind=candidate.kind,
            trial=candidate.trial,
            values=candidate.values,
            same_as=twin,
            merge_s=0.0,
            evaluate_s=0.0,
        )
        write_result(self.workshop.place(candidate), copied)
        return copied

    def _work(self, candidate: Candidate, merge_s: float) -> None:
        """Make and score a candidate; write the result, whatever it is.

        `merge_s` is its share of the seconds of a pass in which it was made with others.
        """
        result = self.workshop.result(candidate, self.search.measure, "evaluate", self.evaluation)
        result = dataclasses.replace(result, merge_s=round(result.merge_s + merge_s, 3))
        with output_errors(self.workshop.place(candidate)):
            write_result(self.workshop.place(candidate), result)
        shown = f"{result.score:.6g}" if result.is_done else f"failed: {result.message}"
        times = f"merged in {result.merge_s:.1f} s, evaluated in {result.evaluate_s:.1f} s"
        print_line(f"{candidate.name}  {shown}  ({times})", sys.stdout)
        sys.stdout.flush()

    def _alike(self, results: Sequence[Result]) -> list[Result]:
        """Return the last failures since this worker began that have the same message."""
        recent = [r for r in results if r.ended >= self.began and r.same_as is None]
        alike: list[Result] = []
        for result in sorted(recent, key=lambda r: r.ended, reverse=True):
            if result.is_done or (alike and _plain(result) != _plain(alike[0])):
                break
            alike.append(result)
        return alike

    def _stop_if_alike(self, results: Sequence[Result]) -> None:
        alike = self._alike(results)
        if len(alike) < MOST_ALIKE:
            return
        names = first_names([result.name for result in reversed(alike)])
        error = InputError if alike[0].code == InputError.exit_code else UsageError
        raise error(
            f"{printable(str(self.out))}: {len(alike)} candidates in a row failed alike ({names}): "
            f"{alike[0].message}\n  see {printable(str(self.out / alike[0].name))}; after the "
            f"cause is removed, the same command tries them again"
        )

    def _drop(self, results: Sequence[Result]) -> None:
        """Remove the weights of candidates that are scored and not among the best."""
        keep = self.search.keep
        if keep is None:
            return
        made = [r for r in results if r.kind != PARENT and r.same_as is None and r.is_done]
        # The best one is needed until the end, for `validate` and `repeat`.
        kept = ranked(made, self.search.direction)[: max(1, keep)]
        for result in made:
            model = self.out / result.name / MODEL
            if result not in kept and model.is_dir():
                drop_weights(model)


def _plain(result: Result) -> str:
    """Return a message without its numbers, which differ between failures of one kind."""
    return re.sub(r"[\d.]+", "#", result.message)
