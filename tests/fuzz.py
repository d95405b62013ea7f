"""Hostile headers and recipes by the ten thousand, in a process of its own with little memory.

`python fuzz.py headers|recipes SEED COUNT`: true ones are broken at random places, then read. Ends
with 1 at the first that is answered by anything but a line of words, and prints it.
"""

import json
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.errors import WorkerError
from worker.header import shard_of
from worker.recipe import parse

MEMORY_BYTES = 1 << 30
PATIENCE_S = 5.0
NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, 1.5, 1e308, True, None]
WORDS = [
    "",
    "a",
    "F32",
    "BF16",
    "U8",
    "F8_E4M3",
    "__metadata__",
    "../x",
    "\x1b[2J",
    "\n",
    "\0",
    "ü",
]
RECIPES = [
    "merge_method: ties\nbase_model: b\nparameters: {density: [0.1, 0.9], normalize: true}\n"
    "models:\n- model: m1\n  parameters: {weight: [{filter: mlp, value: 0.5}, {value: 1}]}\n"
    "- {model: m2+lora, parameters: {weight: 1}}\ndtype: bfloat16\ntokenizer_source: union\n",
    "merge_method: slerp\nbase_model: a\nparameters: {t: [0, 0.5, 1]}\nslices:\n- sources:\n"
    "  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [0, 4]}\n",
    "name: x\nmerge_method: linear\nmodels: &m [{model: a, parameters: {weight: 1}}, {model: b}]\n"
    "---\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: x}, {model: c}]\n",
    "merge_method: della\nbase_model: {model: {path: b, revision: v1}}\nmodules:\n  text:\n"
    "    models: [{model: a, parameters: {weight: 1, density: 0.5, epsilon: 0.1}}]\n",
]
BITS = [
    *("{", "}", "[", "]", ":", ",", "- ", "&a ", "*a", "? ", "<<: ", "---\n", "|\n", "!!int "),
    *("\t", "\n", " ", "'", '"', "#", "%", "@", "`", "~", ".nan", ".inf", "9" * 400, "0x1", "1_0"),
    *("2001-01-01", "\x1b", "\x00", "\u202e", "\ud800", "\ufeff", "!!python/name:os.system "),
]


def value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(6 if depth < 4 else 2)
    if kind < 2:
        return chance.choice(NUMBERS if kind else WORDS)
    if kind < 4:
        return [value(chance, depth + 1) for _ in range(chance.randrange(5))]
    return {chance.choice(WORDS): value(chance, depth + 1) for _ in range(chance.randrange(4))}


def header(chance: random.Random) -> tuple[bytes, int]:
    """The first bytes of a file, and the size that the file is said to have."""
    offset, tensors = 0, dict[str, Any]()
    for number in range(chance.randrange(6)):
        shape = [chance.randrange(9) for _ in range(chance.randrange(4))]
        count = 4
        for extent in shape:
            count *= extent
        tensors[f"t{number}"] = {
            "dtype": "F32", "shape": shape, "data_offsets": [offset, offset + count],
        }  # fmt: skip
        offset += count
    for _ in range(chance.choice([0, 1, 1, 2, 3])):
        if tensors and chance.random() < 0.8:
            entry = tensors[chance.choice(list(tensors))]
            if isinstance(entry, dict) and entry:
                key = chance.choice(list(entry))
                if isinstance(entry[key], list) and entry[key] and chance.random() < 0.6:
                    entry[key][chance.randrange(len(entry[key]))] = value(chance)
                else:
                    entry[key] = value(chance)
        else:
            tensors[chance.choice(WORDS)] = value(chance)
    raw = bytearray(json.dumps(tensors).encode())
    for _ in range(chance.choice([0, 0, 0, 1, 3])):
        place = chance.randrange(len(raw) + 1)
        raw[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    if chance.random() < 0.01:
        raw = bytearray(b"[" * 50_000 if chance.random() < 0.5 else b'{"a":' * 50_000)
    length = len(raw) if chance.random() < 0.9 else chance.choice([0, 1, 2**31, 2**63, 2**64 - 1])
    size = 8 + len(raw) + offset if chance.random() < 0.9 else chance.randrange(1 << 40)
    return length.to_bytes(8, "little") + raw, size


def recipe(chance: random.Random) -> str:
    text = chance.choice(RECIPES)
    for _ in range(chance.choice([1, 1, 2, 4])):
        place, width = chance.randrange(len(text) + 1), chance.randrange(8)
        bit = chance.choice(BITS) if chance.random() < 0.8 else repr(value(chance))
        text = text[:place] + bit * chance.choice([1, 1, 1, 30]) + text[place + width :]
    return text


def read_header(case: Any) -> None:
    shard_of(Path("m.safetensors"), case[1], case[0])


def read_recipe(case: Any) -> None:
    parse(case, "recipe.yml")


KINDS: dict[str, tuple[Callable[[random.Random], Any], Callable[[Any], None]]] = {
    "headers": (header, read_header),
    "recipes": (recipe, read_recipe),
}


def main(kind: str, seed: int, count: int) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    make, read = KINDS[kind]
    chance, refused = random.Random(seed), 0
    for number in range(count):
        case, began = make(chance), time.monotonic()
        try:
            read(case)
        except WorkerError:
            refused += 1
        except BaseException as error:
            print(f"{number}: {error!r} for {case!r:.2000}")
            return 1
        if time.monotonic() - began > PATIENCE_S:
            print(f"{number}: {time.monotonic() - began:.0f} s for {case!r:.2000}")
            return 1
    print(f"{count} {kind}, {refused} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
