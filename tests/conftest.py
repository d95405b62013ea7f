"""Options of the whole suite. Checkpoints for tests are made by `checkpoints.py` beside this."""

import pytest
from hypothesis import settings

# Hypothesis' 200 ms for an example measure the machine, not the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--update-goldens", action="store_true", help="accept the texts of today")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
