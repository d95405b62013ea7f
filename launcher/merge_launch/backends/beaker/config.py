"""The defaults in the config file that the clients of Beaker share; `client` takes the rest."""

from __future__ import annotations

import os
from pathlib import Path

ORGANIZATION = "ai2"
"""The default organization of beaker-py."""


def path() -> Path:
    """Return the path of the config file, which need not exist."""
    return Path(os.environ.get("BEAKER_CONFIG") or Path.home() / ".beaker" / "config.yml")


def defaults() -> dict[str, str]:
    """Return `default_workspace` as `workspace`, and so on; nothing from a file that is not valid.

    A job is rendered without such a file, and `client` reports its faults when it is needed.
    """
    import yaml

    try:
        values = yaml.safe_load(path().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    prefix = "default_"
    return {
        str(key).removeprefix(prefix): value
        for key, value in (values.items() if isinstance(values, dict) else ())
        if str(key).startswith(prefix) and isinstance(value, str) and value
    }
