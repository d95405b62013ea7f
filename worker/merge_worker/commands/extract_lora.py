"""`merge-worker extract-lora`: the difference of two models as an adapter for PEFT."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.apply import open_adapted
from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..checkpoint.fp8 import is_quantized
from ..checkpoint.hub import Hub, snapshot
from ..dtypes import FLOATS
from ..errors import InputError, UsageError, input_errors
from ..messages import counted
from ..planning.inputs import locate
from ..recipe.schema import ModelRef, parse_model
from ..structure.layers import layer_of
from ..system.machine import usable_cpus
from ..units import positive_integer, size
from .options import add_options

if TYPE_CHECKING:
    from ..lora.extract import ExtractedTarget, Extraction
    from ..lora.targets import AdapterParts, Target, Whole


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("base", metavar="BASE")
    add("finetune", metavar="FINETUNE")
    add("out", metavar="OUT")
    add(
        "--rank",
        type=positive_integer,
        metavar="32",
        help="rank of every module; default: 32, or as --energy needs",
    )
    add("--energy", type=_share, metavar="0.9", help="keep this share of the squared norm")
    add("--embed-lora", action="store_true", help="factors for embeddings and head, not copies")
    add("--lora-only", action="store_true", help="leave out tensors without factors, such as norms")
    add("--dtype", choices=FLOATS[:3], default="float32", help="dtype of the factors")
    add_options(parser, "extract-lora")
    add("--base-name", metavar="ORG/NAME", help="base_model_name_or_path; default: BASE as given")
    add("--overwrite", action="store_true", help="replace an adapter in OUT")
    add("--json", action="store_true", help="list every module as JSON")


def _share(word: str) -> float:
    value = float(word)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {word}")
    return value


@input_errors("extract-lora")
def command(arguments: argparse.Namespace) -> str:
    """Extract the adapter, and return the table of errors or JSON."""
    from ..system.torch_startup import require_torch

    require_torch()
    from ..engine.device import select_devices
    from ..lora.extract import Extraction, check_alike
    from ..lora.save import AdapterOutput
    from ..lora.svd import RankLimit
    from ..lora.targets import find_parts

    began = time.monotonic()
    base, tuned = _open(arguments.base), _open(arguments.finetune)
    parts = find_parts(tuned, arguments.embed_lora)
    check_alike(base, tuned, parts.wholes)
    rank = arguments.rank or (32 if arguments.energy is None else 1 << 30)
    inputs = dict(_input_folders(arguments.base, arguments.finetune))
    with AdapterOutput(Path(arguments.out), inputs, arguments.overwrite) as output:
        extraction = Extraction(
            base=base,
            tuned=tuned,
            output=output,
            limit=RankLimit(rank, arguments.energy or 1.0),
            names=_factor_names(parts.targets),
            dtype=arguments.dtype,
        )
        work: list[Target | Whole] = [*parts.targets]
        if not arguments.lora_only:
            work += parts.wholes
        extraction.run(work, select_devices(arguments.device), arguments.threads or usable_cpus())
        extraction.add_zero_factors()
        base_name = _base_name(arguments.base_name, arguments.base, base)
        written = _write_adapter(extraction, parts, base_name)
    extracted = sorted(extraction.extracted, key=lambda result: result.target.name)
    facts = {
        "out": arguments.out,
        "bytes": written,
        "seconds": round(time.monotonic() - began, 2),
        "whole": sorted(whole.name for whole in extraction.kept_whole),
    }
    return _as_json(extracted, facts) if arguments.json else _table(extracted, facts)


def _open(word: str) -> Checkpoint:
    hub = Hub()
    try:
        ref = parse_model(word)
    except ValueError as error:
        raise UsageError(str(error)) from None
    model = open_checkpoint(locate(ModelRef(ref.path, ref.revision), Path.cwd(), hub), hub)
    if ref.lora:
        model = open_adapted(model, locate(ModelRef(ref.lora), Path.cwd(), hub))
    reason = is_quantized(model)
    if reason:
        raise InputError(f"{word}: {reason}; dequantize it first")
    for shard in model.shards:
        hub.download(shard.path)
    return model


def _base_name(name: str | None, word: str, base: Checkpoint) -> tuple[str, str | None]:
    """Return the name and revision of the base for the config: those on the Hub, or the folder."""
    if name or "+" in word:
        return name or word, None
    ref = parse_model(word)
    return snapshot(base.path) or (ref.path, ref.revision)


def _input_folders(*words: str) -> Iterator[tuple[str, Path]]:
    """Yield each input and its folder."""
    for word in words:
        ref = parse_model(word)
        yield word, locate(ModelRef(ref.path, ref.revision), Path.cwd(), Hub())
        if ref.lora:
            yield ref.lora, locate(ModelRef(ref.lora), Path.cwd(), Hub())


def _factor_names(targets: Iterable[Target]) -> dict[str, str]:
    """Return the prefix of `.lora_A` by target; wrappers of one module's parameters are nested."""
    names: dict[str, str] = {}
    wrapped: dict[str, list[str]] = {}
    for target in targets:
        names[target.name] = target.name
        if target.kind == "experts":
            wrapped.setdefault(target.name.rpartition(".")[0], []).append(target.name)
    for module, parameters in wrapped.items():
        # The last is the outermost; `down_proj` comes after the others in every model.
        order = sorted(parameters, key=lambda name: name.endswith("down_proj"))
        for depth, name in enumerate(reversed(order)):
            names[name] = module + ".base_layer" * depth
    return names


def _write_adapter(
    extraction: Extraction, parts: AdapterParts, base: tuple[str, str | None]
) -> int:
    """Write the weights and the config, and return the size of the weights in bytes."""
    import torch

    from ..checkpoint.reader import Files
    from ..engine.lane import Lane
    from ..lora.save import config_of

    changed = [result for result in extraction.extracted if result.rank]
    if not changed:
        kept = extraction.kept_whole
        others = f", only {counted(len(kept), 'other tensors')}" if kept else ""
        raise InputError(
            f"{extraction.tuned.path}: no matrix differs from the base{others}; "
            "an adapter needs one"
        )
    targets = [result.target for result in changed]
    config = config_of(
        base[0],
        {result.target.key: result.rank for result in changed},
        revision=base[1],
        target_modules=_short_names([t.name for t in targets if not t.parameter], parts),
        fan_in_fan_out=any(t.transposed and t.kind == "linear" for t in targets),
    )
    parameters = sorted(target.parameter for target in targets if target.parameter)
    config |= {"target_parameters": parameters} if parameters else {}
    if extraction.tuned.config.get("is_encoder_decoder"):
        config["task_type"] = "SEQ_2_SEQ_LM"
    config["modules_to_save"] = _complete_modules(extraction, parts.wholes) or None
    wrapped = {t.name if t.kind != "experts" else t.name.rpartition(".")[0] for t in targets}
    depths = Counter(t.name.rpartition(".")[0] for t in targets if t.kind == "experts")
    for whole in extraction.kept_whole:
        module, _, end = whole.name.rpartition(".")
        layers = ".base_layer" * max(depths[module], 1) if module in wrapped else ""
        sources = tuple(extraction.tuned.tensors[name] for name in whole.parts)
        extraction.output.whole[f"{module}{layers}.{end}"] = sources
    with closing(Files()) as files:
        return extraction.output.finish(config, Lane(torch.device("cpu"), files, staged=False))


def _complete_modules(extraction: Extraction, wholes: Sequence[Whole]) -> list[str]:
    """Return the modules with a saved copy, and keep all of their tensors, which PEFT requires."""
    kept = extraction.kept_whole
    modules = {whole.module for whole in kept if whole.module}
    kept += [w for w in wholes if w.module in modules and w not in kept]
    return sorted(modules)


def _short_names(names: Sequence[str], parts: AdapterParts) -> list[str]:
    """Return the last parts of the names if they match no other module, else the full names."""
    lasts = {name.rpartition(".")[2] for name in names}
    modules = [t.name for t in parts.targets]
    modules += [w.name.rpartition(".")[0] for w in parts.wholes if w.name.endswith(".weight")]
    matched = {name for name in modules if name.rpartition(".")[2] in lasts}
    unambiguous = matched == set(names) and not any(last.isdigit() for last in lasts)
    return sorted(lasts if unambiguous else names)


def _as_json(extracted: Sequence[ExtractedTarget], facts: Mapping[str, Any]) -> str:
    modules = [
        {
            "name": result.target.name,
            "shape": [len(result.target.matrices), *result.target.shape],
            "rank": result.rank,
            "delta_norm": result.delta,
            "relative_error": result.error,
        }
        for result in extracted
    ]
    return json.dumps(
        {**facts, "relative_error": _joint_error(extracted), "modules": modules}, indent=1
    )


def _joint_error(extracted: Sequence[ExtractedTarget]) -> float:
    delta = math.fsum(result.delta**2 for result in extracted)
    residual = math.fsum(result.residual**2 for result in extracted)
    return math.sqrt(residual / delta) if delta else 0.0


def _table(extracted: Sequence[ExtractedTarget], facts: Mapping[str, Any]) -> str:
    """Return relative errors by layer and by kind of module, and a line of totals."""

    def layer(result: ExtractedTarget) -> str:
        place = layer_of(result.target.name)
        return f"{place.stack}{place.number}" if place else "other"

    def kind(result: ExtractedTarget) -> str:
        return result.target.name.rpartition(".")[2]

    lines = []
    for title, key in (("layer", layer), ("module", kind)):
        lines += [
            f"{title:<24} {'tensors':>8} {'rank':>9} {'error':>8}",
            *_rows(extracted, key),
            "",
        ]
    with_factors = sum(result.rank > 0 for result in extracted)
    lines.append(
        f"{facts['out']}: {size(int(facts['bytes']))}, "
        f"{counted(with_factors, 'modules with factors')}, "
        f"{counted(len(facts['whole']), 'tensors whole')}, "
        f"relative error {_joint_error(extracted):.4f} in {facts['seconds']} s"
    )
    return "\n".join(lines)


def _rows(extracted: Sequence[ExtractedTarget], key: Callable[[ExtractedTarget], str]) -> list[str]:
    groups: dict[str, list[ExtractedTarget]] = {}
    for result in extracted:
        groups.setdefault(key(result), []).append(result)
    rows = []
    for name in sorted(groups, key=_by_number):
        ranks = [f.rank for f in groups[name]]
        low, high = min(ranks), max(ranks)
        shown = f"{low}" if low == high else f"{low}-{high}"
        rows.append(f"{name:<24} {len(ranks):>8} {shown:>9} {_joint_error(groups[name]):>8.4f}")
    return rows


def _by_number(name: str) -> tuple[str, int]:
    stack, _, number = name.rpartition(".")
    return (stack, int(number)) if number.isdigit() else (name, 0)
