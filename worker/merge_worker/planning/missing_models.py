"""Models named in a faulty recipe that do not exist, reported with its other faults. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..checkpoint.folder import is_hub_id
from ..checkpoint.hub import Hub
from ..errors import InputError, UsageError
from ..recipe.schema import parse_model
from ..recipe.yaml_document import read_documents
from .inputs import locate


def with_missing_models(error: UsageError, text: str, folder: Path) -> UsageError:
    """Return the error with a line for each missing model that `text` names."""
    return UsageError("\n".join([str(error), *missing_models(text, folder)]))


def missing_models(text: str, folder: Path) -> list[str]:
    """Return a fault for each missing model of a recipe; none if `text` is not YAML."""
    try:
        documents = [document.value for document in read_documents(text, "")]
    except UsageError:  # reported already
        return []
    results = {str(value.get("name")) for value in documents if isinstance(value, dict)}
    words = dict.fromkeys(word for value in documents for word in _models(value))
    faults = []
    for word in words:
        if word in results:
            continue
        try:
            ref = parse_model(word)
            if not is_hub_id(str(replace(ref, lora=None, lora_revision=None))):
                locate(ref, folder, Hub())
        except InputError as error:
            faults.append(str(error))
        except ValueError:  # reported with the faults of the recipe
            continue
    return faults


def _models(value: object) -> Iterator[str]:
    """Yield every text at a place where a recipe names a model."""
    for item in value if isinstance(value, list) else ():
        yield from _models(item)
    for key, item in value.items() if isinstance(value, dict) else ():
        if key in ("model", "base_model") and isinstance(item, str):
            yield item
        elif key == "models" and isinstance(item, list):
            yield from (model for model in item if isinstance(model, str))
        yield from _models(item)
