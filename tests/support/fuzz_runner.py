"""Hostile inputs by the ten thousand, in a process of its own with little memory.

`python fuzz_runner.py KIND SEED COUNT`: what `fuzz_cases.py` makes is read as the worker reads
it. Ends with 1 at the first that is answered by anything but a line of words, and prints it; with
1, too, if an answer takes long. `fuzz_guided.py` lets atheris find the cases.
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

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.checkpoint.header import shard_of
from merge_worker.checkpoint.torch_zip import read_pickled
from merge_worker.errors import WorkerError
from merge_worker.output.model_card import model_card
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import make_plan
from merge_worker.recipe import parse
from merge_worker.tokenizer.files import SideFiles, Vocabulary, vocabulary
from merge_worker.tokenizer.vocabulary import edited, joined
from support.fuzz_cases import MAKERS, RECIPES, TOKENIZERS, archived

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
    """The size of the file is the one that the header asks for, unless the first byte lies."""
    lie, raw = case[:1] or b"\xff", case[1:]
    length, size = len(raw), 8 + len(raw) + _promised(raw)
    if lie[0] < len(LENGTHS):
        length = LENGTHS[lie[0]]
    elif lie[0] < len(LENGTHS) + len(SIZES):
        size = SIZES[lie[0] - len(LENGTHS)]
    shard_of(Path("m.safetensors"), size, length.to_bytes(8, "little") + raw)


def _promised(raw: bytes) -> int:
    """Where the last tensor of a header ends, if it can be read at all."""
    try:
        ends = [entry["data_offsets"][1] for entry in json.loads(raw).values()]
        return int(max((end for end in ends if 0 < end < 2**62), default=0))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return 0


@cache
def folder() -> Path:
    """Models a, b and c, and a folder of traps for an index."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in ("a", "b", "c", "m1", "m2", "odd"):
        (place / name).mkdir()
        (place / name / "config.json").write_text('{"model_type": "none"}')
        names = [f"layers.{n}.{part}.weight" for n in range(2) for part in ("q", "up")]
        names += ["embed_tokens.weight", "lm_head.weight"]
        (place / name / "model.safetensors").write_bytes(_tensors(names))
    (place / "lora").mkdir()
    parts = [f"layers.{n}.{part}.lora_{side}.weight" for n in (0, 1) for part in ("q", "up")
             for side in "AB"]  # fmt: skip
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
    """The recipe against models that are there."""
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
    """Tokens, then those of another model beside them, and the files of both together."""
    names = list(TOKENIZERS)
    beside = SideFiles(None, {names[(case[:1] or b"\0")[0] % len(names)]: case[1:]})
    found = vocabulary(beside)
    if found is not None:
        tokens = joined(found, [("b", OTHERS, 3)], ["<new>"])
        edited(beside, found, tokens)


def read_config(case: bytes) -> None:
    """Of a model whose layers are taken once, twice, and by another model's side."""
    place = folder()
    (place / "odd" / "config.json").write_bytes(case)
    for text in STACKED:
        make_plan(parse(text, "recipe.yml"), PlanOptions(relative_to=place))


def read_adapter(case: bytes) -> None:
    (folder() / "lora" / "adapter_config.json").write_bytes(case)
    make_plan(parse(LORA, "recipe.yml"), PlanOptions(relative_to=folder()))


def read_card(case: bytes) -> None:
    """All that a merge writes beside the weights, from a model with this card."""
    place = folder()
    for name in ("a", "b"):
        (place / name / "README.md").write_bytes(case)
    model_card(make_plan(parse(RECIPES[1], "recipe.yml"), PlanOptions(relative_to=place)), "out")


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
}


def timed(kind: str, case: bytes) -> None:
    """Read it. WorkerError; TimeoutError if that took longer than anybody waits."""
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
        except WorkerError:
            refused += 1
        except BaseException as error:
            print(f"{number}: {error!r} for {case!r:.2000}")
            return 1
    print(f"{count} {kind}, {refused} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
