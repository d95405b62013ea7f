"""Gates of the tokens of prompts alone: their rows of the embedding, read one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..planning.prompts import Prompt
from ..structure.embeddings import embeddings, rows_of
from ..tensors.source import TensorSource
from .request import TINY, GateRequest, directions
from .tokens import prompt_ids


def embedding_gates(request: GateRequest) -> Tensor:
    """Return gates of the summed embeddings of all tokens of the prompts, as mergekit has them.

    The sum of the positive prompts has length 1 before that of the negative ones is taken off. All
    layers have the same: float32 [layers, rows, width].
    """
    embedding = _embedding(request)
    vectors = []
    for row in request.gates.rows:
        vector = _direction(request, embedding, row.positive)
        if row.negative:
            vector = vector - _direction(request, embedding, row.negative)
        vectors.append(vector)
    gates = directions(torch.stack(vectors)[None], request.gates)
    return gates.expand(request.gates.layers, -1, -1).contiguous()


def _embedding(request: GateRequest) -> TensorSource:
    rows = rows_of(request.base)
    found = [e for e in embeddings(request.base.tensors) if e.shape == (rows, request.gates.width)]
    if not found:
        raise InputError(f"{request.base.path}: no embedding of tokens with a known name")
    return found[0]


def _direction(request: GateRequest, embedding: TensorSource, prompts: Sequence[Prompt]) -> Tensor:
    """Return the sum of the rows of all tokens, of length 1 unless it is zero: float32 [width]."""
    counts = Counter(i for ids in prompt_ids(request.side_files, prompts) for i in ids)
    rows, width = embedding.shape
    lane, total = request.lane(), torch.zeros(width, dtype=torch.float64)
    for number, count in sorted(counts.items()):
        if number >= rows:
            raise InputError(
                f"{request.base.path}: its tokenizer has the token {number}, but its embedding "
                f"only {rows} rows"
            )
        values = lane.read(embedding, number * width, (number + 1) * width, "row")
        total += values.to(torch.float64) * count
    length = torch.linalg.vector_norm(total)
    return (total / length if float(length) > TINY else total).to(torch.float32)
