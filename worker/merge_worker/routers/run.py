"""A training from the command to the written model: refuse, load, resume, train, write."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoint.folder import Checkpoint, exists, is_hub_id, open_checkpoint
from ..engine.device import select_devices
from ..errors import InputError, OutputError, UsageError
from ..messages import counted, print_line
from ..output.evaluation import recording
from ..output.files import MANIFEST, PARTIAL
from ..output.journal import read_key
from ..output.lock import Lock
from ..output.manifest import read_manifest, settled
from ..system.machine import usable_cpus
from ..system.signals import StopFlag, stop_on_signal
from ..units import size
from .loading import load_model
from .memory import estimate, free_bytes, refuse_too_large
from .mixture import Router, config_section, find_routers, is_sigmoid, refuse_other_models
from .pieces import Data
from .place import Patch, patches, read_values, stored_routers
from .record import files_with_record, recorded
from .samples import read_data
from .show import Steps, report
from .state import StateFolder
from .training import Progress, Settings, Trainer, default_rate
from .write_back import patched_outputs, store, write_pending

SAVE_EVERY_S = 60.0


def train(arguments: argparse.Namespace) -> str:
    """Train the routers of a model and write them; returns the lines to print."""
    out = Path(arguments.model).expanduser()
    _refuse_place(arguments.model, out)
    state = StateFolder(out)
    state.create()
    with Lock(state.lock):
        with _recording(out):
            written = write_pending(state)
        if written:
            return f"{out}: routers of a training that was stopped while writing are written"
        try:
            return _train(out, state, arguments)
        finally:
            if not state.read():
                state.remove()


def _refuse_place(word: str, out: Path) -> None:
    if is_hub_id(word):
        raise UsageError(
            f"train-routers: {word} is a model of the Hub, and routers are written into the model\n"
            f"  download it into a folder, and name that"
        )
    if not exists(out):
        raise InputError(f"{out}: no such folder; is the model path right?")
    if not out.is_dir():
        raise InputError(f"{out}: not a model folder; routers are trained with its config")
    if read_key(out / PARTIAL) is not None:  # else locks of a record alone
        raise OutputError(f"{out}: an unfinished merge; finish it first with its command")


def _train(out: Path, state: StateFolder, arguments: argparse.Namespace) -> str:
    model = open_checkpoint(out)
    manifest = read_manifest(out)
    _refuse_model(model)
    section = config_section(model.config)
    settings = _settings(arguments, section)
    devices = select_devices(arguments.device)
    torch.set_num_threads(arguments.threads or usable_cpus())
    data = read_data(out, arguments.data, settings.length, arguments.trust_remote_code)
    _refuse_memory(model, section, settings, devices)
    net = load_model(out, settings.dtype, devices, arguments.trust_remote_code)
    routers = find_routers(net, section, settings.shared_gate)
    if not any(not router.is_shared_gate for router in routers):
        raise InputError(f"{out}: no router found in {type(net).__name__}")
    places = stored_routers(model, routers)
    key = _key(data, settings, model, manifest, [places[r.name].name for r in routers])
    trained = {name: read_values(source) for name, source in places.items()}
    digest = _digest(trained)
    before = next((r for r in reversed(recorded(manifest)) if r.get("after") == digest), None)
    if before is not None and before.get("key") == key:
        loss = before["loss"]
        return (
            f"{out}: already trained with this data and these options: held-out loss "
            f"{loss['before']:.4f} before, {loss['after']:.4f} after\n"
            f"  another --seed, or more data, trains further"
        )
    trainer = Trainer(net, routers, data, settings)
    trainer.stored = [trained[router.name].dtype for router in routers]
    trainer.sigmoid = is_sigmoid(section)
    began = time.monotonic()
    at = _run(trainer, state, f"{key} {digest}", arguments)
    after, load = trainer.held_out()
    values = {r.name: copy for r, copy in zip(routers, at.copies, strict=True)}
    record = {
        "key": key,
        "before": digest,
        "after": _digest({n: v.cpu().to(trained[n].dtype) for n, v in values.items()}),
        "worker": __version__,
        "data": data.facts(),
        "settings": settings.recorded(),
        "device": devices[0].type,
        "routers": len(routers),
        "parameters": sum(router.parameter.numel() for router in routers),
        "loss": {"before": at.loss_before, "after": after},
        "load": {"before": at.load_before, "after": load},
        "seconds": round(time.monotonic() - began, 1),
    }
    with _recording(out):
        _write(state, patches(out, places, values), record, manifest)
    return report(out, record, manifest)


def _recording(out: Path) -> AbstractContextManager[None]:
    """Keep others from the manifest of a merge; a model of other origin has none."""
    return recording(out) if (out / MANIFEST).exists() else nullcontext()


def _write(
    state: StateFolder,
    changes: list[Patch],
    record: dict[str, Any],
    begun: Mapping[str, Any] | None,
) -> None:
    """Write routers, manifest and card. OutputError if the merge was replaced since it `begun`."""
    out, files = state.out, dict[str, str]()
    manifest = read_manifest(out)  # evaluations may have been recorded meanwhile
    if (manifest or {}).get("key") != (begun or {}).get("key"):
        raise OutputError(f"{out}: another merge is here now; nothing was written")
    if manifest is not None:
        manifest = settled(out, manifest)
        sums = {e["file"]: e["sum128"] for e in manifest.get("outputs", []) if "sum128" in e}
        record["checksums_before"] = {c.file: sums[c.file] for c in changes if c.file in sums}
        outputs = patched_outputs(out, manifest.get("outputs", []), changes)
        files = files_with_record(out, manifest, outputs, record)
    store(state, changes, files)
    write_pending(state)


def _refuse_model(model: Checkpoint) -> None:
    """Raise InputError or UsageError for a model whose routers cannot be trained."""
    if not model.config:
        raise InputError(f"{model.path}: no config.json, without which nothing can load it")
    if model.quantization:
        raise InputError(
            f"{model.path}: quantized; train the routers before the model is quantized"
        )
    refuse_other_models(str(model.path), model.config)


def _settings(arguments: argparse.Namespace, section: Mapping[str, Any]) -> Settings:
    hidden = section.get("hidden_size")
    width = hidden if type(hidden) is int and hidden > 0 else 4096
    return Settings(
        steps=arguments.steps,
        rate=arguments.lr or default_rate(width),
        balance=arguments.balance,
        batch=arguments.batch,
        at_once=min(arguments.at_once or arguments.batch, arguments.batch),
        length=arguments.length,
        seed=arguments.seed,
        shared_gate=arguments.shared_gate,
        dtype=arguments.dtype,
    )


def _refuse_memory(
    model: Checkpoint, section: Mapping[str, Any], settings: Settings, devices: list[torch.device]
) -> None:
    """Print what training will take. UsageError if there is not so much memory."""
    width = {"same": 0, "float32": 4}.get(settings.dtype, 2)
    tensors = model.tensors.values()
    weights = sum(source.count * width if width else source.nbytes for source in tensors)
    small = (s.count for n, s in model.tensors.items() if "gate." in n or "router" in n)
    needed = estimate(weights, sum(small), section, settings)
    free = free_bytes(devices)
    refuse_too_large(needed, free, str(model.path))
    place = str(devices[0]) if len(devices) == 1 else counted(len(devices), "devices")
    note = f", {size(free)} free" if free else ""
    print_line(f"training takes about {size(needed)} of memory on {place}{note}", sys.stderr)


def _run(trainer: Trainer, state: StateFolder, key: str, arguments: argparse.Namespace) -> Progress:
    """Train to the last step, from the state of a stopped run if there is one. Raises Stopped."""
    trainer.freeze()
    at = _resumed(trainer.routers, state, key, arguments)
    with Steps(arguments.progress, trainer.settings.steps, at.step) as steps:
        if not at.load_before:
            trainer.round_copies(at)
            at.loss_before, at.load_before = trainer.held_out()
        stop, saved = StopFlag(), time.monotonic()

        def after_step(at: Progress, loss: float) -> None:
            nonlocal saved
            steps.done(at.step, loss)
            if stop.is_set() or time.monotonic() - saved > SAVE_EVERY_S:
                state.write({"key": key, **vars(at)})
                saved = time.monotonic()
            if stop.is_set():
                raise stop.error(100 * at.step / trainer.settings.steps)

        with stop_on_signal(stop):
            trainer.run(at, after_step)
    return at


def _resumed(
    routers: list[Router], state: StateFolder, key: str, arguments: argparse.Namespace
) -> Progress:
    found = {} if arguments.no_resume else state.read()
    if found.get("key") == key:
        found.pop("key")
        at = Progress(**found).on(routers)
        print_line(f"resumes after step {at.step}", sys.stderr)
        return at
    if found:
        text = "a training with other data or options was stopped here; it is discarded"
        print_line(f"warning: {text}", sys.stderr)
    return Progress.begin(routers)


def _key(
    data: Data,
    settings: Settings,
    model: Checkpoint,
    manifest: Mapping[str, Any] | None,
    names: list[str],
) -> str:
    """Return a digest of all that determines a training, apart from the routers it begins with."""
    kept = (manifest or {}).get("key")
    headers = [shard.header_sha256 for shard in model.shards]
    facts = [__version__, data.digest, settings.recorded(), headers, kept, names]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _digest(values: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of the routers in the dtypes that they have on disk."""
    digest = hashlib.sha256()
    for _, value in sorted(values.items()):
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
