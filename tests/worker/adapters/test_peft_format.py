"""Folders that are not an adapter."""

from pathlib import Path

import pytest

from merge_worker.adapters.peft_format import open_adapter
from merge_worker.errors import InputError


def test_a_run_whose_checkpoints_are_adapters(tmp_path: Path) -> None:
    for step in (90, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"such as .*/checkpoint-100$"):
        open_adapter(tmp_path)


def test_a_folder_without_adapters(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an adapter is a folder as PEFT saves it"):
        open_adapter(tmp_path)
