"""Modules of transformers from a config, with parameters that have no memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import nn

from ..checkpoint.folder import Checkpoint
from ..checkpoint.header import CONFIG
from ..dtypes import Kind
from ..errors import InputError
from ..messages import printable
from ..system import torch_startup
from ..system.packages import missing_package
from ..tensors.source import declared_dtype
from ..tokenizer.files import SideFiles

CAUSAL = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
"""Auto mappings of classes that predict the next token."""


class Built(NamedTuple):
    """A model without weights, and what its parts are."""

    module: nn.Module
    config: Any
    dtype: torch.dtype
    layers: nn.ModuleList
    layers_name: str
    embedding: nn.Module
    head: nn.Module | None
    head_name: str
    wide: tuple[re.Pattern[str], ...]
    """Names of parameters that stay in float32."""

    @property
    def decoder_name(self) -> str:
        """The module that holds the layers, the embedding and the last norm; "" for the model."""
        return self.layers_name.rpartition(".")[0]

    def is_head(self, name: str) -> bool:
        return bool(self.head_name) and name.rpartition(".")[0] == self.head_name

    def dtype_of(self, name: str, built: torch.dtype) -> torch.dtype:
        """Return the dtype of a parameter in memory, as `from_pretrained` chooses it."""
        return torch.float32 if any(pattern.search(name) for pattern in self.wide) else built


def build(
    checkpoint: Checkpoint,
    side_files: SideFiles,
    label: str,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
) -> Built:
    """Build the class that the config names. Raises InputError and UsageError of one line."""
    require_transformers(label)
    torch_startup.complete()  # without it tensors on "meta" have no shapes
    if not checkpoint.config:
        raise InputError(f"{label}: no {CONFIG}, so that its architecture is unknown")
    config = _config(checkpoint, side_files, label, trust_remote_code)
    kind = dtype or _dtype(config, checkpoint)
    module = _module(config, label, kind, trust_remote_code)
    layers_name, layers = _layers(module, config, label)
    embedding = module.get_input_embeddings()  # type: ignore[operator]
    head = module.get_output_embeddings()  # type: ignore[operator]
    head_name = next((name for name, part in module.named_modules() if part is head), "")
    plan: dict[str, Any] = getattr(module, "_get_dtype_plan", lambda dtype: {})(kind)
    wide = [re.compile(_as_pattern(str(key))) for key in plan]
    return Built(module, config, kind, layers, layers_name, embedding, head, head_name, tuple(wide))


def require_transformers(label: str) -> None:
    """Raise UsageError if transformers is not installed."""
    if find_spec("transformers") is None:
        raise missing_package(label, "transformers")


def silence_transformers() -> None:
    """Let transformers print errors only, in a command that prints lines of its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _as_pattern(key: str) -> str:
    """Return the pattern of a name of parameters in which * stands for a number."""
    return rf"(^|\.){re.escape(key)}($|\.)".replace(r"\*", r"\d+")


def _config(checkpoint: Checkpoint, files: SideFiles, label: str, trust: bool) -> Any:
    from transformers import AutoConfig

    listed = checkpoint.config.get("auto_map")
    if isinstance(listed, dict) and not trust and not _is_known(checkpoint.config):
        raise InputError(
            f"{label}: its architecture is code in its own folder, which is run only with "
            f"--trust-remote-code"
        )
    try:
        with files.on_disk() as folder:
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=trust, local_files_only=True
            )
    except Exception as error:
        raise InputError(f"{label}: transformers cannot read its config: {_first(error)}") from None
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # weights are read as what they represent
    for key, value in getattr(checkpoint, "changes", {}).items():  # of an adapter
        place = config if hasattr(config, key) else config.get_text_config()
        setattr(place, key, value)
    return config


def _is_known(config: dict[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return config.get("model_type") in CONFIG_MAPPING_NAMES


def _dtype(config: Any, checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype of the config, or the one that most of the weights represent."""
    for place in (config, config.get_text_config()):
        given = getattr(place, "dtype", None) or getattr(place, "torch_dtype", None)
        found = getattr(torch, str(given).removeprefix("torch."), None) if given else None
        if isinstance(found, torch.dtype):
            return found
    totals: dict[str, int] = {}
    for source in checkpoint.tensors.values():
        if source.dtype.kind is Kind.FLOAT:
            name = declared_dtype(source).torch_name
            totals[name] = totals.get(name, 0) + source.nbytes
    most = max(totals, key=lambda name: totals[name]) if totals else "float32"
    kind: torch.dtype = getattr(torch, most)
    return kind


def _module(config: Any, label: str, dtype: torch.dtype, trust: bool) -> nn.Module:
    auto = _auto_class(config, label)
    try:
        with _without_weights():
            if hasattr(auto, "from_config"):
                module: nn.Module = auto.from_config(config, trust_remote_code=trust, dtype=dtype)
            else:
                module = auto._from_config(config, dtype=dtype)
            module.tie_weights()  # type: ignore[operator]
    except Exception as error:
        kind = getattr(config, "model_type", "?")
        raise InputError(
            f"{label}: transformers cannot build '{printable(str(kind))}': {_first(error)}"
        ) from None
    return module.eval().requires_grad_(False)


def _auto_class(config: Any, label: str) -> Any:
    """Return the auto class that builds the model. InputError if it does not predict tokens."""
    import transformers
    from transformers.models.auto import modeling_auto

    names = {kind: getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES", {}) for kind in CAUSAL}
    listed = list(getattr(config, "architectures", None) or [])
    model_type = getattr(config, "model_type", "")
    autos = {
        "CAUSAL_LM": transformers.AutoModelForCausalLM,
        "IMAGE_TEXT_TO_TEXT": transformers.AutoModelForImageTextToText,
        "MULTIMODAL_LM": getattr(transformers, "AutoModelForMultimodalLM", None),
    }
    own = getattr(config, "auto_map", None) or {}
    if "AutoModelForCausalLM" in own:
        return autos["CAUSAL_LM"]
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{label}: {_listed(listed, model_type)} is an encoder with a decoder")
    for kind, table in names.items():
        value = table.get(model_type, ())
        classes = [value] if isinstance(value, str) else list(value)
        if any(name in classes for name in listed) and autos[kind]:
            return autos[kind]
    own_class = getattr(transformers, listed[0], None) if listed else None
    if own_class is not None and listed[0].endswith(("ForCausalLM", "LMHeadModel")):
        return own_class
    bare = modeling_auto.MODEL_MAPPING_NAMES.get(model_type, ())
    bare = [bare] if isinstance(bare, str) else list(bare)
    if model_type in names["CAUSAL_LM"] and (not listed or listed[0] in bare):
        return autos["CAUSAL_LM"]
    raise InputError(
        f"{label}: {_listed(listed, model_type)} does not predict the next token, as "
        f"a decoder with a language head does"
    )


def _listed(names: list[str], model_type: str) -> str:
    return printable(str(names[0] if names else model_type or "its architecture"))


@contextlib.contextmanager
def _without_weights() -> Iterator[None]:
    """Let parameters that are made in the block have no memory, and leave them uninitialised.

    Buffers are made as they are, so that those that are computed need no rule here.
    """
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # before transformers 5
        from transformers.modeling_utils import no_init_weights
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        with no_init_weights():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _layers(module: nn.Module, config: Any, label: str) -> tuple[str, nn.ModuleList]:
    """Return the decoder layers, the one list as long as the layer count, and its name."""
    text = config.get_text_config(decoder=True)
    counts = {getattr(text, key, None) for key in ("num_hidden_layers", "decoder_layers")}
    lists = [
        (name, part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)
    ]
    found = [(name, part) for name, part in lists if len(part) in counts] or lists
    embedding = module.get_input_embeddings()  # type: ignore[operator]
    beside = next((name for name, part in module.named_modules() if part is embedding), "")
    if not found:
        raise InputError(f"{label}: {type(module).__name__} has no list of decoder layers")
    # Of several, the one next to the embedding; then the outermost; then the largest.
    found.sort(
        key=lambda item: (
            -_common(item[0], beside),
            item[0].count("."),
            -sum(parameter.numel() for parameter in item[1].parameters()),
        )
    )
    name, layers = found[0]
    return name, layers


def _common(one: str, other: str) -> int:
    """Return how many parts two names begin with alike."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    count = 0
    for first, second in pairs:
        if first != second:
            break
        count += 1
    return count


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0])[:300]
