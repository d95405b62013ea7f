"""Coverage-guided fuzzing of the worker with atheris (pip install atheris).

`python fuzz_guided.py KIND SEED COUNT FOLDER` begins with inputs of `fuzz_cases.py` and keeps those
that reach new code in FOLDER. It ends at the first input without a readable error, which is kept
there, too. Not part of the tests; `scripts/fuzz` calls it.
"""

import contextlib
import random
import sys
from pathlib import Path

import atheris

from support.fuzz_cases import BITS, MAKERS, WORDS

with atheris.instrument_imports(include=["merge_worker", "yaml", "pickletools", "zipfile"]):
    from merge_worker.errors import WorkerError
    from support import fuzz_runner

    # Late imports are instrumented only if they happen in this block.
    for early in range(200):
        with contextlib.suppress(WorkerError):
            fuzz_runner.READERS[sys.argv[1]](MAKERS[sys.argv[1]](random.Random(early)))

SEEDS = 300
LONGEST = 4096
HANGS_S = 300
"""On the clock, whatever else the machine does."""


def words(folder: Path) -> Path:
    """Write a dictionary for libFuzzer."""
    file = folder / "words.dict"
    raw = [word.encode(errors="surrogatepass") for word in (*WORDS, *BITS) if 0 < len(word) < 60]
    lines = ["".join(f"\\x{byte:02x}" for byte in word) for word in raw]
    file.write_text("".join(f'"{line}"\n' for line in lines))
    return file


def main(kind: str, seed: int, count: int, folder: Path) -> None:
    kept = folder / kind
    kept.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    for number in range(SEEDS):
        (kept / f"seed-{number}").write_bytes(MAKERS[kind](chance)[:LONGEST])

    def run_case(case: bytes) -> None:
        with contextlib.suppress(WorkerError):
            fuzz_runner.timed(kind, case)

    argv = [
        sys.argv[0],
        f"-runs={count}",
        f"-seed={seed + 1}",
        f"-max_len={LONGEST}",
        f"-timeout={HANGS_S}",
        f"-rss_limit_mb={fuzz_runner.MEMORY_BYTES >> 20}",
        f"-dict={words(folder)}",
        f"-artifact_prefix={folder}/{kind}-found-",
        "-verbosity=1",
        "-print_final_stats=1",
        str(kept),
    ]
    atheris.Setup(argv, run_case)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
