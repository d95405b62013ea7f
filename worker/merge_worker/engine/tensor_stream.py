"""Plans → tensors in memory, one after the other; nothing is written.

The lanes of an Engine work ahead of the reader, but keep what is not its turn yet in their buffers,
so that beside these only the tensor that is read next is in memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..checkpoint.hub import Hub
from ..checkpoint.reader import Files
from ..errors import Stopped, UsageError
from ..planning.memory import Memory
from ..planning.plan import Plan
from ..planning.step import Piece, Step
from ..system.progress import Progress
from ..system.ranks import Rank
from ..tensors.host import host_view
from .device import select_devices
from .measure import measure_importance
from .one_pass import refuse_changed
from .prefetch import Fetcher, ReadAhead
from .stream import Engine
from .work import Work, join_steps, share

Tensors = tuple[Tensor | None, ...]
"""A tensor of each merge, None where a merge has none of this name."""


def tensor_stream(
    plans: Sequence[Plan], device: str = "cpu", allow_nonfinite: bool = False
) -> Iterator[tuple[str, Tensors]]:
    """Yield every tensor by name, in the order of the files of the first merge.

    `device` is where the tensors are computed and yielded, the first one of several. The inputs are
    read once for all plans. Raises any WorkerError.
    """
    for plan in plans:
        if plan.texts:
            raise UsageError(
                f"{plan.recipe.where}: 'data' runs the models, which takes a merge into a folder"
            )
    desk = _Desk(plans)
    files = _open_files(plans)
    work = _in_order(join_steps([share(plan.steps, Rank(), {}) for plan in plans]), desk.order)
    progress = Progress("off", 0, "")
    memory, devices = _memory(plans, work), select_devices(device)
    fetcher, ahead = Fetcher(files, work, progress, False), ReadAhead(files, work)
    stores = [_Slot(desk, plan, number) for number, plan in enumerate(plans)]
    engine = Engine(stores, memory, progress, devices, files, ahead, on_error=desk.close)
    engine.allow_nonfinite = allow_nonfinite
    runner = _Runner(engine, work, desk)
    with contextlib.closing(files), fetcher, ahead:
        for line in measure_importance(plans, files, memory.lanes, engine.stop):
            progress.warn(line)
        runner.start()
        try:
            for name in desk.order:
                tensors = desk.take(name)
                if tensors is None:
                    break
                yield name, tuple(t if t is None else t.to(devices[0]) for t in tensors)
                del tensors  # or it would stay until the next one is complete
        finally:
            engine.stop.set()
            desk.close()
            runner.join()
    if runner.error is not None:
        raise runner.error
    refuse_changed(plans)


def _open_files(plans: Sequence[Plan]) -> Files:
    hub = Hub()
    for plan in plans:
        hub.adopt(plan.options.hub)
    return Files(hub)


def _in_order(work: Sequence[Work], order: Sequence[str]) -> list[Work]:
    place = {name: number for number, name in enumerate(order)}
    ordered = sorted(work, key=lambda item: place[item.step.name])
    return [replace(item, number=number) for number, item in enumerate(ordered)]


def _memory(plans: Sequence[Plan], work: Sequence[Work]) -> Memory:
    """Return the memory of the lanes of one process."""
    if len(plans) == 1:
        return plans[0].memory
    return plans[0].options.budget([item.step for item in work])


class _Runner(threading.Thread):
    """The thread that runs the engine, and its error."""

    def __init__(self, engine: Engine, work: Sequence[Work], desk: _Desk) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self._engine, self._work, self._desk = engine, work, desk

    def run(self) -> None:
        try:
            self._engine.run(self._work)
        except BaseException as error:
            # The reader that ends early has asked for it.
            self.error = None if isinstance(error, Stopped) else error
        finally:
            self._desk.close()


@dataclass
class _Desk:
    """The tensors on their way from the lanes to the reader, filled one name at a time."""

    plans: Sequence[Plan]
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _turn: int = -1
    _closed: bool = False
    _tensors: dict[int, Tensor] = field(default_factory=dict)  # of the name whose turn it is

    def __post_init__(self) -> None:
        self._steps: dict[str, dict[int, Step]] = {}
        for number, plan in enumerate(self.plans):
            for step in plan.steps_in_files():
                self._steps.setdefault(step.name, {})[number] = step
        self.order = list(self._steps)
        self._place = {name: place for place, name in enumerate(self.order)}
        self._left = {
            name: sum(step.grid.blocks for step in steps.values())
            for name, steps in self._steps.items()
        }

    def put(self, number: int, step: Step, piece: Piece, data: memoryview) -> None:
        """Copy a piece of a result to its tensor, once it is its turn. Raises Stopped."""
        with self._changed:
            while self._place[step.name] > self._turn and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Stopped("stopped by the reader")
            tensor = self._tensor(number, step)
        begin = piece.first * step.grid.block * step.dtype.bytes
        host_view(tensor.view(-1).view(torch.uint8))[begin : begin + len(data)] = data
        with self._changed:
            self._left[step.name] -= piece.blocks
            self._changed.notify_all()

    def take(self, name: str) -> Tensors | None:
        """Return the tensors of a name when they are complete; None after an error."""
        with self._changed:
            self._turn = self._place[name]
            self._changed.notify_all()
            while self._left[name] and not self._closed:
                self._changed.wait()
            if self._left[name]:
                return None
            for number, step in self._steps[name].items():
                self._tensor(number, step)  # which is empty, if nothing was put there
            tensors, self._tensors = self._tensors, {}
            return tuple(tensors.get(number) for number in range(len(self.plans)))

    def close(self) -> None:
        """Let nothing wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _tensor(self, number: int, step: Step) -> Tensor:
        if number not in self._tensors:
            dtype = getattr(torch, step.dtype.torch_name)
            with torch.inference_mode(False):  # lanes are in it, and its tensors take no gradient
                self._tensors[number] = torch.empty(step.shape, dtype=dtype)
        return self._tensors[number]


@dataclass
class _Slot:
    """The place of one merge at the desk, in place of its files."""

    desk: _Desk
    plan: Plan
    number: int

    def write(
        self,
        work: tuple[int, Step],
        piece: Piece,
        data: memoryview,
        nonfinite: int,
        same: tuple[int, int] | None = None,
    ) -> None:
        self.desk.put(self.number, work[1], piece, data)
