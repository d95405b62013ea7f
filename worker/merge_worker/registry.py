"""Merge methods by name: the worker's own, those of files, and those of installed packages.

A file is given by `--methods FILE.py`. An installed package lists its methods as entry points of
the group `merge_worker.methods`, by name; `--methods PACKAGE==VERSION` only requires it.
"""

from __future__ import annotations

import hashlib
import inspect
import marshal
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

from . import methods
from .algorithms.expert_copy import MOE
from .errors import UsageError
from .messages import printable
from .method import Method, Origin

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "merge_worker.methods"
SUFFIX = ".py"
NAME = r"[a-z][a-z0-9_]*"
REQUIREMENT = r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:==(\S+))?"


@dataclass(frozen=True)
class MethodFile:
    """A file with merge methods, as it was read."""

    name: str
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Registry:
    """The merge methods that a recipe can name: our own, `given` ones, and installed ones."""

    given: tuple[Method, ...] = ()
    files: tuple[MethodFile, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Return the names of all methods, our own first, each kind sorted."""
        others = {method.name for method in self.given} | _installed().keys()
        return (*methods.names(), *sorted(others - set(methods.names())))

    def get(self, name: str) -> Method:
        """Return a method.

        Raises KeyError if there is none, and UsageError if an installed one cannot be loaded.
        """
        if name in methods.names():
            return methods.get(name)
        if name == MOE.name:  # which is planned in its own way, and so not among the names
            return MOE
        for method in self.given:
            if method.name == name:
                return method
        return _load(_installed()[name])

    def with_methods(self, given: Iterable[Method]) -> Registry:
        """Return the registry with methods of a program. Raises UsageError if one does not fit."""
        known = {method.name: method for method in self.given}
        for method in given:
            method = method if method.origin else replace(method, origin=_origin_of(method))
            _check_name(method, "methods", known)
            known[method.name] = method
        return replace(self, given=tuple(known.values()))


def read_registry(words: Sequence[str]) -> Registry:
    """Return the methods of files, `FILE.py`, after a check that `PACKAGE==VERSION` is installed.

    Raises UsageError with every fault.
    """
    files: list[MethodFile] = []
    known: dict[str, Method] = {}
    faults: list[str] = []
    for word in dict.fromkeys(words):
        try:
            if not word.endswith(SUFFIX):
                _require(word)
                continue
            file = _read(word)
            for method in _methods_of(_module_of(file, word), file, word):
                _check_name(method, word, known)
                known[method.name] = method
            files.append(file)
        except UsageError as error:
            faults.append(str(error))
    if faults:
        raise UsageError("\n".join(faults))
    return Registry(tuple(known.values()), tuple(files))


def split_words(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Split values of `--methods` at commas."""
    texts = [given] if isinstance(given, str) else given or ()
    return tuple(word for text in texts for word in text.split(",") if word)


def _read(word: str) -> MethodFile:
    path = Path(word)
    try:
        return MethodFile(path.name, path.expanduser().read_bytes())
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{printable(word)}: {reason}; give a Python file of methods") from None


def _module_of(file: MethodFile, word: str) -> ModuleType:
    """Run a file as a module of its own, once for each content."""
    name = f"merge_worker_methods_{file.sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(Path(word).expanduser().absolute())
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        exec(compile(file.data, module.__file__, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{printable(word)}{_line(error, module.__file__)}") from None
    return module


def _line(error: BaseException, file: str) -> str:
    """Return `:LINE: Error: text` for an error in a file of methods."""
    frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1] if frames else None
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    missing = isinstance(error, ImportError) and error.name == "torch"
    hint = (
        "\n  import torch inside the functions: recipes are checked without it" if missing else ""
    )
    place = f":{line}" if line else ""
    return f"{place}: {type(error).__name__}: {printable(text)}{hint}"


def _methods_of(module: ModuleType, file: MethodFile, word: str) -> list[Method]:
    found = {value.name: value for value in vars(module).values() if isinstance(value, Method)}
    own = [method for method in found.values() if method.function.__module__ == module.__name__]
    if not own:
        raise UsageError(
            f"{printable(word)}: defines no merge method; decorate a function with "
            f"merge_worker.merge_method"
        )
    origin = Origin(file.name, file.sha256)
    return [replace(method, origin=origin) for method in own]


def _check_name(method: Method, place: str, known: dict[str, Method]) -> None:
    name = method.name
    if not re.fullmatch(NAME, name):
        raise UsageError(f"{printable(place)}: '{printable(name)}' must be a lower-case name")
    if name in (*methods.names(), MOE.name):
        raise UsageError(f"{printable(place)}: '{name}' is a method of merge-worker; rename yours")
    other = known.get(name)
    if other is not None and other.origin != method.origin:
        first = other.origin.name if other.origin else "another"
        raise UsageError(f"{printable(place)}: '{name}' is also defined by {first}; rename one")


def _installed() -> dict[str, EntryPoint]:
    """Return the entry points of installed packages by the name of their method."""
    from importlib.metadata import entry_points  # 20 ms, which our own methods do not need

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(entry: EntryPoint) -> Method:
    """Return the method of an entry point. Raises UsageError if it is not a method of this name."""
    package = f"{entry.dist.name}=={entry.dist.version}" if entry.dist else entry.value
    try:
        method = entry.load()
    except Exception as error:
        text = f"{type(error).__name__}: {printable(str(error))}"
        raise UsageError(f"{package}: method '{entry.name}': {text}") from None
    if not isinstance(method, Method) or method.name != entry.name:
        raise UsageError(f"{package}: '{entry.value}' is not a merge method named '{entry.name}'")
    _check_name(method, package, {})
    return replace(method, origin=Origin(package, _digest(method), package=package))


def _require(word: str) -> None:
    """Raise UsageError unless a package is installed, in a version that may be given."""
    from importlib.metadata import PackageNotFoundError, version

    match = re.fullmatch(REQUIREMENT, word)
    if match is None:
        raise UsageError(f"--methods {printable(word)}: neither FILE.py nor PACKAGE==VERSION")
    package, wanted = match.groups()
    try:
        present = version(package)
    except PackageNotFoundError:
        raise UsageError(
            f"{package}: the package with methods of the recipe is not installed for "
            f"{sys.executable}; install it there"
        ) from None
    if wanted is not None and present != wanted:
        raise UsageError(f"{package}: version {present} is installed, the job needs {wanted}")


def _origin_of(method: Method) -> Origin:
    """Return the origin of a method that a program defined."""
    file = inspect.getsourcefile(method.function)
    name = Path(file).name if file and Path(file).is_file() else "Python"
    return Origin(name, _digest(method))


def _digest(method: Method) -> str:
    """Return the SHA-256 of the file that defines a method, else of its compiled function."""
    file = inspect.getsourcefile(method.function)
    if file is not None and Path(file).is_file():
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return hashlib.sha256(marshal.dumps(_plain(method.function.__code__))).hexdigest()


def _plain(code: CodeType) -> CodeType:
    """Return code without its place, which differs between the cells of a notebook."""
    inner = (_plain(item) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.replace(co_filename="", co_firstlineno=1, co_consts=tuple(inner))


OWN = Registry()
"""Our own methods and the installed ones."""
