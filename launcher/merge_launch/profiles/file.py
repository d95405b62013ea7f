"""The file of profiles, `merge-launch.toml`, here or in the user's config folder; built-in sites.

threads = 8                   # for every backend
default_profile = "mine"      # used without --profile

[slurm]                       # for one backend
partition = "gpu"

[profile.mine]                # the same keys, which --profile mine puts above the rest
about = "our A100 nodes"
extends = "gadi"              # another profile, or a built-in site
setup = ["module load python"]
[profile.mine.pbs]
directive = ["-l storage=gdata/ab12"]
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from merge_worker.messages import nearest, printable

from .. import backends
from ..errors import LauncherError, UsageError, refuse
from ..settings.groups import JobOptions, MergeOptions, SweepOptions, WorkerOptions
from ..settings.options import options_of

FILE_NAME = "merge-launch.toml"
COMMON = (MergeOptions, JobOptions, WorkerOptions, SweepOptions)
SITES = Path(__file__).resolve().parent / "sites"
MAX_BYTES, LONGEST_LINE = 1 << 18, 4096
"""Of a file; the memory that a key with dots takes grows with its square."""

PROFILE_KEYS = {"about", "extends"}
FILE_KEYS = {"profile", "default_profile"}

Table = Mapping[str, Any]


def sites() -> dict[str, Path]:
    """Return the built-in sites by name; each is a file."""
    return {path.stem: path for path in sorted(SITES.glob("*.toml"), key=lambda path: path.stem)}


@dataclass(frozen=True)
class ProfileFile:
    """A checked file of profiles; `table` is empty without a file."""

    path: Path | None
    table: Table

    @classmethod
    def read(cls, path: Path | None) -> ProfileFile:
        """Read and check a file. Raises UsageError with every fault."""
        file = cls(path, {} if path is None else _parse(path))
        refuse(list(file.faults()))
        return file

    @classmethod
    def here(cls) -> ProfileFile:
        """Read the file here, or else in the user's config folder, if there is one."""
        folders = (Path.cwd(), Path(platformdirs.user_config_dir("merge-launch")))
        return cls.read(next((f for d in folders if (f := d / FILE_NAME).is_file()), None))

    @property
    def profiles(self) -> Table:
        """The profiles in the file, by name."""
        tables: Table = self.table.get("profile", {})
        return tables

    def names(self) -> dict[str, str]:
        """Return every profile with its origin."""
        return dict.fromkeys(sites(), "built in") | dict.fromkeys(self.profiles, str(self.path))

    def chain(self, name: str | None) -> list[tuple[Table, str]]:
        """Return the tables in force, nearest first: the profile, those it extends, the file.

        Raises UsageError for an unknown profile, or profiles that extend each other in a circle.
        """
        tables: list[tuple[Table, str]] = []
        wanted = name if name is not None else self.table.get("default_profile")
        referrer = f"--profile {name}" if name is not None else f"{self.path}: default_profile"
        visited: list[str] = []
        while wanted is not None:
            table, place = self._profile(wanted, visited, referrer)
            tables.append((table, place))
            visited.append(place)
            referrer, wanted = f"{place}: extends", table.get("extends")
        if self.path is not None:
            tables.append((self.table, str(self.path)))
        return tables

    def _profile(self, name: str, visited: list[str], referrer: str) -> tuple[Table, str]:
        # A profile may extend the site of its own name.
        own = f"{self.path}: profile.{name}"
        if name in self.profiles and own not in visited:
            return self.profiles[name], own
        site = f"built in: {name}"
        if name in sites() and site not in visited:
            return _parse(sites()[name]), site
        if visited and (own in visited or site in visited):
            raise UsageError(f"{referrer}: profile '{printable(name)}' extends itself")
        hint = f"{nearest(name, self.names())}: {', '.join(self.names())}"
        raise UsageError(f"{referrer}: no profile '{printable(name)}'{hint}")

    def faults(self) -> Iterator[str]:
        """Yield every fault; a misspelled key would otherwise be silently ignored."""
        place = str(self.path)
        profiles = self.profiles
        if not isinstance(profiles, dict):
            yield f"{place}: 'profile' must be a table"
            profiles = {}
        for name, table in profiles.items():
            if isinstance(table, dict):
                yield from table_faults(table, f"{place}: profile.{name}", PROFILE_KEYS)
            else:
                yield f"{place}: profile.{name} must be a table"
        rest = {key: value for key, value in self.table.items() if key != "profile"}
        yield from table_faults(rest, place, FILE_KEYS)


def complete(incomplete: str) -> list[str]:
    """Return the profiles that begin with `incomplete`, for completion in the shell."""
    try:
        return [name for name in ProfileFile.here().names() if name.startswith(incomplete)]
    except LauncherError:
        return []


def table_faults(table: Table, place: str, more: set[str]) -> Iterator[str]:
    """Yield the unknown and misplaced keys of a profile or of the top of a file."""
    common = {option.key for group in COMMON for option in options_of(group)}
    for key, value in table.items():
        if key in backends.names() and isinstance(value, dict):
            own = {option.key for option in options_of(backends.get(key).resources)}
            yield from _unknown(value, common | own, f"{place}: [{key}]", common | own)
        elif key in more:
            if not isinstance(value, str):
                yield f"{place}: '{key}' must be a string"
        else:
            known = common | more | set(backends.names())
            yield from _unknown({key: value}, known, place, known | set(_backend_keys()))


@functools.cache
def _backend_keys() -> dict[str, str]:
    """Return the keys that only some backends have, with the tables that may hold them."""
    tables: dict[str, list[str]] = {}
    for name in backends.names():
        for option in options_of(backends.get(name).resources):
            tables.setdefault(option.key, []).append(f"[{name}]")
    return {name: " or ".join(places) for name, places in tables.items()}


def _unknown(table: Table, known: set[str], place: str, suggested: set[str]) -> Iterator[str]:
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known and name in _backend_keys():
            yield f"{place}: '{printable(key)}' belongs in {_backend_keys()[name]}"
        elif name not in known:
            yield f"{place}: unknown key '{printable(key)}'{nearest(key, suggested)}"
        elif isinstance(value, dict):
            yield f"{place}: '{printable(key)}' must be a value, not a table"
        elif key in (*FILE_KEYS, *backends.names()):
            yield f"{place}: '{printable(key)}' must be a table"


def _parse(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        if any(len(line) > LONGEST_LINE for line in text.splitlines()):
            raise ValueError(f"a line of more than {LONGEST_LINE} characters")
        table = tomllib.loads(text)
        repr(table)  # which numbers of thousands of digits and tables in tables do not have
        return table
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {printable(str(error))}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None
