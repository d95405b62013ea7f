"""A sample of transformers' classes merges as in the table that `scripts/model_sweep` keeps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

TABLE = ROOT / "tests" / "goldens" / "model_sweep.md"
SAMPLE = (
    "MistralForCausalLM",
    "GPT2LMHeadModel",
    "FalconH1ForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "T5ForConditionalGeneration",
    "MBartForConditionalGeneration",
    "WavLMForCTC",
    "RobertaForMaskedLM",
    "DebertaV2ForMaskedLM",
    "CLIPModel",
    "Speech2TextForConditionalGeneration",
    "Kosmos2_5ForConditionalGeneration",
    "GPTNeoXJapaneseForCausalLM",
    "UltrabertForMaskedLM",
    "Tipsv2Model",
    "SegformerModel",
    "DiffusionGemmaForBlockDiffusion",
    "Step3p7ForConditionalGeneration",
)
"""One of each layout: fused, stacked experts, hybrids, towers, two stacks, encoders, odd ends,
other names in memory, shared layers, rows in another order."""


@pytest.mark.slow
def test_a_sample_of_classes(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    words = [ROOT / "scripts" / "model_sweep", "--table", table, *SAMPLE]
    env = {**os.environ, "MERGE_LAUNCH_VENV": sys.prefix}
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _rows(table) == {name: _rows(TABLE)[name] for name in SAMPLE}


def _rows(path: Path) -> dict[str, list[str]]:
    """Return the outcomes of a table, without remarks, by class."""
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    return {name: outcomes for _, name, _, *outcomes, _, _ in cells[1:]}
