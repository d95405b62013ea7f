"""All batches of tokens through one decoder layer after the other, so that weights are read once.

What the model passes to its layers beside the hidden states (masks, rotary embeddings, …) is found
by running it once for each batch with stand-ins in place of the layers, which record what they are
called with and return their input. The model's own code before, between and after the layers is
thus used as it is. A model whose layers share state, or that computes between them, runs as a whole
for each batch instead, with the weights of each layer read when it is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, WorkerError
from ..messages import printable
from .model import Model

ARITIES = (0, 1, 2, 3)
"""Lengths of the tuples that layers return; 0 for hidden states without a tuple."""
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)
"""Arguments that keep no state from one layer to the next, as tensors and tuples do not."""


class Call(NamedTuple):
    """A call of a decoder layer; `number` counts calls, which may be more than there are layers."""

    number: int
    layer: int


class Arguments(NamedTuple):
    """Arguments of a layer: `place` is where the hidden states go, a number or a name."""

    place: int | str
    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    def filled(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(self.place, str):
            return self.positional, {**self.named, self.place: hidden}
        before, after = self.positional[: self.place], self.positional[self.place + 1 :]
        return (*before, hidden, *after), dict(self.named)


class LayerPass:
    """One pass of all batches over the weights of a model's decoder layers.

    `batches` are token ids, int64 of shape (sequences, tokens), without padding. `hidden` are the
    input of the first layer for each batch at first, and the output of the last at the end; their
    dtype and device are the model's. While a layer runs, `batch` is the number of its batch.

    Statistics of the forward pass, for any model:

        states = LayerPass(model, batches)
        handles = [layer.mlp.register_forward_pre_hook(collect) for layer in model.layers]
        states.run(after=lambda call: flush(call.layer))   # hooks read states.batch

    Layer by layer, where `states.separable`; a backward pass through one layer is made this way:

        for call in states.calls:                          # or reversed, with inputs kept
            with model.loaded(call.layer, trainable=True) as layer, torch.enable_grad():
                entering = states.hidden[0].detach().requires_grad_()
                leaving = states.apply(call, 0, entering)
                leaving.backward(gradient_of_leaving)      # fills entering.grad and .grad of
                                                           # layer.named_parameters()

    `final(batch)` gives the input of the output head, which head.py turns into losses; with a
    `hidden` that takes gradients and `torch.enable_grad`, it can be differentiated as well.
    """

    def __init__(self, model: Model, batches: Sequence[Tensor]) -> None:
        self.model = model
        self.batches = [batch.to(model.device) for batch in batches]
        self.batch = 0
        self.hidden: list[Tensor] = []
        self.calls: list[Call] = []
        self.reason = ""
        """Why the layers cannot run apart; "" if they can."""
        self._arguments: list[list[Arguments]] = []
        self._final: list[Tensor] = []
        with torch.no_grad():
            self._record()

    @property
    def separable(self) -> bool:
        """Whether the layers can run one at a time for all batches."""
        return not self.reason

    def run(
        self,
        before: Callable[[Call], object] | None = None,
        after: Callable[[Call], object] | None = None,
        last: int | None = None,
    ) -> None:
        """Run all batches through the layers, without gradients.

        `before` and `after` are called around each layer, once for all batches while its weights
        are loaded; of a model that is not separable, both are called at the end for every layer.
        `last` ends the pass after the layer of that number (only the others are then read).
        """
        with torch.no_grad():
            if not self.separable:
                self._run_whole(before, after, last)
                return
            for call in self.calls:
                with self.model.loaded(call.layer):
                    if before:
                        before(call)
                    for number in range(len(self.batches)):
                        self.hidden[number] = self.apply(call, number, self.hidden[number])
                    if after:
                        after(call)
                if call.layer == last:
                    break

    def apply(self, call: Call, batch: int, hidden: Tensor) -> Tensor:
        """Return the output of a layer, whose weights are loaded, for a batch's hidden states."""
        self.batch = batch
        positional, named = self._arguments[batch][call.number].filled(hidden)
        output = self.model.layers[call.layer](*positional, **named)
        first: Tensor = output[0] if isinstance(output, tuple | list) else output
        return first

    def entering(self, batch: int) -> Tensor:
        """Return the input of the first layer for a batch, computed again from its tokens.

        With `torch.enable_grad` it can be differentiated by what the modules before it hold.
        """
        self.batch = batch
        with _StandIns(self.model, self._arity) as stand_ins:
            return stand_ins.run(self.batches[batch]).entering

    def takes_gradients(self, batch: int) -> bool:
        """Return whether arguments of layers beside the hidden states take gradients now."""
        self.batch = batch
        with _StandIns(self.model, self._arity) as stand_ins, torch.enable_grad():
            found = stand_ins.run(self.batches[batch])
        return any(map(_takes_gradients, found.arguments))

    def final(self, batch: int, hidden: Tensor | None = None) -> Tensor:
        """Return the input of the output head (sequences, tokens, width) for a batch.

        `hidden`: the output of the last layer, in place of that of the pass.
        """
        self.batch = batch
        if not self.separable and hidden is None:
            return self._final[batch]
        hidden = self.hidden[batch] if hidden is None else hidden
        with _StandIns(self.model, self._arity) as stand_ins:
            stand_ins.leaving = hidden
            stand_ins.calls_before = len(self.calls)
            return stand_ins.run(self.batches[batch]).final

    # Recording.

    def _record(self) -> None:
        faults = []
        for arity in ARITIES:
            self._arity = arity
            try:
                self.reason = self._try_record()
            except WorkerError:
                raise
            except Exception as error:  # of the model's own code, given what it does not expect
                self.reason = f"{type(error).__name__}: {error}"
            if self.separable:
                return
            faults.append(self.reason)
            self.calls, self.hidden, self._arguments = [], [], []
        self.reason = faults[0]
        self.calls = [Call(number, number) for number in range(len(self.model.layers))]

    def _try_record(self) -> str:
        seen: dict[object, list[Tensor]] = {}
        with _StandIns(self.model, self._arity) as stand_ins:
            for ids in self.batches:
                found = stand_ins.run(ids)
                if fault := _fault(found, ids):
                    return fault
                calls = [Call(index, layer) for index, layer in enumerate(found.layers)]
                if self.calls and calls != self.calls:
                    return "the order of its layers depends on the tokens"
                self.calls = calls
                self.hidden.append(found.entering)
                self._arguments.append([_shared(item, seen) for item in found.arguments])
        return ""

    def _run_whole(
        self,
        before: Callable[[Call], object] | None,
        after: Callable[[Call], object] | None,
        last: int | None,
    ) -> None:
        self._final = []
        for number, ids in enumerate(self.batches):
            self.batch = number
            self._final.append(_run_with_layers_loaded(self.model, ids, last))
        for call in self.calls:
            for function in (before, after):
                if function and (last is None or call.layer <= last):
                    function(call)


class _Found(NamedTuple):
    """Calls and states that one run with stand-ins showed."""

    layers: list[int]
    arguments: list[Arguments]
    entering: Tensor
    final: Tensor
    broken: bool
    """Whether a layer's input was not the output of the one before, or the last was not used."""


class _Unknown:
    """Stands for results of a layer beside its hidden states; layers that get it share state."""


class _StandIns:
    """Replaces the layers of a model while the block runs; the model's other code runs.

    Stand-ins return hidden states, or a tuple of `arity` that begins with them.
    """

    def __init__(self, model: Model, arity: int) -> None:
        self.model, self.arity = model, arity
        self.leaving: Tensor | None = None
        self.calls_before = 0
        self._layers: list[int] = []
        self._arguments: list[Arguments] = []
        self._entering: list[Tensor] = []
        self._given: Tensor | None = None
        self._broken = False

    def __enter__(self) -> _StandIns:
        self._real = list(self.model.layers)
        for number, layer in enumerate(self._real):
            self.model.layers._modules[str(number)] = _StandIn(self, number, layer)
        return self

    def __exit__(self, *error: object) -> None:
        for number, layer in enumerate(self._real):
            self.model.layers._modules[str(number)] = layer

    def run(self, ids: Tensor) -> _Found:
        self._layers, self._arguments, self._entering = [], [], []
        self._given, self._broken = None, False
        with _CapturedHead(self.model) as head:
            self.model.module(input_ids=ids, use_cache=False)
        if not self._entering or head.entering is None:
            raise ValueError("its layers or its head are not called")
        return _Found(self._layers, self._arguments, self._entering[0], head.entering, self._broken)

    def called(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = _place(args, kwargs)
        hidden: Tensor = kwargs[place] if isinstance(place, str) else args[place]
        if self._given is not None and hidden is not self._given:
            self._broken = True
        self._layers.append(number)
        if self.leaving is None:
            self._arguments.append(_without(place, args, kwargs))
        if not self._entering:
            self._entering.append(hidden)
        is_last = self.leaving is not None and len(self._layers) == self.calls_before
        value = self.leaving if is_last and self.leaving is not None else hidden
        self._given = value.view_as(value)
        rest = [_Unknown() for _ in range(self.arity - 1)]
        return (self._given, *rest) if self.arity else self._given


class _StandIn(nn.Module):
    """A module in place of a layer, with the layer's attributes."""

    def __init__(self, owner: _StandIns, number: int, layer: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_facts", (owner, number, layer))

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_facts")[2], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        owner, number, _ = self._facts
        return owner.called(number, args, kwargs)


class _CapturedHead:
    """Replaces the output head while the block runs: keeps its input, and returns `reply`."""

    def __init__(self, model: Model, reply: Tensor | None = None) -> None:
        self.model, self.reply = model, reply
        self.entering: Tensor | None = None

    def __enter__(self) -> _CapturedHead:
        self._real: Any = None
        if self.model.head is not None:
            self._real = self.model.head.forward
            self.model.head.forward = self._capture
        return self

    def __exit__(self, *error: object) -> None:
        if self.model.head is not None:
            del self.model.head.forward

    def _capture(self, hidden: Tensor) -> Tensor:
        self.entering = hidden
        return hidden[..., :1] if self.reply is None else self.reply


def logits_of(model: Model, raw: Tensor) -> Tensor:
    """Return what the model makes of the outputs of its head (caps or scales them), elementwise."""
    ids = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    failed: Exception | None = None
    for arity in ARITIES:
        with _StandIns(model, arity), _CapturedHead(model, raw):
            try:
                logits: Tensor = model.module(input_ids=ids, use_cache=False).logits
                return logits
            except Exception as error:
                failed = failed or error
    raise InputError(
        f"{model.label}: the logits of {type(model.module).__name__} cannot be computed in slices: "
        f"{printable(' '.join(str(failed).split()))[:200]}"
    )


def _place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str:
    """Return where a layer gets its hidden states: its first argument, or the one of that name."""
    if args and isinstance(args[0], Tensor):
        return 0
    for name in ("hidden_states", "x", "hidden_state"):
        if isinstance(kwargs.get(name), Tensor):
            return name
    raise ValueError("its layers take no hidden states")


def _without(place: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    if isinstance(place, str):
        return Arguments(place, args, {k: v for k, v in kwargs.items() if k != place})
    return Arguments(place, (*args[:place], None, *args[place + 1 :]), dict(kwargs))


def _fault(found: _Found, ids: Tensor) -> str:
    """Return why layers cannot run apart from what was seen of their calls; "" if they can."""
    if found.broken:
        return "it computes between its layers"
    if found.final.shape[:2] != ids.shape:
        return "its layers return more than hidden states"
    for arguments in found.arguments:
        for value in (*arguments.positional, *arguments.named.values()):
            if not _is_stateless(value):
                return f"its layers share a {type(value).__name__}"
    return ""


def _is_stateless(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_stateless, value))
    if isinstance(value, dict):
        return bool(value) and all(map(_is_stateless, value.values()))
    return isinstance(value, (Tensor, *PLAIN))


def _takes_gradients(value: object) -> bool:
    if isinstance(value, tuple | dict):
        inner = value.values() if isinstance(value, dict) else value
        return any(map(_takes_gradients, inner))
    return isinstance(value, Tensor) and value.requires_grad


def _shared(item: Arguments, seen: dict[object, list[Tensor]]) -> Arguments:
    """Let equal tensors of all layers and batches, such as masks, share their memory."""

    def one(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(one, value))
        if isinstance(value, dict):
            return {key: one(inner) for key, inner in value.items()}
        if not isinstance(value, Tensor):
            return value
        alike = seen.setdefault((value.dtype, value.shape), [])
        for other in alike[-4:]:  # those of each batch alone are never alike
            if other is value or torch.equal(other, value):
                return other
        alike.append(value)
        return value

    named = {key: one(value) for key, value in item.named.items()}
    return Arguments(item.place, tuple(map(one, item.positional)), named)


def _run_with_layers_loaded(model: Model, ids: Tensor, last: int | None) -> Tensor:
    """Run a model as a whole, with each layer loaded while it runs; returns the head's input."""
    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(model.layers):
            _load_when_run(stack, model, number, layer, last)
        head = stack.enter_context(_CapturedHead(model))
        try:
            model.module(input_ids=ids, use_cache=False)
        except _Enough:
            return torch.empty(0)
        except WorkerError:
            raise
        except Exception as error:
            kind = type(model.module).__name__
            text = printable(" ".join(str(error).split()))[:200]
            raise InputError(f"{model.label}: {kind} cannot run layer by layer: {text}") from error
    if head.entering is None:
        raise InputError(
            f"{model.label}: the output head of {type(model.module).__name__} is not called"
        )
    return head.entering


class _Enough(Exception):
    """The last layer of interest has run."""


def _load_when_run(
    stack: contextlib.ExitStack, model: Model, number: int, layer: nn.Module, last: int | None
) -> None:
    held: list[contextlib.AbstractContextManager[Any]] = []

    def before(module: nn.Module, args: object) -> None:
        context = model.loaded(number)
        context.__enter__()
        held.append(context)

    def after(module: nn.Module, args: object, output: object) -> None:
        while held:
            held.pop().__exit__(None, None, None)
        if number == last:
            raise _Enough

    first = layer.register_forward_pre_hook(before, prepend=True)
    second = layer.register_forward_hook(after)
    stack.callback(first.remove)
    stack.callback(second.remove)
