"""Where a job can run. A backend is a module here and a template; this listing is the registry."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .base import Backend, JobState, LocalBackend, Scheduler, Service, Status, Submitted

__all__ = [
    "Backend",
    "JobState",
    "LocalBackend",
    "Scheduler",
    "Service",
    "Status",
    "Submitted",
    "get",
    "names",
]


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def get(name: str) -> Backend[Any]:
    backend: Backend[Any] = importlib.import_module(f".{name}", __name__).BACKEND
    if backend.name != name:
        raise TypeError(f"{__name__}.{name}: its backend is called '{backend.name}'")
    return backend
