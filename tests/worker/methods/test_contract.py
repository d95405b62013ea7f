"""Rules that every merge method follows, whatever it computes."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from merge_worker import methods
from merge_worker.method import BaseRole, Method
from support.method_driver import merge, models_of, values_of

METHODS = [methods.get(name) for name in methods.names()]
SHAPES = [(), (1,), (5,), (200,), (4, 6), (40, 30), (6, 1), (1, 6), (2, 3, 5), (0,), (0, 4), (4, 0)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def sources_of(
    method: Method, shape: Sequence[int], dtype: torch.dtype, seed: int = 0
) -> tuple[list[Tensor], Tensor | None]:
    noise = torch.Generator().manual_seed(seed)

    def random(size: float) -> Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64) * size

    base = random(0.02)
    models = [(base + random(0.004)).to(dtype) for _ in range(models_of(method))]
    return models, None if method.base is BaseRole.IGNORED else base.to(dtype)


def run(method: Method, models: list[Tensor], base: Tensor | None, **more: object) -> Tensor:
    return merge(method.name, models, base, **values_of(method, len(models)), **more)  # type: ignore[arg-type]  # values


def same_bits(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and x.reshape(-1).view(torch.uint8).equal(
        y.reshape(-1).view(torch.uint8)
    )


@every_method
def test_every_method_is_documented(method: Method) -> None:
    assert method.doc.splitlines()[0].endswith(".")
    assert method.reference.startswith("https://")


@every_method
@every_shape
def test_shape_and_dtype_are_those_asked_for(method: Method, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        models, base = sources_of(method, shape, torch.bfloat16)
        got = run(method, models, base, dtype=dtype)
        assert got.shape == torch.Size(shape)
        assert got.dtype == dtype
        assert bool(got.isfinite().all())


@every_method
def test_sources_may_have_different_dtypes(method: Method) -> None:
    models, base = sources_of(method, (40, 30), torch.float32)
    mixed = [x.to(dtype) for x, dtype in zip(models, DTYPES, strict=False)]
    got = run(method, mixed, base, dtype=torch.bfloat16)
    assert bool(got.isfinite().all())


@every_method
@every_shape
def test_the_same_twice_and_sources_untouched(method: Method, shape: tuple[int, ...]) -> None:
    models, base = sources_of(method, shape, torch.bfloat16)
    before = [x.clone() for x in models]
    first = run(method, models, base)
    assert all(x.equal(y) for x, y in zip(models, before, strict=True))
    assert same_bits(first, run(method, models, base))


@every_method
@pytest.mark.parametrize("shape", [(200,), (40, 30), (12, 5, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_size_of_blocks_hardly_matters(
    method: Method, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    models, base = sources_of(method, shape, dtype)
    whole = run(method, models, base).double()
    tolerance = 2.0**-7 if dtype == torch.bfloat16 else 1e-12
    for block in (1, 7, 64):
        cut = run(method, models, base, block=block).double()
        assert torch.allclose(cut, whole, rtol=tolerance, atol=tolerance * 1e-2)


@every_method
@every_shape
def test_models_that_are_alike_stay_as_they_are(method: Method, shape: tuple[int, ...]) -> None:
    models, base = sources_of(method, shape, torch.bfloat16)
    got = run(method, [models[0].clone() for _ in models], None if base is None else models[0])
    assert got.equal(models[0])


@every_method
def test_zeros_stay_zeros(method: Method) -> None:
    models, base = sources_of(method, (8, 9), torch.float32)
    zero = torch.zeros(8, 9)
    got = run(method, [zero.clone() for _ in models], None if base is None else zero)
    assert not got.any()


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_show_in_the_result(method: Method, bad: float) -> None:
    """The engine can then refuse the result: never a crash, never hidden."""
    models, base = sources_of(method, (40, 30), torch.bfloat16)
    models[0][3, 4] = bad
    assert not bool(run(method, models, base).isfinite().all())
    models, base = sources_of(method, (40, 30), torch.bfloat16)
    if base is not None:
        base[3, 4] = bad
        assert not bool(run(method, models, base).isfinite().all())


@every_method
def test_an_optional_base_may_be_absent(method: Method) -> None:
    if method.base is not BaseRole.OPTIONAL:
        pytest.skip("its base is not optional")
    models, _ = sources_of(method, (8, 9), torch.float32)
    assert bool(run(method, models, None).isfinite().all())
