"""Whole merges: numbers against float64, what is copied, what is refused, one run at a time."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_worker.engine import device
from merge_worker.output.files import PARTIAL
from merge_worker.output.lock import Lock
from merge_worker.system.machine import usable_cpus
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import (
    average,
    digest,
    manifest,
    one_tensor_models,
    run,
    shards_of,
    some_models,
)

Capture = pytest.CaptureFixture[str]
# Bits of the significand, exponent of the smallest step.
FORMATS = {
    torch.bfloat16: (8, -133),
    torch.float16: (11, -24),
    torch.float32: (24, -149),
    torch.float64: (53, -1074),
}
DTYPES = list(FORMATS)


def numbers(seed: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers, tiny and large ones, zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4000, generator=generator, dtype=torch.float64)
    scales = torch.tensor([1.0, 1e-3, 300.0, 2.0**-14, 2.0**-24], dtype=torch.float64)
    values *= scales.repeat(800)
    values[:10] = 0.0
    values[10:20] = -0.0
    return values.to(dtype)


def excess(result: Tensor, inputs: Sequence[Tensor], weights: Sequence[Fraction]) -> float:
    """How far the worst element lies beyond half a unit in the last place, in such units.

    The sum is made in a wider format (float64 has none), so terms that cancel may leave its error.
    """
    bits, smallest = FORMATS[result.dtype]
    slack = Fraction(1, 2**50 if bits > 11 else 2**22)
    worst = Fraction(-1, 2)
    columns = [values.double().tolist() for values in inputs]
    for value, *numbers in zip(result.double().tolist(), *columns, strict=True):
        terms = [w * Fraction(x) for w, x in zip(weights, numbers, strict=True)]
        exact = sum(terms, start=Fraction(0))
        error = abs(Fraction(value) - exact) - slack * sum(map(abs, terms))
        if error <= 0:
            continue
        size = max(abs(exact), abs(Fraction(value)))
        exponent = size.numerator.bit_length() - size.denominator.bit_length()
        exponent += size >= Fraction(2) ** exponent  # 2^(exponent-1) <= size < 2^exponent
        step = Fraction(2) ** max(exponent - bits, smallest)
        worst = max(worst, error / step - Fraction(1, 2))
    return float(worst)


def exact_weights(weights: Sequence[float], normalize: bool) -> list[Fraction]:
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    return [weight / total for weight in exact] if normalize else exact


WEIGHTS = [
    ((1.0, 1.0, 1.0), True),
    ((2.0, 1.0, 1.0), True),
    ((0.3, 0.0, 0.7), True),
    ((0.37, 0.21, 0.11), True),
    ((-0.5, 1.25, 0.25), True),
    ((0.1, 0.2, 0.3), False),
    ((-1.0, 1.0, 1.0), False),
    ((0.0, 0.0, 0.0), False),
]


def merged_numbers(
    tmp_path: Path, dtypes: Sequence[torch.dtype], *options: object
) -> tuple[Tensor, list[Tensor]]:
    models, inputs = [], []
    for seed, dtype in enumerate(dtypes):
        inputs.append(numbers(seed, dtype))
        models.append(write_checkpoint(tmp_path / f"m{seed}", {"x": inputs[-1]}))
    assert average(tmp_path / "out", models, *options) == 0
    return read_tensors(tmp_path / "out")["x"], inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("weights", "normalize"), WEIGHTS)
def test_within_half_a_unit(
    tmp_path: Path, dtype: torch.dtype, weights: tuple[float, ...], normalize: bool
) -> None:
    options = ["--weights", ",".join(map(str, weights))]
    options += [] if normalize else ["--no-normalize"]
    result, inputs = merged_numbers(tmp_path, [dtype] * 3, *options)
    assert result.dtype is dtype
    assert excess(result, inputs, exact_weights(weights, normalize)) <= 0.0


@pytest.mark.parametrize("kinds", list(itertools.permutations(DTYPES, 3))[::3], ids=str)
def test_dtypes_may_be_mixed(tmp_path: Path, kinds: tuple[torch.dtype, ...]) -> None:
    result, inputs = merged_numbers(tmp_path, kinds)
    assert result.dtype is kinds[0], "that of the first model"
    assert excess(result, inputs, [Fraction(1, 3)] * 3) <= 0.0


@pytest.mark.parametrize("asked", ["bfloat16", "float16", "float32", "float64", "same"])
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_a_dtype_on_request(tmp_path: Path, asked: str, stored: torch.dtype) -> None:
    result, inputs = merged_numbers(tmp_path, [stored] * 2, "--dtype", asked)
    expected = stored if asked == "same" else getattr(torch, asked)
    assert result.dtype is expected
    assert excess(result, inputs, [Fraction(1, 2)] * 2) <= 0.0


def test_one_model_is_itself(tmp_path: Path) -> None:
    (model,) = some_models(tmp_path, 1)
    assert average(tmp_path / "out", [model]) == 0
    first, merged = read_tensors(model), read_tensors(tmp_path / "out")
    assert first.keys() == merged.keys()
    assert all(torch.equal(first[name], merged[name]) for name in first)
    assert all(first[name].dtype is merged[name].dtype for name in first)


def test_equal_models_stay_bit_for_bit(tmp_path: Path) -> None:
    tensors = {"x": numbers(3, torch.bfloat16)}
    models = [write_checkpoint(tmp_path / str(n), tensors) for n in range(3)]
    assert average(tmp_path / "out", models) == 0
    merged = read_tensors(tmp_path / "out")["x"]
    assert torch.equal(merged, tensors["x"])


def test_shards_of_any_kind_give_the_same(tmp_path: Path) -> None:
    single = some_models(tmp_path / "1")
    mixed = [
        some_models(tmp_path / "2", shards=2)[0],
        some_models(tmp_path / "3", shards=3)[1],
        some_models(tmp_path / "4")[2] / "model.safetensors",
    ]
    assert average(tmp_path / "a", single) == 0
    assert average(tmp_path / "b", mixed) == 0
    a, b = read_tensors(tmp_path / "a"), read_tensors(tmp_path / "b")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_shards_hold_what_was_asked(tmp_path: Path, models: list[Path]) -> None:
    assert average(tmp_path / "out", models, "--shard-size", "4KB") == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(read_tensors(models[0]))
    assert average(tmp_path / "one", models) == 0
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    whole, sharded = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "out")
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_nan_and_inf_of_an_input(tmp_path: Path, capsys: Capture, value: str) -> None:
    models = some_models(tmp_path, 2)
    tensors = read_tensors(models[1])
    tensors["layers.1.weight"][3, 5] = float(value)
    bad = write_checkpoint(tmp_path / "bad", tensors)
    out = tmp_path / "out"
    assert average(out, [models[0], bad]) == 5
    text = capsys.readouterr().err
    assert "tensor 'layers.1.weight': 1 value of the result is NaN or Inf" in text
    assert f"{bad / 'model.safetensors'} has 1 NaN or Inf there" in text
    assert f"{models[0]}/" not in text and "Traceback" not in text
    assert [path.name for path in out.iterdir()] == [PARTIAL]
    assert average(out, [models[0], bad], "--allow-nonfinite") == 0
    assert manifest(out)["nonfinite"] == 1
    assert run("verify", out) == 0


def test_values_that_overflow_on_the_way_out(tmp_path: Path, capsys: Capture) -> None:
    write_checkpoint(tmp_path / "m", {"x": torch.tensor([1e6, 1.0, -1e6])})
    assert average(tmp_path / "out", [tmp_path / "m"], "--dtype", "float16") == 5
    text = capsys.readouterr().err
    assert "2 values of the result are NaN or Inf" in text and "the inputs are finite" in text


def test_means_of_the_largest_numbers(tmp_path: Path) -> None:
    """Means are right or refused, never silently Inf."""
    for dtype in DTYPES:
        largest = torch.full((5,), torch.finfo(dtype).max, dtype=dtype)
        folder = tmp_path / str(dtype)
        models = [write_checkpoint(folder / str(n), {"x": largest}) for n in range(3)]
        code = average(folder / "out", models)
        assert code == 0 or (code == 5 and dtype == torch.float64), dtype
        if code == 0:
            assert torch.equal(read_tensors(folder / "out")["x"], largest)


def test_nan_that_an_earlier_run_allowed(tmp_path: Path, capsys: Capture) -> None:
    tensors = {"bad": torch.tensor([float("nan")]), "rest": torch.ones(300_000)}
    model = write_checkpoint(tmp_path / "m", tensors)
    words = ("--deadline", "0", "--threads", "1")
    out = tmp_path / "out"
    assert average(out, [model], "--allow-nonfinite", *words) == 75
    from merge_worker.output.store import PartialOutput
    from support.recipes import plan_of, stream_into

    plan = plan_of([model])
    store = PartialOutput(out, plan)
    stream_into(out, plan, allow_nonfinite=True)
    store.read_journals()
    assert store.complete() and store.nonfinite() == 1
    assert average(out, [model]) == 5
    assert average(out, [model], "--allow-nonfinite") == 0


def test_the_same_again_is_nothing_to_do(
    tmp_path: Path, models: list[Path], capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert average(out, models) == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    began = time.process_time()
    assert average(out, models) == 0
    assert time.process_time() - began < 3
    assert "already there; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert average(out, models, "--weights", "1,2,3") == 4
    assert average(out, models, "--weights", "1,2,3", "--overwrite") == 0
    assert average(out, models) == 4


def test_overwriting_leaves_nothing_of_the_old(tmp_path: Path, models: list[Path]) -> None:
    out = tmp_path / "out"
    assert average(out, models, "--shard-size", "4KB") == 0
    assert len(shards_of(out)) > 1
    assert average(out, models, "--overwrite") == 0
    assert list(shards_of(out)) == ["model.safetensors"]
    assert not (out / "model.safetensors.index.json").exists()
    assert average(tmp_path / "fresh", models) == 0
    assert digest(out) == digest(tmp_path / "fresh")


@pytest.mark.parametrize("option", ["--no-resume", "--overwrite", "--sha256"])
def test_two_runs_at_once(tmp_path: Path, models: list[Path], capsys: Capture, option: str) -> None:
    out = tmp_path / "out"
    (out / PARTIAL).mkdir(parents=True)
    from support.recipes import plan_of

    for about in (plan_of(models).key, "another merge"):
        with Lock(out / PARTIAL / "lock-0-of-1", about):
            (out / PARTIAL / "journal-of-the-other").write_text("work of hours")
            assert average(out, models, option) == 4
            assert "another merge writes here" in capsys.readouterr().err
            assert (out / PARTIAL / "journal-of-the-other").exists()
    assert average(out, models, option) == 0


def test_another_number_of_ranks_at_once(
    tmp_path: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    out = tmp_path / "out"
    (out / PARTIAL).mkdir(parents=True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with Lock(out / PARTIAL / "lock-0-of-1", "another merge"):
        assert average(out, models, "--ranks", "auto") == 4
        assert "another merge writes here" in capsys.readouterr().err


def test_the_deadline(tmp_path: Path, models: list[Path], capsys: Capture) -> None:
    assert average(tmp_path / "out", models, "--deadline", "0s") == 75
    text = capsys.readouterr().err
    assert "stopped at the deadline at 0 %" in text and text.count("merge-worker: ") == 1
    assert average(tmp_path / "out", models, "--deadline", "1h") == 0


def test_gpus_that_the_job_asked_for(
    tmp_path: Path, models: list[Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_visible", lambda kind: [])
    assert average(tmp_path / "out", models, "--expect-gpus", 2) == 0
    note = f"the job asked for 2 GPUs, torch {torch.__version__} sees 0; the CPU merges"
    captured = capsys.readouterr()
    assert f"warning: {note}\n" in captured.out + captured.err
    assert note in manifest(tmp_path / "out")["notes"]
    assert average(tmp_path / "cpu", models, "--expect-gpus", 2, "--device", "cpu") == 0
    assert note not in manifest(tmp_path / "cpu")["notes"]


def test_cpus_that_the_scheduler_granted() -> None:
    assert usable_cpus() >= 1


ROOT = Path(__file__).resolve().parents[3]
MOST_S = 3.0
CODE = (
    "import sys\nfrom merge_worker.cli import main\ncode = main(sys.argv[1:])\n"
    "heavy = {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    "sys.exit(f'loads {heavy}' if heavy else code)\n"
)


def again(*words: object) -> tuple[float, str]:
    """Return processor seconds of the command in a new interpreter, and its output."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])
    assert done.returncode == 0, done.stderr
    return seconds, done.stdout


@pytest.fixture
def big(tmp_path: Path) -> list[Path]:
    return one_tensor_models(tmp_path, 2_600_000)


def test_a_finished_average_again(tmp_path: Path, big: list[Path]) -> None:
    assert average(tmp_path / "out", big, "--sha256") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    rest = tmp_path / "out" / ".merge-partial-0a1b2c3d"
    rest.mkdir()  # as of a run that was killed with its last breath
    (rest / "key.json").touch()
    seconds, printed = again("average", tmp_path / "out", *big, "--sha256")
    assert printed.endswith("this merge is already there; nothing to do\n")
    assert seconds < MOST_S
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_finished_recipes_again(tmp_path: Path, big: list[Path]) -> None:
    words: list[object] = ["merge", "--progress", "off"]
    for weight in (1, 2):
        recipe = tmp_path / f"{weight}.yml"
        recipe.write_text(
            f"merge_method: task_arithmetic\nbase_model: {big[0]}\n"
            f"models: [{{model: {big[1]}, parameters: {{weight: {weight}}}}}]\n"
        )
        words += ["-a", recipe, tmp_path / f"out{weight}"]
    assert run(*words) == 0
    before = [digest(tmp_path / f"out{weight}") for weight in (1, 2)]
    seconds, printed = again(*words)
    assert printed.count("nothing to do") == 2 and seconds < MOST_S
    assert before == [digest(tmp_path / f"out{weight}") for weight in (1, 2)]
