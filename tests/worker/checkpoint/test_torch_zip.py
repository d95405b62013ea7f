"""Files of torch.save: read like torch reads them, and nothing that they say is ever run."""

import collections
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_worker import cli
from merge_worker.checkpoint.reader import Files
from merge_worker.checkpoint.torch_zip import read_pickled
from merge_worker.engine.lane import Lane
from merge_worker.errors import InputError
from support.checkpoint_factory import read_tensors, write_checkpoint

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool", "float8_e4m3fn"]


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, by way of a lane."""
    _, tensors = read_pickled(path)
    lane = Lane(torch.device("cpu"), Files())
    return {
        name: lane.read(source, 0, source.count, "in").clone().view(source.shape)
        for name, source in tensors.items()
    }


def assert_same(path: Path) -> None:
    expected = torch.load(path, weights_only=False)  # by ourselves; protocol 4 needs it
    got = read(path)
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert tensor.dtype == expected[name].dtype and tensor.shape == expected[name].shape
        assert torch.equal(tensor.double(), expected[name].detach().double()), name


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_and_arrangement(tmp_path: Path, protocol: int) -> None:
    tensors = {kind: torch.arange(12).view(3, 4).to(getattr(torch, kind)) for kind in DTYPES}
    whole = torch.randn(6, 4)
    tensors |= {
        "part": whole[2:5],
        "whole": whole,
        "transposed": torch.randn(3, 5).T,
        "stack transposed": torch.randn(2, 3, 5).mT,
        "scalar": torch.tensor(3.0),
        "nothing": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "one column": torch.randn(5, 3)[:, :1].contiguous(),
    }
    torch.save(tensors, tmp_path / "m.bin", pickle_protocol=protocol)
    assert_same(tmp_path / "m.bin")


def test_a_state_dict_and_one_inside(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert_same(tmp_path / "a.pt")
    inside = {"epoch": 3, "loss": 0.5, "done": True, "state_dict": model.state_dict()}
    torch.save(inside, tmp_path / "b.ckpt")
    assert read(tmp_path / "b.ckpt").keys() == model.state_dict().keys()


def test_folders_of_pickles_merge_like_safetensors(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    one = {f"layers.{n}.w": torch.randn(20, 30, generator=random) for n in range(4)}
    two = {name: torch.randn(20, 30, generator=random) for name in one}
    (tmp_path / "a").mkdir()
    torch.save(one, tmp_path / "a" / "pytorch_model.bin")
    (tmp_path / "b").mkdir()
    places = {}
    for number, name in enumerate(two):
        file = f"pytorch_model-{number // 2 + 1:05}-of-00002.bin"
        places[name] = file
    for file in set(places.values()):
        torch.save({n: t for n, t in two.items() if places[n] == file}, tmp_path / "b" / file)
    index = tmp_path / "b" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    write_checkpoint(tmp_path / "c", two)
    for second in ("b", "c"):
        out = str(tmp_path / f"out-{second}")
        command = ["average", out, str(tmp_path / "a"), str(tmp_path / second)]
        assert cli.main([*command, "--progress", "off"]) == 0
    results = [read_tensors(tmp_path / f"out-{second}") for second in ("b", "c")]
    assert all(torch.equal(results[0][n], results[1][n]) for n in one)
    assert all(torch.equal(results[0][n], ((one[n].double() + two[n]) / 2).float()) for n in one)


def test_single_files_of_both_kinds(tmp_path: Path) -> None:
    one, two = {"w": torch.ones(3)}, {"w": torch.zeros(3)}
    torch.save(one, tmp_path / "a.pt")
    file = write_checkpoint(tmp_path / "b", two) / "model.safetensors"
    command = ["average", str(tmp_path / "out"), str(tmp_path / "a.pt"), str(file)]
    assert cli.main([*command, "--progress", "off"]) == 0
    assert read_tensors(tmp_path / "out")["w"].tolist() == [0.5] * 3


class Evil:
    """A hostile object: a call of anything when its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_malicious_pickle_does_not_run(
    tmp_path: Path, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, mark = tmp_path / "model", tmp_path / "it ran"
    folder.mkdir()
    content = {"w": torch.ones(2), "x": Evil(mark)}
    torch.save(content, folder / "pytorch_model.bin", pickle_protocol=max(2, protocol))
    if protocol < 2:  # torch writes these no more
        rewrite(folder / "pytorch_model.bin", pickle.dumps({"x": Evil(mark)}, protocol))
    good = write_checkpoint(tmp_path / "good", {"w": torch.ones(2)})
    command = ["average", str(tmp_path / "out"), str(good), str(folder)]
    assert cli.main([*command, "--progress", "off"]) == 3
    errors = capsys.readouterr().err
    assert f"{folder / 'pytorch_model.bin'}: its pickle asks for 'posix.mkdir'; refused" in errors
    assert not mark.exists() and not (tmp_path / "out").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists(), "the test itself: the pickle is malicious"


def rewrite(path: Path, text: bytes, **members: bytes) -> None:
    """Copy the zip with another pickle, and other members."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    folder = next(iter(entries)).split("/")[0]
    entries[f"{folder}/data.pkl"] = text
    entries |= {f"{folder}/{name}": value for name, value in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in entries.items():
            archive.writestr(name, value)


REFUSED: dict[str, tuple[Any, str]] = {
    "a class of its own": (collections.Counter("abc"), "asks for 'collections.Counter'"),
    "a set": ({1, 2}, "its pickle has the operation EMPTY_SET"),
    "no tensors": ({"lr": 0.1}, "no tensors by name"),
    "a list of tensors": ([torch.ones(2)], "no tensors by name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_else_is_refused(case: str, tmp_path: Path) -> None:
    value, text = REFUSED[case]
    torch.save(value, tmp_path / "m.bin", pickle_protocol=4)
    with pytest.raises(InputError, match=text):
        read_pickled(tmp_path / "m.bin")


def test_pickles_without_an_end(tmp_path: Path) -> None:
    """Tuples of themselves as keys, which are hashed for ever, and products that fill memory."""
    nested = b"\x80\x02(" + b")" + b"2\x86" * 80 + b"Nd."
    number = b"\x8b" + (1 << 20).to_bytes(4, "little") + b"\x01" * (1 << 20) + b"q\x00"
    shape = b"(" + number + b"h\x00" * 5000 + b"t"
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000Nt"
    huge = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + storage
    huge += b"QK\x00" + shape + b"q\x01h\x01tRs."
    for raw, words in ((nested, "no tensors by name"), (huge, "of impossible shape")):
        with zipfile.ZipFile(tmp_path / "m.bin", "w") as file:
            file.writestr("m/data.pkl", raw)
            file.writestr("m/data/0", bytes(64))
        with pytest.raises(InputError, match=words):
            read_pickled(tmp_path / "m.bin")


ODD_PICKLES = {
    "copies of one list": b"(" + b"N" * 1_000_000 + b"lq\x00" + b"ctorch\nSize\nh\x00\x85R" * 400,
    "many dicts": b"}" * 3_000_000,
    "keys of one hash": b"}("
    + b"".join(b"\x8a\x0a" + ((2**61 - 1) * n).to_bytes(10, "little") + b"N" for n in range(50_000))
    + b"u",
    "places of one hash": b"N" + b"".join(b"p%d\n" % ((2**61 - 1) * n) for n in range(50_000)),
    "a list as a name": b"]q\x00h\x00h\x00\x93",
}


@pytest.mark.parametrize("case", ODD_PICKLES)
def test_small_pickles_take_little(case: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as file:
        file.writestr("m/data.pkl", b"\x80\x04" + ODD_PICKLES[case] + b".")
        file.writestr("m/data/0", bytes(64))
    with pytest.raises(InputError, match=r"too large|damaged|no tensors by name"):
        read_pickled(tmp_path / "m.bin")


def test_files_that_are_no_such_zip(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before 1\.6"):
        read_pickled(path)
    path.write_bytes(b"version https://git-lfs")
    with pytest.raises(InputError, match="Git LFS"):
        read_pickled(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(InputError, match="without the one data"):
        read_pickled(path)


def test_views_that_lie_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    torch.save({"w": torch.randn(4, 6)[:, ::2]}, path)
    with pytest.raises(InputError, match=r"'w' is a view with strides \[6, 2\]"):
        read_pickled(path)
    torch.save({"w": torch.ones(1).expand(5)}, path)
    with pytest.raises(InputError, match=r"strides \[0\]"):
        read_pickled(path)


def test_bytes_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    torch.save({"w": torch.randn(100)}, path)
    with zipfile.ZipFile(path) as archive:
        text = archive.read("m/data.pkl")
    rewrite(path, text, **{"data/0": b"short"})
    with pytest.raises(InputError, match="bytes of tensor 'w' are not in the file"):
        read_pickled(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="damaged zip"):
        read_pickled(path)


def example() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.randn(3, 4), "b": torch.ones(2).half()}, buffer)
    return buffer.getvalue()


EXAMPLE = example()


@settings(max_examples=300)
@given(place=st.integers(0, 600), value=st.binary(min_size=1, max_size=4))
def test_any_damage_is_told_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "m.bin"
    path.write_bytes(EXAMPLE[:place] + value + EXAMPLE[place + len(value) :])
    try:
        _, tensors = read_pickled(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        size = path.stat().st_size
        for source in tensors.values():
            assert all(p.offset + p.nbytes <= size for p in getattr(source, "inputs", (source,)))
