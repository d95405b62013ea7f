"""Tens of thousands of hostile inputs, in a separate process with little memory.

`python fuzz_runner.py KIND SEED COUNT` reads inputs of `fuzz_cases.py` with the worker's code. It
prints the first input that is slow or raises anything but a WorkerError of few lines, and exits
with 1. `fuzz_guided.py` lets atheris find the inputs.
"""

import json
import os
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from merge_launch import backends
from merge_launch.commands.jobs import row
from merge_launch.errors import LauncherError, UsageError
from merge_launch.profiles import precedence
from merge_launch.profiles.file import ProfileFile
from merge_launch.settings.groups import JobOptions, WorkerOptions
from merge_launch.tracking import records
from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.checkpoint.header import shard_of
from merge_worker.checkpoint.torch_zip import read_pickled
from merge_worker.commands.reproduce import plan_from_manifest, read_as_manifest
from merge_worker.errors import InputError, WorkerError
from merge_worker.output import lock
from merge_worker.output.files import FINAL_FILES, MANIFEST, PARTIAL
from merge_worker.output.journal import COMMITTING, head_name, parse_line, pending_commit
from merge_worker.output.lock import is_held, refuse_others
from merge_worker.output.manifest import files_to_upload
from merge_worker.output.model_card import model_card
from merge_worker.output.store import PartialOutput
from merge_worker.output.target import inspect_output
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import make_plan
from merge_worker.recipe import parse
from merge_worker.structure.selection import matches_pattern
from merge_worker.tokenizer.files import SideFiles, Vocabulary, vocabulary, with_rows
from merge_worker.tokenizer.vocabulary import edited, joined
from support.fuzz_cases import ADAPTER, MAKERS, RECIPES, TOKENIZERS, archived

MEMORY_BYTES = 1 << 30
PATIENCE_S = 5.0
"""Of processor time: the machine may have other work."""
LENGTHS = [0, 1, 7, 2**31, 2**63, 2**64 - 1]
SIZES = [0, 8, 100, 2**40, 2**63]
STACKED = [
    "merge_method: linear\nmodels:\n- {model: odd, parameters: {weight: 1}}\n"
    "- {model: a, parameters: {weight: 1}}\n",
    "merge_method: passthrough\nslices:\n- sources: [{model: odd, layer_range: [0, 2]}]\n"
    "- sources: [{model: odd, layer_range: [1, 2]}]\n",
    "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n"
    "- sources: [{model: odd, layer_range: [1, 2]}]\n",
]
LORA = (
    "merge_method: linear\nmodels:\n- {model: a+lora, parameters: {weight: 1}}\n"
    "- {model: b, parameters: {weight: 1}}\n"
)
OTHERS = Vocabulary({"<s>": 0, "z": 1, "<|x|>": 2}, {"<|x|>": {"special": True}}, 2)


def read_header(case: bytes) -> None:
    """Read a header; the file has the size it declares, unless the first byte falsifies it."""
    lie, raw = case[:1] or b"\xff", case[1:]
    length, size = len(raw), 8 + len(raw) + _promised(raw)
    if lie[0] < len(LENGTHS):
        length = LENGTHS[lie[0]]
    elif lie[0] < len(LENGTHS) + len(SIZES):
        size = SIZES[lie[0] - len(LENGTHS)]
    shard_of(Path("m.safetensors"), size, length.to_bytes(8, "little") + raw)


def _promised(raw: bytes) -> int:
    """Return where the last tensor of a header ends, if it can be read at all."""
    try:
        ends = [entry["data_offsets"][1] for entry in json.loads(raw).values()]
        return int(max((end for end in ends if 0 < end < 2**62), default=0))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return 0


@cache
def folder() -> Path:
    """Make models a, b and c, and a folder of traps for an index."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in ("a", "b", "c", "m1", "m2", "odd"):
        (place / name).mkdir()
        (place / name / "config.json").write_text('{"model_type": "none"}')
        names = [f"layers.{n}.{part}.weight" for n in range(2) for part in ("q", "up")]
        names += ["embed_tokens.weight", "lm_head.weight"]
        (place / name / "model.safetensors").write_bytes(_tensors(names))
    (place / "lora").mkdir()
    parts = [
        f"layers.{n}.{part}.lora_{side}.weight"
        for n in (0, 1)
        for part in ("q", "up")
        for side in "AB"
    ]
    (place / "lora" / "adapter_model.safetensors").write_bytes(
        _tensors([f"base_model.model.{part}" for part in parts])
    )
    (place / "traps").mkdir()
    for name, tensor in (("one", "a"), ("two", "b")):
        (place / "traps" / f"{name}.safetensors").write_bytes(_tensors([tensor]))
    os.mkfifo(place / "traps" / "fifo.safetensors")
    (place / "traps" / "loop.safetensors").symlink_to("loop.safetensors")
    (place / "traps" / "zero.safetensors").symlink_to("/dev/zero")
    return place


def _tensors(names: list[str]) -> bytes:
    header = {
        name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * n, 16 * n + 16]}
        for n, name in enumerate(names)
    }
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(16 * len(names))


def read_index(case: bytes) -> None:
    place = folder() / "traps"
    (place / "model.safetensors.index.json").write_bytes(case)
    open_checkpoint(place)


def _text(case: bytes) -> str:
    try:
        return case.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return case.decode(errors="replace")


def read_recipe(case: bytes) -> None:
    parse(_text(case), "recipe.yml")


def read_plan(case: bytes) -> None:
    """Plan the recipe with existing models."""
    make_plan(parse(_text(case), "recipe.yml"), PlanOptions(relative_to=folder()))


def read_archive(case: bytes) -> None:
    fd = os.memfd_create("model.bin")
    try:
        os.write(fd, case)
        read_pickled(Path(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


def read_pickle(case: bytes) -> None:
    read_archive(archived(case))


def read_vocabulary(case: bytes) -> None:
    """Read a vocabulary, unite it with that of another model, and edit the files for both."""
    names = list(TOKENIZERS)
    files = SideFiles(None, {names[(case[:1] or b"\0")[0] % len(names)]: case[1:]})
    own = vocabulary(files)
    if own is not None:
        tokens = joined(own, [("b", with_rows(OTHERS, 3))], ["<new>"])
        edited(files, own, tokens)


def read_config(case: bytes) -> None:
    """Read the config of a model with layers picked, repeated and mixed with another model's."""
    place = folder()
    (place / "odd" / "config.json").write_bytes(case)
    for text in STACKED:
        make_plan(parse(text, "recipe.yml"), PlanOptions(relative_to=place))


def read_adapter(case: bytes) -> None:
    (folder() / "lora" / "adapter_config.json").write_bytes(case)
    make_plan(parse(LORA, "recipe.yml"), PlanOptions(relative_to=folder()))


def read_card(case: bytes) -> None:
    """Write all side files of a merge of a model with this card."""
    place = folder()
    for name in ("a", "b"):
        (place / name / "README.md").write_bytes(case)
    model_card(make_plan(parse(RECIPES[1], "recipe.yml"), PlanOptions(relative_to=place)), "out")


def read_a_manifest(case: bytes) -> None:
    """Read a manifest as a merge, an upload and a repetition do, and as a note of a commit."""
    place = folder()
    out, partial = place / "out", place / "out" / PARTIAL
    for file in (out / MANIFEST, partial / COMMITTING, partial / FINAL_FILES / MANIFEST):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(case)
    (partial / "key.json").write_bytes(case)
    for name in pending_commit(partial) or ():
        assert (out / name).resolve().is_relative_to(out.resolve())
    plan = make_plan(parse(RECIPES[1], "recipe.yml"), PlanOptions(relative_to=place))
    refusals: list[WorkerError] = []
    attempts: list[Callable[[], object]] = [
        lambda: inspect_output(plan, out, overwrite=True, resume=True),
        lambda: list(files_to_upload(out, "me/merged")),
        lambda: plan_again(out / MANIFEST, _text(case)),
    ]
    for attempt in attempts:
        try:
            attempt()
        except WorkerError as error:
            refusals.append(error)
    if len(refusals) == len(attempts):
        raise refusals[0]


def plan_again(path: Path, text: str) -> None:
    value = read_as_manifest(text)
    if value is not None:
        plan_from_manifest(path, value, PlanOptions(relative_to=folder()))


def read_record(case: bytes) -> None:
    """Read a record of a job, and what the commands for jobs show of it."""
    os.environ["XDG_STATE_HOME"] = str(folder() / "state")
    records.folder().mkdir(parents=True, exist_ok=True)
    (records.folder() / "pbs.1.json").write_bytes(case)
    loaded, faults = records.load()
    for record in loaded:
        records.path_of(record).relative_to(records.folder())
        row(record, record.last_status)
        record.exit_code()
        records.find_all(record.job_id)
    if faults:
        raise UsageError(faults[0])


def read_lock(case: bytes) -> None:
    """Ask for the owner of a lock, without waiting for a sign of life."""
    path = folder() / "lock-0-of-1"
    path.write_bytes(case)
    lock.STALE_AFTER_S = 0.0
    if is_held(path):
        refuse_others(path.parent, "another")


def read_journal(case: bytes) -> None:
    entries = [parse_line(line) for line in case.splitlines()]
    plan = make_plan(parse(RECIPES[1], "recipe.yml"), PlanOptions(relative_to=folder()))
    store = PartialOutput(folder() / "half", plan)
    store.folder.mkdir(parents=True, exist_ok=True)
    name = f"{store.key.journals}-a"
    (store.folder / name).write_bytes(case)
    (store.folder / head_name(name)).write_bytes(case)
    store.read_journals()
    store.done()
    store.nonfinite()
    if None in entries:
        raise InputError("a torn line")


def read_profiles(case: bytes) -> None:
    """Read a file of profiles, and resolve each of them for each backend."""
    path = folder() / "merge-launch.toml"
    path.write_bytes(case)
    file = ProfileFile.read(path)
    for name in (None, *file.profiles):
        for backend in backends.names():
            groups: list[Any] = [JobOptions, WorkerOptions, backends.get(backend).resources]
            precedence.resolve(groups, precedence.profile(file, name, backend))


def read_pattern(case: bytes) -> None:
    """Match a pattern of an adapter, and with it as a filter of tensors."""
    names = [f"model.layers.{n}.{part}_proj" for n in range(3) for part in ("q", "a" * 50, "ab")]
    config = ADAPTER | {"rank_pattern": {_text(case): 4, ".*q": 2}}
    read_adapter(json.dumps(config).encode())
    for name in names:
        matches_pattern(_text(case), name)


READERS: dict[str, Callable[[bytes], Any]] = {
    "headers": read_header,
    "indexes": read_index,
    "recipes": read_recipe,
    "plans": read_plan,
    "pickles": read_pickle,
    "archives": read_archive,
    "vocabularies": read_vocabulary,
    "configs": read_config,
    "adapters": read_adapter,
    "cards": read_card,
    "manifests": read_a_manifest,
    "records": read_record,
    "locks": read_lock,
    "profiles": read_profiles,
    "journals": read_journal,
    "key_maps": read_plan,
    "patterns": read_pattern,
}


def timed(kind: str, case: bytes) -> None:
    """Read an input. Raises WorkerError, or TimeoutError if it took too long."""
    began = time.process_time()
    try:
        READERS[kind](case)
    finally:
        took = time.process_time() - began
        if took > PATIENCE_S:
            raise TimeoutError(f"{took:.0f} s of processor time")


def main(kind: str, seed: int, count: int) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    chance, refused = random.Random(seed), 0
    for number in range(count):
        case = MAKERS[kind](chance)
        try:
            timed(kind, case)
        except (WorkerError, LauncherError):
            refused += 1
        except BaseException as error:
            print(f"{number}: {error!r} for {case!r:.2000}")
            return 1
    print(f"{count} {kind}, {refused} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
