"""Fixtures of the launcher's tests."""

from support.launcher_fixtures import *  # noqa: F403
