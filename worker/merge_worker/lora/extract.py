"""The low-rank part of the difference of two models, one tensor at a time on several threads."""

from __future__ import annotations

import queue
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.folder import Checkpoint
from ..checkpoint.reader import Files
from ..engine.device import load_linalg
from ..engine.lane import Lane
from ..errors import InputError
from ..messages import counted, first_names, printable, relative_paths
from ..structure.sizes import Sized, size_differences
from ..system import torch_startup
from ..tensors.source import Reader, TensorSource
from .save import CHUNK, AdapterOutput, config_of
from .svd import Factors, RankLimit, low_rank
from .targets import AdapterParts, Span, Target, Whole

torch_startup.complete()


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

    base: Checkpoint
    tuned: Checkpoint
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
        if item.fixed:
            raise InputError(
                f"{self.tuned.path}: '{printable(item.name)}' differs from the base, and its class "
                f"holds it in memory with its elements in another order, which adapters follow"
            )
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


def factor_names(targets: Iterable[Target]) -> dict[str, str]:
    """Return the prefix of `.lora_A` by target; wrappers of one module's parameters are nested."""
    names: dict[str, str] = {}
    wrapped: dict[str, list[str]] = {}
    for target in targets:
        names[target.name] = target.name
        if target.kind == "experts":
            wrapped.setdefault(target.name.rpartition(".")[0], []).append(target.name)
    for module, parameters in wrapped.items():
        # The last is the outermost; `down_proj` comes after the others in every model.
        order = sorted(parameters, key=lambda name: name.endswith("down_proj"))
        for depth, name in enumerate(reversed(order)):
            names[name] = module + ".base_layer" * depth
    return names


def write_adapter(extraction: Extraction, parts: AdapterParts, base: tuple[str, str | None]) -> int:
    """Write the weights and the config, and return the size of the weights in bytes."""
    changed = [result for result in extraction.extracted if result.rank]
    if not changed:
        kept = extraction.kept_whole
        others = f", only {counted(len(kept), 'other tensors')}" if kept else ""
        raise InputError(
            f"{extraction.tuned.path}: no matrix differs from the base{others}; "
            "an adapter needs one"
        )
    targets = [result.target for result in changed]
    task = _task_type(extraction.tuned.config)
    modules = [t.name for t in targets if not t.parameter]
    config = config_of(
        base[0],
        {result.target.key: result.rank for result in changed},
        revision=base[1],
        task_type=task,
        target_modules=_short_names(modules, parts) if task == "CAUSAL_LM" else sorted(modules),
        fan_in_fan_out=any(t.transposed and t.kind == "linear" for t in targets),
    )
    parameters = sorted(target.parameter for target in targets if target.parameter)
    if parameters:
        # The factors of experts have the sides that PEFT gives them since 0.19.
        config |= {"target_parameters": parameters, "peft_version": "0.19.0"}
    config["modules_to_save"] = _complete_modules(extraction, parts.wholes) or None
    wrapped = {t.name if t.kind != "experts" else t.name.rpartition(".")[0] for t in targets}
    depths = Counter(t.name.rpartition(".")[0] for t in targets if t.kind == "experts")
    for whole in extraction.kept_whole:
        module, _, end = whole.name.rpartition(".")
        layers = ".base_layer" * max(depths[module], 1) if module in wrapped else ""
        sources = tuple(extraction.tuned.tensors[name] for name in whole.parts)
        place = f"{module}{layers}." if module else ""
        extraction.output.whole[place + end] = sources
    with closing(Files()) as files:
        return extraction.output.finish(config, Lane(torch.device("cpu"), files, staged=False))


def _task_type(config: Mapping[str, Any]) -> str | None:
    """Return the kind of model that PEFT wraps; None for models of other kinds than text alone."""
    classes = config.get("architectures") or ("CausalLM",)
    if config.get("is_encoder_decoder") and "ForConditional" in str(classes[0]):
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if re.search(r"CausalLM|LMHead", str(classes[0])) else None


def _complete_modules(extraction: Extraction, wholes: Sequence[Whole]) -> list[str]:
    """Return the modules with a saved copy, and keep all of their tensors, which PEFT requires."""
    kept = extraction.kept_whole
    modules = {whole.module for whole in kept if whole.module}
    kept += [w for w in wholes if w.module in modules and w not in kept]
    return sorted(modules)


def _short_names(names: Sequence[str], parts: AdapterParts) -> list[str]:
    """Return the last parts of the names if they match no other module, else the full names.

    Models other than of text alone have modules in memory that files do not show.
    """
    lasts = {name.rpartition(".")[2] for name in names}
    modules = [t.name for t in parts.targets]
    modules += [w.name.rpartition(".")[0] for w in parts.wholes if w.name.endswith(".weight")]
    matched = {name for name in modules if name.rpartition(".")[2] in lasts}
    unambiguous = matched == set(names) and not any(last.isdigit() for last in lasts)
    return sorted(lasts if unambiguous else names)


def same_values(reader: Reader, base: TensorSource, tuned: TensorSource) -> bool:
    """Return whether two tensors have the same shape and values."""

    def values(source: TensorSource, start: int, slot: str) -> Tensor:
        return reader.read(source, start, min(source.count, start + CHUNK), slot).double()

    return base.shape == tuned.shape and all(
        torch.equal(values(base, start, "base"), values(tuned, start, "tuned"))
        for start in range(0, base.count, CHUNK)
    )


def check_alike(base: Checkpoint, tuned: Checkpoint, wholes: Sequence[Whole]) -> None:
    """Raise InputError unless both have the same tensors; shapes of wholes may differ."""
    folder = str(Path.cwd())
    labels = [relative_paths(str(model.path), folder) for model in (base, tuned)]
    pair = zip(labels, (base, tuned), strict=True)
    if sizes := size_differences(*(Sized(name, m.config, m.tensors) for name, m in pair)):
        raise InputError(
            f"{labels[1]}: {sizes} in the base {labels[0]}\n"
            f"  a fine-tune has the sizes of its base; name the model that it was trained from"
        )
    faults: list[str] = []
    for model, other, word in ((base, tuned, "missing from"), (tuned, base, "only in")):
        if names := [name for name in model.tensors if name not in other.tensors]:
            faults.append(f"{first_names(names)}: {word} the fine-tune {labels[1]}")
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
