"""Two models → the low-rank part of their difference, one tensor at a time on several threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from ..adapters.apply import Adapted
from ..checkpoint.folder import Checkpoint
from ..checkpoint.reader import Files
from ..engine.device import load_linalg
from ..engine.lane import Lane
from ..errors import InputError
from ..messages import first_names, printable
from ..system import torch_startup
from ..tensors.source import Reader, TensorSource
from .save import RUN, Output
from .svd import Factors, Wanted, low_rank
from .targets import Run, Target, Whole

if TYPE_CHECKING:
    from torch import Tensor


torch_startup.complete()

Model = Checkpoint | Adapted


@dataclass(frozen=True)
class Found:
    """What became of a target: its rank, and norms of the delta and of what the factors miss."""

    target: Target
    rank: int
    delta: float
    missed: float

    @property
    def error(self) -> float:
        """Relative; 0 where nothing changed."""
        return self.missed / self.delta if self.delta else 0.0


@dataclass
class Extraction:
    """Runs all targets and wholes; factors go to `output`, in any order and under final names."""

    base: Model
    tuned: Model
    output: Output
    wanted: Wanted
    names: Mapping[str, str]  # what stands before `.lora_A.weight` of a target
    dtype: str = "float32"
    found: list[Found] = field(default_factory=list)
    kept: list[Whole] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _error: BaseException | None = None

    def run(
        self,
        work: Sequence[Target | Whole],
        devices: Sequence[torch.device],
        threads: int,
    ) -> None:
        """Do all of it on so many threads. The first error of any is raised."""
        torch.set_num_threads(1)
        load_linalg(devices)
        waiting: queue.SimpleQueue[Target | Whole] = queue.SimpleQueue()
        for item in sorted(work, key=self.elements, reverse=True):
            waiting.put(item)
        files = Files()
        lanes = [
            threading.Thread(target=self._lane, args=(waiting, files, device))
            for device in (devices[n % len(devices)] for n in range(threads))
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        files.close()
        if self._error is not None:
            raise self._error

    def elements(self, item: Target | Whole) -> int:
        if isinstance(item, Whole):
            return sum(self.tuned.tensors[name].count for name in item.parts)
        return len(item.matrices) * item.shape[0] * item.shape[1]

    def _lane(
        self,
        waiting: queue.SimpleQueue[Target | Whole],
        files: Files,
        device: torch.device,
    ) -> None:
        lane = Lane(torch.device("cpu"), files, staged=False)
        try:
            with torch.inference_mode():
                while self._error is None:
                    item = waiting.get_nowait()
                    if isinstance(item, Whole):
                        self.whole(lane, item)
                    else:
                        self.target(lane, item, device)
        except queue.Empty:
            return
        except BaseException as error:
            self._error = self._error or error

    def whole(self, lane: Lane, item: Whole) -> None:
        """Keep a tensor if it changed."""
        pairs = [(self.base.tensors[n], self.tuned.tensors[n]) for n in item.parts]
        if all(same(lane, base, tuned) for base, tuned in pairs):
            return
        with self._lock:
            self.kept.append(item)

    def target(self, lane: Lane, item: Target, device: torch.device) -> None:
        factors: list[Factors] = []
        squares = missed = 0.0
        for number, runs in enumerate(item.matrices):
            delta = self.delta(lane, runs, item.shape).to(device)
            if item.turned:
                delta = delta.mT.contiguous()
            if not bool(torch.isfinite(delta).all()):
                raise InputError(f"tensor '{printable(runs[0].name)}' has NaN or Inf")
            found = low_rank(delta, self.wanted, f"{item.name}.{number}")
            kept = Factors(*(x.to(getattr(torch, self.dtype)) for x in found))
            squares += float(delta.double().square().sum())
            rest = delta.addmm_(kept.b.to(delta), kept.a.to(delta), alpha=-1)
            missed += float(rest.double().square().sum())
            factors.append(Factors(kept.b.cpu(), kept.a.cpu()))
        rank = max(len(f.a) for f in factors) if squares else 0
        if rank:
            self.put(item, factors, rank)
        with self._lock:
            self.found.append(Found(item, rank, squares**0.5, missed**0.5))

    def fill(self) -> None:
        """Zeros for parameters that did not change beside others of their module that did."""
        changed = {
            self.names[f.target.name].partition(".base_layer")[0] for f in self.found if f.rank
        }
        for number, each in enumerate(self.found):
            name = self.names[each.target.name].partition(".base_layer")[0]
            if each.target.kind == "experts" and not each.rank and name in changed:
                rows, columns = each.target.shape[:: -1 if each.target.turned else 1]
                kind = getattr(torch, self.dtype)
                zeros = Factors(
                    torch.zeros(rows, 1, dtype=kind), torch.zeros(1, columns, dtype=kind)
                )
                self.put(each.target, [zeros] * len(each.target.matrices), 1)
                self.found[number] = replace(each, rank=1)

    def delta(self, lane: Lane, runs: Sequence[Run], shape: tuple[int, int]) -> Tensor:
        """float32, exact where a weight is near what it was."""
        delta = torch.empty(shape[0] * shape[1])
        done = 0
        for name, start, stop in runs:
            values = delta[done : done + stop - start]
            wide = torch.float64 if self.tuned.tensors[name].dtype.bits > 32 else torch.float32
            tuned = lane.read(self.tuned.tensors[name], start, stop, "tuned").to(wide, copy=True)
            values.copy_(tuned.sub_(lane.read(self.base.tensors[name], start, stop, "base")))
            done += stop - start
        return delta.view(shape)

    def put(self, item: Target, factors: Sequence[Factors], rank: int) -> None:
        count = len(factors)
        a = factors[0].a.new_zeros(count, rank, factors[0].a.shape[1])
        b = factors[0].b.new_zeros(len(factors[0].b), rank, count)
        for number, factor in enumerate(factors):
            a[number, : len(factor.a)] = factor.a
            b[:, : len(factor.a), number] = factor.b
        name, embedding = self.names[item.name], item.kind == "embedding"
        form = "lora_embedding_{}" if embedding else "lora_{}.weight"
        self.output.add(f"{name}.{form.format('A')}", a.view(-1, a.shape[-1]))
        self.output.add(f"{name}.{form.format('B')}", b.view(len(b), -1))


def same(lane: Reader, one: TensorSource, other: TensorSource) -> bool:
    """Whether two tensors hold the same values; shapes may differ."""
    if one.shape != other.shape:
        return False
    for start in range(0, one.count, RUN):
        stop = min(one.count, start + RUN)
        first = lane.read(one, start, stop, "base")
        if not bool(torch.equal(first.double(), lane.read(other, start, stop, "tuned").double())):
            return False
    return True


def check_alike(base: Model, tuned: Model, wholes: Sequence[Whole]) -> None:
    """InputError unless both have the same tensors; embeddings may have got more rows."""
    faults: list[str] = []
    for one, other, word in ((base, tuned, "is not in"), (tuned, base, "is only in")):
        lost = [n for n in one.tensors if n not in other.tensors]
        if lost:
            faults.append(f"{first_names(lost)}: {word} the fine-tune {tuned.path}")
    free = {name for whole in wholes for name in whole.parts}
    for name, info in base.tensors.items():
        peer = tuned.tensors.get(name)
        if peer is not None and peer.shape != info.shape and name not in free:
            faults.append(f"{printable(name)} is {list(info.shape)} and {list(peer.shape)}")
    if faults:
        more = f"\n  and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError("\n".join(faults[:3]) + more + "\n  is it a fine-tune of this base?")
