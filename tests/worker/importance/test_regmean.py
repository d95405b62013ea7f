"""RegMean with whole Gram matrices, against its formula in float64 on the whole model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.importance.inputs import Place
from merge_worker.importance.layout import DiskLayout
from merge_worker.importance.regmean import Gram, Part, RegMean, Solver, solved_names
from merge_worker.importance.samples import Run
from merge_worker.importance.scratch import Result, Scratch
from support.language_models import loaded, make, opened
from support.measured_models import windows

W = Place("w", None, False)


def solved(
    inputs: list[Tensor], changes: list[Tensor], reduction: float = 1.0, ridge: float = 1e-6
) -> Tensor:
    """Return W − W₀ of one matrix, given inputs (tokens, channels) and W_m − W₀ of each model."""
    solver = Solver(reduction, ridge)
    for x, change in zip(inputs, changes, strict=True):
        solver.add(Gram(x.double().T @ x.double(), len(x)), 1.0, {W: change.double()})
    return solver.solve()[W]


def test_one_channel_by_hand() -> None:
    """W = Σ g w / Σ g with g = 1 and 4: (1·2 + 4·7) / 5."""
    got = solved(
        [torch.tensor([[1.0]]), torch.tensor([[2.0]])],
        [torch.tensor([[2.0]]), torch.tensor([[7.0]])],
    )
    assert got.tolist() == [[6.0]]


def test_disjoint_channels_are_both_recovered_exactly() -> None:
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    assert solved([one, two], [first, second]).tolist() == [[1.0, 6.0], [3.0, 8.0]]


def test_dead_channels_do_not_change() -> None:
    x = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 1.0]])
    change = torch.ones(2, 3)
    for reduction in (1.0, 0.9):
        got = solved([x, x], [change, change], reduction)
        assert got[:, 1].tolist() == [0, 0]
        torch.testing.assert_close(got[:, [0, 2]], torch.ones(2, 2).double())
    assert solved([0 * x], [change]).tolist() == [[0.0] * 3] * 2


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 0.9]), st.integers(1, 4))
def test_formula(seed: int, reduction: float, count: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    xs = [torch.randn(9, 5, generator=noise, dtype=torch.float64) for _ in range(count)]
    changes = [torch.randn(3, 5, generator=noise, dtype=torch.float64) for _ in range(count)]
    left, right = torch.zeros(5, 5).double(), torch.zeros(5, 3).double()
    for x, change in zip(xs, changes, strict=True):
        gram = x.T @ x / 9
        gram = gram.diag().diag() + reduction * (gram - gram.diag().diag())
        left, right = left + gram, right + gram @ change.T
    want = torch.linalg.solve(left, right).T
    torch.testing.assert_close(solved(xs, changes, reduction), want, rtol=1e-8, atol=1e-10)


def test_fewer_tokens_than_channels_have_a_ridge() -> None:
    """Without the elements made smaller the sum is singular; the ridge picks a small change."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, generator=noise)
    change = torch.randn(2, 8, generator=noise)
    got = solved([x], [change])
    assert bool(got.isfinite().all())
    torch.testing.assert_close(got @ x.double().T, (change @ x.T).double(), rtol=1e-3, atol=1e-4)
    assert float(got.norm()) < float(change.norm())


def merged(folders: list[Path], out: Path, base: Path | None = None, **more: Any) -> RegMean:
    models = [opened(folder, dtype="float32") for folder in folders]
    parts = [
        Part(Run(model, windows(6, seed)), weight)
        for seed, (model, weight) in enumerate(zip(models, more.pop("weights"), strict=True), 5)
    ]
    own = opened(base, dtype="float32") if base else None
    first = own or models[0]
    layout = DiskLayout(
        open_checkpoint(base or folders[0]).tensors, first.weights.checkpoint.tensors
    )
    result = Result(out, solved_names(layout, first), {})
    scratch = Scratch(out.with_suffix(".scratch"), "key")
    wanted = set(solved_names(layout, first))
    solution = RegMean(parts, own, layout, result, scratch, lambda stage: None, wanted, **more)
    solution.solve()
    result.close()
    for model in [*models, *([own] if own else [])]:
        model.weights.close()
    return solution


def gram_of(folder: Path, seed: int, reduction: float) -> dict[str, Tensor]:
    """Return Ĝ by names of modules, from hooks on the whole model."""
    model, sums, tokens = loaded(folder), dict[str, Tensor](), 0

    def hook(name: str) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().double().reshape(-1, args[0].shape[-1])
            sums[name] = sums.get(name, torch.zeros(())) + x.T @ x

        return add

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or "Conv1D" in type(module).__name__:
            module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        for window in windows(6, seed):
            tokens += len(window.ids)
            model(input_ids=torch.tensor([window.ids]), use_cache=False)
    grams = {name: total / tokens for name, total in sums.items()}
    return {n: g.diag().diag() + reduction * (g - g.diag().diag()) for n, g in grams.items()}


FAMILIES = [
    ("LlamaForCausalLM", "llama", {}),
    ("Phi3ForCausalLM", "phi3", {}),
    ("GPT2LMHeadModel", "gpt2", {}),
]


@pytest.mark.parametrize(("name", "kind", "fields"), FAMILIES, ids=lambda value: str(value))
@pytest.mark.parametrize("with_base", [False, True])
def test_every_matrix_of_a_model(
    tmp_path: Path, name: str, kind: str, fields: dict[str, Any], with_base: bool
) -> None:
    base = make(tmp_path / "base", name, kind, seed=1, **fields)
    folders = [make(tmp_path / f"m{s}", name, kind, seed=s, **fields) for s in (2, 3)]
    weights, reduction = [1.0, 3.0], 0.7
    solution = merged(
        folders,
        tmp_path / "solved.safetensors",
        base if with_base else None,
        weights=weights,
        reduction=reduction,
    )
    assert solution.few == []
    got = load_file(tmp_path / "solved.safetensors")
    grams = [gram_of(folder, seed, reduction) for seed, folder in enumerate(folders, 5)]
    transposed = kind == "gpt2"
    tensors = [load_file(folder / "model.safetensors") for folder in folders]
    got = {name: values for name, values in got.items() if name in solution.solved}
    assert len(got) >= 4 * loaded(base).config.num_hidden_layers
    for key, values in got.items():
        module = next(n for n in grams[0] if key.removesuffix(".weight").endswith(n))
        left = sum(w * gram[module] for w, gram in zip(weights, grams, strict=True))
        right = torch.zeros(())
        for w, gram, own in zip(weights, grams, tensors, strict=True):
            matrix = own[key].double()
            right = right + w * gram[module] @ (matrix if transposed else matrix.T)
        want = torch.linalg.solve(left, right)
        want = want if transposed else want.T
        torch.testing.assert_close(values.double(), want, rtol=1e-4, atol=2e-5)


def test_equal_models_are_the_result_exactly(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", "LlamaForCausalLM", "llama")
    for base in (None, folder):
        out = tmp_path / f"{base is None}.safetensors"
        merged([folder, folder], out, base, weights=[1.0, 2.0])
        own = load_file(folder / "model.safetensors")
        for name, values in load_file(out).items():
            torch.testing.assert_close(values, own[name], rtol=2e-7, atol=1e-9)
            assert base is None or values.equal(own[name])


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_with_few_tokens_get_the_mean(tmp_path: Path, kind: str) -> None:
    name = {"mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}[kind]
    folders = [make(tmp_path / f"m{s}", name, kind, seed=s) for s in (2, 3)]
    solution = merged(folders, tmp_path / "out.safetensors", weights=[1.0, 3.0])
    assert solution.few
    got = {n: t for n, t in load_file(tmp_path / "out.safetensors").items() if n in solution.solved}
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    means = [
        key
        for key, values in got.items()
        if torch.allclose(values, (first[key] + 3 * second[key]) / 4, rtol=1e-5, atol=1e-7)
    ]
    assert means and all(".experts." in key for key in means)
    assert any("q_proj" in key for key in got)
