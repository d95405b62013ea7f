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
from merge_worker.checkpoint.fp8 import dequantized, is_quantized, refuse_quantized
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


def int8(*shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
    return torch.ones(*shape, dtype=dtype)


QUANTIZED = {
    "MLX": (
        {"l.weight": int8(4, 1, dtype=torch.uint32), "l.scales": scales(4, 1)},
        {"quantization": {"bits": 4}},
    ),
    "MLX without a config": (
        {"l.weight": int8(4, 1, dtype=torch.uint32), "l.scales": scales(4, 1)},
        {},
    ),
    "quanto": ({"l.weight._data": int8(4, 8), "l.weight._scale": scales(4, 1)}, {}),
    "HQQ": (
        {"l.W_q": int8(2, 8, dtype=torch.uint8), "l.scale": scales(8, 1), "l.zero": scales(8, 1)},
        {},
    ),
    "GPTQ": ({"l.qweight": int8(1, 8, dtype=torch.int32), "l.scales": scales(1, 8)}, {}),
    "bitsandbytes, 8 bits": ({"l.weight": int8(4, 8), "l.SCB": scales(4)}, {}),
    "bitsandbytes, 4 bits": (
        {"l.weight": int8(16, 1, dtype=torch.uint8), "l.weight.absmax": scales(1)},
        {},
    ),
    "compressed-tensors": (
        {"l.weight_packed": int8(4, 1, dtype=torch.int32), "l.weight_scale": scales(4, 1)},
        {},
    ),
    "AQLM": ({"l.codes": int8(4, 2, 1, dtype=torch.int16), "l.codebooks": scales(1, 8, 1, 8)}, {}),
    "MXFP4": (
        {
            "l.w_blocks": int8(4, 2, 8, dtype=torch.uint8),
            "l.w_scales": int8(4, 2, dtype=torch.uint8),
        },
        {},
    ),
    "FP8 without scales": ({"l.weight": codes(4, 8)}, {}),
    "a label and integers alone": (
        {"l.weight": int8(4, 8)},
        {"quantization_config": {"quant_method": "eetq"}},
    ),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_folders_are_refused_by_what_they_hold(kind: str, tmp_path: Path) -> None:
    tensors, config = QUANTIZED[kind]
    plain = {"norm.weight": torch.ones(8)}
    model = open_checkpoint(write_checkpoint(tmp_path / "m", tensors | plain, config=config))
    with pytest.raises(InputError, match=r"m: quantized( \(|: l\.)"):
        refuse_quantized([model], ["m"])


@pytest.mark.parametrize(
    "tensors",
    [
        {"attn.logit_scale": scales(2, 1, 1), "attn.relative_position_index": int8(4, 4).long()},
        {"embeddings.position_ids": int8(1, 8).long(), "l.weight": scales(4, 8)},
        {"mask.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool), "mask.scale": scales(4)},
        {"bn.num_batches_tracked": torch.tensor(3), "bn.weight": scales(4)},
    ],
)
def test_indices_and_masks_are_not_codes(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    assert is_quantized(open_checkpoint(write_checkpoint(tmp_path / "m", tensors))) is None


@pytest.mark.parametrize("inside", [False, True])
def test_a_label_over_plain_weights(
    inside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = {"quantization_config": {"quant_method": "bitsandbytes"}}
    config: dict[str, object] = {"text_config": {"hidden_size": 4} | label} if inside else label
    for name in "ab":
        weights = {"l.weight": torch.full((2, 2), float(ord(name)))}
        write_checkpoint(tmp_path / name, weights, config={"model_type": "m"} | config)
    words = ["average", str(tmp_path / "out"), str(tmp_path / "a"), str(tmp_path / "b")]
    assert cli.main([*words, "--progress", "off"]) == 0
    assert f"{tmp_path / 'a'}: config.json says quantized, but its weights are plain" in (
        capsys.readouterr().err
    )
    assert float(read_tensors(tmp_path / "out")["l.weight"].mean()) == (ord("a") + ord("b")) / 2
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"model_type": "m"} | ({"text_config": {"hidden_size": 4}} if inside else {})
