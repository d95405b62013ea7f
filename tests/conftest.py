"""Options of the whole suite. Checkpoints for tests are made by `checkpoints.py` beside this."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The hub's client and transformers read these once, whichever test is the first to import them.
# Where a test has a hub of its own, it says so to a process of its own.
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
    del os.environ[_name]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

# Time limits of hypothesis measure the machine, not the code.
slow = [HealthCheck.too_slow]
settings.register_profile("untimed", deadline=None, suppress_health_check=slow)
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="module")
def _same_environment() -> Iterator[None]:
    """No module leaves a variable or a handler of signals to those that come after it."""
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    variables, handlers = dict(os.environ), {kind: signal.getsignal(kind) for kind in kinds}
    yield
    for kind, handler in handlers.items():
        signal.signal(kind, handler)
    for name in set(os.environ) - set(variables) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ |= {k: v for k, v in variables.items() if k != "PYTEST_CURRENT_TEST"}


def pytest_configure(config: pytest.Config) -> None:
    # Of sentencepiece, when it is imported. As an error it leaves half a module behind, over which
    # Python falls when it ends: code 139, after tests that have all passed.
    config.addinivalue_line("filterwarnings", "ignore:builtin type swig:DeprecationWarning")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    rounds = "rounds of the storm of kills (default: 3)"
    parser.addoption("--storm-rounds", type=int, default=3, help=rounds)
    parser.addoption("--every-peak", action="store_true", help="memory of every method (slow)")
    parser.addoption("--random-merges", type=int, default=20, help="number of random recipes")
    parser.addoption("--update-goldens", action="store_true", help="accept the texts of today")


# Files that mount file systems or run a scheduler: one process runs them all, one after another.
OF_THE_MACHINE = {
    "test_broken_mounts.py",
    "test_environments.py",
    "test_file_systems.py",
    "test_real_search.py",
    "test_real_slurm.py",
    "test_real_verdicts.py",
    "test_real_torque.py",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "machine" if item.path.name in OF_THE_MACHINE else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
