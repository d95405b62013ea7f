import pytest
import torch

from support.method_driver import merge


def test_by_hand() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert merge("passthrough", [x], scale=0.5).tolist() == [0.5, 1]
    assert merge("passthrough", [x], scale=0).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_bits_are_kept(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-40, 3.0]).to(dtype)
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert merge("passthrough", [x]).view(kind).equal(x.view(kind))
    assert merge("passthrough", [x], scale=1).view(kind).equal(x.view(kind))


def test_a_second_source_is_refused() -> None:
    with pytest.raises(ValueError, match="passthrough merges 1 model"):
        merge("passthrough", [torch.ones(1)], torch.ones(1))
