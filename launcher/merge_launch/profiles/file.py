"""`merge-launch.toml`, here or in the user's config folder, and the sites that we know.

threads = 8                   # for every backend
default_profile = "mine"      # where nobody says --profile

[slurm]                       # for one of them
partition = "gpu"

[profile.mine]                # the same again, laid over the rest by --profile mine
about = "our A100 nodes"
extends = "gadi"              # another profile, or a site that we know
setup = ["module load python"]
[profile.mine.pbs]
directive = ["-l storage=gdata/ab12"]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_worker.messages import nearest, printable

from .. import backends
from ..errors import UsageError, refuse
from ..settings.groups import JobOptions, MergeOptions, SweepOptions, WorkerOptions
from ..settings.options import options_of

FILE_NAME = "merge-launch.toml"
COMMON = (MergeOptions, JobOptions, WorkerOptions, SweepOptions)
SITES = Path(__file__).resolve().parent / "sites"
PROFILE_KEYS = {"about", "extends"}
FILE_KEYS = {"profile", "default_profile"}

Table = Mapping[str, Any]


def find(folder: Path, config_folder: Path) -> Path | None:
    return next((f for d in (folder, config_folder) if (f := d / FILE_NAME).is_file()), None)


def _stem(path: Path) -> str:
    return path.stem


def sites() -> dict[str, Path]:
    """Those that we know; a file is a site."""
    return {path.stem: path for path in sorted(SITES.glob("*.toml"), key=_stem)}


@dataclass(frozen=True)
class ProfileFile:
    """A checked file; `table` is empty where there is none."""

    path: Path | None
    table: Table

    @classmethod
    def read(cls, path: Path | None) -> ProfileFile:
        """UsageError lists every fault of the file."""
        held = cls(path, {} if path is None else _parse(path))
        refuse(list(held.faults()))
        return held

    @property
    def own(self) -> Table:
        """The profiles of the file."""
        named: Table = self.table.get("profile", {})
        return named

    def names(self) -> dict[str, str]:
        """Every profile, and where it is from."""
        return {**dict.fromkeys(sites(), "built in"), **dict.fromkeys(self.own, str(self.path))}

    def chain(self, name: str | None) -> list[tuple[Table, str]]:
        """What holds with a profile, nearest first: itself, what it extends, the rest of the file.

        UsageError when there is no such profile, or they extend each other in a circle."""
        found: list[tuple[Table, str]] = []
        wanted = name if name is not None else self.table.get("default_profile")
        below = f"--profile {name}" if name is not None else f"{self.path}: default_profile"
        passed: list[str] = []
        while wanted is not None:
            table, place = self._named(wanted, passed, below)
            found.append((table, place))
            passed.append(place)
            below, wanted = f"{place}: extends", table.get("extends")
        if self.path is not None:
            found.append((self.table, str(self.path)))
        return found

    def _named(self, name: str, passed: list[str], place: str) -> tuple[Table, str]:
        """A profile may extend the site of its own name."""
        own = f"{self.path}: profile.{name}"
        if name in self.own and own not in passed:
            return self.own[name], own
        site = f"built in: {name}"
        if name in sites() and site not in passed:
            return _parse(sites()[name]), site
        if passed and (own in passed or site in passed):
            raise UsageError(f"{place}: '{printable(name)}' extends itself in a circle")
        known = ", ".join(self.names())
        raise UsageError(
            f"{place}: no profile '{printable(name)}'{nearest(name, self.names())}: {known}"
        )

    def faults(self) -> Iterator[str]:
        """A misspelt key would else be a setting that silently does nothing."""
        place = str(self.path)
        named = self.own
        if not isinstance(named, dict):
            yield f"{place}: 'profile' is a value where a table belongs, or the reverse"
            named = {}
        for name, each in named.items():
            if isinstance(each, dict):
                yield from table_faults(each, f"{place}: profile.{name}", PROFILE_KEYS)
            else:
                yield f"{place}: profile.{name} must be a table"
        rest = {key: value for key, value in self.table.items() if key != "profile"}
        yield from table_faults(rest, place, FILE_KEYS)


def table_faults(table: Table, place: str, more: set[str]) -> Iterator[str]:
    """Keys that nothing reads, in a profile or at the top of a file."""
    common = {option.name for group in COMMON for option in options_of(group)}
    tables = backend_keys()
    for key, value in table.items():
        if key in backends.names() and isinstance(value, dict):
            own = {option.name for option in options_of(backends.get(key).resources)}
            yield from _unknown(value, common | own, f"{place}: [{key}]", tables)
        elif key in more:
            if not isinstance(value, str):
                yield f"{place}: '{key}' must be text"
        else:
            known = common | more | set(backends.names())
            yield from _unknown({key: value}, known, place, tables, known | set(tables))


def backend_keys() -> dict[str, str]:
    """What only some backends have, and the tables where it may stand."""
    found: dict[str, list[str]] = {}
    for name in backends.names():
        for option in options_of(backends.get(name).resources):
            found.setdefault(option.name, []).append(f"[{name}]")
    return {name: " or ".join(tables) for name, tables in found.items()}


def _unknown(
    table: Table,
    known: set[str],
    place: str,
    elsewhere: Mapping[str, str],
    near: set[str] | None = None,
) -> Iterator[str]:
    """`elsewhere`: keys of another table, and of which. `near`: what may be meant."""
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in elsewhere and name not in known:
            yield f"{place}: '{printable(key)}' belongs into {elsewhere[name]}"
        elif name not in known:
            yield f"{place}: nothing reads '{printable(key)}'{nearest(key, near or known)}"
        elif isinstance(value, dict) or key in (*FILE_KEYS, *backends.names()):
            yield f"{place}: '{printable(key)}' is a value where a table belongs, or the reverse"


def _parse(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None
