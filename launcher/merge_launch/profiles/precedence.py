"""The settings of one command by the precedence of their origins: flag, environment, profile.

`profiles.file` reads and checks the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from merge_worker.messages import printable

from ..errors import refuse
from ..settings.options import Fault, Option, options_of, read
from .file import ProfileFile

Group = TypeVar("Group")
FLAG, ENVIRONMENT = "flag", "environment"


class Origin(NamedTuple):
    """A place that sets options, with their values. `place` names an option in its notation."""

    values: Mapping[str, object]
    name: str

    def place(self, option: Option) -> str:
        if self.name == FLAG:
            return option.flag
        return option.variable if self.name == ENVIRONMENT else f"{self.name}: {option.key}"


def flags(given: Mapping[str, object]) -> Origin:
    """Return the values of the command line."""
    set_here = {k.rstrip("_"): v for k, v in given.items() if v is not None and v != []}
    return Origin(set_here, FLAG)


def environment(variables: Mapping[str, str]) -> Origin:
    """Return the values of the variables MERGE_LAUNCH_…"""
    prefix = "MERGE_LAUNCH_"
    own = {key: value for key, value in variables.items() if key.startswith(prefix)}
    values = {key.removeprefix(prefix).lower(): value for key, value in own.items()}
    return Origin(values, ENVIRONMENT)


def profile(file: ProfileFile, name: str | None, backend: str | None) -> list[Origin]:
    """Return the tables of a profile that apply to one backend, nearest first."""
    origins = []
    for table, place in file.chain(name):
        if backend is not None and isinstance(table.get(backend), dict):
            origins.append(_origin(table[backend], f"{place}: [{backend}]"))
        origins.append(_origin(table, place))
    return origins


def taken(group: type, origins: Sequence[Origin]) -> list[str]:
    """Return the options of a group that no flag sets, by origin: `mem 32G (built in: slurm)`."""
    by_origin: dict[str, list[str]] = {}
    for option in options_of(group):
        setting = [origin for origin in origins if option.key in origin.values]
        for origin in setting if option.spec.accumulates else setting[:1]:
            if origin.name != FLAG:
                value = read(option, origin.values[option.key])
                shown = " ".join(value) if isinstance(value, tuple) else str(value)
                words = printable(f"{option.flag.removeprefix('--')} {shown}")
                by_origin.setdefault(origin.name.partition(": [")[0], []).append(words)
    return [f"{', '.join(words)} ({origin})" for origin, words in by_origin.items()]


def _origin(table: Mapping[str, Any], name: str) -> Origin:
    plain = {k.replace("-", "_"): v for k, v in table.items() if not isinstance(v, dict)}
    return Origin(plain, name)


def resolve(groups: Sequence[type[Group]], origins: Sequence[Origin]) -> list[Group]:
    """Return an instance of each group; the first origin takes precedence.

    Raises UsageError with every fault.
    """
    faults: list[str] = []
    resolved = []
    for group in groups:
        values = {option.name: _value(option, origins, faults) for option in options_of(group)}
        resolved.append({name: value for name, value in values.items() if value is not None})
    refuse(faults)
    pairs = zip(groups, resolved, strict=True)
    return [dataclasses.replace(group(), **values) for group, values in pairs]  # type: ignore[type-var]


def _value(option: Option, origins: Sequence[Origin], faults: list[str]) -> Any:
    values = []
    for origin in origins:
        if option.key not in origin.values:
            continue
        try:
            values.append(read(option, origin.values[option.key]))
        except Fault as fault:
            shown = printable(str(origin.values[option.key]))[:80]
            faults.append(f"{origin.place(option)} '{shown}' {fault}")
        if not option.spec.accumulates:
            break
    if not values or not option.spec.accumulates:
        return values[0] if values else None
    # The nearest origin comes last, where it wins in shells and schedulers.
    return tuple(word for words in reversed(values) for word in words)
