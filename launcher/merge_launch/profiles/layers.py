"""The settings of one command, in order of precedence: flag, environment, profile, default.

`profiles.file` reads and checks the files.
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
    """The values of one origin. `place` names an option in the notation of that origin."""

    values: Mapping[str, object]
    origin: str

    def place(self, option: Option) -> str:
        if self.origin == "flag":
            return option.flag
        return option.variable if self.origin == "env" else f"{self.origin}: {option.name}"


def flags(given: Mapping[str, object]) -> Layer:
    """Return the layer of the command line."""
    return Layer({k: v for k, v in given.items() if v is not None and v != []}, "flag")


def environment(variables: Mapping[str, str]) -> Layer:
    """Return the layer of the variables MERGE_LAUNCH_…"""
    prefix = "MERGE_LAUNCH_"
    return Layer(
        {k.removeprefix(prefix).lower(): v for k, v in variables.items() if k.startswith(prefix)},
        "env",
    )


def config_folder() -> Path:
    """Return the folder of the user's merge-launch.toml."""
    import platformdirs

    return Path(platformdirs.user_config_dir("merge-launch"))


def complete(incomplete: str) -> list[str]:
    """Return the profiles that begin with `incomplete`, for completion in the shell."""
    try:
        names = ProfileFile.read(find(Path.cwd(), config_folder())).names()
    except LauncherError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def load(path: Path | None, name: str | None, backend: str | None) -> list[Layer]:
    """Return the layers of a profile for one backend, nearest first."""
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
    """Return an instance of each group; the first layer takes precedence.

    Raises UsageError with every fault.
    """
    faults: list[str] = []
    resolved = []
    for group in groups:
        values = {}
        for option in options_of(group):
            value = _value(option, layers, faults)
            if value is not None:
                values[option.name] = value
        resolved.append((group, values))
    refuse(faults)
    return [dataclasses.replace(group(), **values) for group, values in resolved]  # type: ignore[type-var]


def _value(option: Option, layers: Sequence[Layer], faults: list[str]) -> Any:
    values = []
    for layer in layers:
        if option.name not in layer.values:
            continue
        try:
            values.append(read(option, layer.values[option.name]))
        except Fault as fault:
            shown = printable(str(layer.values[option.name]))[:80]
            faults.append(f"{layer.place(option)} '{shown}' {fault}")
        if not option.spec.accumulates:
            break
    if not values:
        return None
    # The nearest layer comes last, where it wins in shells and schedulers.
    return (
        tuple(word for words in reversed(values) for word in words)
        if option.spec.accumulates
        else values[0]
    )
