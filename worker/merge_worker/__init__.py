"""Merge language models: plan from headers, merge into a folder, or stream (docs/python.md).

>>> import merge_worker as mw
>>> mw.merge(mw.average(["model-a", "model-b"]), "merged")
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import errors as errors
    from .api.comparisons import Comparison as Comparison
    from .api.comparisons import compare as compare
    from .api.definition import merge_method as merge_method
    from .api.plans import Plan as Plan
    from .api.plans import average as average
    from .api.plans import plan as plan
    from .api.runs import Result as Result
    from .api.runs import merge as merge
    from .api.runs import verify as verify
    from .api.state_dicts import merge_state_dicts as merge_state_dicts
    from .api.streams import stream as stream

# The module of each public name, which is imported when the name is first used.
_PLACES = {
    "Comparison": "api.comparisons",
    "Plan": "api.plans",
    "Result": "api.runs",
    "average": "api.plans",
    "compare": "api.comparisons",
    "errors": "errors",
    "merge": "api.runs",
    "merge_method": "api.definition",
    "merge_state_dicts": "api.state_dicts",
    "plan": "api.plans",
    "stream": "api.streams",
    "verify": "api.runs",
}
__all__ = [
    "Comparison",
    "Plan",
    "Result",
    "average",
    "compare",
    "errors",
    "merge",
    "merge_method",
    "merge_state_dicts",
    "plan",
    "stream",
    "verify",
]


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
