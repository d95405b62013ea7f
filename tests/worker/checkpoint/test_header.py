"""Headers of files that nobody vouches for: read right, or refused with a place and a fact."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from merge_worker.checkpoint.header import MAX_HEADER_BYTES, Shard, read_shard
from merge_worker.errors import InputError
from merge_worker.messages import printable
from support.recipes import entry, raw_file

GOOD = {"__metadata__": {"format": "pt"}, "a": entry([2], 0, 8), "b": entry([1], 8, 12)}


def fault(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_shard(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def header_fault(tmp_path: Path, header: object, data: bytes = bytes(12)) -> str:
    return fault(raw_file(tmp_path / "x.safetensors", header, data))


def test_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "w": torch.ones(3, 4, dtype=torch.bfloat16),
        "s": torch.tensor(1.0),
        "z": torch.zeros(0, 2),
        "i": torch.arange(3),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    shard = read_shard(tmp_path / "x.safetensors")
    by_name = {info.name: info for info in shard.tensors}
    assert {n: (i.shape, i.dtype.torch_name) for n, i in by_name.items()} == {
        n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()
    }
    raw = (tmp_path / "x.safetensors").read_bytes()
    for name, info in by_name.items():
        stored = raw[info.offset : info.offset + info.nbytes]
        assert stored == bytes(tensors[name].reshape(-1).view(torch.uint8).tolist())
        assert info.count == tensors[name].numel()
    assert shard.size == len(raw)
    assert [i.offset for i in shard.tensors] == sorted(i.offset for i in shard.tensors)


def test_digest_is_of_the_header_alone(tmp_path: Path) -> None:
    first = read_shard(raw_file(tmp_path / "1", GOOD, bytes(12)))
    second = read_shard(raw_file(tmp_path / "2", GOOD, b"x" * 12))
    other = read_shard(raw_file(tmp_path / "3", {"a": entry([3], 0, 12)}, bytes(12)))
    assert first.header_sha256 == second.header_sha256 != other.header_sha256


def test_a_truncated_file(tmp_path: Path) -> None:
    text = header_fault(tmp_path, GOOD, bytes(11))
    assert "shorter than the" in text and "incomplete" in text


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    assert "longer than the" in header_fault(tmp_path, GOOD, bytes(13))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_room_for_a_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(size))
    assert f"ends at byte {size}" in fault(path)


@pytest.mark.parametrize("length", [13, MAX_HEADER_BYTES + 1, (1 << 64) - 1])
def test_a_header_length_that_lies(tmp_path: Path, length: int) -> None:
    path = raw_file(tmp_path / "x.safetensors", b"{}", bytes(4), length=length)
    assert "not a safetensors file, or a damaged one" in fault(path)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\n\n<html><head></head></html>      ", "an HTML page"),
        (b"PK\x03\x04\x00\x00\x08\x08rest of a zip", "a PyTorch pickle"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P", "a PyTorch pickle"),
        (b"GGUF\x03\x00\x00\x00\x01\x02\x03\x04", "a GGUF file"),
        (b"just some words that are here", "not a safetensors file"),
    ],
)
def test_what_else_it_may_be(tmp_path: Path, first: bytes, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(first + bytes(100))
    assert words in fault(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "a FIFO" in fault(tmp_path / "fifo"), "and it did not block"
    assert "a folder" in fault(tmp_path)
    assert "a device" in fault(Path("/dev/zero"))
    assert "No such file" in fault(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in fault(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert str(tmp_path / "socket") in fault(tmp_path / "socket")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ([], "not a JSON object"),
        ({"a": entry([3], 0, 12), "b": entry([1], 8, 12)}, "overlaps its neighbour"),
        ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, "leaves a hole"),
        ({"a": entry([2], 4, 12)}, "leaves a hole"),
        ({"a": entry([2], 0, 12)}, "tensor 'a' is"),
        ({"a": entry([3], 12, 0)}, "tensor 'a' is"),
        ({"a": entry([-3], 0, 12)}, "tensor 'a' is"),
        ({"a": entry([-1, -3], 0, 12)}, "tensor 'a' is"),
        ({"a": {**entry([3], 0, 12), "shape": [3.0]}}, "tensor 'a' is"),
        ({"a": {**entry([3], 0, 12), "shape": [True, 3]}}, "tensor 'a' is"),
        ({"a": {**entry([3], 0, 12), "shape": 3}}, "tensor 'a' is"),
        ({"a": {**entry([3], 0, 12), "shape": "3"}}, "tensor 'a' is"),
        ({"a": {**entry([3], 0, 12), "data_offsets": [0]}}, "tensor 'a' is"),
        ({"a": {**entry([3], 0, 12), "data_offsets": [0, 12, 24]}}, "tensor 'a' is"),
        ({"a": {**entry([3], 0, 12), "data_offsets": None}}, "tensor 'a' is"),
        ({"a": {"dtype": "F32"}}, "tensor 'a' is"),
        ({"a": 3}, "tensor 'a' is"),
        ({"a": {**entry([3], 0, 12), "dtype": ["F32"]}}, "tensor 'a' is"),
        ({"a" * 1001: entry([3], 0, 12)}, "a tensor 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…'"),
        ({"a": entry([1 << 62, 1 << 62, 1 << 62], 0, 12)}, "tensor 'a' is"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: object, words: str) -> None:
    assert words in header_fault(tmp_path, header)


def test_a_name_that_stands_twice(tmp_path: Path) -> None:
    tensor = json.dumps(entry([3], 0, 12))
    text = f'{{"a":{tensor},"a":{tensor}}}'.encode()
    assert "a name stands twice" in header_fault(tmp_path, text)


@pytest.mark.parametrize("part", [b"[],", b"{},", b"0,", b'"",'])
def test_a_header_of_nothing_but_commas(tmp_path: Path, part: bytes) -> None:
    """Read as JSON it would take forty times its size."""
    text = b'{"a":[' + part * (4_000_000 // len(part)) + b"0]}"
    with pytest.raises(InputError, match="no list of tensors"):
        read_shard(raw_file(tmp_path / "m.safetensors", text))
    names = {f"layers.{n}.a": entry([1, 1, 1, 1], 4 * n, 4 * n + 4) for n in range(20_000)}
    path = raw_file(tmp_path / "n.safetensors", names, bytes(80_000))
    assert path.stat().st_size > 1 << 20 and len(read_shard(path).tensors) == 20_000


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    text = header_fault(tmp_path, {"a": entry([3], 0, 12, "F13")})
    assert "tensor 'a' has dtype 'F13'" in text and "unknown" in text


def test_a_name_that_no_file_can_hold(tmp_path: Path) -> None:
    text = b'{"\\ud800": %s}' % json.dumps(entry([3], 0, 12)).encode()
    assert "not valid" in header_fault(tmp_path, text)


def test_an_absurd_shape_is_refused_soon(tmp_path: Path) -> None:
    text = header_fault(tmp_path, {"a": entry([(1 << 63) - 1] * 200_000, 0, 12)})
    assert "tensor 'a' is" in text and len(text) < 1000


def test_escapes_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x07"
    texts = [
        header_fault(tmp_path, {evil: entry([2], 0, 12)}),
        header_fault(tmp_path, {evil: entry([2], 4, 12)}),
        header_fault(tmp_path, {"a": {**entry([2], 0, 12), "dtype": evil}}),
    ]
    assert all(text.isprintable() for text in texts)


def test_empty_and_scalar_tensors(tmp_path: Path) -> None:
    header = {"z": entry([0, 5], 0, 0), "s": entry([], 0, 4), "y": entry([0], 4, 4)}
    shard = read_shard(raw_file(tmp_path / "x", header, bytes(4)))
    assert {info.name: info.count for info in shard.tensors} == {"z": 0, "s": 1, "y": 0}


def accepted(path: Path) -> Shard | None:
    try:
        return read_shard(path)
    except InputError as error:
        assert printable(str(error)) == str(error), "one line that a terminal may see"
        return None


fuzzing = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzing
@given(st.binary(max_size=200))
def test_random_bytes(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    shard = accepted(tmp_path / "x")
    assert shard is None or shard.size == len(raw)


@pytest.mark.parametrize("raw", [b"0", b"null", b"true", b"[1]", b'"x"'])
def test_a_header_that_is_no_object_is_told_so(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(InputError, match="not a JSON object"):
        read_shard(raw_file(tmp_path / "x", raw, b"", length=len(raw)))


@fuzzing
@given(st.binary(max_size=60), st.integers(0, 70))
def test_random_headers(tmp_path: Path, raw: bytes, length: int) -> None:
    accepted(raw_file(tmp_path / "x", raw, bytes(8), length=length))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@fuzzing
@given(
    st.sampled_from(["dtype", "shape", "data_offsets", "extra"]),
    json_values
    | st.lists(st.integers(-2, 20), max_size=3)
    | st.sampled_from(["BF16", "F4", "F6_E2M3", "I8"]),
    st.sampled_from(["a", "b", "__metadata__"]),
)
def test_one_wrong_value(tmp_path: Path, key: str, value: Any, name: str) -> None:
    header: dict[str, Any] = json.loads(json.dumps(GOOD))
    header[name][key] = value
    shard = accepted(raw_file(tmp_path / "x", header, bytes(12)))
    if shard is not None:
        assert sum(info.nbytes for info in shard.tensors) == 12
        assert all(i.offset >= 0 and i.offset + i.nbytes <= shard.size for i in shard.tensors)


@fuzzing
@given(st.integers(0, 130), st.integers(0, 255))
def test_one_wrong_byte(tmp_path: Path, place: int, byte: int) -> None:
    raw = bytearray(raw_file(tmp_path / "x", GOOD, bytes(12)).read_bytes())
    raw[place % len(raw)] = byte
    (tmp_path / "x").write_bytes(raw)
    accepted(tmp_path / "x")


def test_how_a_file_has_changed(tmp_path: Path) -> None:
    """A file is another one for what was written to it, whatever its size and mtime say."""
    path = tmp_path / "x.safetensors"

    def fresh() -> Shard:
        path.unlink(missing_ok=True)
        save_file({"x": torch.zeros(4)}, path)
        return read_shard(path)

    def keep_mtime(shard: Shard) -> None:
        os.utime(path, ns=(0, shard.stamp[1]))

    shard = fresh()
    assert shard.changed() == ""
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"else")
    keep_mtime(shard)
    assert "it was written to, renamed or linked" in shard.changed()
    shard = fresh()
    save_file({"x": torch.ones(4)}, tmp_path / "other")
    (tmp_path / "other").replace(path)
    keep_mtime(shard)
    assert shard.changed() == "another file has its name"
    shard = fresh()
    path.write_bytes(path.read_bytes() + b"more")
    assert "it has another size" in shard.changed() and "renamed" not in shard.changed()
