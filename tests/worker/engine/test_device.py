"""Words for devices, without any accelerator at hand."""

import pytest
import torch

from merge_worker.engine import device as device_module
from merge_worker.engine.device import devices_of_rank, select_devices
from merge_worker.errors import UsageError


def seen(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    def visible(kind: str) -> list[torch.device]:
        return [torch.device(kind, index) for index in range(counts.get(kind, 0))]

    monkeypatch.setattr(device_module, "_visible", visible)


def test_auto_is_every_accelerator_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch)
    assert select_devices("auto") == [torch.device("cpu")]
    seen(monkeypatch, cuda=2, mps=1)
    assert select_devices("auto") == [torch.device("cuda", 0), torch.device("cuda", 1)]
    seen(monkeypatch, mps=1)
    assert select_devices("auto") == [torch.device("mps", 0)]


def test_named_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, cuda=3)
    assert select_devices("cpu") == [torch.device("cpu")]
    assert len(select_devices("cuda")) == 3
    assert select_devices("cuda:2") == [torch.device("cuda", 2)]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_processes_share_all_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    seen(monkeypatch, cuda=8)
    shares = [devices_of_rank("auto", number, count) for number in range(count)]
    assert {device for share in shares for device in share} == set(select_devices("auto"))
    # A context on a device takes half a GiB of it: no more of them than needed.
    assert all(len(share) == 1 for share in shares) or sum(map(len, shares)) == 8
    seen(monkeypatch)
    assert devices_of_rank("auto", count - 1, count) == [torch.device("cpu")]


@pytest.mark.parametrize("word", ["cuda:7", "xpu", "mps"])
def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    seen(monkeypatch, cuda=1)
    with pytest.raises(UsageError, match="sees no such device"):
        select_devices(word)


@pytest.mark.parametrize("word", ["", "gpu", "cuda:x", "cuda:-1", "CPU", "cpu:1", "cuda:²"])
def test_words_that_are_none(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    seen(monkeypatch, cuda=1)
    with pytest.raises(UsageError, match="one of auto, cpu, cuda"):
        select_devices(word)


def test_this_machine() -> None:
    assert select_devices("auto")
    assert select_devices("cpu") == [torch.device("cpu")]
