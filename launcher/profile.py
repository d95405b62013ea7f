"""Settings of one command: flag > environment > profile > built in.

A profile is `merge-launch.toml` here, else in the user's config folder: options that hold for every
backend at the top, a table for each backend, and the same again under [profile.NAME], which
`--profile NAME` lays over the rest.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from worker.errors import nearest, printable

from . import backends
from .errors import UsageError, refuse
from .options import Fault, Option, options_of, read
from .settings import JobOptions, MergeOptions, WorkerOptions

FILE_NAME = "merge-launch.toml"
COMMON = (MergeOptions, JobOptions, WorkerOptions)

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


def find(folder: Path, config_folder: Path) -> Path | None:
    return next((f for d in (folder, config_folder) if (f := d / FILE_NAME).is_file()), None)


def config_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("merge-launch"))


def load(path: Path | None, name: str | None, backend: str | None) -> list[Layer]:
    """The layers of a profile file for one backend, nearest first."""
    if path is None:
        refuse([f"--profile {name}: there is no {FILE_NAME} here"] if name else [])
        return []
    table = _parse(path)
    _refuse_unknown(table, str(path))
    named = table.get("profile", {})
    if name is not None and name not in named:
        known = ", ".join(named) or "none"
        raise UsageError(f"{path}: no profile '{printable(name)}'{nearest(name, named)}: {known}")
    tables = [(named[name], f"{path}: profile.{name}")] if name else []
    layers = []
    for each, place in [*tables, (table, str(path))]:
        if backend is not None and backend in each:
            layers.append(_layer(each[backend], f"{place}: [{backend}]"))
        layers.append(_layer(each, place))
    return layers


def _layer(table: Mapping[str, Any], origin: str) -> Layer:
    plain = {k.replace("-", "_"): v for k, v in table.items() if not isinstance(v, dict)}
    return Layer(plain, origin)


def _parse(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None


def _refuse_unknown(table: Mapping[str, Any], place: str, inner: bool = False) -> None:
    """A misspelt key would else be a setting that silently does nothing."""
    common = {option.name for group in COMMON for option in options_of(group)}
    faults = []
    for key, value in table.items():
        if key == "profile" and isinstance(value, dict) and not inner:
            for name, each in value.items():
                if not isinstance(each, dict):
                    faults.append(f"{place}: profile.{name} must be a table")
                    continue
                _refuse_unknown(each, f"{place}: profile.{name}", inner=True)
        elif key in backends.names() and isinstance(value, dict):
            own = {option.name for option in options_of(backends.get(key).resources)}
            faults += _unknown(value, common | own, f"{place}: [{key}]")
        else:
            known = common | ({"profile"} if not inner else set()) | set(backends.names())
            faults += _unknown({key: value}, known, place)
    refuse(faults)


def _unknown(table: Mapping[str, Any], known: set[str], place: str) -> Iterator[str]:
    for key, value in table.items():
        if key.replace("-", "_") not in known:
            yield f"{place}: nothing reads '{printable(key)}'{nearest(key, known)}"
        elif isinstance(value, dict) or key in ("profile", *backends.names()):
            yield f"{place}: '{printable(key)}' is a value where a table belongs, or the reverse"


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
        if not option.shape.adds_up:
            break
    if not held:
        return None
    # What is nearest comes last, where shells and schedulers let it win.
    return (
        tuple(word for words in reversed(held) for word in words)
        if option.shape.adds_up
        else held[0]
    )
