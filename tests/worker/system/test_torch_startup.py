"""Settings made before torch is loaded, by processor; the user's settings win."""

import subprocess
import sys
from pathlib import Path

import pytest

from merge_worker.system.torch_startup import slow_to_compress

CPU = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model name\t: anything
flags\t\t: fpu avx2 {flags}
bugs\t\t:

processor\t: 1
vendor_id\t: another
"""


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "slow"),
    [
        ("AuthenticAMD", 25, "avx512f avx512vbmi2", True),  # Zen 4
        ("AuthenticAMD", 25, "", False),  # Zen 3
        ("AuthenticAMD", 26, "avx512f", False),  # Zen 5
        ("GenuineIntel", 6, "avx512f", False),
    ],
)
def test_processors_that_sort_faster_without(
    tmp_path: Path, vendor: str, family: int, flags: str, slow: bool
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPU.format(vendor=vendor, family=family, flags=flags))
    assert slow_to_compress(path) is slow


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"no colons\n"])
def test_systems_without_information(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cpuinfo"
    if content is not None:
        path.write_bytes(content)
    assert not slow_to_compress(path)


def test_torch_starts_no_thread_and_user_settings_stay() -> None:
    """Without threads in torch, worker processes can be forked."""
    code = (
        "import os; os.environ['NPY_DISABLE_CPU_FEATURES'] = ''\n"
        "from merge_worker.system import torch_startup; torch_startup.prepare()\n"
        "import merge_worker.engine.sampling, merge_worker.engine.stream\n"
        "from merge_worker.engine.processes import can_fork; assert can_fork()\n"
        "assert os.environ['NPY_DISABLE_CPU_FEATURES'] == ''\n"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
