"""Gates that no prompt decides: random numbers, and zeros.

Random numbers depend on the seed and on the name of the router's tensor, on nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..algorithms.normal_numbers import normal_numbers
from ..algorithms.random_masks import RandomStream
from ..engine.buffers import Pool
from ..method import Block
from .request import GateRequest


def random_gates(request: GateRequest) -> Tensor:
    """Return numbers of N(0, 1) times `gate_std`: float32 [layers, rows, width]."""
    gates = request.gates
    layers = []
    for block, stream in _blocks(request):
        layers.append(normal_numbers(stream, block).clone() * gates.std)
    return _shaped(layers, request)


def uniform_gates(request: GateRequest) -> Tensor:
    """Return uniform numbers of ±1/√width, what a linear layer begins with: float32
    [layers, rows, width]."""
    bound = request.gates.width**-0.5
    layers = []
    for block, stream in _blocks(request):
        words = stream.words(block).to(torch.float64)
        layers.append(((words + 0.5) * (bound / 2**31)).to(torch.float32))
    return _shaped(layers, request)


def zero_gates(request: GateRequest) -> Tensor:
    """Return zeros: float32 [layers, rows, width]."""
    gates = request.gates
    return torch.zeros(gates.layers, len(gates.rows), gates.width)


def _blocks(request: GateRequest) -> list[tuple[Block, RandomStream]]:
    """Return for each layer a block of its size and the random numbers of its router."""
    gates, pool = request.gates, Pool(torch.device("cpu"))
    values = torch.empty(len(gates.rows) * gates.width)
    return [(Block([values], 0, pool), RandomStream.of(gates.seed, n, 0)) for n in gates.names]


def _shaped(layers: list[Tensor], request: GateRequest) -> Tensor:
    gates = request.gates
    return torch.stack(layers).view(gates.layers, len(gates.rows), gates.width)
