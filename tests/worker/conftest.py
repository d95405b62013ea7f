"""Fixtures of the worker's tests."""

from support.worker_fixtures import *  # noqa: F403
