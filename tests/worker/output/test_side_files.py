"""Side files copied with the weights: all that a loader needs, and nothing private."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.checkpoint.model_files import LINK, SECRET
from merge_worker.planning.plan import final_config
from support.checkpoint_factory import write_checkpoint
from support.recipes import average, manifest, plan_of, run

TAKEN = [
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "generation_config.json", "preprocessor_config.json", "LICENSE"),
    *("modeling_own.py", "configuration_own.py", "1_Pooling/config.json", "modules.json"),
    *("additional_chat_templates/tool.jinja", "campplus.onnx", "spk_dict.pt", "prosody.npz"),
    *("language_model/5gram.bin", "voices/af.pt", "assets/vocoder/model.onnx", "arpa/x.bin"),
]
LEFT = [
    *("README.md", "mergekit_config.yml", "merge_manifest.json", "adapter_config.json"),
    *(
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.gguf",
        "model.onnx",
        "flax.msgpack",
    ),
    *("training_args.bin", "trainer_state.json", "optimizer.pt", ".gitattributes", "a.lock"),
    *(".git/HEAD", ".cache/huggingface/x", "original/params.json", "onnx/config.json"),
    *("runs/events", "__pycache__/x.pyc", "checkpoint-5/trainer_state.json"),
    *("checkpoint-5/tokenizer.json", "consolidated.safetensors", "model_q4.onnx_data"),
    *("openvino/graph.xml", "openvino/graph.bin", "coreml/text/weights.bin", "openvino_model.bin"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_checkpoint(tmp_path / "m", {"x": torch.ones(3)}, config={"model_type": "own"})
    for name in (*TAKEN, *LEFT):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(f"content of {name}")
    return made


def test_which_files_are_copied(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    assert average(out, [folder]) == 0
    for name in TAKEN:
        assert (out / name).read_text() == f"content of {name}"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    own = {"README.md", "mergekit_config.yml", "merge_manifest.json"}
    assert names & set(LEFT) == own & set(LEFT)
    assert (out / "README.md").read_text() != "content of README.md"
    assert json.loads((out / "config.json").read_text()) == {"model_type": "own"}
    assert set(TAKEN) <= {entry["file"] for entry in manifest(out)["outputs"]}


def test_links_are_followed_and_odd_files_left(tmp_path: Path, folder: Path) -> None:
    (folder / "real.json").write_text("real")
    (folder / "linked.json").symlink_to(folder / "real.json")
    (folder / "nowhere.json").symlink_to(tmp_path / "gone")
    os.mkfifo(folder / "fifo")
    assert average(tmp_path / "out", [folder]) == 0
    taken = tmp_path / "out" / "linked.json"
    assert taken.read_text() == "real" and not taken.is_symlink()
    assert not (tmp_path / "out" / "fifo").exists()
    assert not (tmp_path / "out" / "nowhere.json").exists()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Write what is the user's, outside of any model."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_text("PRIVATE")
    (tmp_path / "home" / "config.json").write_text('{"token": "PRIVATE"}')
    return tmp_path / "home"


def test_nothing_private_is_copied(
    tmp_path: Path, folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked = ["notes.txt", "chat_template.jinja", "tokenizer.json", "data.npy"]
    for name in linked:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(home / "id_rsa")
    (folder / "environment.txt").symlink_to("/proc/self/environ")
    (folder / "keys").symlink_to(home)
    secrets = [".env", ".env.local", ".netrc", ".git-credentials", ".bash_history", "id_ed25519"]
    secrets += ["tls.key", "credentials.json", "hf_token", "deep/secrets.yaml"]
    logs = ["wandb/run-1/config.yaml", "logs/x.txt", "train.log", "slurm-17.out", ".hidden"]
    for name in (*secrets, *logs):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("PRIVATE")
    out = tmp_path / "out"
    assert average(out, [folder], "--dtype", "float32") == 0
    texts = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert not [name for name, raw in texts.items() if b"PRIVATE" in raw]
    reasons = manifest(out)["files"]["left_out"]
    assert {reasons[name] for name in secrets} == {SECRET}
    outside = [*linked, "environment.txt", "keys/id_rsa", "keys/config.json"]
    assert {reasons[name] for name in outside if name != "keys/id_rsa"} == {LINK}
    assert {"wandb/", "logs/", "train.log", "slurm-17.out", ".hidden"} <= reasons.keys()
    assert "they may hold secrets or are links out of the folder" in capsys.readouterr().err


def test_a_config_that_is_a_link_elsewhere(
    tmp_path: Path, folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(home / "config.json")
    assert average(tmp_path / "out", [folder]) == 3
    assert "config.json: link out of the model folder" in capsys.readouterr().err


def test_a_folder_of_links_to_another_model(tmp_path: Path, folder: Path, home: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    (links / "notes.txt").symlink_to(home / "id_rsa")
    assert average(tmp_path / "out", [links]) == 0
    for name in TAKEN:
        assert (tmp_path / "out" / name).read_text() == f"content of {name}"
    assert not (tmp_path / "out" / "notes.txt").exists()


@pytest.mark.parametrize("blobs", ["real", "link"])
def test_links_in_the_cache_of_the_hub(
    tmp_path: Path, folder: Path, home: Path, blobs: str
) -> None:
    cache = tmp_path / "models--o--n"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    folder.rename(cache / "kept")
    if blobs == "real":
        (cache / "kept").rename(cache / "blobs")
    else:
        (cache / "blobs").symlink_to(cache / "kept")
        (cache / "kept" / "modules.json").unlink()
        (cache / "kept" / "modules.json").symlink_to(home / "config.json")
    names = ["config.json", "model.safetensors", "modules.json"]
    for name in names:
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert average(tmp_path / "out", [snapshot]) == 0
    assert (tmp_path / "out" / "modules.json").exists() == (blobs == "real")


def test_a_linked_folder_is_copied(tmp_path: Path, folder: Path) -> None:
    (folder / "elsewhere" / "deep").mkdir(parents=True)
    (folder / "elsewhere" / "deep" / "voice.npy").write_text("x")
    (folder / "linked").symlink_to("elsewhere")
    (folder / "linked" / "again").symlink_to(folder)
    assert average(tmp_path / "out", [folder]) == 0
    assert (tmp_path / "out" / "linked" / "deep" / "voice.npy").read_text() == "x"
    assert not (tmp_path / "out" / "linked" / "again").exists(), "a loop"


def test_names_that_are_not_utf8(tmp_path: Path, folder: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.txt")
    (folder / odd).write_text("x")
    assert average(tmp_path / "out", [folder]) == 0
    assert (tmp_path / "out" / odd).read_text() == "x"
    assert odd in {entry["file"] for entry in manifest(tmp_path / "out")["outputs"]}
    assert run("verify", tmp_path / "out") == 0


def test_folders_whose_names_are_not_utf8(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / os.fsdecode(b"o\xfd")
    assert average(out, [folder]) == 0
    assert run("verify", out) == 0 and run("report", out) == 0
    odd = folder.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    assert average(tmp_path / "other", [odd]) == 2
    error = capsys.readouterr().err
    assert "caf\\udce9: a name that is not UTF-8" in error and "Traceback" not in error


def test_a_chat_template_that_is_no_text(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jinja").write_bytes(b"{{ \xff }}")
    (tmp_path / "r.yml").write_text(
        f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {folder}}}]\n"
        f"chat_template: {tmp_path / 't.jinja'}\n"
    )
    assert run("check", tmp_path / "r.yml") == 2
    assert "t.jinja: not UTF-8" in capsys.readouterr().err


def test_a_single_file_has_no_side_files(tmp_path: Path, folder: Path) -> None:
    assert average(tmp_path / "out", [folder / "model.safetensors"]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "config.json" not in names and "tokenizer.json" not in names


@pytest.mark.parametrize(
    ("config", "dtype", "expected"),
    [
        ({"torch_dtype": "float32"}, None, {"torch_dtype": "float32"}),
        ({"torch_dtype": "float32"}, "same", {"torch_dtype": "float32"}),
        ({"torch_dtype": "float32"}, "bfloat16", {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, "bfloat16", {"dtype": "bfloat16"}),
        ({"a": 1}, "float16", {"a": 1, "torch_dtype": "float16"}),
        ({"dtype": "float16"}, "float16", {"dtype": "float16"}),
    ],
)
def test_the_config_follows_the_dtype(
    tmp_path: Path, config: dict[str, Any], dtype: str | None, expected: dict[str, Any]
) -> None:
    made = write_checkpoint(tmp_path / "c", {"x": torch.ones(3)}, config=config)
    assert final_config(plan_of([made], dtype=dtype)) == expected


def test_an_untouched_config_is_copied_byte_by_byte(tmp_path: Path, folder: Path) -> None:
    text = '{\n\t"model_type":   "own"}'
    (folder / "config.json").write_text(text)
    assert average(tmp_path / "out", [folder]) == 0
    assert (tmp_path / "out" / "config.json").read_text() == text


@pytest.mark.parametrize("name", ["README.md", "mergekit_config.yml"])
def test_a_folder_named_as_a_file_of_the_result(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that cannot be written at the end is refused before the start."""
    base = write_checkpoint(tmp_path / "base", {"x": torch.ones(3)})
    (base / "model.safetensors").rename(tmp_path / "weights.safetensors")
    (base / name).mkdir()
    (base / name / "deep.py").write_text("x = 1")
    (tmp_path / "weights.safetensors").rename(base / "other.safetensors")
    out = tmp_path / "out"
    assert average(out, [base]) == 3
    told = capsys.readouterr().err
    assert f"{base / name}: a folder, but the result has a file of this name" in told
    assert not out.exists()
