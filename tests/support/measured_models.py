"""Measurements of tiny models for tests."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.importance.measure import Measurement
from merge_worker.inference.texts import Window
from merge_worker.system.progress import Progress
from support.language_models import opened


def windows(count: int = 4, seed: int = 5) -> tuple[Window, ...]:
    """Samples of several lengths; the loss of the first tokens of every other does not count."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        ids = torch.randint(10, 60, (12 - number,), generator=generator).tolist()
        labels = [-100] * (1 + 3 * (number % 2)) + ids[1 + 3 * (number % 2) :]
        found.append(Window(number, tuple(ids), tuple(labels), 0))
    return tuple(found)


def measured(folder: Path, out: Path, kind: str = "fisher", **more: Any) -> dict[str, Tensor]:
    """Measure a model and return the tensors of the file."""
    settings = {"labels": "data", "seed": 0, "samples": windows(), **more}
    device = settings.get("device", torch.device("cpu"))
    with opened(folder, dtype="float32", device=device) as model:
        Measurement(
            model,
            open_checkpoint(folder),
            settings["samples"],
            kind,
            "digest of the data",
            16,
            settings["labels"],
            settings["seed"],
        ).make(out, None, Progress("off", 0, ""), None)
    return load_file(out)
