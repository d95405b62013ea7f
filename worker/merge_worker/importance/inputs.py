"""The inputs of each matrix of a layer: mean magnitudes, mean squares, Gram matrices.

Inputs are seen where torch multiplies by the matrix, so experts of a stack, whose inputs are the
tokens routed to them, and transposed matrices (Conv1D) need no rule for their modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PRODUCTS = {torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__}


class Place(NamedTuple):
    """A matrix: a parameter of a layer by its name there, or an entry of a stack of them."""

    name: str
    entry: int | None
    transposed: bool
    """Whether its rows are the inputs, as in Conv1D."""


class Inputs(TorchFunctionMode):
    """Calls `seen(places, x)` for the inputs x (tokens, width) of matrices while the block runs.

    Matrices with the same input come together. Only parameters of `layer` are seen.
    """

    def __init__(self, layer: nn.Module, seen: Callable[[tuple[Place, ...], Tensor], None]) -> None:
        super().__init__()
        self.seen = seen
        self._owners: dict[int, tuple[str, Tensor]] = {}
        for name, parameter in layer.named_parameters():
            if parameter.ndim in (2, 3):
                self._owners[parameter.untyped_storage().data_ptr()] = name, parameter
        # Held until the end, so that no other tensor takes the memory of an input meanwhile.
        self._groups: dict[tuple[object, ...], tuple[Tensor, list[Place]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear:
            x, weight = (args[0], args[1]) if len(args) > 1 else (args[0], kwargs["weight"])
            self._note(x, weight, by_columns=True)
        elif func is torch.addmm and len(args) == 3:
            self._note(args[1], args[2], by_columns=False)
        elif func in PRODUCTS and len(args) == 2:
            self._note(args[0], args[1], by_columns=False)
        return func(*args, **kwargs)

    def _note(self, x: Tensor, weight: Tensor, by_columns: bool) -> None:
        """Note a product; `by_columns`: of x with the columns of the second, as `linear` has it."""
        owner = self._owners.get(weight.untyped_storage().data_ptr())
        if owner is None or weight.ndim != 2:
            return
        name, parameter = owner
        entry, rows = None, parameter[0] if parameter.ndim == 3 else parameter
        turned = weight.stride() != rows.stride()
        if weight.shape != (rows.shape[::-1] if turned else rows.shape):
            return  # a part of a matrix, whose other parts may have other inputs
        if parameter.ndim == 3:
            size = parameter.shape[1] * parameter.shape[2]
            entry = (weight.storage_offset() - parameter.storage_offset()) // size
        key = (x.data_ptr(), x.shape, x.stride(), x._version)
        self._groups.setdefault(key, (x, []))[1].append(Place(name, entry, by_columns == turned))

    def flush(self) -> None:
        """Report the inputs of one sample, and free them."""
        for x, places in self._groups.values():
            self.seen(tuple(places), x.detach().reshape(-1, x.shape[-1]))
        self._groups.clear()


@dataclass
class ChannelMeans:
    """Mean of |x| or x² over tokens for the inputs of each matrix, and of each norm."""

    squares: bool
    sums: dict[Place, Tensor] = field(default_factory=dict)  # float64 [width], on the device
    tokens: dict[Place, int] = field(default_factory=dict)

    def add(self, places: tuple[Place, ...], x: Tensor) -> None:
        work = torch.float32 if x.device.type == "mps" else torch.float64
        values = x.to(work)
        total = (values.square() if self.squares else values.abs()).sum(0)
        for place in places:
            self.sums[place] = self.sums[place] + total if place in self.sums else total
            self.tokens[place] = self.tokens.get(place, 0) + len(x)

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean of every channel for each parameter, in its shape but for the outputs.

        An entry of a stack that no token reached is 0.
        """
        found: dict[str, Tensor] = {}
        for place, total in self.sums.items():
            mean = (total / max(1, self.tokens[place])).float()
            shape = parameters[place.name].shape
            if len(shape) == 1:
                found[place.name] = mean
            elif place.entry is None:
                found[place.name] = mean[:, None] if place.transposed else mean[None]
            else:
                empty = mean.new_zeros((shape[0], 1, len(mean)))
                found.setdefault(place.name, empty)[place.entry, 0] = mean
        return found


def norm_hooks(layer: nn.Module, means: ChannelMeans) -> list[Any]:
    """Let norms report their inputs: modules with one weight for each channel."""
    handles = []
    for name, module in layer.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 1:
            place = Place(f"{name}.weight" if name else "weight", None, False)

            def hook(module: nn.Module, args: tuple[Any, ...], place: Place = place) -> None:
                x = args[0] if args else None
                width = module._parameters["weight"]
                if isinstance(x, Tensor) and width is not None and x.shape[-1:] == width.shape:
                    means.add((place,), x.detach().reshape(-1, x.shape[-1]))

            handles.append(module.register_forward_pre_hook(hook))
    return handles
