"""`train-routers` changes the routers of a model, nothing else, and can be stopped anywhere."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge_worker.output.files import PARTIAL
from merge_worker.output.journal import KEY
from merge_worker.routers import write_back
from merge_worker.routers.samples import read_data
from merge_worker.routers.state import FOLDER
from support.recipes import average, manifest, run
from support.tiny_mixtures import CLASSES, write_mixture, write_texts

QUICK = ("--steps", "6", "--length", "32", "--batch", "4", "--progress", "off")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.jsonl")


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """Write a finished merge of two mixtures."""
    models = [write_mixture(tmp_path / f"m{seed}", "mixtral", seed) for seed in range(2)]
    assert average(tmp_path / "moe", models, "--shard-size", "60KB", "--sha256") == 0
    return tmp_path / "moe"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return copies, since files that are mapped into memory change with the file."""
    files = folder.glob("*.safetensors")
    return {n: t.clone() for path in files for n, t in load_file(path).items()}


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def train(model: Path, texts: Path, *options: object) -> int:
    return run("train-routers", model, "--data", texts, *QUICK, *options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_only_routers_change_in_every_class(kind: str, tmp_path: Path, texts: Path) -> None:
    model = write_mixture(tmp_path / "moe", kind)
    before, config = tensors(model), digests(model)
    assert train(model, texts, "--lr", "0.02") == 0
    after = tensors(model)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 2
    assert all("gate" in name or "router" in name for name in changed)
    assert all(after[name].isfinite().all() for name in changed)
    assert {n for n, d in digests(model).items() if d != config[n]} == {"model.safetensors"}


def test_verify_card_and_record_stay_right(
    merged: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, old = tensors(merged), manifest(merged)
    assert train(merged, texts) == 0
    text = capsys.readouterr().out
    assert run("verify", merged) == 0
    after, new = tensors(merged), manifest(merged)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [n for n in before if "gate" in n] and len(changed) == 2
    (record,) = new["router_training"]
    assert record["settings"]["steps"] == 6 and record["settings"]["rate"] == 0.5 / 32
    assert record["data"]["files"] == ["texts.jsonl"] and record["data"]["samples"] == 40
    assert record["parameters"] == 2 * 4 * 32
    assert f"{record['loss']['before']:.4f} before, {record['loss']['after']:.4f} after" in text
    assert new["key"] == old["key"] and not (merged / FOLDER).exists()
    weights = {e["file"]: e["sum128"] for e in old["outputs"] if "sum128" in e}
    assert record["checksums_before"].items() <= weights.items() and record["checksums_before"]
    card = (merged / "README.md").read_text()
    assert f"| texts.jsonl | {record['data']['tokens']} | 6 |" in card
    assert card.index("## Training of the routers") < card.index("Everything else about")


def test_loss_is_that_of_the_written_model(tmp_path: Path, texts: Path) -> None:
    import transformers

    models = [write_mixture(tmp_path / f"m{n}", "qwen3_moe", n, dtype="bfloat16") for n in (0, 1)]
    assert average(tmp_path / "moe", models) == 0
    assert train(tmp_path / "moe", texts, "--dtype", "float32", "--at-once", "3") == 0
    (record,) = manifest(tmp_path / "moe")["router_training"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "moe")
    samples = [json.loads(line)["text"] for line in texts.read_text().splitlines()][::10]
    total, count = 0.0, 0
    for text in samples:
        ids = tokenizer(text)["input_ids"]
        for piece in (ids[:32], ids[32:]):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([piece])).logits[0, :-1].double()
            wanted = torch.tensor(piece[1:])
            total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            count += len(wanted)
    assert record["loss"]["after"] == pytest.approx(total / count, abs=1e-5)


def test_same_command_again_changes_nothing(
    merged: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(merged, texts) == 0
    before = digests(merged)
    capsys.readouterr()
    assert train(merged, texts) == 0
    assert "already trained with this data and these options" in capsys.readouterr().out
    assert digests(merged) == before
    assert train(merged, texts, "--seed", "1") == 0
    assert len(manifest(merged)["router_training"]) == 2
    assert (merged / "README.md").read_text().count("## Training of the routers") == 1
    assert run("verify", merged) == 0


@pytest.mark.slow
def test_stopped_by_a_signal_it_continues_to_the_same_bytes(
    merged: Path, texts: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(merged, tmp_path / "undisturbed")
    words = [sys.executable, "-m", "merge_worker", "train-routers", str(merged), "--data"]
    words += [str(texts), "--steps", "40", "--length", "32", "--progress", "json"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '"step": 5' in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
        assert process.wait() == 75 and "run the same command to resume" in rest
    assert run("verify", merged) == 0
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "resumes after step" in again.stderr
    words[4] = str(other)
    subprocess.run(words, capture_output=True, check=True)
    assert tensors(merged).keys() == tensors(other).keys()
    for path in other.glob("*.safetensors"):
        assert (merged / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "weights", "manifest"])
def test_a_crash_while_writing_is_finished_by_the_next_run(
    moment: str, merged: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(merged, tmp_path / "undisturbed")
    assert train(other, texts) == 0

    def crash(*words: object, **named: object) -> None:
        raise MemoryError

    def half(path: Path, patches: Any) -> None:
        with path.open("r+b") as file:
            file.seek(patches[0].offset)
            file.write(patches[0].data[:7])
        raise MemoryError

    targets: dict[str, tuple[str, Callable[..., None]]] = {
        "before": ("_write", crash),
        "weights": ("_write_at", half),
        "manifest": ("write_file", crash),
    }
    with monkeypatch.context() as patched:
        patched.setattr(write_back, *targets[moment])
        with pytest.raises(MemoryError):
            from merge_worker.cli import BY_NAME, parse_arguments

            words = ["train-routers", str(merged), "--data", str(texts), *QUICK]
            BY_NAME["train-routers"].run(parse_arguments(words))
    assert train(merged, texts) == 0
    assert run("verify", merged) == 0
    assert len(manifest(merged)["router_training"]) == 1
    for path in other.glob("*.safetensors"):
        assert (merged / path.name).read_bytes() == path.read_bytes()
    assert not (merged / FOLDER).exists()


def test_files_with_other_names_are_replaced_not_written_to(
    merged: Path, texts: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "cache"
    elsewhere.mkdir()
    for path in merged.glob("*.safetensors"):
        os.link(path, elsewhere / path.name)
    before = digests(elsewhere)
    (merged / PARTIAL).mkdir()  # as a record leaves it that is killed
    assert train(merged, texts) == 0 and not (merged / PARTIAL).exists()
    assert digests(elsewhere) == before and run("verify", merged) == 0


def test_gate_of_a_shared_expert_is_trained_if_asked(tmp_path: Path, texts: Path) -> None:
    model = write_mixture(tmp_path / "moe", "qwen2_moe")
    before = tensors(model)
    assert train(model, texts, "--shared-gate") == 0
    after = tensors(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    words = ("mlp.gate", "mlp.shared_expert_gate")
    assert changed == {f"model.layers.{i}.{word}.weight" for i in range(2) for word in words}


def refused(capsys: pytest.CaptureFixture[str], model: object, *words: object) -> str:
    capsys.readouterr()
    code = run("train-routers", model, *words)
    text = capsys.readouterr().err
    assert "Traceback" not in text and len(text.splitlines()) <= 3
    return f"{code} {text}"


def test_refusals(
    tmp_path: Path, texts: Path, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(merged)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    data = ("--data", texts)
    assert refused(capsys, "org/model", *data).startswith("2 merge-worker: train-routers: org/")
    assert "3 " in refused(capsys, tmp_path / "none", *data)[:2]
    one = write_mixture(tmp_path / "one", "mixtral", num_experts_per_tok=1)
    text = refused(capsys, one, *data)
    assert text.startswith("2 ") and "one expert for each token" in text
    text = refused(capsys, merged, "--data", empty)
    assert text.startswith("3 ") and "empty.jsonl" in text
    assert "3 " in refused(capsys, merged, "--data", tmp_path / "missing.txt")[:2]
    for words in (("--lr", "0"), ("--lr", "nan"), ("--balance", "-1"), ("--steps", "0")):
        assert refused(capsys, merged, *data, *words).startswith("2 ")
    assert digests(merged) == before and not (merged / FOLDER).exists()
    (merged / PARTIAL).mkdir()
    (merged / PARTIAL / KEY).write_text('{"key": "of a merge"}')
    assert "an unfinished merge" in refused(capsys, merged, *data)


def test_a_dense_model_is_refused(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    from support.tiny_mixtures import SHAPE, character_tokenizer

    config = transformers.LlamaConfig(**SHAPE)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    character_tokenizer().save_pretrained(tmp_path / "dense")
    text = refused(capsys, tmp_path / "dense", "--data", texts)
    assert text.startswith("3 ") and "no router found in LlamaForCausalLM" in text


def test_damaged_weights_are_found_before_training(
    merged: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(p for p in sorted(merged.glob("*.safetensors")) if "gate" in str(load_file(p)))
    weights = load_file(path)
    save_file({n: t.fill_(float("nan")) for n, t in weights.items()}, path, {"format": "pt"})
    text = refused(capsys, merged, "--data", texts, *QUICK)
    assert text[:2] in ("3 ", "5 ")


def test_completions_alone_count(tmp_path: Path) -> None:
    model = write_mixture(tmp_path / "m", "mixtral")
    lines = [{"prompt": "1+2=", "completion": "3;"}, {"prompt": "ab>", "completion": "ba;"}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = read_data(model, [str(file)], 32, False)
    assert [piece.predicted for piece in (*data.held_out, *data.training)] == [2, 3]
    assert data.files == ("pairs.jsonl",)


def test_more_memory_than_there_is_is_refused(
    merged: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(capsys, merged, "--data", texts, "--batch", "1000000", "--length", "100000")
    assert text.startswith("2 ") and "lower --at-once or --length" in text
