"""A word that names a model → a folder that transformers loads, with the weights of an adapter."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.folder import open_checkpoint
from ..checkpoint.header import CONFIG
from ..checkpoint.hub import Hub
from ..checkpoint.json_files import read_json
from ..errors import InputError
from ..messages import nearest, printable
from ..output.side_files import copy_side_files
from ..planning.inputs import locate
from ..planning.options import PlanOptions
from ..planning.plan import Plan, make_plan
from ..recipe import parse
from ..recipe.schema import parse_model
from ..recipe.shorthand import direct_recipe
from ..tokenizer.files import SideFiles, has_vocabulary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Source:
    """A model to load. `folder` has its config and tokenizer, and its weights unless `plan` is set.

    `plan` yields the weights of a base with an adapter, which are in no folder.
    """

    label: str
    folder: Path
    plan: Plan | None = None

    @property
    def config(self) -> dict[str, Any]:
        value = read_json(self.folder / CONFIG)
        return value if isinstance(value, dict) else {}

    @property
    def has_tokenizer(self) -> bool:
        """Return whether the folder has files of a tokenizer."""
        own = ("tokenizer_config.json", "tokenizer.json")
        return has_vocabulary(SideFiles(self.folder)) or any(
            (self.folder / name).is_file() for name in own
        )

    def tensors(self) -> dict[str, Tensor] | None:
        """Return the weights by their names on disk; None if transformers reads them itself."""
        if self.plan is None:
            return None
        from ..engine.tensor_stream import tensor_stream

        stream = tensor_stream([self.plan], allow_nonfinite=True)
        # A tensor of the stream may lie in a buffer that the next ones are written to.
        return {name: one.clone() for name, (one,) in stream if one is not None}


@contextlib.contextmanager
def opened(word: str, label: str) -> Iterator[Source]:
    """Find and open a model: a folder, `org/name[@revision]`, or `base+adapter`.

    Headers are checked against the index; weights on the Hub are downloaded. Raises InputError.
    """
    try:
        ref = parse_model(word)
    except ValueError as error:
        raise InputError(str(error)) from None
    hub = Hub()
    folder = locate(ref, Path(), hub)
    if ref.lora is None:
        model = open_checkpoint(folder, hub)
        _require_config(word, folder)
        for shard in model.shards:
            hub.download(shard.path)
        yield Source(label, folder)
        return
    _require_config(word, folder)
    recipe = parse(direct_recipe([word], method="passthrough"), word)
    plan = make_plan(recipe, PlanOptions(hub=hub))
    with tempfile.TemporaryDirectory(prefix="merge-worker-") as place:
        copy_side_files(plan, Path(place))
        yield Source(label, Path(place), plan)


def _require_config(word: str, folder: Path) -> None:
    """Raise InputError unless a folder has the config of a model of transformers."""
    place = printable(word)
    if not folder.is_dir():
        raise InputError(f"{place}: a file; give the folder of the model, which has its {CONFIG}")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{place}: no {CONFIG}; transformers cannot load it without")
    value = read_json(folder / CONFIG)
    if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
        kind = " (a part of a diffusers pipeline)" if "_class_name" in (value or ()) else ""
        raise InputError(
            f"{place}: {CONFIG} names no model_type{kind}; not a model of transformers"
        )


def unknown_type(transformers: Any, config: dict[str, Any]) -> str:
    """Return ` (did you mean …)` for a model_type that this transformers does not know."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return nearest(str(config.get("model_type")), CONFIG_MAPPING_NAMES)
