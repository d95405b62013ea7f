"""`compare` against the same figures computed by torch in float64, whole tensors at once."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.comparison.stream import ReadProgress
from support.checkpoint_factory import read_tensors, save_fine_tunes, write_checkpoint
from support.recipes import run

MATRIX, EXPERTS = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.experts.w1"


def family(folder: Path, count: int = 3) -> list[Path]:
    """Write a base and fine-tunes that share unchanged elements, with various dtypes and shards."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = {
        "model.embed_tokens.weight": noise(500, 300),
        "model.layers.0.self_attn.q_proj.weight": noise(300, 300),
        EXPERTS: noise(3, 90, 300),
        MATRIX: noise(700, 300),
        "model.layers.0.input_layernorm.weight": 1 + noise(300) / 10,
        "model.scale": noise(),
    }
    models = []
    for number in range(count):
        dtype = torch.float32 if number == 1 else torch.bfloat16
        tensors = {
            name: (value + (number > 0) * 0.02 * noise(*value.shape)).to(dtype)
            for name, value in base.items()
        }
        tensors["position_ids"] = torch.arange(9)
        shards = 1 + number % 2
        models.append(write_checkpoint(folder / f"model{number}", tensors, shards=shards))
    return models


def measured(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run("compare", *words, "--json", "--progress", "off") == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def flat(folder: Path, names: list[str]) -> Tensor:
    tensors = read_tensors(folder)
    return torch.cat([tensors[name].double().flatten() for name in names])


Pair = tuple[Tensor, Tensor]


def check_pair(pair: dict[str, Any], vectors: Pair, of: Pair) -> None:
    (v, w), (a, b) = vectors, of
    both = (v != 0) & (w != 0)
    expected = {
        "distance": (a - b).norm(),
        "relative_distance": 2 * (a - b).norm() / (a.norm() + b.norm()),
        "cosine": v @ w / (v.norm() * w.norm()),
        "sign_conflicts": (v * w < 0).double().sum() / both.double().sum(),
        "equal": (a == b).double().mean(),
    }
    for name, value in expected.items():
        near = 1e-7 if name == "cosine" else 0
        assert pair[name] == pytest.approx(float(value), rel=1e-6, abs=near), name


def test_task_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, *models = family(tmp_path)
    facts = measured(capsys, *models, "--base", base)
    assert facts["base"] == "model0" and facts["models"] == ["model1", "model2"]
    cases = [(row, [row["name"]]) for row in facts["tensors"]]
    cases.append((facts["total"], [row["name"] for row in facts["tensors"]]))
    cells = [row for row in facts["layers"] if (row["layer"], row["component"]) == (1, "MLP")]
    cases += [(cell, [MATRIX]) for cell in cells]
    cases += [(facts["components"][0], ["model.embed_tokens.weight"])]
    assert len(cases) == 6 + 1 + 1 + 1
    for row, names in cases:
        x = [flat(folder, names) for folder in (base, *models)]
        assert row["parameters"] == x[0].numel()
        assert row["base_norm"] == pytest.approx(float(x[0].norm()), rel=1e-7)
        tau = (x[1] - x[0], x[2] - x[0])
        for model, own, vector in zip(row["models"], x[1:], tau, strict=True):
            assert model["norm"] == pytest.approx(float(own.norm()), rel=1e-7)
            assert model["task_vector_norm"] == pytest.approx(float(vector.norm()), rel=1e-7)
            relative = float(vector.norm() / x[0].norm())
            assert model["relative_distance"] == pytest.approx(relative, rel=1e-7)
            assert model["unchanged"] == pytest.approx(float((vector == 0).double().mean()))
            assert model["nonfinite"] == 0
        check_pair(row["pairs"][0], tau, (x[1], x[2]))


def test_without_a_base_the_weights_are_the_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = family(tmp_path)
    facts = measured(capsys, *models)
    names = [row["name"] for row in facts["tensors"]]
    x = [flat(folder, names) for folder in models]
    pairs = [(0, 1), (0, 2), (1, 2)]
    for (i, j), pair in zip(pairs, facts["total"]["pairs"], strict=True):
        assert pair["models"] == [f"model{i}", f"model{j}"]
        check_pair(pair, (x[i], x[j]), (x[i], x[j]))
    signs = torch.stack(x).sign()
    shared = (signs != 0).sum(0) > 1
    conflict = (signs.amax(0) > 0) & (signs.amin(0) < 0)
    expected = int(conflict.sum()) / int(shared.sum())
    assert facts["total"]["sign_conflicts_any"] == pytest.approx(expected, rel=1e-7)


def rank(matrix: Tensor) -> float:
    squares = torch.linalg.svdvals(matrix.double()).square()
    return float(squares.sum() ** 2 / squares.square().sum())


@pytest.mark.parametrize("true", [1, 8, 200])
def test_effective_rank(true: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(true)

    def low_rank(*shape: int) -> Tensor:
        left = torch.randn(*shape[:-1], true, generator=generator)
        return left @ torch.randn(*shape[:-2], true, shape[-1], generator=generator)

    deltas = {MATRIX: low_rank(700, 300), EXPERTS: low_rank(3, 90, 300)}
    base = write_checkpoint(tmp_path / "base", {n: torch.zeros_like(d) for n, d in deltas.items()})
    model = write_checkpoint(tmp_path / "model", deltas)
    for words, place in (([model, "--base", base], "models"), ([base, model], "pairs")):
        facts = measured(capsys, *words)
        for row in facts["tensors"]:
            delta = deltas[row["name"]]
            single = delta if delta.dim() == 3 else delta[None]
            expected = sum(rank(m) for m in single) / len(single)
            entry = row[place][0]
            assert entry["effective_rank"] == pytest.approx(expected, rel=0.15)
            assert entry["full_rank"] == min(delta.shape[-2:])
    cell = {row["component"]: row for row in facts["layers"]}["MLP"]
    assert cell["pairs"][0]["of"] == MATRIX


def test_threads_do_not_change_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(1)
    models = [
        write_checkpoint(
            tmp_path / f"m{i}", {"a.0.w": torch.randn(1100, 2000, generator=generator).bfloat16()}
        )
        for i in range(3)
    ]
    words = [*models[1:], "--base", models[0]]
    alone = measured(capsys, *words, "--threads", 1)
    assert alone == measured(capsys, *words, "--threads", 5)
    x = [read_tensors(m)["a.0.w"].double() for m in models]
    assert alone["total"]["pairs"][0]["distance"] == pytest.approx(float((x[1] - x[2]).norm()))


def test_nonfinite_values_are_counted_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = torch.arange(1.0, 7), torch.arange(2.0, 8)
    bad = b.clone()
    bad[0], bad[3] = math.nan, -math.inf
    write_checkpoint(tmp_path / "a", {"x": a, "y": a.clone()})
    write_checkpoint(tmp_path / "b", {"x": bad, "y": b})
    facts = measured(capsys, tmp_path / "a", tmp_path / "b")
    x = facts["tensors"][0]
    assert [model["nonfinite"] for model in x["models"]] == [0, 2] and x["parameters"] == 4
    kept = torch.tensor([1, 2, 4, 5])
    assert x["pairs"][0]["distance"] == pytest.approx(float((a - b)[kept].norm()))
    assert facts["advice"]["warnings"] == ["b has 2 NaN or Inf values: repair it before merging"]
    assert facts["advice"]["recipe"] is None


@pytest.mark.parametrize("model_type", ["olmo_hybrid", "qwen3_moe", "t5"])
def test_hybrids_and_experts(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, *models = save_fine_tunes(tmp_path, model_type)
    facts = measured(capsys, *models, "--base", base)
    stored = read_tensors(base)
    assert facts["total"]["parameters"] == sum(t.numel() for t in stored.values())
    assert facts["total"]["tensors"] == len(stored) == len(facts["tensors"])
    assert facts["left_out"] == [] and facts["mergeable"]
    for kind in ("layers", "components"):
        assert sum(row["parameters"] for row in facts[kind]) == facts["total"]["parameters"]
    parts = {row["component"] for row in facts["components"]}
    assert ("linear attention/SSM" in parts) == (model_type == "olmo_hybrid")
    assert ("experts" in parts) == (model_type == "qwen3_moe")
    places = [(row["stack"], row["layer"]) for row in facts["layers"]]
    assert places[0][0] == "input" and places[-1][0] == "output"
    numbers = [n for stack, n in places if stack == places[1][0]]
    assert numbers == sorted(numbers)


def test_unmatched_tensors_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ones = torch.ones(4)
    write_checkpoint(tmp_path / "a", {"x": ones, "v": torch.ones(4, 2), "n": torch.arange(3)})
    write_checkpoint(tmp_path / "b", {"x": ones * 2, "v": torch.ones(5, 2), "m": ones})
    facts = measured(capsys, tmp_path / "a", tmp_path / "b")
    assert facts["left_out"] == [
        "1 tensor is not in all models: m",
        "1 tensor differs in shape: v ([4, 2], [5, 2])",
        "1 tensor of integers or booleans is not compared",
    ]
    assert not facts["mergeable"] and facts["advice"]["recipe"] is None
    assert [row["name"] for row in facts["tensors"]] == ["x"]


def test_a_tied_head_is_the_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    e = torch.randn(8, 4)
    tied = {"tie_word_embeddings": True}
    names = "model.embed_tokens.weight", "lm_head.weight"
    write_checkpoint(tmp_path / "untied", {names[0]: e, names[1]: e + 1})
    write_checkpoint(tmp_path / "tied", {names[0]: e}, config=tied)
    for order in (("untied", "tied"), ("tied", "untied")):
        facts = measured(capsys, *(tmp_path / name for name in order))
        assert facts["mergeable"] and facts["left_out"] == []


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, *models = family(tmp_path)
    assert run("compare", *models, "--base", base, "--progress", "off") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "base       model0" and lines[2] == "model      model2"
    assert "left out   1 tensor of integers or booleans is not compared" in lines
    # A line for both models would have more than 100 columns.
    head = next(line.split() for line in lines if "moved" in line.split())
    assert head == ["moved", "cosine", "conflicts", "unchanged", "rank"]
    at = lines.index("model.layers.1 MLP: 210,000 parameters")
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["model1", "model2", "both"]
    assert len(lines[at + 1].split()) == 4 and len(lines[at + 3].split()) == 4
    end = next(n for n, line in enumerate(lines) if line.startswith("all: "))
    assert max(map(len, lines[: end + 4])) <= 100
    assert run("compare", models[0], base, "--progress", "off") == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if line.startswith("layer "))
    assert "parameters  apart  cosine" in head and len(head) <= 100
    assert any(line.startswith("model.layers.1  MLP") for line in lines)
    assert run("compare", *models, "--base", base, "--tensors", "--progress", "off") == 0
    assert f"\n{MATRIX}: 210,000 parameters\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["a"], 2, "compare: only one model given; add another, or its --base"),
        (["a", "nowhere"], 3, "nowhere: no such folder"),
        (["a", "b"], 3, "no floating tensor has the same name and shape in all of them"),
        (["a", "a", "--plot", "no/where.png"], 2, "folder not found; create it first"),
        (["a", "a", "--plot", "x.jpg"], 2, "the name must end in .png, .pdf, .svg or .html"),
        (["a", "q"], 3, "quantized (gptq)\n  name the model that it was quantized from"),
    ],
)
def test_mistakes(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "a", {"x": torch.ones(3)})
    write_checkpoint(tmp_path / "b", {"y": torch.ones(3)})
    config = {"quantization_config": {"quant_method": "gptq"}}
    write_checkpoint(
        tmp_path / "q", {"x": torch.ones(3), "w.qweight": torch.ones(2).int()}, config=config
    )
    assert run("compare", *words, "--progress", "off") == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_progress_counts_bytes_read(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ReadProgress("json", 4 << 30, "compare")
    assert progress.facts()["left_s"] == -1
    progress.read(1 << 30)
    facts = progress.facts()
    assert facts["percent"] == 25 and facts["bytes_in"] == 1 << 30 and facts["bytes_out"] == 0
    assert facts["left_s"] == pytest.approx(3 * facts["elapsed_s"], abs=0.1)


@pytest.mark.parametrize("has_base", [True, False])
def test_what_float32_would_lose_is_computed_in_float64(
    has_base: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model beside its continued training, and weights whose squares float32 cannot hold."""
    generator = torch.Generator().manual_seed(3)
    far, near = torch.randn(2, 5000, generator=generator)
    close = [torch.zeros(5000), far, far + 1e-3 * near]
    tensors = [{"close": x, "tiny": x * 1e-25, "large": x * 1e25} for x in close]
    tensors[0] = {name: x + tensors[1][name] * 0.5 for name, x in tensors[0].items()}
    folders = [write_checkpoint(tmp_path / f"m{i}", each) for i, each in enumerate(tensors)]
    words = [*folders[1:], "--base", folders[0]] if has_base else folders
    for row in measured(capsys, *words)["tensors"]:
        x = [each[row["name"]].double() for each in tensors]
        tau = [v - x[0] for v in x] if has_base else x
        check_pair(row["pairs"][-1], (tau[1], tau[2]), (x[1], x[2]))
        assert row["parameters"] == 5000


def test_many_models_are_counted_pair_by_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(-2, 3, (9, 70_000), generator=generator).float()
    folders = [write_checkpoint(tmp_path / f"m{i}", {"x": row}) for i, row in enumerate(x)]
    total = measured(capsys, *folders[1:], "--base", folders[0])["total"]
    tau = (x[1:] - x[0]).double()
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
    for (i, j), pair in zip(pairs, total["pairs"], strict=True):
        check_pair(pair, (tau[i], tau[j]), (x[i + 1].double(), x[j + 1].double()))
    signs = tau.sign()
    opposed = ((signs.amax(0) > 0) & (signs.amin(0) < 0)).sum() / (signs.abs().sum(0) > 1).sum()
    assert total["sign_conflicts_any"] == pytest.approx(float(opposed), rel=1e-7)


def test_progress_in_a_log_tells_what_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ReadProgress("plain", 4 << 30, "compare")
    progress.read(1 << 30)
    progress._began -= 2
    progress._show()
    line = "compare: 25.0 % (1.00 of 4.00 GiB), 6 s left, 0.50 GiB/s, "
    assert capsys.readouterr().err.startswith(line)
