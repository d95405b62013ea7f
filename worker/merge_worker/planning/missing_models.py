"""The models that a text names which is no good recipe: those that are not there are told with the
rest. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..checkpoint.folder import is_hub_id
from ..errors import InputError, UsageError
from ..recipe.schema import parse_model
from ..recipe.yaml_document import read_documents
from .inputs import locate


def with_missing_models(error: UsageError, text: str, folder: Path) -> UsageError:
    """The same faults, and a line for each folder of a model that is missing."""
    return UsageError("\n".join([str(error), *missing_models(text, folder)]))


def missing_models(text: str, folder: Path) -> list[str]:
    """What is named as a folder, and is none. Nothing of a text that is no YAML."""
    try:
        documents = [document.value for document in read_documents(text, "")]
    except UsageError:  # which is what is told
        return []
    results = {str(each.get("name")) for each in documents if isinstance(each, dict)}
    words = dict.fromkeys(word for each in documents for word in _models(each))
    found = []
    for word in words:
        if word in results:
            continue
        try:
            ref = parse_model(word)
            if not is_hub_id(str(replace(ref, lora=None, lora_revision=None))):
                locate(ref, folder)
        except InputError as error:
            found.append(str(error))
        except ValueError:  # told with the faults of the recipe
            continue
    return found


def _models(value: object) -> Iterator[str]:
    """What stands where a recipe names a model."""
    for each in value if isinstance(value, list) else ():
        yield from _models(each)
    for key, each in value.items() if isinstance(value, dict) else ():
        if key in ("model", "base_model") and isinstance(each, str):
            yield each
        elif key == "models" and isinstance(each, list):
            yield from (one for one in each if isinstance(one, str))
        yield from _models(each)
