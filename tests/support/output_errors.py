"""Mistakes about results and output folders, and failures while they are written."""

import errno
import os
from collections import namedtuple
from typing import Any

import pytest
import torch

from merge_worker.output import space
from merge_worker.units import GIB
from support.error_cases import TWO, Mistake, System, World, change, refuses, write
from support.input_errors import AVERAGE, WEIGHTS

NAN = torch.full((8,), float("nan"), dtype=torch.bfloat16)
LARGE = torch.full((8,), 3e38, dtype=torch.bfloat16)
ARITHMETIC = "merge_method: task_arithmetic\nbase_model: base\ndtype: bfloat16\n"
MERGE = "merge-worker merge recipe.yml out"


def free_bytes(count: int) -> System:
    def system(patch: pytest.MonkeyPatch, world: World) -> None:
        status = namedtuple("found", "f_bavail f_frsize f_favail f_files f_flag")
        patch.setattr(os, "statvfs", lambda _: status(count, 1, 1000, 1000, 0))

    return system


def quota_of(most: int, used: float) -> System:
    def system(patch: pytest.MonkeyPatch, world: World) -> None:
        user_quota = space.Quota("user anna", space.Limit(int(used), hard=most))
        patch.setattr(space, "quotas_of", lambda folder: (user_quota,))

    return system


def changed_meanwhile(patch: pytest.MonkeyPatch, world: World) -> None:
    """Change an input while it is read."""
    real, count = os.preadv, 0

    def preadv(fd: int, *rest: Any) -> int:
        nonlocal count
        count += 1
        if count == 3:
            os.utime(world / WEIGHTS, ns=(1, 1))
        return real(fd, *rest)

    patch.setattr(os, "preadv", preadv)


OF_NUMBERS = [
    Mistake("Weights that leave nothing of a model", f"{AVERAGE} --weights 1,0", 0),
    Mistake(
        "The same model under another name",
        AVERAGE,
        0,
        prepare=lambda w: (w / WEIGHTS).write_bytes((w / "m1/model.safetensors").read_bytes()),
    ),
    Mistake("NaN in an input", AVERAGE, 5, prepare=change("m2", model__norm__weight=NAN)),
    Mistake(
        "Too large for float16",
        f"{AVERAGE} --dtype float16",
        5,
        prepare=change("m2", model__norm__weight=LARGE),
    ),
    Mistake(
        "A result that overflows",
        MERGE,
        5,
        recipe=ARITHMETIC + "parameters: {lambda: 10}\n" + TWO,
        prepare=change("m2", model__norm__weight=LARGE),
    ),
    Mistake(
        "Fine-tunes of the wrong base",
        MERGE,
        0,
        recipe=ARITHMETIC + TWO,
        made="`base` is a model of the same shape with other weights.",
        prepare=lambda w: change("base", **_others(w))(w),
    ),
    Mistake(
        "The same model under two names",
        MERGE,
        0,
        made="`m1` and `m2` are copies of `base`.",
        recipe=ARITHMETIC + TWO,
        prepare=lambda w: [
            (w / name / "model.safetensors").write_bytes(
                (w / "base/model.safetensors").read_bytes()
            )
            for name in ("m1", "m2")
        ],
    ),
]


def _others(world: World) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    chance = torch.Generator().manual_seed(99)
    return {
        name.replace(".", "__"): torch.randn(tensor.shape, generator=chance).bfloat16()
        for name, tensor in load_file(world / "base" / "model.safetensors").items()
    }


def _linked(world: World) -> None:
    folder = world / "out" / ".merge-partial"
    folder.mkdir(parents=True)
    (folder / "model.safetensors.partial").symlink_to(world / "m1" / "model.safetensors")


OF_OUTPUTS = [
    Mistake(
        "A file for an output folder",
        "merge-worker average notes.txt m1 m2",
        4,
        prepare=write("notes.txt", "mine"),
    ),
    Mistake("OUT is an input", "merge-worker average m1 m1 m2", 4),
    Mistake("OUT is inside of an input", "merge-worker average m1/merged m1 m2", 4),
    Mistake("OUT contains the inputs", "merge-worker average . m1 m2", 4),
    Mistake(
        "OUT is a link to an input",
        "merge-worker average out m1 m2",
        4,
        prepare=lambda w: (w / "out").symlink_to(w / "m1"),
    ),
    Mistake(
        "An input under the name of an unfinished result",
        AVERAGE,
        4,
        made="Somebody laid a link to `m1` into the folder of an unfinished merge.",
        prepare=_linked,
    ),
    Mistake("Somebody's files are in OUT", AVERAGE, 4, prepare=write("out/thesis.tex", "x")),
    Mistake("Another merge is in OUT", "merge-worker average out m1 m3", 4, first=[AVERAGE]),
    Mistake(
        "A finished merge was changed",
        AVERAGE,
        4,
        first=[AVERAGE],
        prepare=lambda w: (w / "out/config.json").unlink(),
    ),
    Mistake(
        "No permission",
        AVERAGE,
        4,
        made="The system does not let us make `out`.",
        system=refuses("mkdir", errno.EACCES, path="out"),
    ),
    Mistake(
        "A file system that is read-only",
        AVERAGE,
        4,
        system=refuses("mkdir", errno.EROFS, path="out"),
    ),
    Mistake("A disk without room", AVERAGE, 4, system=free_bytes(1000)),
    Mistake(
        "A quota without room",
        AVERAGE,
        4,
        system=quota_of(100 * GIB, 99.99 * GIB),
        made="Of the 100 GiB that the user anna may use on that file system, 99.99 are used.",
    ),
    Mistake(
        "A disk that fills up half-way",
        AVERAGE,
        4,
        system=refuses("pwrite", errno.ENOSPC, after=3, path="out"),
    ),
    Mistake(
        "A quota that is used up half-way",
        AVERAGE,
        4,
        system=refuses("pwrite", errno.EDQUOT, after=3, path="out"),
    ),
    Mistake(
        "A disk that fails on writing", AVERAGE, 4, system=refuses("fsync", errno.EIO, path="out")
    ),
    Mistake(
        "A mount that is gone",
        AVERAGE,
        4,
        system=refuses("pwrite", errno.ESTALE, after=3, path="out"),
    ),
    Mistake("An input that is written meanwhile", AVERAGE, 3, system=changed_meanwhile),
    Mistake("A deadline that is too short", f"{AVERAGE} --deadline 0s", 75),
    Mistake("verify of what is no merge", "merge-worker verify m1", 3),
    Mistake(
        "verify of a result that was changed",
        "merge-worker verify out",
        3,
        first=[AVERAGE],
        prepare=lambda w: _flip(w),
    ),
]


def _flip(world: World) -> None:
    path = world / "out" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
