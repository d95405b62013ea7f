"""The folder beside the weights that a training continues from, and is finished from.

It holds a lock and one file: tensors of the training until the last step, then the bytes to write
into the model. The file is replaced as a whole, so that it is always one or the other.
"""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..output.files import output_errors, write_file

FOLDER = ".router-training"
"""The folder in a model; a leading dot keeps it from being read as weights or uploaded."""

_FILE = "state"


class StateFolder:
    """The state of a training of the model in `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / FOLDER
        self.lock = self.folder / "lock"

    def create(self) -> None:
        with output_errors(self.out):
            self.folder.mkdir(exist_ok=True)

    def read(self) -> dict[str, Any]:
        """Return what was written last, or nothing. InputError if the file is damaged."""
        path = self.folder / _FILE
        if not path.is_file():
            return {}
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            value = None
        if not isinstance(value, dict):
            raise InputError(f"{path}: damaged; remove the folder {self.folder} to train anew")
        return value

    def write(self, value: dict[str, Any]) -> None:
        """Replace the file; OutputError."""
        data = io.BytesIO()
        torch.save(value, data)
        with output_errors(self.out):
            write_file(self.folder / _FILE, data.getvalue(), durable=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
