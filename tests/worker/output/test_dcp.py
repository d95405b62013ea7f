"""Blocks of a tensor in the files of a checkpoint: which bytes go where, what is around them."""

import io
import random
import zipfile
import zlib
from dataclasses import replace
from itertools import pairwise, product
from math import prod
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from merge_worker import cli
from merge_worker.dtypes import from_torch_name
from merge_worker.output.blocks import joined_crc, part, runs
from merge_worker.output.journal import Entry, parse_line
from merge_worker.planning.dcp_layout import assign_dcp
from merge_worker.planning.shards import Output
from merge_worker.planning.step import Granularity, Piece, Step, block_grid
from merge_worker.planning.torch_file import PAGE, torch_file
from merge_worker.tensors.chunks import Chunk, Chunks
from support.checkpoint_factory import write_checkpoint

F32 = from_torch_name("float32")
WIDE = ("float64", "float32", "int64", "complex64")
DTYPES = (*WIDE, "float16", "bfloat16", "int16", "uint16", "int8", "uint8", "bool", "float8_e4m3fn")


def test_crcs_of_parts_join_to_that_of_the_whole() -> None:
    chance = random.Random(0)
    for _ in range(50):
        one, other = (chance.randbytes(chance.choice([0, 1, 7, 4096, 100_003])) for _ in "ab")
        joined = joined_crc(zlib.crc32(one), zlib.crc32(other), len(other))
        assert joined == zlib.crc32(one + other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 4, 5), (300, 100)])
def test_torch_loads_what_is_around_a_tensor(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(prod(shape)).reshape(shape).to(getattr(torch, dtype))
    raw = bytes(tensor.contiguous().flatten().view(torch.uint8).tolist()) if prod(shape) else b""
    held = torch_file(from_torch_name(dtype), shape, len(raw), 1000)
    before, after = held.around(zlib.crc32(raw))
    assert 1000 + len(before) == held.begin
    assert held.begin % (PAGE if len(raw) >= 16 * PAGE else 64) == 0
    assert len(before) + len(raw) + len(after) == held.length
    whole = io.BytesIO(before + raw + after)
    assert zipfile.ZipFile(whole).testzip() is None
    whole.seek(0)
    loaded = torch.load(whole, weights_only=True)
    assert loaded.dtype == tensor.dtype
    assert torch.equal(loaded.view(torch.uint8), tensor.view(torch.uint8)) if shape else True


def step_of(shape: tuple[int, ...], cuts: list[list[int]], block: int) -> Step:
    """Return a step whose tensor is cut at places along each axis, a block in a file of its own."""
    spans = [list(pairwise(edges)) for edges in cuts]
    corners = [tuple(zip(*each, strict=True)) for each in product(*spans)]
    chunks = [
        Chunk(first, tuple(b - a for a, b in zip(first, stop, strict=True)), n, 8 * n, 0)
        for n, (first, stop) in enumerate(corners)
    ]
    files = tuple(str(n) for n in range(len(chunks)))
    blocks = Chunks.of("t", F32, shape, files, chunks)
    grid = block_grid(shape, Granularity.ELEMENT, block)
    return Step("t", F32, shape, (), None, None, grid, 1, 0, 0, 0, blocks=blocks)


GRIDS: list[tuple[tuple[int, ...], list[list[int]]]] = [
    ((12,), [[0, 5, 12]]),
    ((7, 9), [[0, 4, 7], [0, 9]]),
    ((7, 9), [[0, 7], [0, 2, 9]]),
    ((7, 9), [[0, 3, 7], [0, 4, 5, 9]]),
    ((4, 6, 5), [[0, 1, 4], [0, 6], [0, 2, 5]]),
    ((3, 4, 5, 2), [[0, 2, 3], [0, 1, 4], [0, 3, 5], [0, 1, 2]]),
]


@pytest.mark.parametrize(("shape", "cuts"), GRIDS)
def test_pieces_fill_the_blocks(shape: tuple[int, ...], cuts: list[list[int]]) -> None:
    tensor = torch.arange(prod(shape), dtype=torch.float32).reshape(shape)
    for block, most in ((1, 1), (4, 3), (7, 1), (1000, 1)):
        step = step_of(shape, cuts, block)
        assert step.blocks is not None
        files = [bytearray(b"?" * 1000) for _ in range(len(step.blocks))]
        for first in range(0, step.grid.blocks, most):
            piece = Piece(first, min(most, step.grid.blocks - first))
            start, stop = step.grid.span(piece.first, piece.blocks)
            data = memoryview(bytearray(tensor.flatten()[start:stop].clone().numpy().tobytes()))
            given = list(runs(step, piece))
            assert sum(run.nbytes for run in given) == len(data)
            for run in given:
                own = part(step, run, data)
                assert len(own) == run.nbytes
                files[run.shard][run.position : run.position + run.nbytes] = own
        for number, chunk in enumerate(map(step.blocks.chunk, range(len(step.blocks)))):
            corner = zip(chunk.offsets, chunk.sizes, strict=True)
            expected = tensor[tuple(slice(a, a + n) for a, n in corner)].contiguous()
            raw = files[chunk.file][8 * chunk.file :][: expected.nbytes]
            assert raw == expected.numpy().tobytes(), number


def test_a_journal_has_the_parts_of_pieces() -> None:
    step = step_of((7, 9), [[0, 7], [0, 2, 9]], 9)
    from merge_worker.output.checksums import Checksum

    sums = tuple(
        (Checksum(n + 1, n << 60), 0xFFFF_FFFF - n) for n, _ in enumerate(runs(step, Piece(0, 2)))
    )
    entry = Entry(3, Piece(0, 2), Checksum(5, 6), 0, sums)
    assert len(sums) == 2
    assert parse_line(entry.line()) == entry
    assert parse_line(replace(entry, parts=()).line()) == replace(entry, parts=())


def test_large_blocks_are_cut_and_files_are_bounded() -> None:
    outputs = [Output("a", F32, (3, 1 << 30)), Output("b", F32, (5,)), Output("c", F32, (8,))]
    layout = assign_dcp(outputs, 40, {})
    assert all(item.zip.nbytes < 1 << 31 for item in layout.items)
    assert sum(item.zip.nbytes for item in layout.items if item.output == 0) == 3 << 32
    assert [shard.tensors for shard in layout.shards] == [("a",), ("b",), ("c",)]
    assert sum(shard.size for shard in layout.shards) == sum(i.zip.length for i in layout.items)


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    first = {"w": torch.randn(700, 400).bfloat16(), "n": torch.randn(9), "s": torch.tensor(2.0)}
    torch.manual_seed(seed)
    return {name: t + 0.1 * torch.randn(t.shape).to(t.dtype) for name, t in first.items()}


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_an_average_of_folders_of_safetensors_is_loaded_by_torch(tmp_path: Path) -> None:
    inputs = [state(seed) for seed in (1, 2, 3)]
    for number, each in enumerate(inputs):
        write_checkpoint(tmp_path / str(number), each)
    words = ["average", str(tmp_path / "out"), *(str(tmp_path / str(n)) for n in range(3))]
    words += ["--format", "dcp", "--progress", "off", "--sha256", "--shard-size", "1KB"]
    assert cli.main(words) == 0
    assert {path.name for path in (tmp_path / "out").glob("__*")} == {
        "__0_0.distcp",
        "__0_1.distcp",
    }
    loaded = {name: torch.zeros_like(tensor) for name, tensor in inputs[0].items()}
    dcp.load(loaded, checkpoint_id=tmp_path / "out")
    for name, tensor in loaded.items():
        exact = sum(each[name].double() for each in inputs) / 3
        assert torch.equal(tensor, exact.to(tensor.dtype)), name
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    again = [*words[:1], str(tmp_path / "again"), *words[2:], "--ranks", "auto"]
    assert cli.main(again) == 0
    for path in (tmp_path / "out").glob("__*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_verify_finds_a_changed_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path / "model", state(1))
    words = ["convert", str(model), str(tmp_path / "out"), "--format", "dcp", "--progress", "off"]
    assert cli.main(words) == 0
    file = tmp_path / "out" / "__0_0.distcp"
    with file.open("r+b") as opened:
        opened.seek(9000)
        opened.write(b"\1\2\3")
    assert cli.main(["verify", str(tmp_path / "out")]) == 3
    assert "it was changed" in capsys.readouterr().err
