"""Model folders as people have them: all layouts are one model, every fault has its words."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge_worker.checkpoint.folder import is_hub_id, open_checkpoint
from merge_worker.checkpoint.fp8 import is_quantized
from merge_worker.checkpoint.header import INDEX
from merge_worker.errors import InputError
from support.checkpoint_factory import write_checkpoint
from support.recipes import entry, raw_file, some_tensors


def fault(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def content(path: Path) -> dict[str, tuple[object, ...]]:
    return {n: (i.dtype, i.shape) for n, i in open_checkpoint(path).tensors.items()}


def test_all_layouts_are_the_same_model(tmp_path: Path) -> None:
    tensors = some_tensors(0)
    single = write_checkpoint(tmp_path / "single", tensors)
    sharded = write_checkpoint(tmp_path / "sharded", tensors, shards=3)
    bare = write_checkpoint(tmp_path / "bare", tensors, shards=2)
    (bare / INDEX).unlink()
    assert len(content(single)) == len(tensors)
    assert content(single) == content(sharded) == content(bare)
    assert content(single / "model.safetensors") == content(single)


def test_a_single_file_has_no_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", some_tensors(0), config={"a": 1})
    assert open_checkpoint(folder).folder == folder
    assert open_checkpoint(folder).config == {"a": 1}
    alone = open_checkpoint(folder / "model.safetensors")
    assert alone.folder is None and alone.config == {}


def test_links_of_the_hubs_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    snapshot = write_checkpoint(tmp_path / "snapshots" / "abc", some_tensors(0), shards=2)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    assert len(content(snapshot)) == len(some_tensors(0))


def test_weights_of_other_formats_beside_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", some_tensors(0))
    save_file({"lora_A": torch.ones(1)}, folder / "adapter_model.safetensors")
    save_file(some_tensors(0), folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert len(content(folder)) == len(some_tensors(0))
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert len(content(folder)) == len(some_tensors(0)), "no known name, no index"


def test_no_model(tmp_path: Path) -> None:
    assert "no such folder" in fault(tmp_path / "gone")
    assert "an empty folder" in fault(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"x")
    assert "only weights.pth" in fault(tmp_path) and "pytorch_model.bin" in fault(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    assert "a LoRA adapter" in fault(tmp_path)


def test_no_tensors(tmp_path: Path) -> None:
    raw_file(tmp_path / "model.safetensors", {"__metadata__": {}})
    assert "no tensors" in fault(tmp_path)


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", some_tensors(0), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "1 of 3 shards in its index are missing" in fault(folder)


def test_an_index_left_over_beside_a_single_file(tmp_path: Path) -> None:
    """The order of transformers, which leaves the old index and shards where it saves again."""
    folder = write_checkpoint(tmp_path / "m", some_tensors(0), shards=2)
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    opened = open_checkpoint(folder)
    assert opened.tensors.keys() == {"a"}
    assert opened.notes == (
        f"{folder / INDEX}: left over beside model.safetensors, which is read as transformers does",
    )
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert open_checkpoint(folder).notes == ()


def test_an_index_of_shards_that_were_replaced(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", some_tensors(0), shards=3)
    for number in (1, 2, 3):
        (folder / f"model-0000{number}-of-00003.safetensors").unlink()
    for number in (1, 2):
        save_file(
            {f"w{number}": torch.ones(1)}, folder / f"model-0000{number}-of-00002.safetensors"
        )
    assert "remove the left-over model.safetensors.index.json" in fault(folder)


def test_a_missing_shard_without_an_index(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", some_tensors(0), shards=4)
    (folder / INDEX).unlink()
    (folder / "model-00002-of-00004.safetensors").unlink()
    (folder / "model-00004-of-00004.safetensors").unlink()
    assert "2 of 4 shards are missing: model-00002-of-00004.safetensors" in fault(folder)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    save_file({"a\x1b": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"a\x1b": torch.ones(1)}, tmp_path / "y.safetensors")
    text = fault(tmp_path)
    assert "'a\\x1b' is in both x.safetensors and y.safetensors" in text and "\x1b" not in text


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/../../x", ""])
def test_an_index_that_leaves_the_folder(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "m", some_tensors(0), shards=2)
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert "is outside the model folder" in fault(folder)


@pytest.mark.parametrize("name", ["\0", "x\x1b[2J", ".", "n" * 300])
def test_an_index_with_odd_names(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "m", some_tensors(0), shards=2)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    text = fault(folder)
    assert str(folder) in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "no 'weight_map'"),
        ("{}", "no 'weight_map'"),
        ('{"weight_map": {}}', "no 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "not a file name"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_damaged_index(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / INDEX).write_text(text)
    assert words in fault(tmp_path)


def test_an_index_of_another_version(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", some_tensors(0), shards=2)
    index = json.loads((folder / INDEX).read_text())
    places = index["weight_map"]
    places["gone\x1b"] = places["norm.weight"]
    places["scale"], places["norm.weight"] = places["norm.weight"], places["scale"]
    (folder / INDEX).write_text(json.dumps(index))
    text = fault(folder)
    assert "tensors are not in the shard it names" in text and "gone\\x1b" in text
    assert "\x1b" not in text


def test_a_config_that_is_none(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", some_tensors(0))
    for text in ("{", "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json: not"):
            _ = open_checkpoint(folder).config


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, {"a": "I32"}, "quantized (gptq)"),
        ({}, {"a.weight": "F8_E4M3", "b": "BF16"}, "a.weight"),
        ({}, {"a.qweight": "I32", "a.qzeros": "I32"}, "a.qweight, a.qzeros"),
        ({}, {"a.weight": "I8", "a.SCB": "F32"}, "a.SCB"),
    ],
)
def test_quantized_weights(
    tmp_path: Path, config: dict[str, object], tensors: dict[str, str], words: str
) -> None:
    sizes = {"F32": 4, "I32": 4, "BF16": 2}
    header, offset = {}, 0
    for name, dtype in tensors.items():
        size = sizes.get(dtype, 1)
        header[name] = entry([1, 1], offset, offset + size, dtype)
        offset += size
    raw_file(tmp_path / "model.safetensors", header, bytes(offset))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert words in (is_quantized(open_checkpoint(tmp_path)) or "")


def test_plain_weights_are_not_quantized(models: list[Path]) -> None:
    assert is_quantized(open_checkpoint(models[0])) is None


def test_hub_ids_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("org/name") and is_hub_id("org/name@v1.0") and is_hub_id("a-b/c.d_e@refs/pr/1")
    (tmp_path / "org" / "name").mkdir(parents=True)
    for word in (
        "org/name",
        "/org/x",
        "./org/x",
        "~/org/x",
        "org/x/",
        "name",
        "a/b/c",
        "",
        "a b/c",
    ):
        assert not is_hub_id(word), word
    assert not is_hub_id("n" * 300)
