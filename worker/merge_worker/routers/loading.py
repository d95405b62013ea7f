"""Loads a whole mixture of experts with transformers, on the devices that are there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..experts.hidden import quiet_transformers
from ..messages import counted, first_names, printable
from ..system.packages import missing_package


def require_transformers(command: str) -> None:
    """Raise UsageError if transformers is not installed."""
    if find_spec("transformers") is None:
        raise missing_package(command, "transformers", "accelerate")


def load_model(folder: Path, dtype: str, devices: Sequence[torch.device], remote: bool) -> Any:
    """Return the model in evaluation mode. Raises InputError if transformers cannot load all of it.

    Several devices share its layers, which takes the package accelerate.
    """
    import transformers

    quiet_transformers()
    spread: dict[str, Any] = {}
    if len(devices) > 1:
        if find_spec("accelerate") is None:
            raise missing_package(
                f"--device: {len(devices)} devices",
                "accelerate",
                otherwise="or name one with --device",
            )
        spread = {"device_map": "auto"}
    try:
        model, facts = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if dtype == "same" else dtype,
            output_loading_info=True,
            trust_remote_code=remote,
            local_files_only=True,
            **spread,
        )
    except (ValueError, KeyError, OSError, RuntimeError, ImportError, AttributeError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        raise InputError(f"{folder}: transformers cannot load it: {reason}") from None
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, facts.get(kind) or ())):
            fact = counted(len(names), f"weights are {kind.partition('_')[0]}")
            raise InputError(f"{folder}: {fact} for transformers: {first_names(names)}")
    if not spread:
        model = model.to(devices[0])
    return model.eval()
