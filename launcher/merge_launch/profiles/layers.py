"""Settings of one command: flag > environment > profile > built in.

Which profiles there are, and what files may hold, is for `profile_file`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from merge_worker.messages import printable

from ..errors import LauncherError, refuse
from ..settings.options import Fault, Option, options_of, read
from .file import ProfileFile, find

Group = TypeVar("Group")


class Layer(NamedTuple):
    """Values of one origin; `place` names an option there as the user knows it."""

    values: Mapping[str, object]
    origin: str

    def place(self, option: Option) -> str:
        if self.origin == "flag":
            return option.flag
        return option.variable if self.origin == "env" else f"{self.origin}: {option.name}"


def flags(given: Mapping[str, object]) -> Layer:
    return Layer({k: v for k, v in given.items() if v is not None and v != []}, "flag")


def environment(variables: Mapping[str, str]) -> Layer:
    prefix = "MERGE_LAUNCH_"
    return Layer(
        {k.removeprefix(prefix).lower(): v for k, v in variables.items() if k.startswith(prefix)},
        "env",
    )


def config_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("merge-launch"))


def complete(incomplete: str) -> list[str]:
    """For the shell: profiles that begin so."""
    try:
        names = ProfileFile.read(find(Path.cwd(), config_folder())).names()
    except LauncherError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def load(path: Path | None, name: str | None, backend: str | None) -> list[Layer]:
    """The layers of a profile file, or of a site that we know, for one backend, nearest first."""
    layers = []
    for table, place in ProfileFile.read(path).chain(name):
        if backend is not None and isinstance(table.get(backend), dict):
            layers.append(_layer(table[backend], f"{place}: [{backend}]"))
        layers.append(_layer(table, place))
    return layers


def _layer(table: Mapping[str, Any], origin: str) -> Layer:
    plain = {k.replace("-", "_"): v for k, v in table.items() if not isinstance(v, dict)}
    return Layer(plain, origin)


def resolve(groups: Sequence[type[Group]], layers: Sequence[Layer]) -> list[Group]:
    """An instance of each group, from layers with the nearest first. All faults at once."""
    faults: list[str] = []
    found = []
    for group in groups:
        values = {}
        for option in options_of(group):
            value = _value(option, layers, faults)
            if value is not None:
                values[option.name] = value
        found.append((group, values))
    refuse(faults)
    return [dataclasses.replace(group(), **values) for group, values in found]  # type: ignore[type-var]


def _value(option: Option, layers: Sequence[Layer], faults: list[str]) -> Any:
    held = []
    for layer in layers:
        if option.name not in layer.values:
            continue
        try:
            held.append(read(option, layer.values[option.name]))
        except Fault as fault:
            shown = printable(str(layer.values[option.name]))[:80]
            faults.append(f"{layer.place(option)} '{shown}' {fault}")
        if not option.spec.accumulates:
            break
    if not held:
        return None
    # What is nearest comes last, where shells and schedulers let it win.
    return (
        tuple(word for words in reversed(held) for word in words)
        if option.spec.accumulates
        else held[0]
    )
