"""`verify` finds what the manifest and the files do not agree on."""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from support.checkpoint_factory import write_checkpoint
from support.recipes import average, manifest, run


@pytest.fixture
def out(tmp_path: Path, models: list[Path]) -> Path:
    (models[0] / "tokenizer.json").write_text("{}")
    assert average(tmp_path / "out", models, "--shard-size", "6KB") == 0
    return tmp_path / "out"


def refused(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run("verify", out) == 3
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_all_is_well(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("verify", out) == 0
    text = capsys.readouterr().out
    assert ": matches the manifest: " in text and text.endswith("; no NaN or Inf\n")


def test_one_flipped_bit_in_any_shard(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        raw = shard.read_bytes()
        shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        assert f"{shard}: checksum" in refused(out, capsys)
        shard.write_bytes(raw)
    assert run("verify", out) == 0


@pytest.mark.parametrize("installed", [True, False])
def test_safetensors_is_asked_too(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    opened: list[Path] = []
    real = safetensors.safe_open

    def safe_open(path: Path, framework: str) -> Any:
        opened.append(path)
        if path.name.startswith("model-00002"):
            raise safetensors.SafetensorError("invalid header")
        return real(path, framework)

    monkeypatch.setattr(safetensors, "safe_open", safe_open)
    shards = sorted(out.glob("model-*.safetensors"))
    if installed:
        text = refused(out, capsys)
        assert f"{shards[1]}: the package safetensors cannot open it: invalid header" in text
        assert opened == shards
    else:
        monkeypatch.setitem(sys.modules, "safetensors", None)
        assert run("verify", out) == 0
        assert opened == []


def test_safetensors_finds_the_same_tensors(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_checkpoint(out.parent / "other", {"x": torch.ones(2)}) / "model.safetensors"
    real = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda path, framework: real(other, framework))
    assert "finds other tensors in it" in refused(out, capsys)


def test_the_crc_of_earlier_releases(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = manifest(out)
    first = out / value["outputs"][0]["file"]
    del value["outputs"][0]["sum128"]
    for crc, code in ((zlib.crc32(first.read_bytes()), 0), (1, 3)):
        value["outputs"][0]["crc32"] = f"{crc:08x}"
        (out / "merge_manifest.json").write_text(json.dumps(value))
        assert run("verify", out) == code


def test_sha256(tmp_path: Path, models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert average(tmp_path / "out", models, "--sha256") == 0
    assert run("verify", tmp_path / "out") == 0
    value = manifest(tmp_path / "out")
    value["outputs"][0]["sha256"] = "0" * 64
    (tmp_path / "out" / "merge_manifest.json").write_text(json.dumps(value))
    assert "SHA-256 differs" in refused(tmp_path / "out", capsys)


def test_missing_short_and_long_files(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "tokenizer.json").unlink()
    first = next(iter(sorted(out.glob("model-*.safetensors"))))
    first.write_bytes(first.read_bytes() + b"x")
    text = refused(out, capsys)
    assert "tokenizer.json: missing" in text and f"{first}: " in text, "all faults at once"
    assert "the manifest says" in text


def test_no_merge(tmp_path: Path, models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "no merge_manifest.json" in refused(models[0], capsys)
    assert "no merge_manifest.json" in refused(tmp_path / "gone", capsys)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"outputs": 3}', '{"outputs": [3]}', '{"outputs": [{}]}'),
        '{"outputs": [{"file": "config.json"}]}',
        '{"outputs": [{"file": "config.json", "bytes": "x"}]}',
        '{"outputs": [{"file": 3, "bytes": 3}]}',
        '{"outputs": [{"file": "../m0/config.json", "bytes": 48}]}',
    ],
)
def test_damaged_manifests(out: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (out / "merge_manifest.json").write_text(text)
    assert str(out) in refused(out, capsys)


def test_values_that_are_not_finite(
    tmp_path: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = torch.tensor([1.0, float("nan"), float("inf")])
    write_checkpoint(tmp_path / "bad", {"x": bad, "y": torch.ones(2)})
    out = tmp_path / "nan"
    assert average(out, [tmp_path / "bad"], "--allow-nonfinite") == 0
    assert manifest(out)["nonfinite"] == 2
    capsys.readouterr()
    assert run("verify", out) == 0
    assert "2 values are NaN or Inf" in capsys.readouterr().out
    value = manifest(out)
    value["nonfinite"] = 0
    (out / "merge_manifest.json").write_text(json.dumps(value))
    assert "2 values are NaN or Inf (x: 2)" in refused(out, capsys)


def test_copied_tensors_with_nan_are_counted_too(tmp_path: Path) -> None:
    nan = torch.tensor([float("nan"), float("-inf"), 1.0])
    write_checkpoint(tmp_path / "a", {"x": torch.ones(2), "only.a": nan})
    write_checkpoint(tmp_path / "b", {"x": torch.ones(2)})
    words = ("--missing", "copy", "--allow-nonfinite")
    assert average(tmp_path / "out", [tmp_path / "a", tmp_path / "b"], *words) == 0
    assert manifest(tmp_path / "out")["nonfinite"] == 2
    assert run("verify", tmp_path / "out") == 0
