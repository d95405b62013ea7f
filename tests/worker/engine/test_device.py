"""Words for devices, without any accelerator at hand."""

import pytest
import torch

from merge_worker.engine import device as device_module
from merge_worker.engine.device import devices, devices_of
from merge_worker.errors import UsageError


def seen(monkeypatch: pytest.MonkeyPatch, **found: int) -> None:
    def visible(kind: str) -> list[torch.device]:
        return [torch.device(kind, index) for index in range(found.get(kind, 0))]

    monkeypatch.setattr(device_module, "_visible", visible)


def test_auto_is_every_accelerator_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch)
    assert devices("auto") == [torch.device("cpu")]
    seen(monkeypatch, cuda=2, mps=1)
    assert devices("auto") == [torch.device("cuda", 0), torch.device("cuda", 1)]
    seen(monkeypatch, mps=1)
    assert devices("auto") == [torch.device("mps", 0)]


def test_named_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, cuda=3)
    assert devices("cpu") == [torch.device("cpu")]
    assert len(devices("cuda")) == 3
    assert devices("cuda:2") == [torch.device("cuda", 2)]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_processes_share_all_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    seen(monkeypatch, cuda=8)
    shares = [devices_of("auto", number, count) for number in range(count)]
    assert {device for share in shares for device in share} == set(devices("auto"))
    # A context on a device takes half a GiB of it: no more of them than needed.
    assert all(len(share) == 1 for share in shares) or sum(map(len, shares)) == 8
    seen(monkeypatch)
    assert devices_of("auto", count - 1, count) == [torch.device("cpu")]


@pytest.mark.parametrize("word", ["cuda:7", "xpu", "mps"])
def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    seen(monkeypatch, cuda=1)
    with pytest.raises(UsageError, match="sees no such device"):
        devices(word)


@pytest.mark.parametrize("word", ["", "gpu", "cuda:x", "cuda:-1", "CPU", "cpu:1", "cuda:²"])
def test_words_that_are_none(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    seen(monkeypatch, cuda=1)
    with pytest.raises(UsageError, match="one of auto, cpu, cuda"):
        devices(word)


def test_this_machine() -> None:
    assert devices("auto")
    assert devices("cpu") == [torch.device("cpu")]
