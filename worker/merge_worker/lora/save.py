"""Writing of an adapter as PEFT saves it: factors in any order, whole tensors from their files."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..adapters.peft_format import CONFIG, WEIGHTS
from ..checkpoint.folder import is_hub_id
from ..dtypes import BY_NAME
from ..errors import OutputError
from ..output.files import CARD, output_errors, unfinished, write_file
from ..output.target import refuse_inputs
from ..planning.shards import Output, safetensors_header
from ..tensors.host import host_view
from ..tensors.source import Reader, TensorSource

PREFIX = "base_model.model."
ALIGN = 8
"""Bytes; the header of an adapter ends at a multiple of this."""

CHUNK = 1 << 22
"""Elements of a whole tensor copied at a time."""


class Spool:
    """A temporary file for factors of any size and order until all are known. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, tuple[Output, int]] = {}  # with the start in the file
        self._file = path.open("w+b")
        self._lock = threading.Lock()

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a contiguous tensor on the host, under its name in the adapter."""
        dtype = next(d for d in BY_NAME.values() if d.torch_name == str(tensor.dtype)[6:])
        with self._lock, output_errors(self.path):
            self.places[name] = (Output(name, dtype, tuple(tensor.shape)), self._file.tell())
            self._file.write(_bytes(tensor))

    def copy(self, name: str, target: IO[bytes]) -> None:
        """Copy a tensor, after all have been added."""
        output, start = self.places[name]
        count = output.nbytes
        self._file.seek(start)
        while count:
            data = self._file.read(min(count, 1 << 24))
            if not data:
                raise OutputError(f"{self.path}: shorter than the data written to it")
            target.write(data)
            count -= len(data)

    def close(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass
class AdapterOutput:
    """The folder of a new adapter; files get their final names when all are complete."""

    out: Path
    inputs: Mapping[str, Path]
    overwrite: bool = False
    whole: dict[str, tuple[TensorSource, ...]] = field(default_factory=dict)

    def __enter__(self) -> AdapterOutput:
        refuse_inputs(self.out, self.inputs)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            if not self.overwrite:
                raise OutputError(
                    f"{self.out}: already exists; choose another OUT, or add --overwrite"
                )
            if not (self.out / CONFIG).is_file():
                raise OutputError(f"{self.out}: not an adapter; --overwrite replaces adapters only")
        with output_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            # Left by a killed run, or links to other files.
            for leftover in self.out.glob(f".{WEIGHTS}.part*"):
                leftover.unlink()
            self.spool = Spool(self.out / f".{WEIGHTS}.parts")
        return self

    def __exit__(self, *_: object) -> None:
        self.spool.close()
        (self.out / unfinished(f".{WEIGHTS}")).unlink(missing_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        self.spool.add(PREFIX + name, tensor)

    def add_factors(self, module: str, a: Tensor, b: Tensor, embedding: bool) -> None:
        suffix = "lora_embedding_{}" if embedding else "lora_{}.weight"
        self.add(f"{module}.{suffix.format('A')}", a)
        self.add(f"{module}.{suffix.format('B')}", b)

    def finish(self, config: Mapping[str, Any], reader: Reader) -> int:
        """Write all files, the config last since it makes the folder an adapter.

        Returns the size of the weights in bytes.
        """
        entries: dict[str, tuple[Output, Callable[[IO[bytes]], None]]] = {}
        for name, (output, _) in self.spool.places.items():
            entries[name] = (output, partial(self.spool.copy, name))
        for name, parts in self.whole.items():
            first = parts[0]
            rows = (sum(part.shape[0] for part in parts),) if first.shape else ()
            output = Output(PREFIX + name, first.dtype, (*rows, *first.shape[1:]))
            entries[PREFIX + name] = (output, partial(_copy, parts, reader))
        ordered = [entries[name] for name in sorted(entries)]
        partial_file = self.out / unfinished(f".{WEIGHTS}")
        with output_errors(self.out):
            with partial_file.open("wb") as file:
                file.write(safetensors_header([output for output, _ in ordered], ALIGN)[0])
                for _, write in ordered:
                    write(file)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            # An older adapter stays intact until the new one is complete.
            (self.out / CONFIG).unlink(missing_ok=True)
            partial_file.replace(self.out / WEIGHTS)
            card = _card(config["base_model_name_or_path"], self.out.resolve().name)
            write_file(self.out / CARD, card)
            write_file(self.out / CONFIG, json.dumps(dict(config), indent=2) + "\n", durable=True)
        return size


def _bytes(tensor: Tensor) -> memoryview:
    return host_view(tensor.reshape(-1).view(torch.uint8))


def _copy(parts: Sequence[TensorSource], reader: Reader, file: IO[bytes]) -> None:
    """Copy tensors one after the other, which concatenates them along the first axis."""
    for source in parts:
        for start in range(0, source.count, CHUNK):
            values = reader.read(source, start, min(source.count, start + CHUNK), "copy")
            file.write(_bytes(values))


def _card(base: str, title: str) -> str:
    """Return a model card. It names the base only if that is on the Hub, which refuses folders."""
    lines = ["---", f"base_model: {json.dumps(base)}"] if is_hub_id(base) else ["---"]
    return "\n".join([*lines, "library_name: peft", "tags:", "- lora", "---", "", f"# {title}", ""])


def config_of(base: str, ranks: Mapping[str, int], **fields: Any) -> dict[str, Any]:
    """Return an adapter_config.json with scale 1; `ranks` by module or parameter."""
    usual_rank = Counter(ranks.values()).most_common(1)[0][0]
    other_ranks = {name: rank for name, rank in ranks.items() if rank != usual_rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": usual_rank,
        "lora_alpha": usual_rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": [],
        "rank_pattern": other_ranks,
        "alpha_pattern": other_ranks,
        **fields,
    }
