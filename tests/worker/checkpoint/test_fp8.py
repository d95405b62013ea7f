"""FP8 with scales: the values are those of torch, for every kind of block and any cut of a run."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_worker import cli
from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.checkpoint.fp8 import dequantized
from merge_worker.checkpoint.reader import Files
from merge_worker.engine.lane import Lane
from merge_worker.errors import InputError
from merge_worker.tensors.source import buffer_size
from support.checkpoint_factory import read_tensors, write_checkpoint

RANDOM = torch.Generator().manual_seed(3)


def codes(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=RANDOM).to(torch.float8_e4m3fn)


def scales(*shape: int) -> Tensor:
    return torch.rand(shape, generator=RANDOM) + 0.5


def blown(grid: Tensor, height: int, width: int, shape: torch.Size) -> Tensor:
    wide = grid.repeat_interleave(height, -2).repeat_interleave(width, -1)
    return wide[..., : shape[-2], : shape[-1]]


# Codes, scales, rows and columns of a block (None: one for all), what the config says.
CASES: dict[str, tuple[Tensor, Tensor, tuple[int, int] | None]] = {
    "blocks": (codes(300, 200), scales(3, 2), (128, 128)),
    "blocks of another size": (codes(10, 9), scales(3, 3), (4, 3)),
    "a stack of blocks": (codes(3, 10, 9), scales(3, 3, 3), (4, 3)),
    "rows": (codes(6, 10), scales(6, 1), (1, 10)),
    "a stack of rows": (codes(2, 6, 10), scales(2, 6, 1), (1, 10)),
    "one": (codes(6, 10), scales(1), None),
    "a scalar": (codes(6, 10), scales(), None),
    "one for each of a stack": (codes(3, 6, 10), scales(3, 1, 1), (6, 10)),
    "exponents": (codes(8, 8), torch.tensor([[2.0, 0.5]]).to(torch.float8_e8m0fnu), (8, 4)),
}


def expected(case: str) -> Tensor:
    values, grid, block = CASES[case]
    if block is None:
        return values.float() * grid.float()
    return values.float() * blown(grid.float(), *block, values.shape)


def model(folder: Path, case: str, end: str = "_scale_inv") -> Path:
    values, grid, block = CASES[case]
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
    tensors = {"l.weight": values, f"l.weight{end}": grid, "l.input_scale": torch.ones(1)}
    return write_checkpoint(folder, tensors, config={"torch_dtype": "bfloat16", **config})


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=30)
@given(data=st.data())
def test_any_run(case: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    opened = dequantized(open_checkpoint(model(tmp_path_factory.mktemp("m") / "m", case)))
    assert opened.tensors.keys() == {"l.weight"} and "quantization_config" not in opened.config
    source = opened.tensors["l.weight"]
    start = data.draw(st.integers(0, source.count))
    stop = data.draw(st.integers(start, source.count))
    lane = Lane(torch.device("cpu"), Files())
    got = lane.read(source, start, stop, "in0")
    assert torch.equal(got, expected(case).reshape(-1)[start:stop])
    size = buffer_size(source)
    assert lane.host.size_with({}) <= size.per_element * (stop - start) + size.fixed
    lane.files.close()


@pytest.mark.parametrize("end", ["_scale_inv", "_scale"])
@pytest.mark.parametrize("how", ["option", "recipe"])
def test_a_merge_of_fp8_and_plain_weights(tmp_path: Path, end: str, how: str) -> None:
    first = model(tmp_path / "a", "blocks", end)
    other = torch.randn(300, 200, generator=RANDOM).bfloat16()
    second = write_checkpoint(tmp_path / "b", {"l.weight": other})
    out = str(tmp_path / "out")
    if how == "option":
        command = ["average", out, str(first), str(second), "--dequantize"]
    else:
        text = f"merge_method: linear\nmodels: [{first}, {second}]\nparameters: {{weight: 1}}\n"
        (tmp_path / "r.yml").write_text(text + "dequantize: true\n")
        command = ["merge", str(tmp_path / "r.yml"), out]
    assert cli.main([*command, "--progress", "off"]) == 0
    merged = read_tensors(tmp_path / "out")
    mean = ((expected("blocks").double() + other.double()) / 2).bfloat16()
    assert merged.keys() == {"l.weight"}
    assert merged["l.weight"].dtype == torch.bfloat16 and torch.equal(merged["l.weight"], mean)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"torch_dtype": "bfloat16"}


def test_without_the_option_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = model(tmp_path / "a", "rows"), model(tmp_path / "b", "rows")
    assert cli.main(["average", str(tmp_path / "out"), str(first), str(second)]) == 3
    errors = capsys.readouterr().err
    assert f"{first}: quantized (fp8)" in errors and "--dequantize" in errors


def test_scales_that_fit_nothing(tmp_path: Path) -> None:
    tensors = {"l.weight": codes(10, 10), "l.weight_scale_inv": scales(4, 7)}
    folder = write_checkpoint(tmp_path / "m", tensors)
    with pytest.raises(InputError, match=r"\[4, 7\], which is not a grid of scales"):
        dequantized(open_checkpoint(folder))


def test_codes_without_scales(tmp_path: Path) -> None:
    tensors = {"a.weight": codes(4, 4), "a.weight_scale": scales(1), "b.weight": codes(4, 4)}
    folder = write_checkpoint(tmp_path / "m", tensors)
    with pytest.raises(InputError, match=r"1 tensor has no scales: b\.weight"):
        dequantized(open_checkpoint(folder))


def test_plain_models_stay_as_they_are(models: list[Path]) -> None:
    opened = open_checkpoint(models[0])
    assert dequantized(opened) is opened
