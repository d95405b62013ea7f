"""States of optimizers → second moments by the names of parameters, without running a pickle.

Torch's `optimizer.pt` numbers the parameters, a universal checkpoint of DeepSpeed has a folder for
each. Shards of ZeRO, FSDP and Megatron are pieces of flat vectors, which their converters join.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..messages import counted, printable
from ..system.packages import how_to_install
from ..tensors.importance import OuterTensor
from ..tensors.source import TensorSource
from .folder import Checkpoint
from .header import Shard
from .pickle_machine import Rebuilt
from .torch_zip import Pickled, open_pickled

_MOMENTS = ("exp_avg_sq", "variance")
_SUMS = (("exp_avg_sq_row", "exp_avg_sq_col"), ("row_var", "col_var"))
_EIGHT_BIT = ("state2", "qmap2", "absmax2")
_WRAPPERS = re.compile(r"^(module\.|_fsdp_wrapped_module\.|_orig_mod\.)+|_fsdp_wrapped_module\.")
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)|ln_|\.ln", re.I)
"""Names of parameters that the Trainer gives no weight decay, beside those of norm modules."""


def universal(folder: Path) -> Path | None:
    """Return the folder with a folder for each parameter, if this is a universal checkpoint."""
    for inner in (folder / "zero", folder):
        if inner.is_dir() and any(inner.glob("*/exp_avg_sq.pt")):
            return inner
    return None


def refuse_sharded(path: Path, names: Collection[str]) -> None:
    """Raise InputError for states cut into flat pieces, with the program that joins them."""
    for name in names:
        if name.endswith("optim_states.pt"):
            raise InputError(
                f"{path}: shards of DeepSpeed's ZeRO optimizer, flat pieces without names\n"
                f"  convert them: ds_to_universal.py --input_folder … --output_folder OUT "
                f"(part of DeepSpeed), and give OUT"
            )
        if name.endswith(".distcp") or name == ".metadata":
            raise InputError(
                f"{path}: shards of an FSDP checkpoint\n"
                f"  convert them: python -m torch.distributed.checkpoint.format_utils "
                f"dcp_to_torch FOLDER optimizer.pt, and give optimizer.pt"
            )
        if name in ("distrib_optim.pt", "model_optim_rng.pt") or name.startswith("mp_rank_"):
            raise InputError(
                f"{path}: a checkpoint of Megatron, whose optimizer is in flat pieces\n"
                f"  export the second moments by name as safetensors (exp_avg_sq.safetensors)"
            )


def read_universal(folder: Path) -> tuple[tuple[Shard, ...], dict[str, TensorSource]]:
    """Read a universal checkpoint: `NAME/exp_avg_sq.pt` for each parameter."""
    shards, tensors = list[Shard](), dict[str, TensorSource]()
    for file in sorted(folder.glob("*/exp_avg_sq.pt")):
        name = _plain(file.parent.name)
        pickled = open_pickled(file)
        value = pickled.value
        value = value.get("param") if isinstance(value, dict) else value
        if not isinstance(value, Rebuilt):
            raise InputError(f"{file}: no tensor in it, as DeepSpeed's universal checkpoints have")
        shard, placed = pickled.place({name: value})
        shards.append(shard)
        tensors |= placed
    return tuple(shards), tensors


def is_optimizer(value: object) -> bool:
    """Return whether a pickle holds the state of an optimizer, alone or in a checkpoint."""
    return _state_dict(value) is not None


def _state_dict(value: object) -> dict[str, Any] | None:
    inner = ("optimizer", "optimizer_state_dict", "optimizer_state")
    holders = (value, *(value.get(key) for key in inner if isinstance(value, dict)))
    for holder in holders:
        if isinstance(holder, dict) and isinstance(holder.get("state"), dict):
            return holder
    return None


def read_optimizer(
    pickled: Pickled, model: Checkpoint
) -> tuple[tuple[Shard, ...], dict[str, TensorSource]]:
    """Return the second moments of a torch optimizer by the names of the parameters of `model`.

    Raises InputError if there are none, and if shapes show that the order is another one.
    """
    path, holder = pickled.path, _state_dict(pickled.value)
    assert holder is not None
    states = {key: state for key, state in holder["state"].items() if isinstance(state, dict)}
    if any(key in state for state in states.values() for key in _EIGHT_BIT):
        raise InputError(
            f"{path}: moments of an 8-bit optimizer, quantized in blocks, which cannot be read\n"
            f"  give another importance file; merge-worker importance makes one"
        )
    moments = {key: found for key, state in states.items() if (found := _moments(state))}
    if not moments:
        raise InputError(
            f"{path}: no second moments (exp_avg_sq) in this optimizer's state; only Adam, AdamW "
            f"and Adafactor have them"
        )
    if all(isinstance(key, str) for key in moments):
        names = {key: _plain(str(key)) for key in moments}
    else:
        names = _by_number(path, holder, moments, model)
    parts = {
        f"{names[key]}{part}": tensor
        for key, found in moments.items()
        for part, tensor in found.items()
    }
    shard, placed = pickled.place(parts)
    tensors: dict[str, TensorSource] = {}
    for key, found in moments.items():
        name = names[key]
        if "" in found:
            tensors[name] = placed[name]
        else:
            row, column = (placed[name + part] for part in found)
            tensors[name] = OuterTensor.of(row, column, name)
    return (shard,), tensors


def _moments(state: Mapping[str, Any]) -> dict[str, Rebuilt]:
    """Return the second moments of a parameter: a tensor, or the sums of its rows and columns."""
    for key in _MOMENTS:
        if isinstance(state.get(key), Rebuilt) and state[key].shape != ():
            return {"": state[key]}
    for keys in _SUMS:
        found = {f".{key}": state[key] for key in keys if isinstance(state.get(key), Rebuilt)}
        if len(found) == len(keys):
            return found
    return {}


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _by_number(
    path: Path,
    holder: Mapping[str, Any],
    moments: Mapping[Any, Mapping[str, Rebuilt]],
    model: Checkpoint,
) -> dict[Any, str]:
    """Return the name of each numbered parameter, by the order of the model's parameters."""
    groups = [
        [key for key in group.get("params", ()) if isinstance(key, int)]
        for group in holder.get("param_groups") or ()
        if isinstance(group, dict) and isinstance(group.get("params"), list)
    ]
    listed = [key for group in groups for key in group]
    if not set(moments) <= set(listed):
        raise InputError(f"{path}: damaged: its groups do not list the parameters of its state")
    shapes = _parameters(path, model)
    total = sum(map(len, groups))
    if total != len(shapes):
        raise InputError(
            f"{path}: {counted(total, 'parameters')} in the optimizer, {len(shapes)} in the model; "
            f"were some of them frozen?\n  export exp_avg_sq by name as safetensors, and give that"
        )
    fault = ""
    for order in _orders(shapes, groups):
        names = dict(zip(listed, order, strict=True))
        wrong = [key for key, found in moments.items() if not _fits(found, shapes[names[key]])]
        if not wrong:
            return names
        key = wrong[0]
        shown = [list(tensor.shape) for tensor in moments[key].values()]
        fault = fault or (
            f"parameter {key} is {shown[0]}, but {printable(names[key])} is "
            f"{list(shapes[names[key]])}"
        )
    raise InputError(
        f"{path}: not in the order of the model's parameters: {fault}\n"
        f"  was it saved by the training of this model?"
    )


def _orders(
    shapes: Mapping[str, tuple[int, ...]], groups: Sequence[Sequence[int]]
) -> Iterator[list[str]]:
    """Yield the orders in which an optimizer may number parameters.

    One group has that of the model. The Trainer has two: what decays, then biases and norms.
    """
    names = list(shapes)
    if len(groups) == 1:
        yield names
        return
    bare = [name for name in names if len(shapes[name]) < 2 or _UNDECAYED.search(name)]
    by_name = [name for name in names if _UNDECAYED.search(name)]
    for undecayed in (by_name, bare):
        decayed = [name for name in names if name not in set(undecayed)]
        for order in (decayed + undecayed, undecayed + decayed):
            if len(order) == len(names):
                sizes = (len(decayed), len(undecayed))
                if [len(group) for group in groups if group] in ([*sizes], [*sizes[::-1]]):
                    yield order
    yield names


def _fits(found: Mapping[str, Rebuilt], shape: tuple[int, ...]) -> bool:
    if "" in found:
        return found[""].shape == shape
    row, column = found.values()
    return len(shape) >= 2 and (row.shape[-1:], column.shape[-1:]) in (
        ((shape[-2],), (shape[-1],)),
        ((1,), (shape[-1],)),
    )


def _parameters(path: Path, model: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the parameters of a model in the order of its class, with their shapes.

    The order is that of transformers' code, which builds the model without weights.
    """
    if model.folder is None:
        raise InputError(f"{path}: numbers parameters; the order is in the model's config.json")
    try:
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    except ImportError:
        raise InputError(
            f"{path}: numbers parameters without names; their order takes transformers\n"
            f"  {how_to_install('transformers')}, or export exp_avg_sq by name as safetensors"
        ) from None
    try:
        config = AutoConfig.from_pretrained(model.folder)
        with torch.device("meta"):
            try:
                built = AutoModelForCausalLM.from_config(config)
            except ValueError:
                built = AutoModel.from_config(config)
    except Exception as error:
        reason = printable(str(error).strip().partition("\n")[0])[:200]
        raise InputError(f"{path}: the order of parameters is not known: {reason}") from None
    return {name: tuple(p.shape) for name, p in built.named_parameters()}
