"""Shards as planned: safetensors itself must read what our headers promise."""

import json
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from merge_worker.dtypes import BY_NAME
from merge_worker.planning.shards import PAGE, Output, assign_shards, index_json
from support.checkpoint_factory import read_tensors


def output(name: str, shape: tuple[int, ...], dtype: str = "BF16") -> Output:
    return Output(name, BY_NAME[dtype], shape)


dtypes = st.sampled_from(["F64", "F32", "BF16", "F16", "I64", "U8", "BOOL"])
outputs = st.lists(
    st.tuples(st.lists(st.integers(0, 5), max_size=3).map(tuple), dtypes), min_size=1, max_size=12
).map(lambda rows: [output(f"t{i}", shape, dtype) for i, (shape, dtype) in enumerate(rows)])


@given(outputs, st.integers(1, 300))
def test_places_are_aligned_disjoint_and_complete(
    requested: list[Output], shard_bytes: int
) -> None:
    layout = assign_shards(requested, shard_bytes)
    ranges: dict[int, list[tuple[int, int]]] = {}
    for item, (shard, offset) in zip(requested, layout.places, strict=True):
        assert offset % item.dtype.bytes == 0, "every tensor starts aligned"
        ranges.setdefault(shard, []).append((offset, offset + item.nbytes))
        assert item.name in layout.shards[shard].tensors
    for number, shard in enumerate(layout.shards):
        position = len(shard.header)
        for first, last in sorted(ranges[number]):
            assert first == position
            position = last
        assert position == shard.size
        length = int.from_bytes(shard.header[:8], "little")
        assert length + 8 == len(shard.header) and len(shard.header) % 8 == 0
        assert json.loads(shard.header[8:])["__metadata__"] == {"format": "pt"}


@given(outputs, st.integers(1, 300))
def test_shards_hold_no_more_than_asked_or_one_tensor(requested: list[Output], limit: int) -> None:
    sizes = {item.name: item.nbytes for item in requested}
    for shard in assign_shards(requested, limit).shards:
        weighty = [sizes[name] for name in shard.tensors]
        assert sum(weighty) <= limit or len(shard.tensors) == 1


def test_whole_pages_begin_at_a_page_whatever_stands_between_them() -> None:
    """A piece that shares a page with its neighbour makes all writers of the file wait."""
    requested = [
        output("odd", (3,)),
        output("a", (2048, 3)),
        output("wide", (5,), "F64"),
        output("b", (1024,), "F32"),
        output("narrow", (7,), "U8"),
        output("c", (PAGE,), "U8"),
    ]
    layout = assign_shards(requested, 1 << 30)
    (shard,) = layout.shards
    assert len(shard.header) % PAGE == 0
    assert shard.tensors == ("a", "b", "c", "wide", "odd", "narrow")
    assert [offset % PAGE for _, offset in layout.places][1::2] == [0, 0, 0]


def test_safetensors_reads_it(tmp_path: Path) -> None:
    requested = [
        output("a", (2, 3)),
        output("größe\x1b", (4,), "F32"),
        output("s", (), "F64"),
        output("z", (0, 7)),
        output("b", (3,), "BOOL"),
    ]
    (shard,) = assign_shards(requested, 1000).shards
    assert shard.name == "model.safetensors"
    (tmp_path / shard.name).write_bytes(shard.header + bytes(shard.size - len(shard.header)))
    tensors = read_tensors(tmp_path)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        o.name: o.shape for o in requested
    }
    assert tensors["a"].dtype is torch.bfloat16 and tensors["b"].dtype is torch.bool
    with safe_open(tmp_path / shard.name, "pt") as reader:
        assert reader.metadata() == {"format": "pt"}


def test_names_of_shards_and_the_index() -> None:
    layout = assign_shards([output(f"t{i}", (100,)) for i in range(5)], 400)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [shard.name for shard in layout.shards] == names
    index = json.loads(index_json(layout.shards))
    assert index["metadata"] == {"total_size": 1000}
    assert index["weight_map"] == dict(
        t0=names[0], t1=names[0], t2=names[1], t3=names[1], t4=names[2]
    )


def test_layout_does_not_depend_on_more_than_its_inputs() -> None:
    requested = [output("a", (3,)), output("b", (3,), "F32"), output("c", (1,), "U8")]
    assert assign_shards(requested, 1000) == assign_shards(list(requested), 1000)
    assert assign_shards(requested, 1000).shards[0].tensors == ("b", "a", "c"), "wider dtypes first"
