"""A checkpoint as a model of transformers, whose weights are put in layer by layer.

The modules are built from the config with parameters that have no memory ("meta"), and buffers that
have (rotary frequencies). Parameters outside of the decoder layers are read when the module that
owns them first runs; those of a layer while `Model.loaded` holds it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoint.folder import Checkpoint
from ..checkpoint.fp8 import dequantized, refuse_quantized
from ..checkpoint.hub import Hub
from ..conversion.in_memory import as_in_memory, in_memory
from ..errors import InputError
from ..messages import counted, first_names
from ..tensors.source import bytes_read
from ..tensors.views import transpose
from ..tokenizer.files import SideFiles
from .building import Built, build
from .weights import Weights, is_floating

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class Target(NamedTuple):
    """A parameter or buffer: the module that owns it, its name there, and its name on disk."""

    module: nn.Module
    name: str
    source: str
    dtype: torch.dtype


@dataclass
class Model:
    """A model whose decoder layers are loaded one at a time; a context that closes its files.

    `module` is the model of transformers, `layers` its decoder layers in order. While nothing is
    loaded their parameters are on the device "meta". `head` is the output layer, None without one.
    """

    label: str
    module: nn.Module
    config: Any
    weights: Weights
    side_files: SideFiles
    dtype: torch.dtype
    device: torch.device
    layers: nn.ModuleList
    layers_name: str
    embedding: nn.Module
    head: nn.Module | None
    targets: dict[str, Target] = field(repr=False)
    """Every parameter and every buffer that the checkpoint has, by its full name in memory."""
    _layer_names: list[list[str]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self._layer_names = [[] for _ in self.layers]
        before = f"{self.layers_name}."
        for name in self.targets:
            if name.startswith(before):
                number = name.removeprefix(before).partition(".")[0]
                self._layer_names[int(number)].append(name)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.weights.close()

    @property
    def text_config(self) -> Any:
        """The section of the config that the decoder layers follow."""
        return self.config.get_text_config(decoder=True)

    @property
    def hidden_size(self) -> int:
        return int(self.text_config.hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding."""
        return int(self.embedding.weight.shape[0])  # type: ignore[index]

    def names_of_layer(self, number: int) -> list[str]:
        """Return the full names in memory of a layer's parameters and stored buffers."""
        return self._layer_names[number]

    def name_in_layer(self, number: int, full: str) -> str:
        """Return a full name without the prefix of its layer, such as `mlp.up_proj.weight`."""
        return full.removeprefix(f"{self.layers_name}.{number}.")

    def layer_bytes(self, number: int) -> int:
        """Return the memory that the parameters of a layer take while it is loaded."""
        total = 0
        for name in self.names_of_layer(number):
            target = self.targets[name]
            source = self.weights.checkpoint.tensors[target.source]
            size = target.dtype.itemsize if is_floating(source) else source.dtype.bytes
            total += source.count * size
        return total

    def layer_read_bytes(self, number: int) -> int:
        """Return the bytes of files that a layer is read from."""
        sources = {self.targets[name].source for name in self.names_of_layer(number)}
        return sum(bytes_read(self.weights.checkpoint.tensors[source]) for source in sources)

    def total_bytes(self) -> int:
        """Return the bytes of files that a pass reads: the layers and the head."""
        head = {t.source for t in self.targets.values() if t.module is self.head}
        layers = sum(map(self.layer_read_bytes, range(len(self.layers))))
        return layers + self.weights.nbytes(head)

    def largest_read_bytes(self) -> int:
        """Return the memory of the largest tensor of a layer as it is read, before conversion."""
        return max(
            self.weights.nbytes([self.targets[name].source])
            for number in range(len(self.layers))
            for name in self.names_of_layer(number)
        )

    def outputs_of_layer(self, number: int) -> int:
        """Return the width of the outputs of a layer's matrices, all together."""
        shapes = [
            self.weights.shape(self.targets[name].source) for name in self.names_of_layer(number)
        ]
        return sum(max(shape[-2:]) for shape in shapes if len(shape) > 1)

    def active_parameters(self) -> float:
        """Return the parameters that take part in a token: of experts those that it is sent to."""
        text = self.text_config
        count = next((n for key in _EXPERTS if (n := getattr(text, key, None))), 0)
        chosen = getattr(text, "num_experts_per_tok", None) or count
        total = 0.0
        for name, target in self.targets.items():
            inside = name.startswith(f"{self.layers_name}.") or target.module is self.head
            if inside:
                share = min(1.0, chosen / count) if count and ".experts." in name else 1.0
                total += share * self.weights.checkpoint.tensors[target.source].count
        return total

    @contextlib.contextmanager
    def loaded(self, number: int, *, trainable: bool = False) -> Iterator[nn.Module]:
        """Yield layer `number` with its weights in memory, and free them afterwards.

        With `trainable`, its floating parameters take gradients (for the backward pass of one
        layer); they are plain `nn.Parameter`s, to be found by `layer.named_parameters()`.
        """
        names = self.names_of_layer(number)
        self.put_in(names, trainable)
        if number + 1 < len(self.layers):
            self.weights.will_need(self.targets[n].source for n in self.names_of_layer(number + 1))
        try:
            yield self.layers[number]
        finally:
            self.take_out(names)

    def read(self, full: str) -> Tensor:
        """Return a parameter or stored buffer by its full name in memory, on the device."""
        target = self.targets[full]
        return self.weights.tensor(target.source, target.dtype).to(self.device)

    def put_in(self, names: list[str], trainable: bool = False) -> None:
        """Give modules their weights; tied ones share them."""
        shared: dict[tuple[str, torch.dtype], Tensor] = {}
        for name in names:
            target = self.targets[name]
            key = target.source, target.dtype
            if key not in shared:
                value = self.read(name)
                is_parameter = target.name in target.module._parameters
                if is_parameter:
                    train = trainable and value.is_floating_point()
                    value = nn.Parameter(value, requires_grad=train)
                shared[key] = value
            _put(target, shared[key])
        self.weights.release()

    def take_out(self, names: list[str]) -> None:
        """Free weights; their parameters are on "meta" again."""
        for name in names:
            target = self.targets[name]
            old = _get(target)
            empty = torch.empty(old.shape, dtype=target.dtype, device="meta")
            is_parameter = target.name in target.module._parameters
            _put(target, nn.Parameter(empty, requires_grad=False) if is_parameter else empty)

    def allocate(self) -> list[tuple[str, Tensor]]:
        """Give all parameters memory of any content; tied ones share it.

        Returns the memory with the name on disk of what belongs into it.
        """
        memory: dict[tuple[str, torch.dtype], Tensor] = {}
        for target in self.targets.values():
            key = target.source, target.dtype
            if key not in memory:
                old = _get(target)
                value = torch.empty(old.shape, dtype=target.dtype, device=self.device)
                is_parameter = target.name in target.module._parameters
                memory[key] = nn.Parameter(value, requires_grad=False) if is_parameter else value
            _put(target, memory[key])
        return [(source, value) for (source, _), value in memory.items()]

    def tokenizer(self, trust_remote_code: bool = False) -> Any:
        """Return the tokenizer of transformers. InputError without one or if it is damaged."""
        from .texts import read_tokenizer

        return read_tokenizer(self.side_files, self.label, trust_remote_code)


@dataclass(frozen=True)
class ModelOptions:
    """How a model is opened.

    `dtype` is that of the weights in memory and so of the arithmetic: a name of torch, or `auto`,
    the config's, else the file's. `hub` has to be the one that the checkpoint was opened with. The
    parameters of a `resident` model get memory by `Model.allocate`, and are not read by themselves.
    """

    dtype: str = "auto"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    trust_remote_code: bool = False
    hub: Hub | None = None
    resident: bool = False


def open_model(
    checkpoint: Checkpoint,
    side_files: SideFiles,
    label: str,
    options: ModelOptions | None = None,
) -> Model:
    """Return a checkpoint as a model; nothing but headers and side files is read.

    `planning.inputs.open_reference` returns the first three for any word that a merge accepts.
    Raises InputError for a model without a config or decoder, of an architecture that transformers
    does not know, or with missing tensors, and UsageError without transformers.
    """
    options = options or ModelOptions()
    checkpoint = dequantized(checkpoint)
    refuse_quantized([checkpoint], [label])
    kind = None if options.dtype == "auto" else getattr(torch, options.dtype)
    built = build(checkpoint, side_files, label, kind, options.trust_remote_code)
    config = {**checkpoint.config, "architectures": [type(built.module).__name__]}
    weights = Weights(_by_names_in_memory(checkpoint, config, built, label), options.hub)
    _move_buffers(built.module, options.device)
    model = Model(
        label,
        built.module,
        built.config,
        weights,
        side_files,
        built.dtype,
        options.device,
        built.layers,
        built.layers_name,
        built.embedding,
        built.head,
        _targets(built, weights, label),
    )
    if not options.resident:
        _load_others_when_run(model)
    return model


def _by_names_in_memory(
    checkpoint: Checkpoint, config: Mapping[str, Any], built: Built, label: str
) -> Checkpoint:
    """Return the checkpoint with its tensors by the names of the built class, and by their own."""
    found = in_memory(checkpoint.tensors, config)
    if not found:
        return checkpoint
    tensors = {**checkpoint.tensors, **as_in_memory(checkpoint, found).tensors}
    wanted = {name: tuple(tensor.shape) for name, tensor in _all_tensors(built.module)}
    faults = []
    for name, stored in found.changed.items():
        source = checkpoint.tensors[stored]
        is_transposed = "Qwen3VLMoe" in type(built.module).__name__ and len(source.shape) == 3
        if is_transposed and wanted.get(name) == (*source.shape[:-2], *source.shape[:-3:-1]):
            tensors[name] = transpose(source, name)
        else:
            faults.append(stored)
    if faults:
        raise InputError(
            f"{label}: {type(built.module).__name__} rearranges the elements of "
            f"{first_names(faults)} as it loads them, which cannot be read layer by layer"
        )
    return replace(checkpoint, tensors=tensors)


def _targets(built: Built, weights: Weights, label: str) -> dict[str, Target]:
    """Match parameters and buffers with tensors. InputError for missing ones and other shapes."""
    groups: dict[int, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in _all_tensors(built.module):
        groups.setdefault(id(tensor), []).append(name)
        tensors[name] = tensor
    targets, missing, shapes = dict[str, Target](), list[str](), list[str]()
    needed = _needed(built)
    for names in groups.values():
        stored = {name: found for name in names if (found := _on_disk(name, built, weights))}
        for name in names:
            # Of tied parameters, files often have one.
            tensor, source = tensors[name], stored.get(name) or next(iter(stored.values()), None)
            if source is None:
                if tensor.device.type == "meta" and needed(name):
                    missing.append(name)
                continue
            if tuple(tensor.shape) != weights.shape(source):
                sizes = f"{list(weights.shape(source))} on disk, {list(tensor.shape)} by the config"
                shapes.append(f"{source} ({sizes})")
                continue
            path, _, own = name.rpartition(".")
            owner = built.module.get_submodule(path)
            targets[name] = Target(owner, own, source, built.dtype_of(name, tensor.dtype))
    for faults, text in ((missing, "tensors are missing"), (shapes, "tensors have other shapes")):
        if faults:
            hint = (
                "its output head is missing; give a model that predicts tokens"
                if all(built.is_head(name) for name in faults)
                else "the weights do not belong to config.json"
            )
            raise InputError(
                f"{label}: {counted(len(faults), text)}: {first_names(faults)}\n  {hint}"
            )
    return targets


def _on_disk(name: str, built: Built, weights: Weights) -> str | None:
    """Return the name of a parameter in the checkpoint, which may lack the model's prefix."""
    prefix = f"{getattr(built.module, 'base_model_prefix', '')}."
    names = (name, name.removeprefix(prefix), prefix + name)
    return next((found for found in names if found in weights), None)


def _needed(built: Built) -> Callable[[str], bool]:
    """Return whether a parameter takes part in text: one of the decoder, or of the head."""
    decoder = built.decoder_name
    vision = re.compile(r"(^|\.)(vision|visual|audio|image|multi_modal|embed_vision|embed_audio)")

    def needed(name: str) -> bool:
        inside = not decoder or name.startswith(f"{decoder}.")
        return (inside or built.is_head(name)) and not vision.search(name)

    return needed


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _get(target: Target) -> Tensor:
    module, name = target.module, target.name
    parameter = module._parameters.get(name)
    tensor = module._buffers.get(name) if parameter is None else parameter
    assert tensor is not None
    return tensor


def _put(target: Target, value: Tensor) -> None:
    """Exchange a parameter or buffer; hooks of the module on setting attributes do not run."""
    if target.name in target.module._parameters:
        target.module._parameters[target.name] = value  # type: ignore[assignment]
    else:
        target.module._buffers[target.name] = value


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.device.type != "meta":
                part._buffers[name] = buffer.to(device)


def _load_others_when_run(model: Model) -> None:
    """Let modules outside of the layers read their weights when they first run.

    Embeddings read only the rows that they are asked for, at each call.
    """
    inside = {name for number in range(len(model.layers)) for name in model.names_of_layer(number)}
    owned: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, target in model.targets.items():
        if name not in inside:
            owned.setdefault(id(target.module), []).append(name)
            modules[id(target.module)] = target.module
    for key, names in owned.items():
        module = modules[key]
        for name in names:
            _put_away(model, model.targets[name])
        if module is model.head:  # run in slices, see head.py
            continue
        if isinstance(module, nn.Embedding) and _is_lookup(model, module, names):
            _Lookup(model, module, names).attach()
        else:
            _LoadOnce(model, module, names).attach()


def _put_away(model: Model, target: Target) -> None:
    """Put a tensor of NaN that takes no memory in place of a weight outside of the layers.

    Unlike one on "meta" it has the device of the model, which models ask their embedding for.
    """
    old = _get(target)
    if old.device.type == "meta":
        is_float = target.dtype.is_floating_point
        one = torch.full((), torch.nan if is_float else 0, dtype=target.dtype, device=model.device)
        value = one.expand(old.shape)
        is_parameter = target.name in target.module._parameters
        _put(target, nn.Parameter(value, requires_grad=False) if is_parameter else value)


def _is_lookup(model: Model, module: nn.Module, names: list[str]) -> bool:
    """Whether a module is called with the rows to return; those of positions compute them."""
    words = "WordEmbedding" in type(module).__name__
    plain = module is model.embedding or type(module) is nn.Embedding or words
    return plain and [model.targets[name].name for name in names] == ["weight"]


class _LoadOnce:
    """Gives a module its weights before it first runs."""

    def __init__(self, model: Model, module: nn.Module, names: list[str]) -> None:
        self.model, self.module, self.names = model, module, names

    def attach(self) -> None:
        self.handle = self.module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: object) -> None:
        self.model.put_in(self.names)
        self.handle.remove()


class _Lookup:
    """Gives an embedding the rows of each call, and the call their places among these."""

    def __init__(self, model: Model, module: nn.Embedding, names: list[str]) -> None:
        self.model, self.module, self.target = model, module, model.targets[names[0]]
        self.away = _get(self.target)
        module.padding_idx = None  # which means something in training only, and may be no row here

    def attach(self) -> None:
        self.module.register_forward_pre_hook(self.before)
        self.module.register_forward_hook(self.after, always_call=True)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, *others = args
        rows, places = torch.unique(ids, return_inverse=True)
        count = self.model.weights.shape(self.target.source)[0]
        if rows.numel() and not 0 <= int(rows[0]) <= int(rows[-1]) < count:
            raise InputError(
                f"{self.model.label}: token id {int(rows[-1])}, but {self.target.source} has "
                f"{count} rows\n  the tokenizer does not belong to the weights"
            )
        kind = self.target.dtype
        values = self.model.weights.gather(self.target.source, rows.tolist(), kind)
        _put(self.target, nn.Parameter(values.to(self.model.device), requires_grad=False))
        return (places, *others)

    def after(self, module: nn.Module, args: object, output: object) -> None:
        _put(self.target, self.away)
