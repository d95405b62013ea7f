"""Fixtures of the worker's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import two_pass_method
from support.forked_process import Forks
from support.recipes import some_models


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables of a launcher around the tests, which would make the worker a rank."""
    for name in ("RANK", "SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "BEAKER_REPLICA_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Write three small bfloat16 models to folders of their own."""
    return some_models(tmp_path)


@pytest.fixture
def centered_method() -> Iterator[None]:
    """Register the method of two_pass_method.py, which reads every tensor twice."""
    before = two_pass_method.register()
    yield
    two_pass_method.restore(before)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    parent = Forks(tmp_path_factory.mktemp("forks"))
    yield parent
    parent.close()
