"""`merge-launch profile list|show|check|trust`: the known sites, their settings, faults in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from merge_worker.command_line.parser import Parser
from merge_worker.messages import printable

from .. import backends, table
from ..errors import UsageError, refuse
from ..profiles import precedence
from ..profiles.file import (
    COMMON,
    FILE_NAME,
    PROFILE_KEYS,
    ProfileFile,
    table_faults,
)
from ..profiles.trust import accept
from ..settings.options import options_of
from .decorators import Run, add_json, say


def list_command(as_json: bool = False) -> int:
    """List the profiles of merge-launch.toml and the built-in sites."""
    profiles = ProfileFile.here()
    rows: list[dict[str, object]] = []
    for name, origin in profiles.names().items():
        # The file itself, outside its profiles, ends each chain.
        tables = [keys for keys, place in profiles.chain(name) if place != str(profiles.path)]
        about = next((keys["about"] for keys in tables if "about" in keys), "")
        names = [b for b in backends.names() if any(b in keys for keys in tables)]
        rows.append({"profile": name, "for": " ".join(names), "about": about, "from": origin})
    table.show(rows, ("profile", "for", "about", "from"), as_json)
    default = profiles.table.get("default_profile")
    if default is not None and not as_json:
        say(f"{default} is the default without --profile")
    return 0


def show_command(name: str, as_json: bool = False) -> int:
    """Show the settings of a profile for each backend, and the origin of each value."""
    rows = list(_values(ProfileFile.here(), name))
    table.show(rows, ("backend", "option", "value", "from"), as_json)
    return 0


def _values(profiles: ProfileFile, name: str) -> Iterator[dict[str, object]]:
    tables = [keys for keys, _ in profiles.chain(name)]
    named: list[str | None] = [b for b in backends.names() if any(b in keys for keys in tables)]
    for backend in named or [None]:
        origins = precedence.profile(profiles, name, backend)
        groups: list[Any] = [*COMMON, *([backends.get(backend).resources] if backend else [])]
        # --out of a merge and of a sweep is one option.
        rows: dict[str, dict[str, object]] = {}
        for group, values in zip(groups, precedence.resolve(groups, origins), strict=True):
            for option in options_of(group):
                names = [origin.name for origin in origins if option.key in origin.values]
                if names and option.name not in rows:
                    value = getattr(values, option.name)
                    rows[option.name] = {
                        "backend": backend or "all",
                        "option": option.key,
                        "value": list(value) if isinstance(value, tuple) else value,
                        "from": " + ".join(names if option.spec.accumulates else names[:1]),
                    }
        yield from rows.values()


def check_command(
    name: str | None = None,
) -> int:
    """Read profiles as a job would, for every backend; report every fault."""
    profiles = ProfileFile.here()
    names = list(profiles.names()) if name is None else [name]
    faults = [fault for profile in names for fault in _faults(profiles, profile)]
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


def trust_command() -> int:
    """Accept the merge-launch.toml here, though it is not yours, from now on."""
    path = Path.cwd() / FILE_NAME
    if not path.is_file():
        raise UsageError(f"{printable(str(path))}: not found")
    ProfileFile.read(path)
    accept(path.parent)
    print(f"{printable(str(path))}: accepted")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "list": list_command,
    "show": show_command,
    "check": check_command,
    "trust": trust_command,
}
PLACES = {
    name: " ".join((function.__doc__ or "").rstrip(".").split())
    for name, function in COMMANDS.items()
}


def options(parser: Parser, place: str) -> Run:
    """Add the words and options of `profile ACTION`."""
    if place in ("show", "check"):
        nargs = "?" if place == "check" else None
        text = "the profile" + ("; default: all of them" if nargs else "")
        parser.add_argument("name", metavar="PROFILE", nargs=nargs, help=text)
    if place in ("list", "show"):
        add_json(parser)
    function = COMMANDS[place]
    return lambda arguments: function(
        **{name: value for name, value in vars(arguments).items() if name != "place"}
    )
