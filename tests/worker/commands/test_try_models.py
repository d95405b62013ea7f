"""`try`: right models pass, broken ones are named with what is wrong, and how it is said."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.commands import try_models
from support.adapter_factory import adapt
from support.checkpoint_factory import ARCHITECTURES, make_model, save_fine_tunes
from support.recipes import average, run
from support.spoken_models import (
    TEMPLATE,
    change_json,
    change_tensors,
    renamed,
    save_spoken,
    transposed,
    with_nan,
    without,
)

Capture = pytest.CaptureFixture[str]
NORM = "model.layers.1.post_attention_layernorm.weight"
QUICK = {"llama", "qwen3_next", "zamba2", "t5"}
UP = "model.layers.0.mlp.up_proj.weight"


def said(capsys: Capture, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run("try", *words)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


EVERY_KIND = [
    kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in ARCHITECTURES
]


@pytest.mark.parametrize("model_type", EVERY_KIND)
def test_merges_of_every_architecture_pass(
    model_type: str, tmp_path: Path, capsys: Capture
) -> None:
    models = save_fine_tunes(tmp_path, model_type, 2)
    assert average(tmp_path / "out", models) == 0
    code, out, err = said(capsys, tmp_path / "out", "--device", "cpu")
    assert (code, err) == (0, "") and "every tensor has its place" in out
    assert "no tokenizer; token ids are used in place of text" in out


def test_two_models_speak_side_by_side(tmp_path: Path, capsys: Capture) -> None:
    first = save_spoken(tmp_path / "one", template=TEMPLATE)
    second = save_spoken(tmp_path / "second", "qwen3_moe")
    words = ("--prompt", "abcd ef", "--prompt", "a b", "--tokens", "5", "--device", "cpu")
    code, out, _ = said(capsys, first, second, *words)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("one     LlamaForCausalLM, 26.8 K parameters, bfloat16: every")
    assert lines[0].endswith("generated text (chat template)")
    assert lines[1].startswith("second  Qwen3MoeForCausalLM") and "(chat" not in lines[1]
    place = lines.index("> abcd ef")
    assert lines[place + 1].startswith("one     ") and lines[place + 2].startswith("second  ")
    assert "> a b" in lines


def test_the_tokens_are_those_of_transformers(tmp_path: Path, capsys: Capture) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_spoken(tmp_path / "one", template=TEMPLATE)
    code, out, _ = said(capsys, folder, "--json", "--prompt", "abcd", "--tokens", "7")
    assert code == 0
    found = json.loads(out)["models"][0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    ids = tokenizer("<|im_start|>abcd<|im_end|>", return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=7, do_sample=False, pad_token_id=2)[0, ids.shape[1] :]
    assert found["texts"][0]["tokens"] == len(made)
    assert found["texts"][0]["text"] == tokenizer.decode(made, skip_special_tokens=True)
    chances = model(ids).logits[0, -1].detach().double().softmax(-1)
    entropy = -(chances * chances.log()).sum()
    assert found["texts"][0]["entropy"] == pytest.approx(float(entropy), rel=1e-3)
    assert found["chat_template"] and found["faults"] == found["missing"] == []


def _one_layer_more(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=3, layer_types=None)


def _one_layer_less(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=1, layer_types=None)


def _experts_of_another_layout(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name experts as Mixtral does, in a model that Qwen's class reads."""
    words = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    found = {}
    for name, tensor in tensors.items():
        for ours, theirs in words.items():
            if ".experts." in name:
                name = name.replace(ours, theirs).replace("mlp.experts", "block_sparse_moe.experts")
        found[name] = tensor
    return found


def _index_of_more(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    places = dict.fromkeys(
        ["model.norm.weight", "model.lost.weight"], "model-00001-of-00001.safetensors"
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _tokens_beyond(folder: Path) -> None:
    value = json.loads((folder / "tokenizer.json").read_text())
    token = {
        "id": 200,
        "content": "<extra>",
        "special": True,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    value["added_tokens"].append(token)
    value["model"]["vocab"]["<extra>"] = 200
    (folder / "tokenizer.json").write_text(json.dumps(value))


def _tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, change)


def _config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **values)


# What is broken, in which type, the exit code, and words that the error has.
BROKEN: dict[str, tuple[str, Callable[[Path], None], int, list[str]]] = {
    "a tensor renamed": (
        "llama",
        _tensors(renamed(UP, "model.layers.0.mlp.w3.weight")),
        5,
        [f"1 tensor is missing: {UP}", "1 tensor has no place in the model: model.layers.0.mlp.w3"],
    ),
    "a head untied": (
        "llama",
        _tensors(without("lm_head.weight")),
        5,
        ["1 tensor is missing: lm_head.weight"],
    ),
    "a head tied that is another": (
        "llama",
        _config(tie_word_embeddings=True),
        5,
        ["ties the head to the embedding (tie_word_embeddings)"],
    ),
    "experts in another layout": (
        "qwen3_moe",
        _tensors(_experts_of_another_layout),
        5,
        ["missing: model.layers.0.mlp.experts", "no place in the model: model.layers.0.block_spar"],
    ),
    "one layer too many in the config": (
        "llama",
        _one_layer_more,
        5,
        ["9 tensors are missing: model.layers.2.input_layernorm.weight"],
    ),
    "one layer too few in the config": (
        "llama",
        _one_layer_less,
        5,
        ["9 tensors have no place in the model: model.layers.1.input_layernorm.weight"],
    ),
    "another vocabulary in the config": (
        "llama",
        _config(vocab_size=120),
        5,
        ["2 tensors have another shape: lm_head.weight (128x32, the config makes it 120x32)"],
    ),
    "a norm missing": ("llama", _tensors(without(NORM)), 5, [f"1 tensor is missing: {NORM}"]),
    "a matrix transposed": (
        "llama",
        _tensors(transposed(UP)),
        5,
        [f"1 tensor has another shape: {UP} (32x64, the config makes it 64x32)"],
    ),
    "a tensor in the index alone": ("llama", _index_of_more, 3, ["model.lost.weight"]),
    "NaN in a tensor": (
        "llama",
        _tensors(with_nan(UP)),
        5,
        [f"1 tensor has NaN or Inf: {UP}"],
    ),
    "a token without a row": (
        "llama",
        _tokens_beyond,
        5,
        ["1 token is beyond the embedding of 128 rows: <extra>"],
    ),
    "a template that raises": (
        "llama",
        lambda folder: change_json(
            folder / "tokenizer_config.json", chat_template="{{ raise_exception('no such role') }}"
        ),
        5,
        ["the chat template does not render: no such role"],
    ),
    "a template that is no template": (
        "llama",
        lambda folder: change_json(folder / "tokenizer_config.json", chat_template="{% for %}"),
        5,
        ["the chat template does not render: "],
    ),
    "a tokenizer that is damaged": (
        "llama",
        lambda folder: (folder / "tokenizer.json").write_text('{"version": '),  # type: ignore
        5,
        ["the tokenizer does not load: "],
    ),
    "an expert of another width": (
        "qwen3_moe",
        _config(moe_intermediate_size=8),
        5,
        ["model.layers.0.mlp.experts"],
    ),
    "an expert missing": (
        "qwen3_moe",
        _tensors(without("model.layers.1.mlp.experts.2.up_proj.weight")),
        5,
        ["model.layers.1.mlp.experts"],
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_broken_is_named(fault: str, tmp_path: Path, capsys: Capture) -> None:
    model_type, change, expected, words = BROKEN[fault]
    folder = save_spoken(tmp_path / "broken", model_type, TEMPLATE)
    change(folder)
    code, _, err = said(capsys, folder, "--tokens", "2", "--device", "cpu")
    assert code == expected, err
    for word in words:
        assert word in err


def test_the_right_model_is_shown_beside_a_broken_one(tmp_path: Path, capsys: Capture) -> None:
    right, broken = save_spoken(tmp_path / "right"), save_spoken(tmp_path / "broken")
    change_tensors(broken, without(NORM))
    code, out, err = said(capsys, broken, right, "--prompt", "ab", "--tokens", "3")
    assert code == 5 and "broken  LlamaForCausalLM" in out and "faults, see below" in out
    assert "right   LlamaForCausalLM" in out and "\n> ab\nright   " in out
    assert err.startswith(f"merge-worker: broken: 1 tensor is missing: {NORM}")
    code, out, _ = said(capsys, broken, "--json")
    assert code == 5 and json.loads(out)["models"][0]["missing"] == [NORM]


def test_warnings_of_a_result_that_loads(tmp_path: Path, capsys: Capture) -> None:
    folder = save_spoken(tmp_path / "one")

    def flat(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "lm_head.weight": torch.zeros_like(tensors["lm_head.weight"])}

    change_tensors(folder, flat)
    code, out, _ = said(capsys, folder)
    assert code == 0
    assert "as good as random: entropy 4.85 nats of at most 4.85; is the head untrained?" in out
    assert "says one token only, again and again: '<unk>'" in out


def test_an_adapter_on_a_base(tmp_path: Path, capsys: Capture) -> None:
    base = save_spoken(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter")
    words = ("--prompt", "abcd", "--tokens", "4", "--json")
    code, out, _ = said(capsys, f"{base}+{adapter}", base, *words)
    assert code == 0
    adapted, plain = json.loads(out)["models"]
    assert adapted["model"] == "base+adapter" and adapted["kind"] == "LlamaForCausalLM"
    assert adapted["tokenizer"] == plain["tokenizer"] != "" and adapted["dtype"] == "bfloat16"
    assert adapted["texts"][0]["entropy"] != plain["texts"][0]["entropy"]
    merged = tmp_path / "merged.yml"
    merged.write_text(f"merge_method: passthrough\nmodels:\n- model: {base}+{adapter}\n")
    assert run("merge", merged, tmp_path / "out", "--progress", "off") == 0
    _, out, _ = said(capsys, tmp_path / "out", *words)
    assert json.loads(out)["models"][0]["texts"] == adapted["texts"]


def test_answers_for_what_is_no_model(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = said(capsys, tmp_path / "empty")
    assert code == 3 and "empty" in err
    code, _, err = said(capsys, tmp_path / "nowhere")
    assert code == 3 and "no such folder" in err
    folder = save_spoken(tmp_path / "one")
    code, _, err = said(capsys, folder / "model.safetensors")
    assert code == 3 and "a file; give the folder of the model" in err
    change_json(folder / "config.json", model_type="lama", architectures=None)
    code, _, err = said(capsys, folder)
    assert code == 3 and "model_type 'lama' is unknown to transformers" in err and "llama" in err
    change_json(folder / "config.json", model_type="llama", architectures=["LamaForCausalLM"])
    code, _, err = said(capsys, folder)
    assert code == 3 and "class 'LamaForCausalLM' is not in transformers" in err
    (folder / "config.json").write_text("[]")
    code, _, err = said(capsys, folder)
    assert code == 3 and "config.json" in err
    (folder / "config.json").unlink()
    code, _, err = said(capsys, folder)
    assert code == 3 and "no config.json" in err


def test_code_of_a_model_needs_trust(tmp_path: Path, capsys: Capture) -> None:
    folder = save_spoken(tmp_path / "own")
    config, model = "configuration_own.OwnConfig", "modeling_own.OwnModel"
    (folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n"
        "    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    autos = {"AutoConfig": config, "AutoModelForCausalLM": model}
    change_json(
        folder / "config.json", model_type="own", architectures=["OwnModel"], auto_map=autos
    )
    code, _, err = said(capsys, folder)
    assert code == 2 and "--trust-remote-code" in err
    code, out, err = said(capsys, folder, "--trust-remote-code", "--tokens", "2")
    assert code == 0 and "OwnModel" in out, err


def test_without_transformers(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = try_models.require_torch
    monkeypatch.setattr(try_models, "require_torch", real)
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = said(capsys, tmp_path)
    assert code == 2 and err.startswith("merge-worker: try: transformers is missing in")
    assert "pip install transformers" in err


def test_wrong_words(tmp_path: Path, capsys: Capture) -> None:
    assert said(capsys)[0] == 2
    assert said(capsys, tmp_path, "--tokens", "0")[0] == 2
    assert said(capsys, tmp_path, "--prompt", " ")[0] == 2
    folder = save_spoken(tmp_path / "one")
    code, _, err = said(capsys, folder, "--device", "cuda:7")
    assert code == 2 and "--device cuda:7" in err


OTHER_KINDS = {
    "bert": "BertForMaskedLM",
    "t5": "T5EncoderModel",
    "whisper": "WhisperForConditionalGeneration",
    "wav2vec2": "Wav2Vec2ForCTC",
    "vit": "ViTForImageClassification",
    "clip": "CLIPModel",
    "llava": "LlavaForConditionalGeneration",
    "qwen2": "Qwen2ForSequenceClassification",
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_run_once(kind: str, tmp_path: Path, capsys: Capture) -> None:
    import transformers

    from support.tiny_models import tiny_model

    model_class = getattr(transformers, OTHER_KINDS[kind])
    config_class = transformers.AutoConfig.for_model(kind).__class__
    tiny_model(model_class, config_class).save_pretrained(tmp_path / kind)
    code, out, err = said(capsys, tmp_path / kind, "--device", "cpu")
    assert (code, err) == (0, "")
    assert OTHER_KINDS[kind] in out and "forward pass on" in out and "no forward" not in out


def test_an_encoder_decoder_speaks(tmp_path: Path, capsys: Capture) -> None:
    folder = save_spoken(tmp_path / "t5", "t5")
    code, out, _ = said(capsys, folder, "--prompt", "abcd", "--tokens", "4")
    assert code == 0 and "T5ForConditionalGeneration" in out and "\n> abcd\nt5  " in out


@pytest.mark.slow
def test_as_a_program_of_its_own(tmp_path: Path) -> None:
    """Its start puts off parts of torch that transformers needs."""
    folder = save_spoken(tmp_path / "one")
    words = [sys.executable, "-m", "merge_worker", "try", str(folder), "--tokens", "3"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "generated text" in done.stdout


def test_nothing_of_transformers_is_left_changed(tmp_path: Path) -> None:
    import transformers

    model = make_model("llama")
    model.save_pretrained(tmp_path / "one")
    library = transformers.utils.logging
    before = (library.get_verbosity(), library.is_progress_bar_enabled())
    logger = library.get_logger("transformers")
    handlers = list(logger.handlers)
    assert run("try", tmp_path / "one") == 0
    assert (library.get_verbosity(), library.is_progress_bar_enabled()) == before
    assert logger.handlers == handlers
