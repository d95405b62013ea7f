"""`merge-worker extract-lora`: the difference of two models as an adapter for PEFT."""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.apply import open_adapted
from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..checkpoint.fp8 import is_quantized, way_out
from ..checkpoint.hub import Hub, snapshot
from ..command_line.parser import Parser
from ..conversion.in_memory import as_in_memory, in_memory
from ..dtypes import FLOATS
from ..errors import InputError, UsageError, input_errors
from ..messages import counted
from ..planning.inputs import locate
from ..recipe.key_map import NUMBER
from ..recipe.schema import ModelRef, parse_model
from ..structure.layers import layer_of
from ..system.machine import usable_cpus
from ..units import positive_integer, size
from .options import add_options

if TYPE_CHECKING:
    from ..lora.extract import ExtractedTarget


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, or a model of the Hub")
    parser.add_out("the folder of the adapter")
    add("third", nargs="?", help=argparse.SUPPRESS)
    add("--base-model", metavar="MODEL", help="the model it was trained from")
    add(
        "--rank",
        type=positive_integer,
        metavar="N",
        help="rank of every module; default: 32, or as --energy needs",
    )
    add("--energy", type=_share, metavar="0.9", help="keep this share of the squared norm")
    add("--embed-lora", action="store_true", help="factors for embeddings and head, not copies")
    add("--lora-only", action="store_true", help="leave out tensors without factors, such as norms")
    add("--dtype", choices=FLOATS[:3], default="float32", help="dtype of the factors")
    add_options(parser, "extract-lora")
    add(
        "--base-name",
        metavar="ORG/NAME",
        help="base_model_name_or_path of the adapter; default: the base as given",
    )
    add("--overwrite", action="store_true", help="replace an adapter in OUT")


def _read_words(arguments: argparse.Namespace) -> None:
    """Sort out the words: MODEL OUT with --base-model, or BASE MODEL OUT. UsageError otherwise."""
    if arguments.third is not None and arguments.base_model is None:
        words = arguments.model, arguments.out, arguments.third
        arguments.base_model, arguments.model, arguments.out = words
    elif arguments.third is not None or not (arguments.base_model and arguments.out):
        raise UsageError("extract-lora: give MODEL OUT --base-model BASE")


def _share(word: str) -> float:
    value = float(word)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {word}")
    return value


@input_errors("extract-lora")
def command(arguments: argparse.Namespace) -> str:
    """Extract the adapter, and return the table of errors or JSON."""
    from ..system.torch_startup import require_torch

    require_torch("extract-lora")
    from ..engine.device import select_devices
    from ..lora.extract import Extraction, check_alike, factor_names, write_adapter
    from ..lora.save import AdapterOutput
    from ..lora.svd import RankLimit
    from ..lora.targets import find_parts

    began = time.monotonic()
    _read_words(arguments)
    base, base_folders = _open(arguments.base_model)
    tuned, tuned_folders = _open(arguments.model)
    parts = find_parts(tuned, arguments.embed_lora)
    check_alike(base, tuned, parts.wholes)
    if names := in_memory(tuned.tensors, tuned.config):
        base, tuned = (as_in_memory(model, names) for model in (base, tuned))
        parts = find_parts(tuned, arguments.embed_lora, frozenset(names.changed.values()))
    rank = arguments.rank or (32 if arguments.energy is None else 1 << 30)
    inputs = base_folders | tuned_folders
    with AdapterOutput(Path(arguments.out), inputs, arguments.overwrite) as output:
        extraction = Extraction(
            base=base,
            tuned=tuned,
            output=output,
            limit=RankLimit(rank, arguments.energy or 1.0),
            names=factor_names(parts.targets),
            dtype=arguments.dtype,
        )
        wholes = () if arguments.lora_only else parts.wholes
        threads = arguments.threads or usable_cpus()
        extraction.run([*parts.targets, *wholes], select_devices(arguments.device), threads)
        extraction.add_zero_factors()
        base_name = _base_name(arguments.base_name, arguments.base_model, base)
        written = write_adapter(extraction, parts, base_name)
    extracted = sorted(extraction.extracted, key=lambda result: result.target.name)
    facts = {
        "out": arguments.out,
        "bytes": written,
        "seconds": round(time.monotonic() - began, 2),
        "whole": sorted(whole.name for whole in extraction.kept_whole),
    }
    return _as_json(extracted, facts) if arguments.json else _table(extracted, facts)


def _open(word: str) -> tuple[Checkpoint, dict[str, Path]]:
    """Open a model, with its adapter if it has one; also return the folders by their names."""
    hub = Hub()
    try:
        ref = parse_model(word)
    except ValueError as error:
        raise UsageError(str(error)) from None
    folders = {word: locate(ModelRef(ref.path, ref.revision), Path.cwd(), hub)}
    model = open_checkpoint(folders[word], hub).with_weights(())
    if ref.lora:
        folders[ref.lora] = locate(ModelRef(ref.lora), Path.cwd(), hub)
        model = open_adapted(model, folders[ref.lora])
    if reason := is_quantized(model):
        raise InputError(f"{word}: {reason}\n  {way_out(model, word)}")
    for shard in model.shards:
        hub.download(shard.path)
    return model, folders


def _base_name(name: str | None, word: str, base: Checkpoint) -> tuple[str, str | None]:
    """Return the name and revision of the base for the config: those on the Hub, or the folder."""
    ref = parse_model(word)
    if name or ref.lora:
        return name or word, None
    return snapshot(base.path) or (ref.path, ref.revision)


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
    totals = {**facts, "relative_error": _joint_error(extracted)}
    return json.dumps({**totals, "modules": modules}, indent=1)


def _joint_error(extracted: Sequence[ExtractedTarget]) -> float:
    delta = math.fsum(result.delta**2 for result in extracted)
    residual = math.fsum(result.residual**2 for result in extracted)
    return math.sqrt(residual / delta) if delta else 0.0


def _table(extracted: Sequence[ExtractedTarget], facts: Mapping[str, Any]) -> str:
    """Return relative errors by layer and by kind of module, and a line of totals."""

    def layer(result: ExtractedTarget) -> str:
        place = layer_of(result.target.name)
        return f"{place.stack}{place.number}" if place else "other"

    lines = _rows("layer", extracted, layer)
    lines += _rows("module", extracted, lambda result: result.target.name.rpartition(".")[2])
    with_factors = sum(result.rank > 0 for result in extracted)
    lines.append(
        f"{facts['out']}: {size(int(facts['bytes']))}, "
        f"{counted(with_factors, 'modules with factors')}, "
        f"{counted(len(facts['whole']), 'tensors whole')}, "
        f"relative error {_joint_error(extracted):.4f} in {facts['seconds']} s"
    )
    return "\n".join(lines)


def _rows(
    title: str, extracted: Sequence[ExtractedTarget], key: Callable[[ExtractedTarget], str]
) -> list[str]:
    groups: dict[str, list[ExtractedTarget]] = {}
    for result in extracted:
        groups.setdefault(key(result), []).append(result)
    rows = [f"{title:<24} {'tensors':>8} {'rank':>9} {'error':>8}"]
    for name in sorted(groups, key=_by_number):
        ranks = [result.rank for result in groups[name]]
        low, high = min(ranks), max(ranks)
        shown = f"{low}" if low == high else f"{low}-{high}"
        rows.append(f"{name:<24} {len(ranks):>8} {shown:>9} {_joint_error(groups[name]):>8.4f}")
    return [*rows, ""]


def _by_number(name: str) -> tuple[str, int]:
    stack, _, number = name.rpartition(".")
    return (stack, int(number)) if re.fullmatch(NUMBER, number) else (name, 0)
