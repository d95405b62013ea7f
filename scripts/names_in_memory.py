"""Write the table of names that classes of transformers give the tensors of files in memory.

Each class of the auto mappings is made without weights, and asked for the conversions with which it
loads. Run it with a new transformers; a few minutes:

    PYTHONPATH=worker:tests python scripts/names_in_memory.py              # all classes
    PYTHONPATH=worker:tests python scripts/names_in_memory.py LlavaModel   # shows those of some
"""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    GroupWeightRename,
    MergeModulelist,
    PermuteForRope,
    Split,
    WeightConverter,
    WeightRenaming,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from support.tiny_models import tiny_config

TABLE = Path(__file__).parent.parent / "worker/merge_worker/conversion/names_in_memory.json"
WAYS = {
    (Chunk,): "split",
    (Split,): "heads",
    (Concatenate,): "join",
    (MergeModulelist,): "stack",
    (MergeModulelist, Concatenate): "stack",
}
"""Operations that only put tensors together or apart, and the word of the table for each."""

Step = list[Any]


def classes() -> dict[str, list[Any]]:
    """Return the classes of all auto mappings by model type."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(vars(modeling_auto)):
        if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES"):
            for kind, listed in getattr(modeling_auto, name).items():
                for model in [listed] if isinstance(listed, str) else listed:
                    found.setdefault(kind, {})[model] = getattr(transformers, model, None)
    return {kind: [c for c in made.values() if c is not None] for kind, made in found.items()}


def made(model_class: Any, config: Any) -> Any:
    """Make a model without weights, or with them where it computes as it is built."""
    try:
        with torch.device("meta"):
            return model_class(config)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        return model_class(config)


def models(kind: str, listed: list[Any]) -> Iterator[Any]:
    """Yield a small model of each class that can be built."""
    config: Any = None
    for model_class in listed:
        try:
            if config is None:
                config_class = CONFIG_MAPPING[kind]
                config = tiny_config(config_class, lambda c, cls=model_class: made(cls, c))
            yield made(model_class, config)
        except Exception as error:
            print(f"{model_class.__name__}: {type(error).__name__}: {error}"[:160], file=sys.stderr)


def steps(transform: Any) -> Iterator[Step]:
    """Yield a conversion as rows of the table."""
    patterns = []
    for pattern in transform.source_patterns:
        bare = pattern.replace("*.", r".*\.")
        ends = bare[-1].isalnum() and bare[-1].isascii()
        patterns.append(bare + r"(?!\w)" if ends else bare)
    targets = list(transform.target_patterns)
    if isinstance(transform, WeightConverter):
        turns = [op for op in transform.operations if type(op) is PermuteForRope]
        plain = [op for op in transform.operations if op not in turns]
        ways = tuple(type(operation) for operation in plain)
        rows = plain[0].dim == 0 if ways in WAYS else not plain
        way = WAYS.get(ways, "split") if rows else "other"
        if turns and way == "split":
            yield [patterns, targets, "split", turns[0].subconfig_key, turned(turns[0], targets)]
        else:
            yield [patterns, targets, "other" if turns else way]
    elif isinstance(transform, GroupWeightRename):
        yield [patterns, targets, "rename"]
    elif type(transform).rename_source_key is WeightRenaming.rename_source_key:
        yield from ([pattern, targets[0]] for pattern in patterns)


def turned(operation: PermuteForRope, targets: list[str]) -> list[bool]:
    """Return which of the targets have the halves of their heads interleaved in the file."""
    words = operation.permute_layer_names
    return [words is None or any(word in target for word in words) for target in targets]


def rows(model: Any, lists: dict[str, list[Step]]) -> list[Any]:
    """Return the row of a class, and add the lists that it names."""
    found: dict[str | None, list[Step]] = {}
    for transform in get_model_conversion_mapping(model, add_legacy=False):
        found.setdefault(transform.scope_prefix, []).extend(steps(transform))
    row: list[Any] = [
        model.base_model_prefix,
        sorted({n.split(".")[0] for n in model.state_dict()}),
    ]
    for scope, listed in found.items():
        name = next((name for name, known in lists.items() if known == listed), None)
        if name is None:
            part = model
            if scope is not None:
                paths = (f"{model.base_model_prefix}.{scope}", model.base_model_prefix, scope)
                parts = dict(model.named_modules())
                part = next(parts[path] for path in paths if path in parts)
            name = type(part).__name__
            while name in lists:
                name += "'"
            lists[name] = listed
        row.append([scope, name])
    return row


def ties(model: Any) -> Iterator[str]:
    """Yield patterns of tensors that files leave out, since they are others.

    The usual heads are not among them: their embedding tells.
    """
    for path, module in model.named_modules():
        for target in getattr(module, "_tied_weights_keys", None) or ():
            if not target.endswith("lm_head.weight"):
                yield re.escape(f"{path}." if path else "") + target.removeprefix("^")


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    lists: dict[str, list[Step]] = {}
    table, shared = {}, {}
    known = classes()
    for kind, listed in known.items():
        wanted = [c for c in listed if not sys.argv[1:] or c.__name__ in sys.argv[1:]]
        for model in models(kind, wanted):
            # Some classes serve other types, too, for which they load in other ways.
            own = getattr(model.config_class, "model_type", kind)
            if kind != own and type(model) in known.get(own, ()):
                continue
            row = rows(model, lists)
            if row[2:]:
                table[type(model).__name__] = row
            if tied := sorted(set(ties(model))):
                shared[type(model).__name__] = tied
    parts: dict[str, dict[str, Any]] = {
        "lists": lists,
        "classes": dict(sorted(table.items())),
        "ties": dict(sorted(shared.items())),
    }
    text = ",\n".join(
        f'"{key}": {{\n'
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in part.items())
        + "\n}"
        for key, part in parts.items()
    )
    text = f"{{\n{text}\n}}\n"
    if sys.argv[1:]:
        print(text)
    else:
        TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
