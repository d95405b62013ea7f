"""The public names: few, lazy, typed; a program that uses them passes mypy --strict."""

import subprocess
import sys
from pathlib import Path

import pytest

import merge_launch as ml
import merge_worker as mw
from support.paths import SOURCES

ROOT = Path(__file__).resolve().parents[3]


def test_at_most_twelve_names_that_exist() -> None:
    for module in (mw, ml):
        assert len(module.__all__) <= 12
        assert all(hasattr(module, name) for name in module.__all__)
        assert set(module.__all__) <= set(dir(module))
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            module.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["merge_worker", "merge_launch"])
def test_import_takes_a_tenth_of_a_second_of_the_processor_without_torch(module: str) -> None:
    code = (
        "import resource, sys\n"
        "def used():\n"
        "    usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    return usage.ru_utime + usage.ru_stime\n"
        "before = used()\n"
        f"import {module}\n"
        "seconds = used() - before\n"
        "assert seconds <= 0.1, seconds\n"
        "heavy = {'torch', 'numpy', 'yaml', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    env = {"PYTHONPATH": SOURCES, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


def test_a_plan_needs_no_torch(models: list[Path]) -> None:
    code = (
        "import sys, merge_worker as mw\n"
        f"plan = mw.average({[str(model) for model in models]!r})\n"
        "assert plan.reads and plan.config and plan.key and str(plan)\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {"PYTHONPATH": SOURCES, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
