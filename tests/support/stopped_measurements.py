"""Measurements of the layers of a model that a signal stops, in processes of their own."""

import os
import subprocess
import sys


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run Python with one thread: sums of another number of threads differ in the last bit."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, env=env)


def run_until(call: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run merge-worker, and send it SIGTERM when a layer runs for the `call`-th time."""
    program = (
        "import os, signal, sys\n"
        "from merge_worker.importance import samples\n"
        "apply, calls = samples.Run.apply, []\n"
        "def counted(*arguments):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {call}: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return apply(*arguments)\n"
        "samples.Run.apply = counted\n"
        "from merge_worker.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    return run("-c", program, *words)
