"""`merge-worker extract-lora`: the difference of two models as an adapter that PEFT loads."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ..system.cpus import usable_cpus
from ..units import positive_integer, size
from .options import add_options

if TYPE_CHECKING:
    from ..lora.extract import Extraction, Found
    from ..lora.targets import Arranged, Target, Whole


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("base", metavar="BASE")
    add("finetune", metavar="FINETUNE")
    add("out", metavar="OUT")
    add(
        "--rank",
        type=positive_integer,
        metavar="32",
        help="of every module; default: 32, or as needed",
    )
    add("--energy", type=_share, metavar="0.9", help="least rank with this share of the squares")
    add("--embed-lora", action="store_true", help="factors for embeddings and head, not copies")
    add("--lora-only", action="store_true", help="leave out what has no factors (norms, …)")
    add("--dtype", choices=FLOATS[:3], default="float32", help="of the factors")
    add_options(parser, "extract-lora")
    add("--base-name", metavar="ORG/NAME", help="base_model_name_or_path; default: BASE as given")
    add("--overwrite", action="store_true", help="replace an adapter in OUT")
    add("--json", action="store_true", help="every module, for programs")


def _share(word: str) -> float:
    value = float(word)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{word} is no share between 0 and 1")
    return value


@input_errors("extract-lora")
def command(arguments: argparse.Namespace) -> str:
    """The table of errors, or JSON. WorkerError of any kind; OUT gets its names at the end."""
    from ..system.torch_startup import require_torch

    require_torch()
    from ..engine.device import select_devices
    from ..lora.extract import Extraction, check_alike
    from ..lora.save import Output
    from ..lora.svd import Wanted
    from ..lora.targets import arrange

    began = time.monotonic()
    base, tuned = _open(arguments.base), _open(arguments.finetune)
    arranged = arrange(tuned, arguments.embed_lora)
    check_alike(base, tuned, arranged.wholes)
    rank = arguments.rank or (32 if arguments.energy is None else 1 << 30)
    inputs = dict(_places(arguments.base, arguments.finetune))
    with Output(Path(arguments.out), inputs, arguments.overwrite) as output:
        extraction = Extraction(
            base, tuned, output, Wanted(rank, arguments.energy or 1.0),
            _factor_names(arranged.targets), arguments.dtype,
        )  # fmt: skip
        work: list[Target | Whole] = [
            *arranged.targets,
            *([] if arguments.lora_only else arranged.wholes),
        ]
        extraction.run(work, select_devices(arguments.device), arguments.threads or usable_cpus())
        extraction.fill()
        written = _finish(extraction, arranged, _base_of(arguments.base_name, arguments.base, base))
    found = sorted(extraction.found, key=lambda found: found.target.name)
    facts = {
        "out": arguments.out,
        "bytes": written,
        "seconds": round(time.monotonic() - began, 2),
        "whole": sorted(whole.name for whole in extraction.kept),
    }
    return _as_json(found, facts) if arguments.json else _table(found, facts)


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
    hub.download_all(model.shards)
    return model


def _base_of(name: str | None, word: str, base: Checkpoint) -> tuple[str, str | None]:
    """What the adapter calls its base, and its revision: the words of the hub, or the folder."""
    if name or "+" in word:
        return name or word, None
    ref = parse_model(word)
    return snapshot(base.path) or (ref.path, ref.revision)


def _places(*words: str) -> Iterator[tuple[str, Path]]:
    """The folders that are read."""
    for word in words:
        ref = parse_model(word)
        yield word, locate(ModelRef(ref.path, ref.revision), Path.cwd(), Hub())
        if ref.lora:
            yield ref.lora, locate(ModelRef(ref.lora), Path.cwd(), Hub())


def _factor_names(targets: Iterable[Target]) -> dict[str, str]:
    """What stands before `lora_A`: parameters of one module are wrapped one in the other."""
    names: dict[str, str] = {}
    wrapped: dict[str, list[str]] = {}
    for target in targets:
        names[target.name] = target.name
        if target.kind == "experts":
            wrapped.setdefault(target.name.rpartition(".")[0], []).append(target.name)
    for module, parameters in wrapped.items():
        # The last one is the outermost; `down_proj` comes after the others in every model.
        order = sorted(parameters, key=lambda name: name.endswith("down_proj"))
        for depth, name in enumerate(reversed(order)):
            names[name] = module + ".base_layer" * depth
    return names


def _finish(extraction: Extraction, arranged: Arranged, base: tuple[str, str | None]) -> int:
    """Write what was found; returns the bytes of the weights."""
    import torch

    from ..checkpoint.reader import Files
    from ..engine.lane import Lane
    from ..lora.save import config_of

    changed = [found for found in extraction.found if found.rank]
    where = extraction.tuned.path
    if not changed:
        kept = f", only {counted(len(extraction.kept), 'others')}" if extraction.kept else ""
        raise InputError(f"{where}: no matrix differs from the base{kept}; an adapter needs one")
    most = Counter(found.rank for found in changed).most_common(1)[0][0]
    other = {f.target.key: f.rank for f in changed if f.rank != most}
    targets = [found.target for found in changed]
    config = config_of(
        base[0], most, revision=base[1], rank_pattern=other, alpha_pattern=other,
        target_modules=_short([t.name for t in targets if not t.parameter], arranged),
        fan_in_fan_out=any(t.turned and t.kind == "linear" for t in targets),
    )  # fmt: skip
    parameters = sorted(target.parameter for target in targets if target.parameter)
    config |= {"target_parameters": parameters} if parameters else {}
    if extraction.tuned.config.get("is_encoder_decoder"):
        config["task_type"] = "SEQ_2_SEQ_LM"
    config["modules_to_save"] = _keep_modules(extraction, arranged.wholes) or None
    wrapped = {t.name if t.kind != "experts" else t.name.rpartition(".")[0] for t in targets}
    depths = Counter(t.name.rpartition(".")[0] for t in targets if t.kind == "experts")
    for whole in extraction.kept:
        module, _, end = whole.name.rpartition(".")
        layers = ".base_layer" * max(depths[module], 1) if module in wrapped else ""
        parts = tuple(extraction.tuned.tensors[name] for name in whole.parts)
        extraction.output.whole[f"{module}{layers}.{end}"] = parts
    files = Files()
    try:
        lane = Lane(torch.device("cpu"), files, staged=False)
        return extraction.output.finish(config, lane, base[0])
    finally:
        files.close()


def _keep_modules(extraction: Extraction, wholes: Sequence[Whole]) -> list[str]:
    """The modules with a copy of their own, of which PEFT wants every tensor."""
    kept = {whole.module for whole in extraction.kept if whole.module}
    extraction.kept += [w for w in wholes if w.module in kept and w not in extraction.kept]
    return sorted(kept)


def _short(names: Sequence[str], arranged: Arranged) -> list[str]:
    """The last parts of the names if they mean no other module, else whole names."""
    lasts = {name.rpartition(".")[2] for name in names}
    every = [t.name for t in arranged.targets]
    every += [w.name.rpartition(".")[0] for w in arranged.wholes if w.name.endswith(".weight")]
    meant = [name for name in every if name.rpartition(".")[2] in lasts]
    plain = set(meant) == set(names) and not any(last.isdigit() for last in lasts)
    return sorted(lasts if plain else names)


def _as_json(found: Sequence[Found], facts: Mapping[str, Any]) -> str:
    modules = [
        {"name": f.target.name, "shape": [len(f.target.matrices), *f.target.shape],
         "rank": f.rank, "delta_norm": f.delta, "relative_error": f.error}
        for f in found
    ]  # fmt: skip
    return json.dumps({**facts, "relative_error": _together(found), "modules": modules}, indent=1)


def _together(found: Iterable[Found]) -> float:
    listed = list(found)
    delta = math.fsum(f.delta**2 for f in listed)
    return math.sqrt(math.fsum(f.missed**2 for f in listed) / delta) if delta else 0.0


def _table(found: Sequence[Found], facts: Mapping[str, Any]) -> str:
    """Errors by layer and by kind of module: what the factors miss of the change, as a share."""

    def layer(found: Found) -> str:
        at = layer_of(found.target.name)
        return f"{at.stack}{at.number}" if at else "other"

    def kind(found: Found) -> str:
        return found.target.name.rpartition(".")[2]

    lines = []
    for title, key in (("layer", layer), ("module", kind)):
        lines += [f"{title:<24} {'tensors':>8} {'rank':>9} {'error':>8}", *_rows(found, key), ""]
    size_of = size(int(facts["bytes"]))
    lines.append(
        f"{facts['out']}: {size_of}, "
        f"{counted(sum(f.rank > 0 for f in found), 'modules with factors')}, "
        f"{counted(len(facts['whole']), 'tensors whole')}, relative error {_together(found):.4f} "
        f"in {facts['seconds']} s"
    )
    return "\n".join(lines)


def _rows(found: Sequence[Found], key: Callable[[Found], str]) -> list[str]:
    groups: dict[str, list[Found]] = {}
    for each in found:
        groups.setdefault(key(each), []).append(each)
    rows = []
    for name in sorted(groups, key=_by_number):
        ranks = [f.rank for f in groups[name]]
        low, high = min(ranks), max(ranks)
        shown = f"{low}" if low == high else f"{low}-{high}"
        rows.append(f"{name:<24} {len(ranks):>8} {shown:>9} {_together(groups[name]):>8.4f}")
    return rows


def _by_number(name: str) -> tuple[str, int]:
    stack, _, number = name.rpartition(".")
    return (stack, int(number)) if number.isdigit() else (name, 0)
