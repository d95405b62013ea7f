"""Forms of models that are not merged: each is named, with the words to type instead."""

import json
from pathlib import Path

import pytest
import torch

from support.checkpoint_factory import write_checkpoint
from support.recipes import run

CODES = {"model.layers.0.q_proj.weight": torch.zeros(8, 1, dtype=torch.int32)}
SOURCE = "name the model that it was quantized from"
QUANTIZED = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "quantized (gptq)", SOURCE),
    "awq": ({"quant_method": "awq", "bits": 4}, "quantized (awq)", SOURCE),
    "exl2": ({"quant_method": "exl2", "bits": 4.0}, "quantized (exl2)", SOURCE),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "quantized (bitsandbytes)",
        "dequantize it first: load with transformers, model.dequantize(), save_pretrained(…)",
    ),
    "mxfp4": (
        {"quant_method": "mxfp4"},
        "quantized (mxfp4)",
        "dequantize it first: load it with transformers, "
        "quantization_config=Mxfp4Config(dequantize=True), save_pretrained(…)",
    ),
    "MLX": (
        {"group_size": 32, "bits": 4},
        "quantized (MLX, 4 bits)",
        "dequantize it first: mlx_lm.convert --hf-path it --mlx-path OUT --dequantize",
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("m1"), {"w": torch.ones(4)})
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(*words) == 3
    return capsys.readouterr().err.removeprefix("merge-worker: ").rstrip("\n")


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry, fact, way_out = QUANTIZED[name]
    key = "quantization" if name == "MLX" else "quantization_config"
    write_checkpoint(Path("it"), CODES, config={"model_type": "llama", key: entry})
    told = f"it: {fact}\n  {way_out}"
    for words in (("average", "out", "m1", "it"), ("compare", "m1", "it")):
        assert refusal(capsys, *words) == told
    assert refusal(capsys, "extract-lora", "it", "out", "--base-model", "m1") == told


FILES = {
    "m.gguf": (b"GGUF" + bytes(60), "a GGUF file, which cannot be merged; " + SOURCE[:14]),
    "m.onnx": (b"\x08\x07" + bytes(60), "an ONNX file, which cannot be merged; name the model"),
    "tf_model.h5": (b"\x89HDF" + bytes(60), "a TensorFlow file, which cannot be merged; name the"),
    "config.json": (b'{"model_type": "llama"}', "not weights; name the folder of the model: m2"),
    "model.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12\n",
        "a Git LFS pointer, not the weights; fetch them: git -C m2 lfs pull",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, told = FILES[name]
    Path("m2").mkdir()
    Path("m2", name).write_bytes(content)
    shown = refusal(capsys, "average", "out", "m1", f"m2/{name}")
    assert shown.startswith(f"m2/{name}: {told}") and "\n" not in shown


def test_an_empty_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("m2").mkdir()
    assert refusal(capsys, "average", "out", "m1", "m2") == "m2: an empty folder"


SIZES = {
    "wide": ({"hidden_size": 8}, 8, "hidden_size 8 against 4"),
    "experts": ({"num_experts": 6}, 4, "num_experts 6 against 3"),
    "deep": ({"num_hidden_layers": 2}, 4, "2 layers against 1"),
}


@pytest.mark.parametrize("name", SIZES)
def test_other_sizes_by_every_command(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"hidden_size": 4, "num_experts": 3, "num_hidden_layers": 1}
    changed, width, difference = SIZES[name]
    for folder, values, columns in (("base", config, 4), ("it", {**config, **changed}, width)):
        layers = range(values["num_hidden_layers"])
        tensors = {f"layers.{n}.weight": torch.ones(columns, columns) for n in layers}
        tensors["gate.weight"] = torch.ones(values["num_experts"], columns)
        write_checkpoint(Path(folder), tensors, config={"model_type": "tiny", **values})
    kind = {"wide": "widths", "experts": "numbers of experts"}.get(name)
    merged = refusal(capsys, "average", "out", "base", "it")
    assert merged.startswith(
        f"it: {difference}; {kind} cannot be merged\n" if kind else "it has 2 layers, base has 1:"
    )
    assert refusal(capsys, "extract-lora", "it", "out", "--base-model", "base") == (
        f"it: {difference} in the base base\n"
        "  a fine-tune has the sizes of its base; name the model that it was trained from"
    )
    told = f"it: {difference} in base"
    if name == "wide":
        assert refusal(capsys, "compare", "base", "it").startswith(f"{told}\n  models of other siz")
    else:
        assert run("compare", "base", "it", "--json") == 0
        assert json.loads(capsys.readouterr().out)["left_out"][0] == told
