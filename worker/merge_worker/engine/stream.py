"""Plan → bytes in the partial output: lanes read, compute and write pieces of tensors.

Each lane does one piece after the other, reading and writing at fixed positions with buffers of
its own. There are more lanes than processors, so that reads, arithmetic and writes of different
lanes overlap; torch uses no threads of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NoReturn, Protocol

import torch

from ..checkpoint.reader import Files
from ..dtypes import Kind
from ..errors import ResultError, UsageError
from ..messages import counted, printable
from ..method import MergePass, StatisticsPass
from ..planning.memory import Memory
from ..planning.plan import Plan
from ..planning.step import Piece, Step, pieces
from ..system.machine import ComputeSlots
from ..system.progress import Progress
from ..system.signals import StopFlag
from ..tensors.source import StoredTensor, stored_inputs
from .device import OUT_OF_MEMORY, load_linalg
from .lane import Lane, Loaded, nonfinite
from .prefetch import Fetcher, ReadAhead
from .work import JointStep, Work

OPEN_STEPS = 4
"""Tensors worked on beyond one a lane: one waits for its last piece while the next begins."""


@dataclass(eq=False)
class _OpenStep:
    """A step that is worked on: the pass of each member, its waiting pieces, its statistics."""

    work: Work
    step: JointStep
    current: list[StatisticsPass | MergePass | None]  # None: bytes are copied
    waiting: deque[Piece]
    busy: int = 0
    statistics: dict[int, list[list[Any]]] = field(default_factory=dict)  # by first block

    def statistics_passes(self) -> list[StatisticsPass | None]:
        """Return the statistics passes still running; finished members wait, so that all merge in
        the same last pass."""
        return [item if isinstance(item, StatisticsPass) else None for item in self.current]

    def advance(self, statistics: Sequence[Sequence[Any]]) -> None:
        """Begin the next pass of each member, given its statistics of all blocks."""
        self.current = [
            item.next_pass(partials) if isinstance(item, StatisticsPass) else item
            for item, partials in zip(self.current, statistics, strict=True)
        ]


class Store(Protocol):
    """The place of the result of one merge, such as a PartialOutput."""

    @property
    def plan(self) -> Plan: ...

    def write(
        self,
        work: tuple[int, Step],
        piece: Piece,
        data: memoryview,
        nonfinite: int,
        same: tuple[int, int] | None = None,
    ) -> None:
        """Take a piece of a tensor, given with its number; see `PartialOutput.write`."""


@dataclass(eq=False)
class Engine:
    """Runs the work of one process, for one or more merges each with the place of its result in
    `stores`.

    `stop` is set from outside to end early; the merges can be resumed. `staged` lets lanes treat
    the CPU like an accelerator, for tests.
    """

    stores: Sequence[Store]
    memory: Memory
    progress: Progress
    devices: Sequence[torch.device]
    files: Files = field(default_factory=Files)
    ahead: ReadAhead | None = None
    stop: StopFlag = field(default_factory=StopFlag)
    staged: bool | None = None
    allow_nonfinite: bool = False
    fetcher: Fetcher | None = None
    drop_cache: bool = False  # of inputs that are merged
    on_error: Callable[[], object] = bool  # called once a lane has failed
    differing: list[str] = field(default_factory=list)
    _condition: threading.Condition = field(default_factory=threading.Condition)
    _open: list[_OpenStep] = field(default_factory=list)
    _error: BaseException | None = None
    _slots: ComputeSlots = field(default_factory=ComputeSlots)
    _pending: Iterator[Work] = field(default_factory=lambda: iter(()))

    def run(self, work: Iterable[Work]) -> list[str]:
        """Do all of `work`, taken as needed. Return the names of tensors whose copies differ.

        Raises Stopped, or the first error of a lane.
        """
        torch.set_num_threads(1)
        self._slots = ComputeSlots(self.memory.computing)
        if any(step.flops for store in self.stores for step in store.plan.steps):
            load_linalg(self.devices)
        self._pending = iter(work)
        lanes = [
            threading.Thread(target=self._lane, args=(self.devices[i % len(self.devices)],))
            for i in range(self.memory.lanes)
        ]
        try:
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
        except BaseException:  # a program that merges in its process keeps KeyboardInterrupt
            self.stop.set("interrupted")
            for lane in lanes:
                with contextlib.suppress(RuntimeError):  # not started
                    lane.join()
            raise
        if self._error is not None:
            raise self._error
        if self.stop.is_set():
            raise self.stop.error(self.progress.percent)
        return self.differing

    def _lane(self, device: torch.device) -> None:
        lane = Lane(device, self.files, self.staged, self._slots)
        try:
            with lane.stream(), torch.inference_mode():
                while (task := self._next()) is not None:
                    try:
                        with self._slots:
                            self._do(lane, *task)
                    except OUT_OF_MEMORY:
                        self._halve(lane, *task)
        except BaseException as error:
            with self._condition:
                self._error = self._error or error
                self._condition.notify_all()
            self.on_error()

    def _next(self) -> tuple[_OpenStep, Piece] | None:
        """Return a piece to do, once there is one; None at the end, after an error or a stop."""
        with self._condition:
            while True:
                if self._error is not None or self.stop.is_set():
                    return None
                for item in self._open:
                    if item.waiting:
                        item.busy += 1
                        return item, item.waiting.popleft()
                if len(self._open) < OPEN_STEPS + self.memory.lanes:
                    following = next(self._pending, None)
                    if following is not None:
                        if self.ahead is not None:
                            self.ahead.reached(following.number)
                        self._open.append(self._begin(following))
                        continue
                if not self._open:
                    self._condition.notify_all()
                    return None
                self._condition.wait()

    def _begin(self, work: Work) -> _OpenStep:
        step = work.step
        assert isinstance(step, JointStep)
        current = [member.step.first_pass() for member in step.members]
        item = _OpenStep(work, step, current, deque())
        self._hand_out(item)
        return item

    def _hand_out(self, item: _OpenStep) -> None:
        """Queue the pieces of the next pass: all blocks for statistics, unwritten ones to merge."""
        most = self.memory.piece_blocks(item.step)
        whole = (Piece(0, item.step.grid.blocks),)
        for run in whole if any(item.statistics_passes()) else item.work.todo:
            item.waiting.extend(pieces(run.first, run.first + run.blocks, most))

    def _do(self, lane: Lane, item: _OpenStep, piece: Piece) -> None:
        """Do one piece of the current pass, or all passes in memory if it is the whole tensor."""
        step, partials = item.step, None
        lane.make_room(step, piece, self.memory.bound // self.memory.lanes)
        if step.task is None:
            self._copy(lane, item, piece)
        else:
            # Sources are loaded whole if they are read more than once, or computed on a device.
            whole = any(item.statistics_passes()) and piece.blocks == step.grid.blocks
            large = whole or lane.staged or self.memory.large_reads
            loaded = lane.load(step, piece) if large else None
            while whole and any(passes := item.statistics_passes()):
                item.advance(lane.collect(step, piece, loaded, passes))
            if any(passes := item.statistics_passes()):
                partials = lane.collect(step, piece, loaded, passes)
            else:
                for part in item.work.todo if whole else (piece,):
                    self._merge(lane, item, part, loaded)
            start, stop = step.grid.span(piece.first, piece.blocks)
            self.progress.read((stop - start) * sum(s.dtype.bytes for s in step.sources))
        self._done(item, piece, partials)

    def _halve(self, lane: Lane, item: _OpenStep, piece: Piece) -> None:
        """Queue two halves of a piece for which the device lacks memory."""
        lane.clear()
        if piece.blocks == 1:
            raise UsageError(
                f"{lane.device}: no memory left for one block of '{printable(item.step.name)}'\n"
                f"  others may use it; --device cpu needs none, --threads 1 the least"
            ) from None
        halves = pieces(piece.first, piece.first + piece.blocks, -(-piece.blocks // 2))
        with self._condition:
            item.busy -= 1
            item.waiting.extend(halves)
            self._condition.notify_all()

    def _merge(self, lane: Lane, item: _OpenStep, part: Piece, loaded: Loaded | None) -> None:
        finals = [final for final in item.current if isinstance(final, MergePass)]
        merged = lane.merge(item.step, part, loaded, finals)
        for member, (raw, bad) in zip(item.step.members, merged, strict=True):
            if bad and not self.allow_nonfinite:
                self._report_nonfinite(item.step, loaded or lane.load(item.step, part), bad)
            work = (member.number, member.step)
            with self._slots.released():
                self.stores[member.result].write(work, part, raw, bad)
            self.progress.wrote(len(raw), item.work.number, bad)

    def _done(self, item: _OpenStep, piece: Piece, partials: list[list[Any]] | None) -> None:
        with self._condition:
            item.busy -= 1
            if partials is not None:
                item.statistics[piece.first] = partials
            if item.waiting or item.busy:
                return
            if partials is None:
                self._open.remove(item)
                self._condition.notify_all()
        if partials is None:
            # Inputs that together would push everything else out of the page cache are dropped.
            for tensor in item.step.stored_inputs() if self.drop_cache else ():
                self.files.done_with(tensor.file, tensor.offset, tensor.nbytes)
            if self.fetcher is not None:
                self.fetcher.finished(item.work.number)
            return
        # The last piece of a pass: no other lane works on the tensor, so no lock is needed.
        by_piece = [item.statistics[first] for first in sorted(item.statistics)]
        item.advance([list(chain.from_iterable(own)) for own in zip(*by_piece, strict=True)])
        with self._condition:
            item.statistics = {}
            self._hand_out(item)
            self._condition.notify_all()

    def _copy(self, lane: Lane, item: _OpenStep, piece: Piece) -> None:
        """Copy the first source's bytes, and note the tensor if those of other sources differ."""
        step = item.step
        start, stop = step.grid.span(piece.first, piece.blocks)
        values, first = lane.read_to_copy(step.members[0].step, piece)
        for number, source in enumerate(step.sources[1:], 1):
            slot = f"in{number}"
            other = lane.host.memory(slot, lane.read(source, start, stop, slot).nbytes)
            if other != first and step.name not in self.differing:
                self.differing.append(step.name)
        floats = step.dtype.kind is Kind.FLOAT
        bad = nonfinite(values) if floats else 0
        source, same = step.sources[0], None
        if isinstance(source, StoredTensor):
            fd, place = self.files.descriptor(source.file), source.offset
            same = None if fd is None else (fd, place + start * source.dtype.bytes)
        for member in step.members:
            work = (member.number, member.step)
            with self._slots.released():
                self.stores[member.result].write(work, piece, first, bad, same)
            self.progress.wrote(len(first), item.work.number, bad)
        self.progress.read(len(first) * len(step.sources))

    def _report_nonfinite(self, step: JointStep, loaded: Loaded, bad: int) -> NoReturn:
        culprits, largest = [], 0.0
        for source, values in zip(step.sources, loaded.sources, strict=True):
            count = int(values.numel() - torch.isfinite(values).sum())
            if count:
                file = next(stored_inputs(source)).file
                culprits.append(f"{file} has {count} NaN or Inf there")
            elif values.numel():
                largest = max(largest, float(values.double().abs().max()))
        kind = getattr(torch, step.dtype.torch_name)
        reason = "; ".join(culprits) or (
            f"the inputs are finite, the largest is {largest:.3g}; "
            f"{step.dtype.torch_name} holds up to {torch.finfo(kind).max:.3g}"
        )
        raise ResultError(
            f"tensor '{printable(step.name)}': "
            f"{counted(bad, 'values of the result are NaN or Inf')}\n"
            f"  {reason}\n"
            f"  --allow-nonfinite writes them all the same"
        )
