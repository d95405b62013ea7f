"""`merge-launch profile list|show|check`: the known sites, their settings, faults in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from merge_worker.messages import printable

from .. import backends, table
from ..errors import UsageError, refuse
from ..profiles import file
from ..profiles import layers as profile_layers
from ..profiles.file import COMMON, PROFILE_KEYS, ProfileFile, table_faults
from ..settings.options import options_of
from .wiring import AsJson, guarded, say


def add(profiles: typer.Typer) -> None:
    """Add the commands to an application."""
    for name, command in (("list", list_command), ("show", show_command), ("check", check_command)):
        profiles.command(name)(guarded(command))


def _profile_file() -> ProfileFile:
    return ProfileFile.read(file.find(Path.cwd(), profile_layers.config_folder()))


def list_command(as_json: AsJson = False) -> int:
    """List the profiles of merge-launch.toml and the built-in sites."""
    profiles = _profile_file()
    rows: list[dict[str, object]] = []
    for name, origin in profiles.names().items():
        # The file itself, outside its profiles, ends each chain.
        tables = [each for each, place in profiles.chain(name) if place != str(profiles.path)]
        about = next((each["about"] for each in tables if "about" in each), "")
        names = [b for b in backends.names() if any(b in each for each in tables)]
        rows.append({"profile": name, "for": " ".join(names), "about": about, "from": origin})
    table.show(rows, ("profile", "for", "about", "from"), as_json)
    default = profiles.table.get("default_profile")
    if default is not None and not as_json:
        say(f"{default} is the default without --profile")
    return 0


def show_command(
    name: Annotated[str, typer.Argument(autocompletion=profile_layers.complete)],
    as_json: AsJson = False,
) -> int:
    """Show the settings of a profile for each backend, and the origin of each value."""
    rows = list(_values(_profile_file(), name))
    table.show(rows, ("backend", "option", "value", "from"), as_json)
    return 0


def _values(profiles: ProfileFile, name: str) -> Iterator[dict[str, object]]:
    tables = [each for each, _ in profiles.chain(name)]
    seen: set[tuple[str | None, str]] = set()
    named: list[str | None] = [b for b in backends.names() if any(b in each for each in tables)]
    for backend in named or [None]:
        layers = profile_layers.load(profiles.path, name, backend)
        groups: list[Any] = [*COMMON]
        if backend is not None:
            groups.append(backends.get(backend).resources)
        settings = profile_layers.resolve(groups, layers)
        for group, values in zip(groups, settings, strict=True):
            for option in options_of(group):
                origins = [layer.origin for layer in layers if option.name in layer.values]
                # --out of a merge and of a sweep is one option.
                if origins and (backend, option.name) not in seen:
                    seen.add((backend, option.name))
                    value = getattr(values, option.name)
                    yield {
                        "backend": backend or "all",
                        "option": option.name,
                        "value": list(value) if isinstance(value, tuple) else value,
                        "from": " + ".join(origins if option.spec.accumulates else origins[:1]),
                    }


def check_command(
    name: Annotated[
        str | None,
        typer.Argument(help="all of them, if left out", autocompletion=profile_layers.complete),
    ] = None,
) -> int:
    """Read profiles as a job would, for every backend; report every fault."""
    profiles = _profile_file()
    names = list(profiles.names()) if name is None else [name]
    faults = [fault for each in names for fault in _faults(profiles, each)]
    refuse(list(dict.fromkeys(faults)))
    files = f"{profiles.path} and the built-in sites" if profiles.path else "the built-in sites"
    checked = f"{len(names)} profiles" if name is None else printable(name)
    print(f"{checked}: no faults ({json.dumps(files)[1:-1]})")
    return 0


def _faults(profiles: ProfileFile, name: str) -> Iterator[str]:
    try:
        for values, place in profiles.chain(name):
            if place.startswith("built in: "):
                yield from table_faults(values, place, PROFILE_KEYS)
        list(_values(profiles, name))
    except UsageError as error:
        yield from str(error).split("\n  ")
