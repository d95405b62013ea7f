"""Parts of the worker that few merges need. Where one does, it imports them late, in this one way:

    with needed("adapters"):
        from .adapted import open_adapted

The launcher reads these statements (launcher/carried.py), and gives a job the parts that it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import UsageError

FEATURES = {
    "adapters": "a model with an adapter",
    "chat_template": "chat_template",
    "dequantize": "dequantize",
    "documents": "a recipe of several documents",
    "hub": "a model of the hub, or --push",
    "layers": "layer_range",
    "layouts": "a model whose tensors have other names or shapes than the first one's",
    "manifests": "a recipe in a file .json",
    "pickled": "a model without safetensors",
    "schedule": "schedule",
    "tokenizer": "tokenizer",
    "vocabularies": "models with different tokenizers",
}
used: set[str] = set()
"""What this process has needed: the launcher plans a merge to know what its job will need."""


@contextmanager
def needed(feature: str) -> Iterator[None]:
    """Around imports. UsageError in the worker of a job that was made without this feature."""
    used.add(feature)
    try:
        yield
    except ModuleNotFoundError as error:
        if not str(error.name).startswith(f"{__package__}."):
            raise
        raise UsageError(
            f"{FEATURES[feature]}: this job does not carry that part of the worker; it needed none "
            f"when it was submitted. Submit it again"
        ) from None
