"""Fixtures of whole merges: those of the worker."""

from support.worker_fixtures import *  # noqa: F403
