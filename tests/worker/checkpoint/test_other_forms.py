"""Folders that are not one model: what the answer calls them, and that its way out works."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.errors import InputError
from support.checkpoint_factory import write_checkpoint

WEIGHTS = {"layers.0.w": torch.ones(2, 3)}


def fault(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return folder


def named(text: str) -> Path:
    """Return the path at the end of an answer."""
    return Path(text.rpartition(" ")[2])


def test_a_pipeline(tmp_path: Path) -> None:
    write(tmp_path, "model_index.json", "scheduler/config.json")
    for part in ("unet", "vae"):
        write_checkpoint(tmp_path / part, WEIGHTS)
    text = fault(tmp_path)
    assert "a pipeline of several models: unet, vae\n" in text
    assert named(text) == tmp_path / "unet" and open_checkpoint(named(text)).tensors


def test_a_cache_of_the_hub(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    for commit in ("a" * 40, "b" * 40, "c" * 40):
        write_checkpoint(cache / "snapshots" / commit, WEIGHTS)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("b" * 40)
    text = fault(cache)
    assert "a cache of the Hub, whose snapshots are the models: " in text
    assert named(text) == cache / "snapshots" / ("b" * 40) and open_checkpoint(named(text))
    assert "a cache of the Hub" in fault(tmp_path), "and the folder of all caches"
    empty = write(tmp_path / "models--gpt2", "refs/main")
    assert "the Hub cache of gpt2, without weights; name it as gpt2" in fault(empty)


def test_a_training_run(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "training_args.bin", "trainer_state.json")
    for step in (500, 1000, 99):
        write_checkpoint(tmp_path / f"checkpoint-{step}", WEIGHTS)
    text = fault(tmp_path)
    assert "a training run, whose checkpoints are the models: checkpoint-1000, checkpoint-5" in text
    assert named(text) == tmp_path / "checkpoint-1000" and open_checkpoint(named(text))


def test_a_training_run_of_an_adapter(tmp_path: Path) -> None:
    place = write(tmp_path / "checkpoint-7", "adapter_config.json", "optimizer.bin")
    save_file({"a.lora_A.weight": torch.ones(1)}, place / "adapter_model.safetensors")
    assert f"'BASE+{place}'" in fault(tmp_path)


def test_models_in_sub_folders(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "final", WEIGHTS)
    assert "its weights are in sub-folders: final" in fault(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_distributed_checkpoint(tmp_path: Path) -> None:
    """A checkpoint is read where it is the only one; of several one is to be named."""
    from torch.distributed import checkpoint

    run = tmp_path / "a run"
    for step in ("step10", "step20"):
        checkpoint.save({"model": WEIGHTS}, checkpoint_id=run / step / "model", no_dist=True)
    assert open_checkpoint(run / "step10").tensors.keys() == WEIGHTS.keys()
    text = fault(run)
    assert "several distributed checkpoints of torch (DCP): step20/model, step10/model" in text
    assert f"name one of them, such as {run / 'step20' / 'model'}" in text
    for file in run.glob("*/model/.metadata"):
        file.unlink()
    assert "whose .metadata is missing" in fault(run)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("zero_to_fp32.py", "global_step5/mp_rank_00_model_states.pt"), "convert it: python "),
        (("q4.gguf", "config.json"), "only GGUF: q4.gguf\n  name the model that it was made from"),
        (("Q4/x-00001-of-00002.gguf",), "only GGUF: Q4/x-00001-of-00002.gguf"),
        (("tf_model.h5", "config.json"), "only weights of TensorFlow: tf_model.h5"),
        (("model.ckpt.index", "model.ckpt.data-00000-of-00001"), "from_tf=True"),
        (("flax_model.msgpack",), "from_flax=True"),
        (("model.onnx", "config.json"), "only exports for inference: model.onnx"),
        (("pytorch_model-00001-of-00002.bin",), "pytorch_model.bin.index.json is missing"),
        (("consolidated.00.pth", "params.json"), "the format of Llama's own code"),
        (("weights.pth", "optimizer.pt", "rng_state.pth"), "no safetensors, only weights.pth\n"),
        (("config.json", "training_args.bin"), "config.json, but no *.safetensors"),
        (("adapter_model.bin",), "a LoRA adapter, not a model; name it as 'BASE+"),
        (("notes.txt",), "no *.safetensors in this folder; is it a model?"),
    ],
)
def test_other_formats(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    assert words in fault(write(tmp_path, *names))


INSIDE = {
    "PEFT": ("q_proj.base_layer.weight", "q_proj.lora_A.default.weight"),
    "PEFT before 0.6": ("q_proj.weight", "q_proj.lora_B.default.weight"),
    "a saved module": ("score.original_module.weight", "score.modules_to_save.default.weight"),
    "DoRA": ("q_proj.weight", "q_proj.lora_magnitude_vector.default.weight"),
    "LoKr": ("q_proj.base_layer.weight", "q_proj.lokr_w1_a.default"),
}


@pytest.mark.parametrize("case", INSIDE)
def test_a_model_with_its_adapter_inside(tmp_path: Path, case: str) -> None:
    tensors = {f"model.layers.0.self_attn.{name}": torch.ones(2, 2) for name in INSIDE[case]}
    text = fault(write_checkpoint(tmp_path / "m", tensors, config={"model_type": "llama"}))
    assert "saved with an adapter of PEFT inside" in text and "merge_and_unload()" in text


def test_a_class_with_adapters_of_its_own(tmp_path: Path) -> None:
    tensors = {"q.base_layer.weight": torch.ones(2, 2), "q.lora_A.speech.weight": torch.ones(2, 2)}
    config = {"speech_lora": {"r": 2}}
    assert open_checkpoint(write_checkpoint(tmp_path / "m", tensors, config=config)).tensors


def test_a_file_of_an_adapter(tmp_path: Path) -> None:
    save_file({"a.lora_A.weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert f"'BASE+{tmp_path}'" in fault(tmp_path / "adapter_model.safetensors")
