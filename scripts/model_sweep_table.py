"""Sweeps classes of transformers and keeps the table of outcomes, for `scripts/model_sweep`."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

from support.model_sweep import OPERATIONS, WRONG, Row, classes, sweep

TABLE = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "model_sweep.md"
STRIDE = 4
"""Every so many classes come first, so that a sweep that ends early has seen all families."""
MEMORY_BYTES = 3 << 30
IN_MEMORY = Path("/dev/shm")
HEAD = """# Models of transformers {version}, merged

Made by `scripts/model_sweep`. Every class of the auto mappings that can be built small, with random
weights: *average* is the mean of two fine-tunes in every tensor; *stack* is the layers 0 to n−1
followed by 1 to n−1, each compared with the layer it was in weights and in kind; *adapter* is
a LoRA on all linear modules, compared with PEFT's `merge_and_unload`. The class loads each result,
with no key missing or left over. `-`: not built, no layers, or not possible with PEFT.

{counts}

| class | model type | {operations} | remarks |
|---|---|{rules}---|
"""


def written(rows: Mapping[str, Row]) -> str:
    """Return the table as Markdown, with a count of outcomes above it."""
    counts = []
    for operation in OPERATIONS:
        found = Counter(row.outcomes[operation] for row in rows.values())
        listed = ", ".join(f"{count} {outcome}" for outcome, count in found.most_common())
        counts.append(f"- {operation}: {listed}")
    head = HEAD.format(
        version=transformers.__version__,
        counts="\n".join(counts),
        operations=" | ".join(OPERATIONS),
        rules="---|" * len(OPERATIONS),
    )
    lines = []
    for row in rows.values():
        outcomes = " | ".join(row.outcomes[operation] for operation in OPERATIONS)
        remarks = "; ".join(row.reasons)
        lines.append(f"| {row.model} | {row.model_type} | {outcomes} | {remarks} |\n")
    return head + "".join(lines)


def read(path: Path) -> dict[str, Row]:
    """Return the rows of a table by class; none if the file does not exist."""
    rows = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.partition("---|\n")[2].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        outcomes = dict(zip(OPERATIONS, cells[2:-1], strict=True))
        rows[cells[0]] = Row(cells[0], cells[1], outcomes, [cells[-1]] if cells[-1] else [])
    return rows


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/model_sweep", description=__doc__)
    parser.add_argument("classes", nargs="*", metavar="CLASS", help="default: all")
    parser.add_argument("--new", action="store_true", help="only classes without a row")
    parser.add_argument("--minutes", type=float, default=60, help="start no class after this time")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE")
    return parser.parse_args()


def main() -> int:
    """Sweep the classes that the command line names; return 1 if a result of theirs is wrong."""
    arguments = options()
    known, rows = classes(), read(arguments.table)
    if unknown := [name for name in arguments.classes if name not in known]:
        sys.exit(f"{unknown[0]}: not a class of the auto mappings of this transformers")
    left = [name for name in known if not arguments.new or name not in rows]
    wanted = arguments.classes or [name for first in range(STRIDE) for name in left[first::STRIDE]]
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    end = time.monotonic() + 60 * arguments.minutes
    wrong = 0
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        for name in wanted:
            if time.monotonic() > end:
                break
            row = rows[name] = sweep(name, known[name], Path(folder) / name)
            wrong += WRONG in row.outcomes.values()
            print(name, *row.outcomes.values(), *row.reasons, flush=True)
            ordered = {name: rows[name] for name in known if name in rows}
            arguments.table.write_text(written(ordered), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
