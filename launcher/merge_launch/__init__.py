"""merge-launch: preflight, job text, submission. The merge itself is the worker's.

>>> import merge_launch as ml
>>> ml.submit("recipe.yml", "merged", "slurm", partition="gpu").wait()
"""

from importlib import import_module
from typing import TYPE_CHECKING

from merge_worker import __version__ as __version__

if TYPE_CHECKING:
    from . import errors as errors
    from .api import Job as Job
    from .api import jobs as jobs
    from .api import submit as submit
    from .backends.base import JobState as JobState
    from .backends.base import Status as Status

# The module of each public name, which is imported when the name is first used.
_PLACES = {
    "Job": "api",
    "JobState": "backends.base",
    "Status": "backends.base",
    "errors": "errors",
    "jobs": "api",
    "submit": "api",
}
__all__ = ["Job", "JobState", "Status", "errors", "jobs", "submit"]


if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> object:
        place = _PLACES.get(name)
        if place is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f".{place}", __name__)
        value = globals()[name] = module if name == place else getattr(module, name)
        return value

    def __dir__() -> list[str]:
        return [*globals(), *_PLACES]
