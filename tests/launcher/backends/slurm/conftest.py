"""A real Slurm for the tests of a module, which leave no job behind."""

from collections.abc import Iterator

import pytest

from support import real_slurm
from support.real_slurm import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from real_slurm.cluster(tmp_path_factory.mktemp("slurm"))


@pytest.fixture
def slurm(cluster: Cluster, isolated: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.clear()
