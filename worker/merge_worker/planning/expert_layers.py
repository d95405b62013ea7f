"""The experts of one layer of a mixture, under the names and in the layout of its model type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..recipe.schema import Expert, Mixture
from ..structure.dense_mlp import DenseMlp
from ..structure.moe_config import Sizes, head_size, key_value_heads
from ..structure.moe_targets import MlpNames, Target
from ..tensors.constant import zeros
from ..tensors.source import TensorSource, declared_dtype
from ..tensors.views import concat, reshape, slice_axis, stack
from .expert_tensors import changed
from .gates import FLOAT32


@dataclass(frozen=True)
class ExpertLayer:
    """The experts of one layer under the names of the target."""

    mixture: Mixture
    seed: int
    target: Target
    sizes: Sizes
    mlps: Sequence[DenseMlp]  # of the experts, the shared one last

    def tensors(
        self, prefix: str, like: TensorSource, gates: TensorSource
    ) -> tuple[dict[str, TensorSource], dict[str, TensorSource]]:
        """Return the tensors of the layer in the dtype of `like`, and those in float32."""
        target, count = self.target, self.sizes.experts
        router = slice_axis(gates, 0, 0, count, prefix + target.router)
        tensors = {} if target.router_in_float32 else {router.name: as_dtype_of(router, like)}
        kept = {router.name: router} if target.router_in_float32 else {}
        mixture = self.mixture
        experts = [
            self._expert(expert, mlp, prefix + target.mlp.names[0], like)
            for expert, mlp in zip(mixture.experts, self.mlps, strict=False)
        ]
        tensors |= _named(prefix, target.mlp, experts)
        if target.bias:
            name, row = prefix + target.bias[0], target.bias[1]
            kept[name] = zeros(name, FLOAT32, (1, count) if row else (count,))
        if target.shared and self.sizes.shared_width:
            tensors |= self._shared(prefix, like, gates)
        return tensors, kept

    def _shared(
        self, prefix: str, like: TensorSource, gates: TensorSource
    ) -> dict[str, TensorSource]:
        shared = self.target.shared
        assert shared is not None
        width, hidden = self.sizes.shared_width, like.shape[1]
        if self.mixture.shared:
            expert, mlp = self.mixture.shared[0], self.mlps[-1]
            own = self._expert(expert, mlp, prefix + shared.mlp.names[0], like)
        else:
            dtype = declared_dtype(like)
            shapes = ((width, hidden), (width, hidden), (hidden, width))
            gate, up, down = (zeros("zeros", dtype, shape) for shape in shapes)
            own = DenseMlp(gate, up, down, frozenset())
        tensors = _named(prefix, shared.mlp, [own])
        if shared.gate:
            name = prefix + shared.gate
            rows, count = gates.shape[0], self.sizes.experts
            row: TensorSource = zeros(name, declared_dtype(like), (1, hidden))
            if rows > count:
                row = as_dtype_of(slice_axis(gates, 0, count, rows, name), like)
            tensors[name] = row
        return tensors

    def _expert(self, expert: Expert, mlp: DenseMlp, name: str, like: TensorSource) -> DenseMlp:
        """Return the matrices of an expert with its noise and its scale, in the base's dtype."""
        mixture, seed = self.mixture, self.seed
        every = (*mixture.experts, *mixture.shared)
        number = next(n for n, other in enumerate(every) if other is expert)
        noise = expert.noise_scale
        # The name by which noise is drawn is of this expert alone, however experts are stored.
        names = [f"{name} {number} {part}" for part in ("gate", "up", "down")]
        gate = changed(mlp.gate, names[0], 1.0, noise, seed)
        up = changed(mlp.up, names[1], 1.0, noise, seed)
        down = changed(mlp.down, names[2], expert.residual_scale, noise, seed)
        return DenseMlp(
            as_dtype_of(gate, like), as_dtype_of(up, like), as_dtype_of(down, like), mlp.rests
        )


def _named(prefix: str, names: MlpNames, experts: Sequence[DenseMlp]) -> dict[str, TensorSource]:
    """Return the matrices of experts under their names in the result, fused and stacked as there.

    A fused shared expert is one expert without an axis for its number.
    """
    tensors: dict[str, TensorSource] = {}
    parts: list[list[TensorSource]] = [[] for _ in names.names]
    for number, expert in enumerate(experts):
        matrices: Sequence[TensorSource] = expert.matrices
        if names.fused:
            fused = concat([expert.gate, expert.up], 0, "gate and up")
            matrices = (fused, expert.down)
        for place, (name, matrix) in enumerate(zip(names.names, matrices, strict=True)):
            full = prefix + name.replace("{e}", str(number))
            tensors[full] = reshape(matrix, matrix.shape, full)
            parts[place].append(matrix)
    single = "shared" in names.names[0]
    if names.stacked and not single:
        tensors = {
            prefix + n: stack(p, prefix + n) for n, p in zip(names.names, parts, strict=True)
        }
        if len(experts) == 1:
            tensors = {
                n: reshape(t, (1, *parts[i][0].shape), n)
                for i, (n, t) in enumerate(tensors.items())
            }
    return tensors


def split_qkv(
    prefix: str, source: TensorSource, config: Mapping[str, Any]
) -> dict[str, TensorSource]:
    """Return queries, keys and values of a fused projection, one below the other."""
    keys = key_value_heads(config) * head_size(config)
    queries = source.shape[0] - 2 * keys
    ends = {
        "q": (0, queries),
        "k": (queries, queries + keys),
        "v": (queries + keys, queries + 2 * keys),
    }
    names = {part: f"{prefix}self_attn.{part}_proj.weight" for part in ends}
    return {names[p]: slice_axis(source, 0, *span, names[p]) for p, span in ends.items()}


def as_dtype_of(source: TensorSource, like: TensorSource) -> TensorSource:
    """Return a source that declares the dtype of another, to which it is rounded when copied."""
    dtype = declared_dtype(like)
    return source if declared_dtype(source) == dtype else replace(source, declared_dtype=dtype)
