"""Files of a model folder by what becomes of them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.checkpoint.hub import Hub
from merge_worker.checkpoint.model_files import (
    ADAPTER,
    CHECKPOINT,
    EXPORT,
    FORMAT,
    INDEXES,
    LOGS,
    NO_FILE,
    SAME,
    TRAINING,
    survey,
)
from merge_worker.errors import InputError
from support.checkpoint_factory import write_checkpoint

WEIGHTS = {"layers.0.weight": torch.ones(3, 2), "norm.weight": torch.ones(2)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m", WEIGHTS, config={"model_type": "own"})


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("optimizer.pt", "optimizer.pt", TRAINING),
        ("deep/optimizer_0.bin", "deep/optimizer_0.bin", TRAINING),
        ("global_step9/mp_rank_00_model_states.pt", "global_step9/", TRAINING),
        ("rng_state_3.pth", "rng_state_3.pth", TRAINING),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model-00001-of-00002.bin", FORMAT),
        ("consolidated.00.pth", "consolidated.00.pth", FORMAT),
        ("model-q4.gguf", "model-q4.gguf", FORMAT),
        ("model.safetensors.index.json", "model.safetensors.index.json", INDEXES),
        ("model-00001-of-00003.safetensors", "model-00001-of-00003.safetensors", SAME),
        ("onnx/model.onnx", "onnx/", EXPORT),
        ("int8_openvino/graph.xml", "int8_openvino/", EXPORT),
        ("deep/coreml/x.bin", "deep/coreml/", EXPORT),
        ("decoder_model_merged.onnx", "decoder_model_merged.onnx", EXPORT),
        ("checkpoint-9/trainer_state.json", "checkpoint-9/", CHECKPOINT),
        ("runs/a/events.out", "runs/", LOGS),
        ("adapter_config.json", "adapter_config.json", ADAPTER),
    ],
)
def test_what_is_left_out(model: Path, name: str, place: str, reason: str) -> None:
    write(model / name)
    files = survey(model, Hub())
    assert files.left_out == {place: reason}
    assert files.copied == ("config.json",)


@pytest.mark.parametrize(
    "name",
    [
        *("spk_dict.pt", "language_model/5gram.bin", "voices/a.pt", "x.npz", "campplus.onnx"),
        *("assets/model.onnx", "part/adapter_config.json", "scheduler/scheduler_config.json"),
        *("graph.xml", "graph.bin", "deep/er/x.npy", "vad_model.onnx", "scaler.pkl"),
    ],
)
def test_what_the_model_may_need_is_copied(model: Path, name: str) -> None:
    write(model / name)
    files = survey(model, Hub())
    assert name in files.copied and not files.left_out


def test_weights_in_sub_folders_are_sets_of_their_own(model: Path) -> None:
    write_checkpoint(model / "2_Dense", {"linear.weight": torch.ones(4, 2)})
    write_checkpoint(model / "speech", {"layers.0.weight": torch.ones(1)}, config={})
    (model / "speech" / "model.safetensors").rename(model / "speech" / "codec.safetensors")
    opened = open_checkpoint(model)
    assert [weights.prefix for weights in opened.files.sets] == ["", "2_Dense/", "speech/codec/"]
    assert [*opened.tensors] == [*WEIGHTS, "2_Dense/linear.weight", "speech/codec/layers.0.weight"]
    assert opened.tensors["2_Dense/linear.weight"].name == "2_Dense/linear.weight"
    alone = opened.with_weights(())
    assert [*alone.tensors] == [*WEIGHTS] and len(alone.shards) == 1
    assert {"2_Dense/model.safetensors", "speech/codec.safetensors"} == {*alone.files.unmerged}
    assert {*alone.files.unmerged} <= {*alone.files.copied}


def test_a_sub_folder_with_the_model_again_is_left_out(model: Path) -> None:
    write_checkpoint(model / "epoch-3", WEIGHTS, config={"model_type": "own"})
    write(model / "epoch-3" / "tokenizer.json")
    opened = open_checkpoint(model)
    assert opened.files.left_out == {"epoch-3/": SAME} and len(opened.shards) == 1
    assert not [name for name in opened.files.copied if name.startswith("epoch")]


@pytest.mark.parametrize("name", ["extra.safetensors", "deep/extra.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_devices_and_loops_are_no_weights(model: Path, name: str, kind: str) -> None:
    place = model / name
    place.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero" if kind == "device" else place.name)
    files = survey(model, Hub())
    assert len(files.sets) == 1
    assert files.left_out == {name: NO_FILE}


def test_a_module_whose_weights_are_missing_is_refused(model: Path) -> None:
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "model.safetensors").symlink_to("nowhere")
    with pytest.raises(InputError, match="2_Dense"):
        open_checkpoint(model)


def test_pickles_beside_the_weights(model: Path) -> None:
    torch.save(WEIGHTS, model / "old.pt")
    torch.save({"proj.weight": torch.ones(2)}, model / "mm_projector.bin")
    torch.save({"Chelsie": {"cond": torch.ones(1, 3)}}, model / "spk_dict.pt")
    files = open_checkpoint(model).files
    assert files.left_out == {"old.pt": SAME}
    assert files.unmerged == ("mm_projector.bin",), "data in a form of its own is no weights"
    assert {"mm_projector.bin", "spk_dict.pt"} <= {*files.copied}


@pytest.mark.parametrize(
    ("config", "listed", "merged"),
    [
        ({"in_features": 2}, True, True),
        ({"in_features": 2}, False, False),
        ({"model_type": "t5"}, False, True),
        ({"_class_name": "AutoencoderKL"}, False, True),
    ],
)
def test_pickles_in_sub_folders(
    model: Path, config: dict[str, object], listed: bool, merged: bool
) -> None:
    """They are merged where what loads the sub-folder takes safetensors instead."""
    write(model / "2_Dense" / "config.json", json.dumps(config))
    torch.save({"linear.weight": torch.ones(4, 2)}, model / "2_Dense" / "pytorch_model.bin")
    if listed:
        modules = [{"path": ""}, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
        write(model / "modules.json", json.dumps(modules))
    opened = open_checkpoint(model)
    assert ("2_Dense/linear.weight" in opened.tensors) is merged
    assert ("2_Dense/pytorch_model.bin" in opened.files.unmerged) is not merged


def test_a_model_of_modules_alone(tmp_path: Path) -> None:
    """Older sentence-transformers models have the encoder in a sub-folder, too."""
    write_checkpoint(tmp_path / "0_Transformer", WEIGHTS, config={"model_type": "bert"})
    write_checkpoint(tmp_path / "2_Dense", {"linear.weight": torch.ones(4, 2)})
    write(tmp_path / "modules.json", '[{"path": "0_Transformer"}, {"path": "2_Dense"}]')
    opened = open_checkpoint(tmp_path)
    assert [weights.prefix for weights in opened.files.sets] == ["0_Transformer/", "2_Dense/"]
    assert opened.with_weights(()) is opened


def test_variants_are_no_duplicates(model: Path) -> None:
    half = {name: tensor.half() for name, tensor in WEIGHTS.items()}
    save_file(half, model / "model.fp16.safetensors")
    opened = open_checkpoint(model)
    assert opened.tensors["model.fp16/norm.weight"].dtype.name == "F16"
    alone = opened.with_weights(())
    assert alone.files.left_out == {"model.fp16.safetensors": FORMAT}, "stale beside a merge"
