"""Importance files and states of optimizers, read without running a pickle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.checkpoint.hub import Hub
from merge_worker.checkpoint.importance import ImportanceFile, hub_place, open_importance
from merge_worker.checkpoint.reader import Files
from merge_worker.engine.lane import Lane
from merge_worker.errors import InputError
from support.checkpoint_factory import make_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny model on disk, and its parameters with gradients."""
    folder = tmp_path_factory.mktemp("trained")
    model = make_model("llama", dtype=torch.float32).float()
    model.save_pretrained(folder)
    model(torch.tensor([[1, 5, 9, 3]]), labels=torch.tensor([[1, 5, 9, 3]])).loss.backward()
    return folder, model


def groups_of(model: Any) -> list[dict[str, Any]]:
    """Return the groups of transformers' Trainer."""
    named = list(model.named_parameters())
    decayed = [p for n, p in named if "norm" not in n and "bias" not in n]
    return [
        {"params": decayed, "weight_decay": 0.1},
        {"params": [p for n, p in named if "norm" in n or "bias" in n], "weight_decay": 0.0},
    ]


def opened(path: Path, model: Path) -> ImportanceFile:
    return open_importance(path, Hub(), open_checkpoint(model))


def values_of(file: ImportanceFile) -> dict[str, Tensor]:
    lane = Lane(torch.device("cpu"), Files())
    return {
        name: lane.read(source, 0, source.count, "in").clone().view(source.shape)
        for name, source in file.tensors.items()
    }


@pytest.mark.parametrize("grouped", [True, False])
def test_the_optimizer_of_the_trainer(
    trained: tuple[Path, Any], tmp_path: Path, grouped: bool
) -> None:
    folder, model = trained
    optimizer = torch.optim.AdamW(groups_of(model) if grouped else model.parameters(), lr=0.0)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    for path in (tmp_path / "optimizer.pt", tmp_path):
        file = opened(path, folder)
        got = values_of(file)
        assert (file.kind, file.role) == ("adam_v", "squares")
        assert got.keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            assert got[name].equal(optimizer.state[parameter]["exp_avg_sq"]), name


def test_the_sums_of_adafactor(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = trained
    from transformers.optimization import Adafactor

    optimizer = Adafactor(model.parameters(), lr=1e-9, relative_step=False, scale_parameter=False)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    got = values_of(opened(tmp_path / "optimizer.pt", folder))
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if parameter.ndim == 1:
            assert got[name].equal(state["exp_avg_sq"])
            continue
        row, column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        expected = row[:, None] / row.mean() * column
        assert torch.allclose(got[name], expected, rtol=1e-5, atol=0), name


def test_a_universal_checkpoint(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = trained
    for name, parameter in model.named_parameters():
        place = tmp_path / "zero" / f"module.{name}"
        place.mkdir(parents=True)
        torch.save({"param": parameter.grad**2}, place / "exp_avg_sq.pt")
        torch.save({"param": parameter.grad}, place / "exp_avg.pt")
    got = values_of(opened(tmp_path, folder))
    assert all(got[n].equal(p.grad**2) for n, p in model.named_parameters())


def test_a_state_in_another_order_is_refused(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = trained
    optimizer = torch.optim.AdamW(list(model.parameters())[::-1], lr=0.0)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(
        InputError, match="not in the order of the model's parameters: parameter 1 is"
    ):
        opened(tmp_path / "optimizer.pt", folder)
    optimizer = torch.optim.AdamW(list(model.parameters())[1:], lr=0.0)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match="parameters in the optimizer"):
        opened(tmp_path / "optimizer.pt", folder)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "ds_to_universal.py"),
        ("__0_0.distcp", "dcp_to_torch"),
        ("distrib_optim.pt", "Megatron"),
        ("notes.txt", "no importance in this folder"),
        ("config.json", "a model, not its importance"),
    ],
)
def test_folders_that_are_refused(
    trained: tuple[Path, Any], tmp_path: Path, name: str, fault: str
) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(InputError, match=fault):
        opened(tmp_path, trained[0])


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({"state1": torch.zeros(4), "state2": torch.zeros(4)}, "8-bit optimizer"),
        ({"momentum_buffer": torch.zeros(4)}, "no second moments"),
    ],
)
def test_states_that_are_refused(
    trained: tuple[Path, Any], tmp_path: Path, state: dict[str, Tensor], fault: str
) -> None:
    torch.save({"state": {0: state}, "param_groups": [{"params": [0]}]}, tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match=fault):
        opened(tmp_path / "optimizer.pt", trained[0])


class Trap:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_nothing_of_a_pickle_is_run(
    trained: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state": {0: {"exp_avg_sq": Trap()}}}, tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match="refused, and nothing of it was run"):
        opened(tmp_path / "optimizer.pt", trained[0])
    assert capsys.readouterr().out == ""


def test_sums_of_rows_and_columns_in_safetensors(trained: tuple[Path, Any], tmp_path: Path) -> None:
    row, column = torch.rand(6), torch.rand(4)
    tensors = {"x.weight.exp_avg_sq_row": row, "x.weight.exp_avg_sq_col": column}
    save_file(tensors, tmp_path / "sums.safetensors")
    (value,) = values_of(opened(tmp_path / "sums.safetensors", trained[0])).values()
    assert torch.allclose(value, row[:, None] / row.mean() * column)
    save_file({"x.weight.exp_avg_sq_row": row}, tmp_path / "sums.safetensors")
    with pytest.raises(InputError, match=r"'\.exp_avg_sq_col' is not"):
        opened(tmp_path / "sums.safetensors", trained[0])


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("org/name/export/v.safetensors", ("org/name", None, "export/v.safetensors")),
        ("org/name:v.safetensors", ("org/name", None, "v.safetensors")),
        ("org/name@main/v.safetensors", ("org/name", "main", "v.safetensors")),
        ("org/name@v1:a/b.safetensors", ("org/name", "v1", "a/b.safetensors")),
        ("org/name", None),
        ("/org/name/v.safetensors", None),
        ("../name/v.safetensors", None),
        ("org/name/../x", None),
    ],
)
def test_places_on_the_hub(word: str, place: object) -> None:
    assert hub_place(word) == place
