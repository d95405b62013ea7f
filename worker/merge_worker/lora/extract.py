"""The low-rank part of the difference of two models, one tensor at a time on several threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..adapters.apply import Adapted
from ..checkpoint.folder import Checkpoint
from ..checkpoint.reader import Files
from ..engine.device import load_linalg
from ..engine.lane import Lane
from ..errors import InputError
from ..messages import first_names, printable
from ..system import torch_startup
from ..tensors.source import Reader, TensorSource
from .save import CHUNK, AdapterOutput
from .svd import Factors, RankLimit, low_rank
from .targets import Span, Target, Whole

torch_startup.complete()

Model = Checkpoint | Adapted


@dataclass(frozen=True)
class ExtractedTarget:
    """The result for a target: its rank, the norm of the delta, and the norm of the residual."""

    target: Target
    rank: int
    delta: float
    residual: float

    @property
    def error(self) -> float:
        """Relative error; 0 if nothing changed."""
        return self.residual / self.delta if self.delta else 0.0


@dataclass
class Extraction:
    """The extraction of all targets and wholes; factors go to `output`, in any order."""

    base: Model
    tuned: Model
    output: AdapterOutput
    limit: RankLimit
    names: Mapping[str, str]  # of a target: the prefix of `.lora_A.weight`
    dtype: str = "float32"
    extracted: list[ExtractedTarget] = field(default_factory=list)
    kept_whole: list[Whole] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _error: BaseException | None = None

    def run(
        self, work: Sequence[Target | Whole], devices: Sequence[torch.device], threads: int
    ) -> None:
        """Extract everything on `threads` threads, spread over devices. Raises the first error."""
        torch.set_num_threads(1)
        load_linalg(devices)
        waiting: queue.SimpleQueue[Target | Whole] = queue.SimpleQueue()
        for item in sorted(work, key=self._elements, reverse=True):
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

    def _elements(self, item: Target | Whole) -> int:
        if isinstance(item, Whole):
            return sum(self.tuned.tensors[name].count for name in item.parts)
        return len(item.matrices) * item.shape[0] * item.shape[1]

    def _lane(
        self, waiting: queue.SimpleQueue[Target | Whole], files: Files, device: torch.device
    ) -> None:
        lane = Lane(torch.device("cpu"), files, staged=False)
        try:
            with torch.inference_mode():
                while self._error is None:
                    item = waiting.get_nowait()
                    if isinstance(item, Whole):
                        self._keep_if_changed(lane, item)
                    else:
                        self._extract(lane, item, device)
        except queue.Empty:
            return
        except BaseException as error:
            self._error = self._error or error

    def _keep_if_changed(self, lane: Lane, item: Whole) -> None:
        pairs = [(self.base.tensors[n], self.tuned.tensors[n]) for n in item.parts]
        if all(same_values(lane, base, tuned) for base, tuned in pairs):
            return
        with self._lock:
            self.kept_whole.append(item)

    def _extract(self, lane: Lane, item: Target, device: torch.device) -> None:
        factors: list[Factors] = []
        squares = residual_squares = 0.0
        for number, spans in enumerate(item.matrices):
            delta = self._delta(lane, spans, item.shape).to(device)
            if item.transposed:
                delta = delta.mT.contiguous()
            if not bool(torch.isfinite(delta).all()):
                raise InputError(f"tensor '{printable(spans[0].name)}' has NaN or Inf")
            exact = low_rank(delta, self.limit, f"{item.name}.{number}")
            rounded = Factors(*(x.to(getattr(torch, self.dtype)) for x in exact))
            squares += float(delta.double().square().sum())
            residual = delta.addmm_(rounded.b.to(delta), rounded.a.to(delta), alpha=-1)
            residual_squares += float(residual.double().square().sum())
            factors.append(Factors(rounded.b.cpu(), rounded.a.cpu()))
        rank = max(len(f.a) for f in factors) if squares else 0
        if rank:
            self._write(item, factors, rank)
        result = ExtractedTarget(item, rank, squares**0.5, residual_squares**0.5)
        with self._lock:
            self.extracted.append(result)

    def add_zero_factors(self) -> None:
        """Write zero factors for unchanged parameters of modules with other, changed parameters."""

        def module_of(target: Target) -> str:
            return self.names[target.name].partition(".base_layer")[0]

        changed = {module_of(result.target) for result in self.extracted if result.rank}
        for number, result in enumerate(self.extracted):
            target = result.target
            if target.kind == "experts" and not result.rank and module_of(target) in changed:
                rows, columns = target.shape[:: -1 if target.transposed else 1]
                dtype = getattr(torch, self.dtype)
                zeros = Factors(
                    torch.zeros(rows, 1, dtype=dtype), torch.zeros(1, columns, dtype=dtype)
                )
                self._write(target, [zeros] * len(target.matrices), 1)
                self.extracted[number] = replace(result, rank=1)

    def _delta(self, lane: Lane, spans: Sequence[Span], shape: tuple[int, int]) -> Tensor:
        """Return the delta in float32, without rounding where a weight changed little."""
        delta = torch.empty(shape[0] * shape[1])
        done = 0
        for name, start, stop in spans:
            values = delta[done : done + stop - start]
            wide = torch.float64 if self.tuned.tensors[name].dtype.bits > 32 else torch.float32
            tuned = lane.read(self.tuned.tensors[name], start, stop, "tuned").to(wide, copy=True)
            values.copy_(tuned.sub_(lane.read(self.base.tensors[name], start, stop, "base")))
            done += stop - start
        return delta.view(shape)

    def _write(self, item: Target, factors: Sequence[Factors], rank: int) -> None:
        count = len(factors)
        a = factors[0].a.new_zeros(count, rank, factors[0].a.shape[1])
        b = factors[0].b.new_zeros(len(factors[0].b), rank, count)
        for number, factor in enumerate(factors):
            a[number, : len(factor.a)] = factor.a
            b[:, : len(factor.a), number] = factor.b
        a, b = a.view(-1, a.shape[-1]), b.view(len(b), -1)
        self.output.add_factors(self.names[item.name], a, b, item.kind == "embedding")


def same_values(reader: Reader, one: TensorSource, other: TensorSource) -> bool:
    """Return whether two tensors have the same shape and values."""
    if one.shape != other.shape:
        return False
    for start in range(0, one.count, CHUNK):
        stop = min(one.count, start + CHUNK)
        first = reader.read(one, start, stop, "base")
        if not bool(torch.equal(first.double(), reader.read(other, start, stop, "tuned").double())):
            return False
    return True


def check_alike(base: Model, tuned: Model, wholes: Sequence[Whole]) -> None:
    """Raise InputError unless both have the same tensors; shapes of wholes may differ."""
    faults: list[str] = []
    for one, other, word in ((base, tuned, "missing from"), (tuned, base, "only in")):
        names = [name for name in one.tensors if name not in other.tensors]
        if names:
            faults.append(f"{first_names(names)}: {word} the fine-tune {tuned.path}")
    free = {name for whole in wholes for name in whole.parts}
    for name, info in base.tensors.items():
        peer = tuned.tensors.get(name)
        if peer is not None and peer.shape != info.shape and name not in free:
            faults.append(
                f"{printable(name)}: shapes differ: {list(info.shape)} and {list(peer.shape)}"
            )
    if faults:
        more = f"\n  and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError("\n".join(faults[:3]) + more + "\n  is it a fine-tune of this base?")
