"""Writes an adapter as PEFT saves it: factors as they are found, whole tensors from their files."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..adapters.peft_format import CONFIG, WEIGHTS
from ..checkpoint.folder import is_hub_id
from ..dtypes import BY_NAME, DType
from ..engine.buffers import host_view
from ..errors import OutputError
from ..output.files import CARD, output_errors, unfinished, write_file
from ..output.target import refuse_inputs
from ..planning.shards import Output as TensorOutput
from ..planning.shards import safetensors_header
from ..tensors.source import Reader, TensorSource

if TYPE_CHECKING:
    from torch import Tensor


PREFIX = "base_model.model."
ALIGN = 8
"""Bytes; the header of an adapter ends at a multiple."""

RUN = 1 << 22
"""Elements of a whole tensor that are copied at a time."""


@dataclass
class Spool:
    """Factors of any size and order on disk until all of them are known. Thread-safe."""

    path: Path
    places: dict[str, tuple[DType, tuple[int, ...], int, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _file: IO[bytes] | None = None

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a contiguous tensor on the host under the name that it has in the adapter."""
        dtype = next(d for d in BY_NAME.values() if d.torch_name == str(tensor.dtype)[6:])
        with self._lock, output_errors(self.path):
            self._file = self._file or self.path.open("w+b")
            start = self._file.tell()
            self._file.write(_bytes(tensor))
            self.places[name] = (dtype, tuple(tensor.shape), start, tensor.nbytes)

    def copy(self, name: str, target: IO[bytes]) -> None:
        _, _, start, count = self.places[name]
        assert self._file is not None
        self._file.flush()
        with self.path.open("rb") as source:
            source.seek(start)
            while count:
                data = source.read(min(count, 1 << 24))
                if not data:
                    raise OutputError(f"{self.path}: shorter than what was written to it")
                target.write(data)
                count -= len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass
class Output:
    """The folder of a new adapter, which gets its names when all is there."""

    out: Path
    inputs: Mapping[str, Path]
    overwrite: bool = False
    whole: dict[str, tuple[TensorSource, ...]] = field(default_factory=dict)

    def __enter__(self) -> Output:
        refuse_inputs(self.out, self.inputs)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            if not self.overwrite:
                raise OutputError(f"{self.out}: there already; choose another OUT, or --overwrite")
            if not (self.out / CONFIG).is_file():
                raise OutputError(f"{self.out}: no adapter, which --overwrite would replace")
        with output_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            for rest in self.out.glob(f".{WEIGHTS}.part*"):
                rest.unlink()  # of a run that was killed; or a link to somebody's file
        self.spool = Spool(self.out / f".{WEIGHTS}.parts")
        return self

    def __exit__(self, *_: object) -> None:
        self.spool.close()
        (self.out / unfinished(f".{WEIGHTS}")).unlink(missing_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        self.spool.add(PREFIX + name, tensor)

    def finish(self, config: Mapping[str, Any], reader: Reader, base: str) -> int:
        """Write everything; the config last, since it makes the folder an adapter. Bytes."""
        entries: dict[str, tuple[TensorOutput, Callable[[IO[bytes]], None]]] = {}
        for name, (dtype, shape, _, _) in self.spool.places.items():
            entries[name] = (TensorOutput(name, dtype, shape), partial(self.spool.copy, name))
        for name, parts in self.whole.items():
            first = parts[0]
            rows = (sum(part.shape[0] for part in parts),) if first.shape else ()
            shape = (*rows, *first.shape[1:])
            entries[PREFIX + name] = (
                TensorOutput(PREFIX + name, first.dtype, shape),
                partial(_copy, parts, reader),
            )
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
            # An older adapter is whole until the new one is.
            (self.out / CONFIG).unlink(missing_ok=True)
            partial_file.replace(self.out / WEIGHTS)
            write_file(self.out / CARD, _card(base, self.out.resolve().name))
            write_file(self.out / CONFIG, json.dumps(dict(config), indent=2) + "\n", durable=True)
        return size


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return host_view(tensor.reshape(-1).view(torch.uint8))


def _copy(parts: Sequence[TensorSource], reader: Reader, file: IO[bytes]) -> None:
    """Tensors one after the other: along the first axis they are one."""
    for source in parts:
        for start in range(0, source.count, RUN):
            values = reader.read(source, start, min(source.count, start + RUN), "copy")
            file.write(_bytes(values))


def _card(base: str, title: str) -> str:
    """Names a base of the hub; it refuses cards with folders there, which are nobody's business."""
    lines = ["---", f"base_model: {json.dumps(base)}"] if is_hub_id(base) else ["---"]
    return "\n".join([*lines, "library_name: peft", "tags:", "- lora", "---", "", f"# {title}", ""])


def config_of(base: str, rank: int, **fields: Any) -> dict[str, Any]:
    """An adapter_config.json whose scale is 1 wherever no pattern says otherwise."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": [],
        "rank_pattern": {},
        "alpha_pattern": {},
        **fields,
    }
