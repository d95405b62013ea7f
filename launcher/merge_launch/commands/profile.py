"""`merge-launch profile list|show|check`: which sites there are, what they set, what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from merge_worker.messages import printable

from .. import backends
from ..errors import UsageError, refuse
from ..profiles import file
from ..profiles import layers as profile_layers
from ..profiles.file import COMMON, OF_A_PROFILE, ProfileFile, table_faults
from ..settings.options import options_of
from .wiring import guarded, say

AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def add(profiles: typer.Typer) -> None:
    """Register the commands."""
    for name, command in (("list", list_command), ("show", show_command), ("check", check_command)):
        profiles.command(name)(guarded(command))


def _held() -> ProfileFile:
    return ProfileFile.read(file.find(Path.cwd(), profile_layers.config_folder()))


def list_command(as_json: AsJson = False) -> int:
    """List the profiles: those of merge-launch.toml, and the sites that are built in."""
    from .. import table as tables

    held = _held()
    rows: list[dict[str, object]] = []
    for name, origin in held.names().items():
        chain = held.chain(name)
        # The last is the rest of the file, which is no profile.
        own = [each for each, place in chain if place != str(held.path)]
        about = next((each["about"] for each in own if "about" in each), "")
        names = [b for b in backends.names() if any(b in each for each in own)]
        rows.append({"profile": name, "for": " ".join(names), "about": about, "from": origin})
    tables.show(rows, ("profile", "for", "about", "from"), as_json)
    default = held.table.get("default_profile")
    if default is not None and not as_json:
        say(f"{default} is taken where nobody says --profile")
    return 0


def show_command(
    name: Annotated[str, typer.Argument(autocompletion=profile_layers.complete)],
    as_json: AsJson = False,
) -> int:
    """Show what a profile sets, backend by backend, and where each value is from."""
    from .. import table as tables

    rows = list(_values(_held(), name))
    tables.show(rows, ("backend", "option", "value", "from"), as_json)
    return 0


def _values(held: ProfileFile, name: str) -> Iterator[dict[str, object]]:
    tables = [each for each, _ in held.chain(name)]
    told: set[tuple[str | None, str]] = set()
    named: list[str | None] = [b for b in backends.names() if any(b in each for each in tables)]
    for backend in named or [None]:
        layers = profile_layers.load(held.path, name, backend)
        groups: list[Any] = [*COMMON]
        if backend is not None:
            groups.append(backends.get(backend).resources)
        found = profile_layers.resolve(groups, layers)
        for group, values in zip(groups, found, strict=True):
            for option in options_of(group):
                origins = [each.origin for each in layers if option.name in each.values]
                # The folder of a merge and of a sweep is one option.
                if origins and (backend, option.name) not in told:
                    told.add((backend, option.name))
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
    """Read profiles as a job would, for every backend; say what is wrong, all at once."""
    held = _held()
    names = list(held.names()) if name is None else [name]
    faults = [fault for each in names for fault in _faults(held, each)]
    refuse(list(dict.fromkeys(faults)))
    where = f"{held.path} and the built in" if held.path else "the built in"
    words = f"{len(names)} profiles" if name is None else printable(str(name))
    print(f"{words}: no faults ({json.dumps(where)[1:-1]})")
    return 0


def _faults(held: ProfileFile, name: str) -> Iterator[str]:
    try:
        for table, place in held.chain(name):
            if place.startswith("built in: "):
                yield from table_faults(table, place, OF_A_PROFILE)
        list(_values(held, name))
    except UsageError as error:
        yield from str(error).split("\n  ")
