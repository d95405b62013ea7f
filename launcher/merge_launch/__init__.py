"""merge-launch: preflight, job text, submission. The merge itself is the worker's."""

from merge_worker import __version__

__all__ = ["__version__"]
