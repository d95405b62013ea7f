"""Imports torch without the modules that only tracing and compiling need, a third of its start.

torch registers the shapes that its operators give to tensors without data (meta kernels) by
importing all of its decompositions. A merge never makes such a tensor. The module is left out only
in releases of torch with which the whole test suite has passed, only in processes of merge-worker,
and can still be imported afterwards.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from .machine import read_ascii
from .packages import missing_package

TRIED = "__version__ = '2.13."
"""Line of version.py in those releases; importlib.metadata would take 20 ms."""

_SKIPPED = "torch._meta_registrations"

SORTS_WITH = "AVX512_SKX AVX512_ICL AVX512_SPR"
"""CPU features numpy must not sort with there."""


def slow_to_compress(cpuinfo: Path) -> bool:
    """Whether compressing stores of AVX-512 are so slow that sorts take three times as long.

    AMD's Zen 4 takes 7.9 ns for an element of a row of 2048, and 2.5 ns with AVX2.
    """
    first = read_ascii(cpuinfo).partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.split() for key, _, value in lines}
    zen = facts.get("vendor_id") == ["AuthenticAMD"] and facts.get("cpu family") == ["25"]
    return zen and "avx512f" in facts.get("flags", ())


def prepare() -> None:
    """Prepare the first import of torch in a process that only merges."""
    if "torch" in sys.modules:
        return
    ignore_missing_numpy()
    # Torch loads numpy, whose threads would be lost in a fork; what is used of it needs none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if slow_to_compress(Path("/proc/cpuinfo")):
        os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", _sorts_with())
    # Plans and torch's modules are a million objects, none of them garbage.
    gc.disable()
    if _tried():
        sys.modules[_SKIPPED] = ModuleType(_SKIPPED)


def _sorts_with() -> str:
    """Return the features by the names of the installed numpy, which warns of any others."""
    match = re.search(r"""version = ["'](\d+)\.(\d+)""", _version_file("numpy"))
    renamed = match is not None and (int(match[1]), int(match[2])) >= (2, 4)
    return SORTS_WITH.replace("AVX512_SKX", "X86_V4") if renamed else SORTS_WITH


def _tried() -> bool:
    return f"\n{TRIED}" in f"\n{_version_file('torch')}"


def _version_file(package: str) -> str:
    """Return the text of a package's version.py without importing it; "" if there is none."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return ""
    return read_ascii(Path(spec.origin).with_name("version.py"))


def restore() -> None:
    """Undo `prepare` after the import: later imports of the module get the real one."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    module = sys.modules.get(_SKIPPED)
    if module is not None and module.__spec__ is None:
        del sys.modules[_SKIPPED]


def complete() -> None:
    """Load the skipped module after all; random number generators need it."""
    if _SKIPPED not in sys.modules or sys.modules[_SKIPPED].__spec__ is None:
        restore()
        import_module(_SKIPPED)


def ignore_missing_numpy() -> None:
    """Let torch say nothing where numpy is missing: nothing here needs it."""
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)


def require_torch(command: str = "") -> None:
    """Raise UsageError if torch is not installed, before anything is written.

    `command` is one that does not merge, hence does not run as a job.
    """
    if find_spec("torch") is None:
        elsewhere = "or run it where torch is" if command else MERGE_ELSEWHERE
        raise missing_package(command, "torch", otherwise=elsewhere)
    ignore_missing_numpy()


MERGE_ELSEWHERE = (
    "or name an interpreter that has it (merge-launch: --python),\n"
    "  or merge as a job (slurm, pbs, beaker)"
)
