"""The loss of models on held-out text: each window of the text, layer by layer.

All models see the same windows. The first one's tokenizer cuts the text into them; a model whose
tokenizer gives other tokens sees the same characters in its own. Windows pass through a model in
groups that fit the bound on memory, each group in one pass over the weights.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..checkpoint.hub import Hub
from ..errors import InputError, ResultError, UsageError
from ..messages import counted
from ..planning.inputs import open_reference
from ..system.machine import resident_bytes
from ..system.progress import Progress
from ..units import duration, size
from .statistics import Loss, Losses

if TYPE_CHECKING:
    import torch

    from ..inference.layerwise import Call
    from ..inference.model import Model
    from ..inference.texts import Batch, Encoded, Sample, Window

LENGTH = 1024
"""Tokens of a window, if nothing else is asked for."""
BATCH_TOKENS = 1024
STATES_BYTES = 1 << 29
"""Hidden states that are kept between layers, where --memory sets no bound."""
SLACK_BYTES = 96 << 20
"""Memory of the allocator and of libraries that is not counted one by one."""


@dataclass(frozen=True)
class Settings:
    """How losses are measured: tokens of a window, tokens from one to the next, and the machine."""

    length: int = LENGTH
    stride: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    memory_bytes: int | None = None
    trust_remote_code: bool = False
    relative_to: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        if self.length < 2:
            raise UsageError(
                f"--length {self.length}: at least 2 tokens, of which one is predicted"
            )
        if self.stride is not None and not 1 <= self.stride <= self.length:
            raise UsageError(
                f"--stride {self.stride}: between 1 and --length {self.length}, or tokens are lost"
            )


@dataclass(frozen=True)
class Measured:
    """The losses of all models, in the order given; `notes` are to be told."""

    data: str
    samples: int
    settings: Settings
    models: tuple[Losses, ...]
    same_tokens: bool
    """Whether all models have the same tokens, so that losses of tokens can be compared."""
    windows: tuple[str, ...] = ()
    """The file and line where the sample of each window begins."""
    notes: tuple[str, ...] = ()


class Plan(NamedTuple):
    """How a model is run: batches in groups that are in memory together, and what that takes."""

    groups: list[list[Batch]]
    memory_bytes: int
    read_bytes: int
    operations: float
    tokens: int


def measure(
    words: Sequence[str],
    data: Path,
    settings: Settings,
    progress: str = "off",
    tell: Callable[[str], object] = str,
) -> Measured:
    """Return the losses of models on the text of a file.

    `words` are models as a recipe names them. `tell` gets a line on the data and one on each model
    before it runs. Raises InputError for a model or text that does not fit, UsageError for settings
    that do not, and ResultError if a loss is not a number.
    """
    from ..engine.device import select_devices
    from ..inference.building import require_transformers, silence_transformers
    from ..inference.model import ModelOptions, open_model
    from ..inference.texts import read_samples

    samples = read_samples(data)
    require_transformers("perplexity")
    silence_transformers()
    device, hub = select_devices(settings.device)[0], Hub()
    with contextlib.ExitStack() as stack:
        models = []
        options = ModelOptions(settings.dtype, device, settings.trust_remote_code, hub)
        for word in words:
            reference = open_reference(word, settings.relative_to, hub)
            models.append(stack.enter_context(open_model(*reference, options)))
        texts = _windows(models, samples, settings)
        count = counted(len(texts.windows[0]), "windows")
        tokens = sum(window.counted for window in texts.windows[0])
        tell(
            f"{data}: {counted(len(samples), 'samples')}, {count} of at most {settings.length} "
            f"tokens, {tokens:,} tokens predicted"
        )
        plans = [
            _plan(model, windows, settings)
            for model, windows in zip(models, texts.windows, strict=True)
        ]
        done = []
        total = sum(plan.read_bytes for plan in plans)
        with Progress(progress, total, "perplexity") as shown:
            for model, windows, plan in zip(models, texts.windows, plans, strict=True):
                tell(_line(model, plan, settings))
                done.append(_losses(model, windows, plan, shown))
        where = tuple(samples[window.sample].where for window in texts.windows[0])
        return Measured(
            str(data), len(samples), settings, tuple(done), texts.same, where, texts.notes
        )


class _Texts(NamedTuple):
    windows: list[list[Window]]
    """The windows of each model."""
    same: bool
    notes: tuple[str, ...]


def _windows(models: Sequence[Model], samples: Sequence[Sample], settings: Settings) -> _Texts:
    """Return the windows of every model, which hold the same text."""
    from ..inference.texts import cut

    encoded, notes = _encoded(models, samples, settings)
    first = encoded[0]
    own = [
        window
        for number, sample in enumerate(first)
        for window in cut(number, sample, settings.length, settings.stride)
    ]
    windows = [_windows_of(own, first, other) for other in encoded]
    kept = [place for place in range(len(own)) if all(w[place].counted for w in windows)]
    if not kept:
        raise InputError(
            f"{samples[0].where.rpartition(':')[0]}: no sample has two tokens, of which one is "
            f"predicted; give longer texts"
        )
    short = len({window.sample for window in own})
    if short < len(samples):
        notes.append(f"{counted(len(samples) - short, 'samples')} too short to predict a token")
    other = [m.label for m, e in zip(models, encoded, strict=True) if not _alike(e, first)]
    if other:
        notes.append(
            f"{', '.join(other)}: other tokens than {models[0].label}, in windows of the same "
            f"text; compare bits per byte"
        )
    if any(not sample.exact for sample in first):
        notes.append(
            f"{models[0].label}: its tokenizer does not tell where tokens begin, so that bytes are "
            f"spread over windows by tokens"
        )
    return _Texts([[w[place] for place in kept] for w in windows], not other, tuple(notes))


def _encoded(
    models: Sequence[Model], samples: Sequence[Sample], settings: Settings
) -> tuple[list[list[Encoded]], list[str]]:
    """Return the samples in the tokens of every model. Conversations have the first's template."""
    from ..inference.texts import encode

    tokenizers = [model.tokenizer(settings.trust_remote_code) for model in models]
    encoded = []
    for model, tokenizer in zip(models, tokenizers, strict=True):
        sequences = [encode(sample, tokenizer, tokenizers[0]) for sample in samples]
        most = max((max(sample.ids, default=0) for sample in sequences), default=0)
        if most >= model.vocabulary_size:
            raise InputError(
                f"{model.label}: its tokenizer has token {most}, but its embedding only "
                f"{model.vocabulary_size} rows; the tokenizer does not belong to the weights"
            )
        encoded.append(sequences)
    templates = [getattr(tokenizer, "chat_template", None) for tokenizer in tokenizers]
    differ = any(sample.is_chat for sample in samples) and any(
        template != templates[0] for template in templates
    )
    note = f"chat templates differ; all models see conversations in that of {models[0].label}"
    return encoded, [note] if differ else []


def _alike(one: Sequence[Encoded], other: Sequence[Encoded]) -> bool:
    return all(a.ids == b.ids for a, b in zip(one, other, strict=True))


def _windows_of(
    own: Sequence[Window], first: Sequence[Encoded], other: Sequence[Encoded]
) -> list[Window]:
    from ..inference.texts import cut_at

    if _alike(first, other):
        return list(own)
    return [cut_at(window.sample, other[window.sample], window) for window in own]


# Memory, bytes and time, before anything is read.


def _plan(model: Model, windows: Sequence[Window], settings: Settings) -> Plan:
    """Put windows into batches and groups that fit the memory. UsageError if none does."""
    from ..inference.texts import batches

    layers = range(len(model.layers))
    weights = max(map(model.layer_bytes, layers)) + model.largest_read_bytes()
    size_of = model.dtype.itemsize
    state = 2 * model.hidden_size * size_of
    longest = max(len(window.ids) for window in windows)
    positions = getattr(model.text_config, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < longest:
        raise UsageError(
            f"{model.label}: has {positions} positions, but a window has {longest} tokens; give "
            f"--length {positions}"
        )
    made = batches(windows, max(longest, BATCH_TOKENS))
    most = max(batch.ids.numel() for batch in made)
    passing = _passing_bytes(model, most)
    fixed = resident_bytes() + weights + passing + SLACK_BYTES
    allowed = STATES_BYTES
    if settings.memory_bytes is not None:
        allowed = settings.memory_bytes - fixed
        if allowed < most * state:
            raise UsageError(
                f"--memory {size(settings.memory_bytes)}: {model.label} needs {size(fixed)} and "
                f"{size(most * state)} for one batch; allow more, or a shorter --length"
            )
    groups = _groups(made, max(1, allowed // state))
    held = max(sum(batch.ids.numel() for batch in group) for group in groups) * state
    tokens = sum(batch.ids.numel() for batch in made)
    read = len(groups) * model.total_bytes()
    operations = 2.0 * tokens * model.active_parameters()
    return Plan(groups, fixed + held, read, operations, tokens)


def _groups(made: Sequence[Batch], tokens: int) -> list[list[Batch]]:
    groups: list[list[Batch]] = []
    room = 0
    for batch in made:
        if not groups or batch.ids.numel() > room:
            groups.append([])
            room = tokens
        groups[-1].append(batch)
        room -= batch.ids.numel()
    return groups


def _passing_bytes(model: Model, tokens: int) -> int:
    """Return the bytes that a batch takes on its way through a layer, or through the head."""
    from ..inference.head import POSITIONS, SLICE_BYTES

    wide = model.dtype.itemsize
    outputs = max(model.outputs_of_layer(number) for number in range(len(model.layers)))
    rows = min(model.vocabulary_size, SLICE_BYTES // max(1, model.hidden_size * wide))
    # Logits as they are computed, in float32, and once more for their exponentials.
    head = SLICE_BYTES + min(tokens, POSITIONS) * rows * (wide + 8)
    return max(3 * tokens * outputs * wide, head)


def _line(model: Model, plan: Plan, settings: Settings) -> str:
    seconds = plan.operations / _speed(model) + plan.read_bytes / 1e9
    kept = " as --memory allows" if settings.memory_bytes else ""
    passes = counted(len(plan.groups), "passes").replace("1 passe", "1 pass")
    return (
        f"{model.label}: {len(model.layers)} layers in {str(model.dtype).removeprefix('torch.')} "
        f"on {model.device}; reads {size(plan.read_bytes)} in {passes}; memory at most "
        f"{size(plan.memory_bytes)}{kept}; about {duration(max(1.0, seconds))}"
    )


def _speed(model: Model) -> float:
    """Return the operations a second of a matrix product like those of the model."""
    import torch

    from ..engine.device import synchronize

    one = torch.randn(256, 1024, device=model.device).to(model.dtype)
    other = torch.randn(1024, 1024, device=model.device).to(model.dtype)
    one @ other.mT
    synchronize(model.device)
    began, count = time.perf_counter(), 0
    while count < 2 or (time.perf_counter() - began < 0.05 and count < 1000):
        one @ other.mT
        count += 1
    synchronize(model.device)
    return count * 2.0 * 256 * 1024 * 1024 / max(1e-9, time.perf_counter() - began)


# The run.


def _losses(model: Model, windows: Sequence[Window], plan: Plan, progress: Progress) -> Losses:
    nats: dict[int, float] = {}
    began, clock, cpu = progress.bytes_out, time.perf_counter(), time.process_time()
    for number, group in enumerate(plan.groups):
        for place, value in _group(model, group, progress):
            nats[place] = value
        share = plan.read_bytes * (number + 1) // len(plan.groups)
        progress.wrote(max(0, began + share - progress.bytes_out))
    faults = [place for place, value in nats.items() if not math.isfinite(value)]
    if faults:
        raise ResultError(
            f"{model.label}: the loss of {counted(len(faults), 'windows')} of {len(nats)} is not a "
            f"finite number (window {min(faults) + 1} first)\n  its weights hold NaN or Inf, or "
            f"{str(model.dtype).removeprefix('torch.')} is too narrow: try --dtype float32"
        )
    losses = [Loss(nats[n], w.counted, w.nbytes) for n, w in enumerate(windows)]
    kind = str(model.dtype).removeprefix("torch.")
    spent = time.perf_counter() - clock, time.process_time() - cpu
    return Losses(model.label, tuple(losses), kind, str(model.device), *spent)


def _group(model: Model, group: Sequence[Batch], progress: Progress) -> Iterator[tuple[int, float]]:
    """Yield the number and the loss in nats of every window of a group of batches."""
    from ..inference.head import token_losses
    from ..inference.layerwise import LayerPass

    states = LayerPass(model, [batch.ids for batch in group])
    before = model.weights.bytes_read

    def count(call: Call) -> None:
        nonlocal before
        progress.read(model.weights.bytes_read - before)
        progress.wrote(model.layer_read_bytes(call.layer))
        before = model.weights.bytes_read

    states.run(after=count)
    losses = token_losses(states, [batch.labels for batch in group])
    progress.read(model.weights.bytes_read - before)
    for batch, found in zip(group, losses, strict=True):
        sums: torch.Tensor = found.double().sum(1)
        yield from zip(batch.windows, sums.tolist(), strict=True)
