"""Packages that are missing: the command that installs them here, and the extra that has them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from ..errors import UsageError

PROGRAM = "merge-launch"
EXTRAS = {
    "worker": (
        "torch>=2.4",
        "safetensors>=0.4.3",
        "pyyaml>=6.0",
        "numpy>=1.24",
        "huggingface_hub>=0.24",
        "tokenizers>=0.19",
        "matplotlib>=3.6",
    ),
    "transformers": ("transformers>=5.0", "accelerate>=1.0", "sentencepiece"),
    "search": ("optuna>=4.2,<6", "cmaes>=0.10", "scipy>=1.10"),
    "beaker": ("beaker-py>=2.6,<3",),
}
"""The packages of the extras in pyproject.toml: a worker in a job has no metadata to read."""
MODULES = {"yaml": "pyyaml", "beaker": "beaker-py"}
JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "BEAKER_JOB_ID")


def missing_package(what: str, *packages: str, otherwise: str = "") -> UsageError:
    """Return the error of a command, option or file that requires packages which are not here.

    `packages` are names on the package index, the missing one first; `otherwise` is one more way
    out.
    """
    return UsageError(
        f"{what}{': ' if what else ''}{packages[0]} is missing in {sys.executable}\n"
        f"  {how_to_install(*packages)}{f', {otherwise}' if otherwise else ''}"
    )


def explained(error: ModuleNotFoundError, what: str) -> UsageError | ModuleNotFoundError:
    """Return the error of `what` for a module that an extra has, else the error itself."""
    module = (error.name or "").partition(".")[0]
    package = MODULES.get(module, module)
    known = any(_requirement(package, extra) for extra in EXTRAS)
    return missing_package(what, package) if known else error


def how_to_install(*packages: str) -> str:
    """Return the command that installs packages for this program, and the extra that has them.

    The command is that of the tool which made the environment: pipx, uv or pip. In a job it is a
    line of the job.
    """
    extra = next((name for name in EXTRAS if _requirement(packages[0], name)), None)
    words = shlex.join(_bounded(package) for package in packages)
    return f"{_command(words)}{f' (the extra {extra})' if extra else ''}"


def _requirement(package: str, extra: str) -> str | None:
    return next((each for each in EXTRAS[extra] if re.split("[<>=]", each)[0] == package), None)


def _bounded(package: str) -> str:
    """Return the requirement of a package if it excludes later releases, else its name."""
    found = next(filter(None, (_requirement(package, extra) for extra in EXTRAS)), package)
    return found if "<" in found else package


def _command(words: str) -> str:
    prefix, python = Path(sys.prefix), shlex.quote(sys.executable)
    if (prefix / "pipx_metadata.json").is_file():
        return f"pipx inject {prefix.name} {words}"
    if (prefix / "uv-receipt.toml").is_file():
        more = " ".join(f"--with {word}" for word in words.split())
        return f"uv tool install {more} {shlex.quote(_source())}"
    if _is_in_zip() and any(name in os.environ for name in JOB_VARIABLES):
        return f"--setup {shlex.quote(f'{python} -m pip install {words}')}"
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {python} {words}"
    found = shutil.which("pip")
    nearest = found is not None and Path(found).parent == Path(sys.executable).parent
    return f"{'pip' if nearest else f'{python} -m pip'} install {words}"


def _is_in_zip() -> bool:
    return not Path(__file__).is_file()


def _source() -> str:
    """Return what this program was installed from: a folder, a file or an address."""
    from importlib import metadata  # 20 ms
    from urllib.parse import unquote, urlsplit

    try:
        text = metadata.distribution(PROGRAM).read_text("direct_url.json") or "{}"
    except metadata.PackageNotFoundError:
        text = "{}"
    value = json.loads(text)
    url = str(value.get("url") or PROGRAM)
    parts = urlsplit(url)
    if parts.scheme == "file":
        return unquote(parts.path)
    return f"git+{url}" if "vcs_info" in value else url
