"""Merges tiny models of transformers' classes, and checks every tensor and layer of the results.

`scripts/model_sweep` keeps the outcomes as a table.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from merge_worker.cli import main as merge_worker
from merge_worker.structure.layer_fields import ELSEWHERE
from merge_worker.structure.layers import counts, depths
from support.checkpoint_factory import read_tensors
from support.tiny_models import retrain, tiny_model

FAMILIES = (
    *("MULTIMODAL_LM", "IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM"),
    *("SPEECH_SEQ_2_SEQ", "CTC", "RNNT", "TDT", "MASKED_LM", "TEXT_TO_WAVEFORM"),
    *("TEXT_TO_SPECTROGRAM", "RETRIEVAL", "ZERO_SHOT_IMAGE_CLASSIFICATION"),
)
"""Auto mappings that are swept, in this order; base models of the types in none of them follow."""
PART = re.compile(r".*_(vision|audio|text|encoder|decoder)(_model)?")
"""Types that are a section of another model's config, and are swept with that model."""
OWN_NUMBER = re.compile(
    r".*(idx|index|layer_id|layer_num(ber)?|cache_key|drop_(prob|path).*)|seed|training|_.*"
)
"""Attributes of a layer that say where it stands, not of what kind it is."""
RIGHT, REFUSED, WRONG, ABSENT = "right", "refused", "wrong", "-"
OPERATIONS = ("average", "stack", "adapter")
LONGEST_REASON = 200

Loading = dict[str, list[str]]
"""Keys that were missing, left over or mismatched when a folder was loaded, by kind."""


class Unable(Exception):
    """An operation does not exist for a class, or a library cannot do it; the text says why."""


class Refused(Exception):
    """The worker refused a merge; the text is its message."""


@dataclass
class Row:
    """The outcomes of one class by operation, and the reason of each that is not plainly right."""

    model: str
    model_type: str
    outcomes: dict[str, str] = field(default_factory=lambda: dict.fromkeys(OPERATIONS, ABSENT))
    reasons: list[str] = field(default_factory=list)

    def give_reason(self, operation: str, reason: object) -> None:
        text = " ".join(str(reason).replace("|", "/").replace("`", "'").split())
        short = text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "…"
        self.reasons.append(f"{operation}: {short}")

    def run(self, operation: str, check: Callable[[], str]) -> None:
        """Record the outcome of a check, which returns a remark and raises where it fails."""
        try:
            remark, outcome = check(), RIGHT
        except Unable as error:
            remark, outcome = str(error), ABSENT
        except Refused as error:
            remark, outcome = str(error), REFUSED
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            remark, outcome = f"{kind}{error}", WRONG
        self.outcomes[operation] = outcome
        if remark:
            self.give_reason(operation, remark)


def classes() -> dict[str, str]:
    """Return the `model_type` of each class to sweep, by the name of the class."""
    found: dict[str, str] = {}
    covered = set()
    for family in FAMILIES:
        for kind, name in _mapping(f"MODEL_FOR_{family}_MAPPING_NAMES"):
            found.setdefault(name, kind)
            covered.add(kind)
    for kind, name in _mapping("MODEL_MAPPING_NAMES"):
        if kind not in covered and not PART.fullmatch(kind):
            found.setdefault(name, kind)
    return found


def _mapping(name: str) -> Iterator[tuple[str, str]]:
    for kind, listed in getattr(modeling_auto, name).items():
        for model in [listed] if isinstance(listed, str) else listed:
            yield kind, model


def sweep(name: str, kind: str, place: Path) -> Row:
    """Save two fine-tunes of a class below `place`, merge them in every way, and return the row."""
    row = Row(name, kind)
    shutil.rmtree(place, ignore_errors=True)
    try:
        model_class = getattr(transformers, name)
        model = tiny_model(model_class, CONFIG_MAPPING[kind])
        retrain(model, 1).save_pretrained(place / "a")
        retrain(model, 2).save_pretrained(place / "b")
        first, loading = _load(model_class, place / "a")
        if "mismatched_keys" in loading:
            raise ValueError(f"the class cannot load what it saves: {loading}")
    except Exception as error:
        row.give_reason("not built", f"{type(error).__name__}: {error}")
    else:
        if loading:
            row.give_reason("input", f"loads with {loading}")
        row.run("average", lambda: _average(model_class, place, loading))
        row.run("stack", lambda: _stack(first, place, loading))
        row.run("adapter", lambda: _adapter(first, place))
    shutil.rmtree(place, ignore_errors=True)
    return row


def _load(model_class: Any, folder: Path) -> tuple[Any, Loading]:
    model, info = model_class.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    return model, {k: sorted(map(str, v)) for k, v in info.items() if v and k != "error_msgs"}


def _run(place: Path, *words: object) -> None:
    """Run merge-worker in this process. Raises Refused unless it ends well."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = merge_worker([*map(str, words), "--progress", "off", "--threads", "1"])
    text = printed.getvalue().replace(f"{place}/", "").strip()
    assert code in (0, 2, 3), f"exit code {code}: {text[-LONGEST_REASON:]}"
    if code:
        raise Refused(text.removeprefix("merge-worker: "))


def _merge(place: Path, out: str, recipe: dict[str, Any]) -> None:
    path = place / f"{out}.yml"
    path.write_text(json.dumps({"merge_method": "passthrough", **recipe}), encoding="utf-8")
    _run(place, "merge", path, place / out)


def _average(model_class: Any, place: Path, loading: Loading) -> str:
    """Compare an average with the mean of each tensor, and load it."""
    _run(place, "average", place / "out", place / "a", place / "b")
    a, b, out = (read_tensors(place / name) for name in ("a", "b", "out"))
    assert set(out) == set(a), f"other names: {sorted(set(out) ^ set(a))[:4]}"
    off = [name for name in a if not _is_mean(out[name], a[name], b[name])]
    assert not off, f"not the mean: {off[:4]}"
    _, after = _load(model_class, place / "out")
    assert after == loading, f"loads with {after}"
    return ""


def _is_mean(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(out, a)
    mean = ((a.double() + b.double()) / 2).to(a.dtype)
    return out.dtype == a.dtype and torch.allclose(out, mean, rtol=1e-6, atol=1e-7)


def _stack(first: Any, place: Path, loading: Loading) -> str:
    """Stack all layers on all but the first of them, and compare each with the layer taken."""
    stacks = {s: depth for s, depth in depths(read_tensors(place / "a")).items() if depth > 1}
    if not stacks:
        raise Unable("no layers")
    text = first.config.get_text_config(decoder=True)
    counted = getattr(text, "num_hidden_layers", None)
    known = {count.value for count in counts(first.config.to_dict())}
    ranked = {s: (d == counted, d in known, "decoder" in s, d) for s, d in stacks.items()}
    chosen = max(ranked, key=lambda s: ranked[s])
    depth = stacks[chosen]
    source = str(place / "a")
    ranges = ([0, depth], [1, depth])
    slices = [{"sources": [{"model": source, "layer_range": taken}]} for taken in ranges]
    remark = ""
    try:
        _merge(place, "stack", {"slices": slices})
    except Refused as error:
        if "under 'modules:'" not in str(error):
            raise
        remark = f"as the module {chosen.strip('.')}"
        modules = {chosen.strip("."): {"slices": slices}}
        _merge(place, "stack", {"base_model": source, "modules": modules})
    stacked, after = _load(type(first), place / "stack")
    fresh = {kind: keys for kind, keys in after.items() if kind not in loading}
    assert not fresh, f"loads with {fresh}"
    picks = [*range(depth), *range(1, depth)]
    faults = [*_layer_faults(first, stacked, picks), *_config_faults(first, stacked, picks)]
    assert not faults, "; ".join(faults[:3])
    return remark


def _layer_faults(first: Any, stacked: Any, picks: Sequence[int]) -> Iterator[str]:
    """Yield every layer that differs from the layer taken, in weights or in kind."""
    modules = dict(stacked.named_modules())
    grown = {
        name: (module, modules[name])
        for name, module in first.named_modules()
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential)
        and len(module) == max(picks) + 1
        and len(modules.get(name, ())) == len(picks)
    }
    if not grown:
        yield "no stack of layers has grown"
    for name, (old, new) in grown.items():
        for number, pick in enumerate(picks):
            weights, wanted = new[number].state_dict(), old[pick].state_dict()
            if weights.keys() != wanted.keys():
                yield f"{name}.{number} has other parts than layer {pick}"
            elif off := [key for key in wanted if not torch.equal(weights[key], wanted[key])]:
                yield f"{name}.{number}.{off[0]} is not of layer {pick}"
            elif differ := _traits(new[number]) ^ _traits(old[pick]):
                yield f"{name}.{number} is of another kind than layer {pick}: {sorted(differ)[:2]}"
    inside = tuple(f"{name}." for name in grown)
    weights = stacked.state_dict()
    for key, tensor in first.state_dict().items():
        same = key in weights and torch.equal(weights[key], tensor)
        if not same and not key.startswith(inside):
            yield f"{key} has changed"


def _traits(layer: torch.nn.Module) -> set[str]:
    """Return the settings of a layer and of its parts, apart from its own number."""
    return {
        f"{name}.{key} = {round(value, 12) if isinstance(value, float) else value!r}"
        for name, module in layer.named_modules()
        for key, value in [("class", type(module).__name__), *vars(module).items()]
        if isinstance(value, bool | int | float | str | None) and not OWN_NUMBER.fullmatch(key)
    }


def _config_faults(first: Any, stacked: Any, picks: Sequence[int]) -> Iterator[str]:
    """Yield lists of the config with an entry per layer that did not follow the layers."""
    old, new = (model.config.get_text_config(decoder=True) for model in (first, stacked))
    for key, value in old.to_dict().items():
        depth = max(picks) + 1
        listed = isinstance(value, list) and len(value) == depth and value != list(range(depth))
        if listed and key not in ELSEWHERE and re.search(r"layer|type|pattern|block|window", key):
            found = new.to_dict().get(key)
            if found != [value[pick] for pick in picks]:
                yield f"config {key} is {found}"


def _adapter(first: Any, place: Path) -> str:
    """Merge a LoRA adapter of all linear modules, and compare with PEFT's own merge."""
    model_class = type(first)
    try:
        wanted = _tuned(first, place, all_linear=True)
    except Exception:
        try:
            base, _ = _load(model_class, place / "a")
            wanted = _tuned(base, place, all_linear=False)
        except Exception as error:
            raise Unable(f"PEFT: {type(error).__name__}: {error}") from None
    _merge(place, "tuned", {"models": [{"model": f"{place / 'a'}+{place / 'lora'}"}]})
    merged, _ = _load(model_class, place / "tuned")
    found = merged.state_dict()
    assert found.keys() == wanted.keys(), f"other names: {sorted(found.keys() ^ wanted.keys())[:3]}"
    off = [k for k in wanted if not torch.allclose(found[k], wanted[k], rtol=1e-4, atol=1e-5)]
    assert not off, f"differs from PEFT's merge: {off[:4]}"
    return ""


def _tuned(base: Any, place: Path, all_linear: bool) -> dict[str, torch.Tensor]:
    """Save a LoRA adapter of `base`, which is changed; returns the weights that PEFT merges.

    PEFT cannot find the linear modules of some encoders, and takes no `out_proj` of Mamba.
    """
    from peft import LoraConfig, get_peft_model

    named = [
        name
        for name, module in base.named_modules()
        if type(module) is torch.nn.Linear and not re.search(r"out_proj|head|conv", name)
    ]
    targets = "all-linear" if all_linear else named
    torch.manual_seed(3)
    lora = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    tuned = get_peft_model(base, lora)
    tuned.save_pretrained(place / "lora")
    weights: dict[str, torch.Tensor] = tuned.merge_and_unload().state_dict()
    return weights
