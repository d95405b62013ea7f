"""Adapter commands for scripts/bench: extract-lora, mergekit-extract-lora, and their errors.

As a program it prints the errors of an adapter, module by module; a process of its own keeps the
memory of scripts/bench out of its children's peaks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench_runs import Run, command

METHOD = "extract-lora"
PREFIX = "base_model.model."
Contender = tuple[str, Callable[[], Run]]


def contenders(
    models: Sequence[Path], work: Path, rank: int, dtype: str, peer: str | None
) -> Iterator[Contender]:
    """Return the worker's and the peer's command to extract the second model as an adapter."""
    base, tuned, out, log = models[0], models[1], work / "out", work / "logs"
    worker = [sys.executable, "-m", "merge_worker", "extract-lora", base, tuned, out]
    worker += ["--rank", rank, "--dtype", dtype]
    yield "worker", partial(_extracted, worker, base, tuned, out, log / "extract-lora")
    if peer not in (None, "none"):
        theirs: list[object] = [Path(str(peer)).with_name("mergekit-extract-lora")]
        theirs += ["--base-model", base, "--model", tuned, "--out-path", out, "--max-rank", rank]
        yield "peer", partial(_extracted, theirs, base, tuned, out, log / "peer")


def _extracted(argv: Sequence[object], base: Path, tuned: Path, out: Path, log: Path) -> Run:
    done = command([str(word) for word in argv], log)
    words = [sys.executable, __file__, str(base), str(tuned), str(out)]
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return done._replace(parts=json.loads(printed.stdout))


def errors(base: Path, tuned: Path, adapter: Path) -> dict[str, float]:
    """Return the error of the factors of each matrix, relative to its change."""
    import torch
    from safetensors import safe_open

    def opened(folder: Path) -> dict[str, Any]:
        files: list[Any] = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        return {name: file for file in files for name in file.keys()}  # noqa: SIM118

    before, after, factors = opened(base), opened(tuned), opened(adapter)
    result = {}
    for name in factors:
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        if f"{PREFIX}{module}.lora_A.weight" != name:
            continue
        key = f"{module}.weight"
        delta = after[key].get_tensor(key).float() - before[key].get_tensor(key).float()
        a, b = (f"{PREFIX}{module}.lora_{side}.weight" for side in "AB")
        norm = torch.linalg.vector_norm(delta)
        missed = delta.addmm_(
            factors[b].get_tensor(b).float(), factors[a].get_tensor(a).float(), alpha=-1
        )
        result[module] = float(torch.linalg.vector_norm(missed) / norm)
    return result


if __name__ == "__main__":
    print(json.dumps(errors(*map(Path, sys.argv[1:4]))))
