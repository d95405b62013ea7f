"""Which tensors of the models belong together, and what happens to those that do not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_worker.errors import InputError
from merge_worker.planning.options import MatchOptions, PlanOptions
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from merge_worker.recipe.shorthand import direct_recipe
from support.checkpoint_factory import write_checkpoint

TIED = {"tie_word_embeddings": True}


def tensors(value: float = 1.0, **more: Tensor) -> dict[str, Tensor]:
    return {
        "model.embed_tokens.weight": torch.full((4, 2), value),
        "layers.0.w": torch.full((2, 3), value),
        **more,
    }


HEAD = {"lm_head.weight": torch.zeros(4, 2)}


def plan(folder: Path, *names: str, rules: MatchOptions | None = None, **more: str) -> Plan:
    text = direct_recipe(names, **more)  # type: ignore[arg-type]
    return make_plan(parse(text), PlanOptions(relative_to=folder, matching=rules or MatchOptions()))


def fault(folder: Path, *names: str) -> str:
    with pytest.raises(InputError) as caught:
        plan(folder, *names)
    return str(caught.value)


def test_names_and_order_are_those_of_the_first(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors(1.0))
    write_checkpoint(tmp_path / "b", dict(reversed(tensors(2.0).items())), shards=2)
    steps = plan(tmp_path, "a", "b").steps
    assert sorted(step.name for step in steps) == sorted(tensors())
    assert all(len(step.sources) == 2 and step.task for step in steps)


def test_missing_and_surplus_tensors_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors(bias=torch.ones(3)))
    write_checkpoint(tmp_path / "b", tensors(gate=torch.ones(3), extra=torch.ones(2)))
    assert fault(tmp_path, "a", "b").splitlines() == [
        "b: 1 tensor of a is missing: bias",
        "b: 2 tensors missing from a: extra, gate",
        "  --missing copy takes missing tensors from the base, --surplus drop omits extra ones",
    ]
    planned = plan(tmp_path, "a", "b", rules=MatchOptions("copy", "drop"))
    assert {step.name for step in planned.steps if step.task is None} == {"bias"}
    assert (planned.matches.missing, set(planned.matches.surplus)) == (("bias",), {"extra", "gate"})
    assert len(planned.warnings) == 2


def test_only_options_that_help_are_offered(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors(bias=torch.ones(3)))
    write_checkpoint(tmp_path / "b", tensors())
    assert fault(tmp_path, "a", "b").splitlines()[1:] == [
        "  --missing copy takes missing tensors from the base"
    ]
    assert fault(tmp_path, "b", "a").splitlines()[1:] == ["  --surplus drop omits extra ones"]


def test_layers_of_another_architecture(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors())
    other = {"model.embed_tokens.weight": torch.ones(4, 2), "layers.0.mixer.in": torch.ones(5, 2)}
    write_checkpoint(tmp_path / "b", other)
    assert fault(tmp_path, "a", "b").splitlines()[2:] == [
        "  b: no layer has the same tensors; are these models of one architecture?"
    ]


def test_prediction_heads_may_be_missing(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 1, "num_nextn_predict_layers": 1}
    write_checkpoint(tmp_path / "a", tensors(**{"layers.1.w": torch.ones(2, 3)}), config=config)
    write_checkpoint(tmp_path / "b", tensors(), config=config)
    assert "--missing copy" in fault(tmp_path, "a", "b")
    assert "--surplus drop" in fault(tmp_path, "b", "a")


def test_copied_tensors_get_the_dtype_too(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors(bias=torch.ones(3), steps=torch.arange(3)))
    write_checkpoint(tmp_path / "b", tensors(steps=torch.arange(3)))
    planned = plan(tmp_path, "a", "b", rules=MatchOptions("copy", "drop"), dtype="bfloat16")
    dtypes = {step.name: step.dtype.torch_name for step in planned.steps}
    assert dtypes.pop("steps") == "int64"
    assert set(dtypes.values()) == {"bfloat16"}


def test_shapes_that_differ(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors())
    other = {**tensors(), "layers.0.w": torch.zeros(3, 2)}
    write_checkpoint(tmp_path / "b", other)
    assert fault(tmp_path, "a", "b").splitlines() == [
        "1 tensor differs in shape:",
        "  layers.0.w is [2, 3] in a but [3, 2] in b",
        "  these models do not share an architecture",
    ]


def test_floats_beside_integers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors(x=torch.ones(3)))
    write_checkpoint(tmp_path / "b", tensors(x=torch.ones(3, dtype=torch.int64)))
    assert "x is float32 in a but int64 in b" in fault(tmp_path, "a", "b")


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_positions_are_those_that_are_stored_as_integers(tmp_path: Path, order: str) -> None:
    """Models compute them; a float may have rounded them."""
    name = "embeddings.position_ids"
    write_checkpoint(tmp_path / "a", tensors(**{name: torch.arange(600)[None]}))
    write_checkpoint(tmp_path / "b", tensors(**{name: torch.arange(600)[None].bfloat16()}))
    planned = plan(tmp_path, *order)
    (step,) = [step for step in planned.steps if step.name == name]
    assert step.task is None and step.dtype.name == "I64"
    assert [Path(info.file).parent.name for info in step.sources] == ["a"]  # type: ignore[union-attr]
    assert planned.warnings == (f"1 buffer that models compute is copied: {name}",)


def test_positions_of_two_lengths(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors(position_ids=torch.arange(6)))
    write_checkpoint(tmp_path / "b", tensors(position_ids=torch.arange(9)))
    (step,) = [step for step in plan(tmp_path, "a", "b").steps if step.name == "position_ids"]
    assert step.task is None and step.shape == (6,)


def test_integers_are_copied_from_the_first(tmp_path: Path) -> None:
    for name in "ab":
        write_checkpoint(tmp_path / name, tensors(ids=torch.arange(4)))
    (step,) = [step for step in plan(tmp_path, "a", "b").steps if step.name == "ids"]
    assert step.task is None and step.dtype.name == "I64"
    assert [Path(info.file).parent.name for info in step.sources] == ["a", "b"]


def test_mixed_precision_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors(x=torch.ones(3)))
    write_checkpoint(tmp_path / "b", tensors(x=torch.ones(3).half()))
    planned = plan(tmp_path, "a", "b")
    assert planned.warnings == ("1 tensor is stored with different dtypes (a float32, b float16)",)
    assert {step.dtype.name for step in planned.steps} == {"F32"}


def test_quantized_models(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors())
    codes = {"layers.0.w": torch.zeros(2, 2, dtype=torch.int8)}
    config = {"quantization_config": {"quant_method": "gptq"}}
    write_checkpoint(tmp_path / "b", tensors() | codes, config=config)
    told = "b: quantized (gptq)\n  name the model that it was quantized from"
    assert fault(tmp_path, "a", "b") == told


def test_a_stored_head_beside_tied_ones_is_left_out(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors(), config=TIED)
    copy = {"lm_head.weight": tensors()["model.embed_tokens.weight"].clone()}
    write_checkpoint(tmp_path / "b", tensors() | copy, config={"text_config": TIED})
    write_checkpoint(tmp_path / "c", tensors() | HEAD, config={"tie_word_embeddings": False})
    planned = plan(tmp_path, "a", "b")
    assert "lm_head.weight" not in {step.name for step in planned.steps}
    assert planned.warnings == ()
    (warning,) = plan(tmp_path, "a", "c").warnings
    assert warning.startswith("c: its lm_head.weight is left out, since a, whose config counts")


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors() | HEAD)
    write_checkpoint(tmp_path / "b", tensors(), config=TIED)
    (head,) = [s for s in plan(tmp_path, "a", "b").steps if s.name == "lm_head.weight"]
    assert head.task is not None and head.task.models == 2
    embedding = plan(tmp_path, "b").models[0].tensors["model.embed_tokens.weight"]
    assert head.sources[1].offset == embedding.offset


def test_a_head_that_is_nowhere(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors() | HEAD)
    write_checkpoint(tmp_path / "b", tensors())
    assert "b: 1 tensor of a is missing: lm_head.weight" in fault(tmp_path, "a", "b")


def test_the_base_decides_the_names(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", tensors(x=torch.ones(2)))
    write_checkpoint(tmp_path / "b", tensors(x=torch.ones(2).half()))
    planned = plan(tmp_path, "a", "b", method="task_arithmetic", base_model="b")
    assert planned.labels == ("b", "a")
    (step,) = [step for step in planned.steps if step.name == "x"]
    assert step.dtype.name == "F16"


def test_buffers_that_models_compute_are_nobodys_fault(tmp_path: Path) -> None:
    masks = {
        "h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "transformer.rotary_pos_emb.inv_freq": torch.ones(4),
    }
    write_checkpoint(tmp_path / "old", tensors(1.0, **masks))
    write_checkpoint(tmp_path / "new", tensors(2.0))
    first = plan(tmp_path, "old", "new")
    assert set(first.matches.missing) == set(masks)
    assert {step.name for step in first.steps if step.task is None} == set(masks)
    second = plan(tmp_path, "new", "old")
    assert set(second.matches.surplus) == set(masks)
    assert not {step.name for step in second.steps} & set(masks)
    # A bias of that name is a weight.
    write_checkpoint(tmp_path / "biased", tensors(1.0, **{"h.0.attn.bias": torch.ones(4)}))
    assert "1 tensor missing from new: h.0.attn.bias" in fault(tmp_path, "new", "biased")
