"""Side files of a model: tokenizer, config, license, templates and others that are copied."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.folder import read_json
from ..checkpoint.header import CONFIG
from ..planning.plan import Plan, final_config
from ..tokenizer.files import LARGEST, is_tokenizer_file
from .files import CARD, MANIFEST, PARTIAL, RECIPE, write_file

_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".npz",
    ".npy",
    ".pkl",
    ".nemo",
    ".distcp",
    ".mlmodel",
    ".tflite",
    ".index.json",
    ".lock",
    ".incomplete",
)
_NOT_FILES = {
    CARD,
    MANIFEST,
    RECIPE,
    CONFIG,
    "trainer_state.json",
    "adapter_config.json",
    ".gitattributes",
}
_NOT_FOLDERS = {".git", ".cache", PARTIAL, "original", "onnx", "runs", "__pycache__"}


def side_files(folder: Path) -> Iterator[str]:
    """Yield relative names of the files to copy: tokenizer, processor, templates, `*.py`, …"""
    for here, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(f for f in folders if f not in _NOT_FOLDERS and not f.startswith("."))
        if "trainer_state.json" in names and Path(here) != folder:
            folders[:] = []
            continue
        for name in sorted(names):
            path = Path(here) / name
            # In a subfolder, a config belongs to a component (pooling, a speech adapter).
            if (name in _NOT_FILES and Path(here) == folder) or not _wanted(path, name):
                continue
            yield path.relative_to(folder).as_posix()


def _refuse(error: OSError) -> None:
    raise error  # of an unreadable folder, which os.walk would skip


def _wanted(path: Path, name: str) -> bool:
    if name.endswith(_WEIGHTS) or name.startswith("training_args"):
        return False
    # Links are followed: the hub's cache consists of them. FIFOs and devices are not opened.
    return path.is_file() and path.stat().st_size <= LARGEST


def copy_side_files(plan: Plan, into: Path) -> list[str]:
    """Copy the base's side files and write `config.json` below `into`; returns all names."""
    folder, text = plan.models[0].folder, plan.tokenizer
    if folder is None:
        return []
    taken = {n: folder for n in side_files(folder) if not (text.foreign and is_tokenizer_file(n))}
    donor = text.side_files.folder
    if text.foreign and donor:
        taken |= {n: donor for n in side_files(donor) if is_tokenizer_file(n)}
    contents: dict[str, Path | bytes | None] = {name: place / name for name, place in taken.items()}
    contents |= text.side_files.overrides
    for name, content in contents.items():
        if content is None:
            continue
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, into / name)
        else:
            write_file(into / name, content)
    names = [name for name, content in contents.items() if content is not None]
    config = folder / CONFIG
    if config.is_file():
        value = final_config(plan)
        if value == read_json(config):
            shutil.copyfile(config, into / CONFIG)
        else:
            write_file(into / CONFIG, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        names.append(CONFIG)
    return names
