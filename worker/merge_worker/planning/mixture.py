"""Mixtures of experts: dense models → the tensors and the config of a model type with experts.

All but the routers is a copy under another name: embeddings, attention, norms and heads of the
base, and the MLPs of the experts. Nothing but headers is read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..errors import InputError, UsageError
from ..messages import counted, first_names, printable
from ..recipe.experts import GATE_MODES
from ..recipe.schema import Expert, Mixture, Recipe, Source
from ..structure.components import is_computed
from ..structure.dense_mlp import DenseLayers, DenseMlp, dense_layers, mixture_fault
from ..structure.embeddings import rows_of
from ..structure.moe_config import (
    Sizes,
    activation,
    mixture_config,
)
from ..structure.moe_targets import BODIES, Target
from ..tensors.source import TensorSource
from ..tokenizer.compatibility import tokenizer_difference
from ..tokenizer.files import has_vocabulary
from .expert_layers import ExpertLayer, split_qkv
from .expert_use import ExpertUse, attention_difference, left_out, parameters
from .gates import GatePlan, GateRow
from .groups import Group, Groups, SliceInputs
from .inputs import Inputs
from .moe_choice import choose_target
from .options import PlanOptions
from .prompts import positive_prompts
from .stages import input_keys

NAMES_OF_QKV = "self_attn.qkv_proj.weight"


@dataclass(frozen=True)
class MixturePlan:
    """A mixture as it is known from headers. `total` and `active` are numbers of parameters.

    `layers` are the dense layers of the base and of every expert, by number of the model.
    """

    target: Target
    sizes: Sizes
    gates: GatePlan
    experts: tuple[ExpertUse, ...]
    config: Mapping[str, Any]
    total: int
    active: int
    layers: Mapping[int, DenseLayers] = field(repr=False, compare=False, default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the facts for programs."""
        return {
            "target": self.target.name,
            "architecture": self.target.architecture,
            "experts": self.sizes.experts,
            "experts_per_token": self.sizes.per_token,
            "shared_experts": self.sizes.shared,
            "gate_mode": self.gates.mode,
            "total_parameters": self.total,
            "active_parameters": self.active,
            "members": [expert.as_json() for expert in self.experts],
        }


def base_alone(inputs: Inputs) -> Inputs:
    """Return the inputs without the experts, whose vocabularies have no part in the result."""
    numbers = {ref: number for ref, number in inputs.numbers.items() if number == 0}
    return replace(
        inputs,
        models=inputs.models[:1],
        labels=inputs.labels[:1],
        side_files=inputs.side_files[:1],
        numbers=numbers,
    )


def plan_mixture(
    recipe: Recipe, inputs: Inputs, options: PlanOptions
) -> tuple[MixturePlan, Groups]:
    """Return the mixture of a recipe, and its tensors as groups of copies.

    Raises UsageError and InputError with every fault found in the headers.
    """
    assert recipe.mixture is not None
    return _Builder(recipe, recipe.mixture, inputs, options).build()


@dataclass
class _Builder:
    """Collects the tensors of a mixture layer by layer."""

    recipe: Recipe
    mixture: Mixture
    inputs: Inputs
    options: PlanOptions
    notes: list[str] = field(default_factory=list)

    @property
    def base(self) -> Checkpoint:
        return self.inputs.models[0]

    @property
    def numbers(self) -> list[int]:
        """Number of the model of every expert, the shared ones last."""
        return [self.inputs.numbers[ref] for ref in self.mixture.refs]

    def build(self) -> tuple[MixturePlan, Groups]:
        self._refuse_mixtures()
        target, target_notes = choose_target(self.recipe, self.mixture, self.base.config)
        layers = self._layers()
        self._check_body(target, layers[0])
        sizes = self._sizes(target, layers[0].mlps[0])
        gates = self._gates(target, layers[0])
        tensors, kept = self._tensors(target, sizes, layers, gates)
        self.notes[:0] = target_notes
        self.notes += self._warnings(target, sizes)
        uses = tuple(self._uses(layers))
        self.notes += left_out(uses, self.inputs.labels[0])
        total = parameters([*tensors.values(), *kept.values()])
        expert = sum(parameters(mlp.matrices) for mlp in layers[0].mlps)
        plan = MixturePlan(
            target=target,
            sizes=sizes,
            gates=gates,
            experts=uses,
            config=mixture_config(self.base.config, target, sizes),
            total=total,
            active=total - (sizes.experts - sizes.per_token) * expert,
            layers=layers,
            notes=tuple(self.notes),
        )
        base = self.recipe.modules[0].slices[0].sources
        return plan, Groups(tuple(_groups(base, tensors, kept)), (), ())

    def _refuse_mixtures(self) -> None:
        """Raise InputError for models that are mixtures, and for prompts without a tokenizer."""
        pairs = zip(self.inputs.models, self.inputs.labels, strict=True)
        faults = [fault for model, label in pairs if (fault := mixture_fault(model, label))]
        mode, files = self.mixture.gate_mode, self.inputs.side_files[0]
        if GATE_MODES[mode].reads_prompts and not has_vocabulary(files):
            label = self.inputs.labels[0]
            faults.append(f"{label}: no tokenizer, by which gate_mode: {mode} reads the prompts")
        if faults:
            raise InputError("\n".join(faults))

    def _layers(self) -> dict[int, DenseLayers]:
        """Return the layers of every model. InputError for all that do not fit the base."""
        layers: dict[int, DenseLayers] = {}
        faults: dict[str, None] = {}
        for number, model in enumerate(self.inputs.models):
            try:
                layers[number] = dense_layers(model, self.inputs.labels[number])
            except UsageError as error:
                faults[str(error)] = None
        if 0 in layers:
            for number in [n for n in layers if n]:
                if fault := self._unlike(number, layers):
                    faults[fault] = None
        if faults:
            raise InputError("\n".join(faults))
        return layers

    def _unlike(self, number: int, layers: Mapping[int, DenseLayers]) -> str | None:
        """Describe how the MLPs of a model differ from the base's; None if they do not."""
        mine, theirs = layers[0], layers[number]
        label, base = self.inputs.labels[number], self.inputs.labels[0]
        if len(mine.mlps) != len(theirs.mlps):
            return (
                f"{label} has {counted(len(theirs.mlps), 'layers')}, {base} has {len(mine.mlps)}; "
                f"an expert has an MLP for each layer of the base"
            )
        for own, other in zip(mine.mlps, theirs.mlps, strict=True):
            for first, second in zip(own.matrices, other.matrices, strict=True):
                if first.shape != second.shape:
                    return (
                        f"{label}: {printable(second.name)} is {list(second.shape)}, in {base} "
                        f"{list(first.shape)}; the MLPs of experts have the shape of the base's"
                    )
        acts = [activation(self.inputs.models[n].config) for n in (0, number)]
        if acts[0] != acts[1]:
            return (
                f"{label}: its MLPs have the activation {printable(acts[1])}, those of {base} "
                f"{printable(acts[0])}; experts share one"
            )
        return None

    def _check_body(self, target: Target, dense: DenseLayers) -> None:
        """Raise InputError for tensors of the base's layers that the target has no place for."""
        allowed = BODIES.get(str(self.base.config.get("model_type")))
        if allowed is None:
            return
        rests = (
            (number, rest, source)
            for number, layer in dense.stack.layers.items()
            for rest, source in layer.items()
            if rest not in dense.mlps[number].rests and not is_computed(source.name, source.shape)
        )
        other = [
            f"{dense.stack.prefix}{number}.{rest}"
            for number, rest, _ in rests
            if not re.fullmatch(allowed, rest) and rest != NAMES_OF_QKV
        ]
        if other:
            raise InputError(
                f"{self.inputs.labels[0]}: {target.name} has no place for "
                f"{counted(len(other), 'tensors')} of its layers: {first_names(other)}"
            )

    def _sizes(self, target: Target, mlp: DenseMlp) -> Sizes:
        width, shared = mlp.gate.shape[0], target.shared
        shared_width = width if self.mixture.shared or (shared and shared.without == "full") else 0
        if shared and not self.mixture.shared and shared.without.isdigit():
            shared_width = int(shared.without)
        count = len(self.mixture.experts)
        given = self.mixture.experts_per_token
        default = 1 if self.mixture.shared and _is_deepseek(self.mixture) else 2
        per_token = given or min(default, count)
        return Sizes(count, per_token, width, len(self.mixture.shared), shared_width)

    def _gates(self, target: Target, dense: DenseLayers) -> GatePlan:
        mixture, mode = self.mixture, GATE_MODES[self.mixture.gate_mode]
        gated = bool(target.shared and target.shared.gate)
        shared = [e for e in mixture.shared if gated and (e.has_prompts or not mode.reads_prompts)]
        center = mode.centered if mixture.center is None else mixture.center
        prefix = dense.stack.prefix
        plan = GatePlan(
            mode=mode.name,
            rows=tuple(self._row(e, mode.reads_prompts) for e in (*mixture.experts, *shared)),
            names=tuple(f"{prefix}{n}.{target.router}" for n in range(dense.stack.depth)),
            width=dense.mlps[0].gate.shape[1],
            std=mixture.gate_std,
            center=center or (target.sigmoid and mode.reads_prompts),
            per_prompt=mixture.per_prompt,
            shared_row=bool(shared),
            seed=self.options.seed,
        )
        digest = plan.digest(list(input_keys(self.base)))
        name = f"gates-{digest[:16]}.safetensors"
        return replace(plan, file=self.options.stages_folder / name)

    def _row(self, expert: Expert, reads_prompts: bool) -> GateRow:
        if not reads_prompts:
            return GateRow(str(expert.model))
        positive = positive_prompts(expert, self.options.relative_to)
        return GateRow(str(expert.model), positive, expert.negative)

    def _tensors(
        self, target: Target, sizes: Sizes, layers: Mapping[int, DenseLayers], gates: GatePlan
    ) -> tuple[dict[str, TensorSource], dict[str, TensorSource]]:
        """Return all tensors of the result by name, and those that stay in float32."""
        dense = layers[0]
        mixed = {
            number: ExpertLayer(
                self.mixture,
                self.options.seed,
                target,
                sizes,
                [layers[n].mlps[number] for n in self.numbers],
            )
            for number in range(dense.stack.depth)
        }
        gate_sources = gates.sources()
        places = {
            source.name: (number, rest)
            for number, layer in dense.stack.layers.items()
            for rest, source in layer.items()
        }
        tensors: dict[str, TensorSource] = {}
        kept: dict[str, TensorSource] = {}
        dropped, begun = [], set[int]()
        for name, source in self.base.tensors.items():
            number, rest = places.get(source.name, (-1, ""))
            prefix = f"{dense.stack.prefix}{number}."
            if number < 0:
                tensors[name] = source
            elif rest in dense.mlps[number].rests:
                if number not in begun:
                    begun.add(number)
                    like = dense.mlps[number].gate
                    own, fixed = mixed[number].tensors(prefix, like, gate_sources[number])
                    tensors |= own
                    kept |= fixed
            elif is_computed(name, source.shape):
                dropped.append(name)
            elif rest == NAMES_OF_QKV:
                tensors |= split_qkv(prefix, source, self.base.config)
            else:
                tensors[name] = source
        if dropped:
            count = counted(len(dropped), "buffers")
            self.notes.append(f"{count} that models compute are left out: {first_names(dropped)}")
        return tensors, kept

    def _uses(self, layers: Mapping[int, DenseLayers]) -> Iterator[ExpertUse]:
        experts = [(e, False) for e in self.mixture.experts]
        experts += [(e, True) for e in self.mixture.shared]
        rows = dict(enumerate(self.mixture.refs))
        for place, (expert, shared) in enumerate(experts):
            number = self.inputs.numbers[rows[place]]
            model = self.inputs.models[number]
            prompts = positive_prompts(expert, self.options.relative_to)
            yield ExpertUse(
                label=str(expert.model),
                parameters=parameters(model.tensors.values()),
                used=sum(parameters(mlp.matrices) for mlp in layers[number].mlps),
                prompts=len(prompts),
                negative=len(expert.negative),
                residual_scale=expert.residual_scale,
                noise_scale=expert.noise_scale,
                attention=attention_difference(layers[0], layers[number]) if number else 0.0,
                shared=shared,
                is_base=number == 0,
            )

    def _warnings(self, target: Target, sizes: Sizes) -> Iterator[str]:
        """Yield what users should know before they wait for the result."""
        mixture, labels = self.mixture, self.inputs.labels
        if sizes.per_token == 1 and sizes.experts > 1:
            yield (
                "experts_per_token is 1: the chosen expert always has the weight 1, so that "
                "training cannot reach the routers"
            )
        if mixture.gate_mode == "zeros":
            yield (
                "gate_mode: zeros: all experts tie, and the first ones are always chosen until "
                "the routers are trained"
            )
        routed = self.numbers[: sizes.experts]
        noisy = any(expert.noise_scale for expert in mixture.experts)
        if len(routed) > 1 and len(set(routed)) == 1 and not noisy:
            yield (
                f"all experts are {printable(labels[routed[0]])}: until they are trained the "
                f"mixture computes what that model does"
            )
        shared = target.shared
        if mixture.shared and shared and shared.gate:
            if not mixture.shared[0].has_prompts and GATE_MODES[mixture.gate_mode].reads_prompts:
                yield (
                    f"the shared expert {printable(str(mixture.shared[0].model))} has no prompts: "
                    f"its gate is zeros, which is a weight of 1/2 (residual_scale: 2 makes it 1)"
                )
        elif mixture.shared and mixture.shared[0].has_prompts:
            yield f"the shared expert of {target.name} has no gate; its prompts are not used"
        rows = rows_of(self.base) or 0
        for number in dict.fromkeys(n for n in self.numbers if n):
            files = self.inputs.side_files
            difference = tokenizer_difference(files[0], files[number], rows)
            if difference:
                yield (
                    f"{printable(labels[number])}: its tokenizer is not that of "
                    f"{printable(labels[0])}, which the mixture has: {difference}"
                )


def _groups(
    base: tuple[Source, ...], tensors: dict[str, TensorSource], kept: dict[str, TensorSource]
) -> Iterator[Group]:
    inputs = SliceInputs(base, (0,), None, (), False)
    yield Group(inputs, (tensors,), copied=True)
    if kept:
        yield Group(inputs, (kept,), copied=True, keeps_dtype=True)


def _is_deepseek(mixture: Mixture) -> bool:
    return (mixture.target or "").lower().startswith("deepseek")
