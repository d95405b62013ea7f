"""Fixtures of pages whose commands are run: those of the launcher."""

from support.launcher_fixtures import *  # noqa: F403
