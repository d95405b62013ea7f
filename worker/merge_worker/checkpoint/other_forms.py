"""Folders and files that are not a model as the engine reads it: what each is, and the way out.

Found by names of files and tensors alone. Each kind is one function in `_KINDS`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError
from ..messages import counted, first_names
from .hub import snapshot

MOST_FILES, DEEPEST = 20_000, 3
"""Files that are looked at, and levels of folders: enough for a cache of the Hub or a run."""

_STATES = ("optim*", "scheduler*", "scaler*", "rng_state*", "random_states*", "training_args*")
_RUN = re.compile(r"(checkpoint|ckpt|step|iter|epoch)[-_]?\d+.*")
_CACHE = re.compile(r"models--(?:(.+?)--)?(.+)")


def describe_folder(folder: Path, remote: Iterable[str] = ()) -> str:
    """Return the error for a folder without weights to read; `remote` are its files on the Hub."""
    files = sorted({*islice(_files(folder), MOST_FILES), *remote})
    texts = (describe(folder, files) for describe in _KINDS)
    nothing = "no *.safetensors in this folder; is it a model?" if files else "an empty folder"
    text = next(filter(None, texts), nothing)
    return f"{folder}: {text}"


def nested_adapters(folder: Path) -> list[Path]:
    """Return the sub-folders that are adapters, such as checkpoints of a run, the latest last."""
    files = [file for file in islice(_files(folder), MOST_FILES) if "/" in file]
    return [folder / place for place in _parents(_matching(files, "adapter_config.json"))]


def _files(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        inner = Path(place).relative_to(folder)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if len(inner.parts) >= DEEPEST:
            folders.clear()
        yield from ((inner / name).as_posix() for name in names)


def _matching(files: Iterable[str], *patterns: str) -> list[str]:
    """Return the files whose own names match a pattern, without states of a training run."""
    names = ((file, PurePosixPath(file).name) for file in files)
    return [
        file
        for file, name in names
        if any(fnmatchcase(name, p) for p in patterns)
        and not any(fnmatchcase(name, p) for p in _STATES)
    ]


def _parents(files: Iterable[str]) -> list[str]:
    """Return the sub-folders of files, each once, in the order of the numbers in their names."""
    parents = {str(PurePosixPath(file).parent) for file in files} - {"."}
    return sorted(
        parents, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)]
    )


def _top(files: Iterable[str]) -> list[str]:
    return [file for file in files if "/" not in file]


def _adapter(folder: Path, files: Collection[str]) -> str | None:
    if "adapter_config.json" in files or _matching(_top(files), "adapter_model.*"):
        return f"a LoRA adapter, not a model; name it as 'BASE+{folder}'"
    return None


def _pipeline(folder: Path, files: Collection[str]) -> str | None:
    if "model_index.json" not in files:
        return None
    weights = _matching(files, "*.safetensors", "*.bin")
    parts = [part for part in _parents(weights) if "/" not in part]
    text = f"a pipeline of several models: {first_names(parts, 8) or 'none has weights here'}"
    if not parts:
        return text
    here = any((folder / file).exists() for file in weights)
    repository = None if here else snapshot(folder)
    first = f"run 'hf download {repository[0]}', then " if repository else ""
    return f"{text}\n  {first}name the same component folder of each, such as {folder / parts[0]}"


def _sub_folders(folder: Path, files: Collection[str]) -> str | None:
    """Describe a cache of the Hub, a training run, or any folder whose sub-folders are models."""
    models = _parents(
        _matching(files, "*.safetensors", "*pytorch_model*.bin", "adapter_model*.bin")
    )
    cache = _CACHE.fullmatch(folder.name)
    if not models:
        name = "/".join(filter(None, cache.groups())) if cache else ""
        return f"the Hub cache of {name}, without weights; name it as {name}" if cache else None
    kind, chosen = "its weights are in sub-folders", models[0]
    if cache or any(part.startswith("models--") for part in models):
        kind = "a cache of the Hub, whose snapshots are the models"
        chosen = next((m for m in models if m == f"snapshots/{_main(folder)}"), models[-1])
    elif any(_RUN.fullmatch(part.partition("/")[0]) for part in models):
        runs = [part for part in models if _RUN.fullmatch(part.partition("/")[0])]
        kind, chosen = "a training run, whose checkpoints are the models", runs[-1]
    is_adapter = any(file.startswith(f"{chosen}/adapter_") for file in files)
    named = f"'BASE+{folder / chosen}'" if is_adapter else str(folder / chosen)
    listed = first_names([chosen, *(model for model in models[::-1] if model != chosen)])
    way_out = "name one of them, such as" if len(models) > 1 else "name that folder:"
    return f"{kind}: {listed}\n  {way_out} {named}"


def _main(cache: Path) -> str:
    try:
        return (cache / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _distributed(folder: Path, files: Collection[str]) -> str | None:
    """Describe checkpoints of torch.distributed.checkpoint (DCP): none complete, or several."""
    shards = [file for file in files if file.endswith(".distcp")]
    if not shards:
        return None
    places = [p for p in _parents(shards) if not PurePosixPath(p).name.startswith("optim")]
    complete = [place for place in places if (folder / place / ".metadata").exists()]
    text = f"a distributed checkpoint of torch (DCP), in {counted(len(shards), '.distcp files')}"
    if not complete:
        return f"{text}, whose .metadata is missing; the copy or download is incomplete"
    listed = first_names(complete[::-1])
    return (
        f"several distributed checkpoints of torch (DCP): {listed}\n"
        f"  name one of them, such as {folder / complete[-1]}"
    )


def _deepspeed(folder: Path, files: Collection[str]) -> str | None:
    states = [file for file in files if fnmatchcase(file, "*_states.pt")]
    if not states:
        return None
    text = f"a checkpoint of DeepSpeed: {first_names(states)}"
    script = next((f for f in files if PurePosixPath(f).name == "zero_to_fp32.py"), None)
    if script is None:
        return f"{text}\n  convert it with zero_to_fp32.py of DeepSpeed"
    path = folder / script
    return f"{text}\n  convert it: {shlex.join(['python', str(path), str(path.parent), 'OUT'])}"


def _gguf(folder: Path, files: Collection[str]) -> str | None:
    found = _matching(files, "*.gguf")
    if not found:
        return None
    return (
        f"no safetensors, only GGUF: {first_names(found)}\n"
        f"  name the model that it was made from; without it, convert: "
        f"AutoModelForCausalLM.from_pretrained(…, gguf_file=…).save_pretrained(…)"
    )


def _other_frameworks(folder: Path, files: Collection[str]) -> str | None:
    frameworks = (
        ("TensorFlow", "from_tf=True", ("tf_model*.h5", "*.ckpt.index", "saved_model.pb")),
        ("Flax", "from_flax=True", ("*.msgpack",)),
    )
    for name, option, patterns in frameworks:
        if found := _matching(files, *patterns):
            return (
                f"no safetensors, only weights of {name}: {first_names(found)}\n"
                f"  convert them with transformers 4: "
                f"AutoModel.from_pretrained(…, {option}).save_pretrained(…)"
            )
    return None


def _pickles(folder: Path, files: Collection[str]) -> str | None:
    found = _matching(_top(files), "*.bin", "*.pt", "*.pth", "*.ckpt")
    if not found:
        return None
    text = f"no safetensors, only {first_names(found)}"
    if any(fnmatchcase(file, "pytorch_model-*-of-*.bin") for file in found):
        return f"{text}; pytorch_model.bin.index.json is missing: copy or download it too"
    if any(fnmatchcase(file, "consolidated.*.pth") for file in found):
        return f"{text}, the format of Llama's own code\n  convert it for transformers first"
    return f"{text}\n  if this is the state dict of the model, rename it to pytorch_model.bin"


def _exports(folder: Path, files: Collection[str]) -> str | None:
    found = _matching(files, "*.onnx", "openvino*.bin", "*.tflite", "*.mlmodel", "*.engine", "*.ot")
    if not found:
        return None
    text = f"no safetensors, only exports for inference: {first_names(found)}"
    return f"{text}\n  name the model that they were made from"


def _config_alone(folder: Path, files: Collection[str]) -> str | None:
    if "config.json" not in files:
        return None
    return "config.json, but no *.safetensors; the download or copy is incomplete"


_KINDS = (
    *(_adapter, _pipeline, _sub_folders, _distributed, _deepspeed, _gguf, _other_frameworks),
    *(_pickles, _exports, _config_alone),
)
"""The first that describes a folder counts."""


_OF_ADAPTERS = re.compile(
    r"(?:^|\.)(?:base_layer|original_module|modules_to_save|lora_magnitude_vector"
    r"|(?:lora|lora_embedding)_[AB]|ia3_l|(?:hada|lokr)_w[12]\w*|vera_lambda_[bd])(?:\.|$)"
)


def adapter_tensors(names: Iterable[str]) -> list[str]:
    """Return the names that PEFT gives to weights while a model has an adapter."""
    return [name for name in names if _OF_ADAPTERS.search(name)]


def refuse_adapted(path: Path, found: Collection[str], config: Mapping[str, Any]) -> None:
    """Raise InputError for a model that was saved with adapters of PEFT inside, `found` in it.

    A config with a section for an adapter (`speech_lora`) is of a class that has it as a part.
    """
    if any(key.endswith("_lora") and isinstance(value, dict) for key, value in config.items()):
        return
    if path.is_file() and path.name.startswith("adapter_"):
        raise InputError(f"{path}: a LoRA adapter, not a model; name it as 'BASE+{path.parent}'")
    raise InputError(
        f"{path}: saved with an adapter of PEFT inside, which is not merged: "
        f"{counted(len(found), 'tensors')} such as {first_names(found, 2)}\n"
        f"  save model.merge_and_unload(), or the adapter alone and name it as 'BASE+ADAPTER'"
    )
