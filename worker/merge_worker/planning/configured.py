"""`--config`: checkpoints of a trainer as models of transformers, by the config of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..checkpoint.header import CONFIG
from ..checkpoint.hub import Hub
from ..checkpoint.model_files import survey
from ..conversion.trainers import as_transformers, trainer_of
from ..errors import InputError
from ..messages import counted
from ..tokenizer.files import SideFiles, holds_vocabulary, is_tokenizer_file

GENERATION = "generation_config.json"
_SUFFIXES = (".json", ".py", ".jinja")


@dataclass(frozen=True)
class GivenConfig:
    """The config that inputs get: its folder, its content, and the files that go with it."""

    label: str
    folder: Path
    content: Mapping[str, Any]
    names: tuple[str, ...]


def read_given(label: str, folder: Path, hub: Hub) -> GivenConfig:
    """Read the config in a model folder. Raises InputError if it has none of a model."""
    if folder.name == CONFIG and folder.is_file():
        folder, label = folder.parent, str(Path(label).parent)
    content = Checkpoint(folder, (), {}).config if folder.is_dir() else {}
    if not content.get("model_type"):
        raise InputError(
            f"--config {label}: no {CONFIG} with a model_type\n"
            f"  give a folder or Hub name of a model as transformers saves it"
        )
    copied = survey(folder, hub).copied
    own = (n for n in copied if n.endswith(_SUFFIXES) or is_tokenizer_file(n))
    return GivenConfig(label, folder, content, tuple(own))


@dataclass(frozen=True)
class Configured(Checkpoint):
    """A checkpoint with the config of `given`, and with its side files where it has none."""

    given: GivenConfig = field(kw_only=True, repr=False)
    side_files: SideFiles = field(kw_only=True, repr=False)

    @property
    def folder(self) -> Path | None:
        """Folder of config and tokenizer."""
        return self.given.folder

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.given.content)


def configured(model: Checkpoint, label: str, given: GivenConfig | None) -> Checkpoint:
    """Give a model the config, and the names that transformers has for its tensors.

    Without one, a note says that names are a trainer's. Raises InputError for tensors that do not
    fit the config.
    """
    trainer = trainer_of(list(model.tensors))
    if given is None:
        if trainer is None or model.config.get("model_type"):
            return model
        note = f"{label}: the names are those of {trainer.name}, which transformers does not load"
        way_out = "--config DIR or ORG/NAME gives them those of the model with that config"
        return replace(model, notes=(*model.notes, f"{note}\n  {way_out}"))
    tensors, notes = model.tensors, model.notes
    if trainer is not None:
        try:
            tensors = as_transformers(tensors, trainer, given.content)
        except ValueError as error:
            raise InputError(
                f"{label}: {error}\n  is {given.label} the config of this model?"
            ) from None
        kind = given.content["model_type"]
        notes += (
            f"{label}: {counted(len(tensors), 'tensors')} of {trainer.name} named as transformers "
            f"names those of {kind}",
        )
    return Configured(
        model.path,
        model.shards,
        tensors,
        notes=notes,
        files=replace(model.files, copied=given.names, unmerged=()),
        given=given,
        side_files=_side_files(model, given),
    )


def given_to(models: Sequence[Checkpoint]) -> GivenConfig | None:
    """Return the config that models were given; None if they have their own."""
    return next((model.given for model in models if isinstance(model, Configured)), None)


def _side_files(model: Checkpoint, given: GivenConfig) -> SideFiles:
    """Return the files of the config's folder, with a tokenizer and generation config of the
    model's own in place of those."""
    overrides: dict[str, bytes | None] = {}
    if model.folder is not None:
        own = SideFiles(model.folder)
        names = [name for name in model.files.copied if is_tokenizer_file(name)]
        if any(map(holds_vocabulary, names)):
            overrides = {name: None for name in given.names if is_tokenizer_file(name)}
            overrides |= {name: own.read(name) for name in names}
        if GENERATION in model.files.copied:
            overrides[GENERATION] = own.read(GENERATION)
    return SideFiles(given.folder, overrides)
