"""The page on mixtures: its commands are run, and its tables are those of the code."""

import re
from pathlib import Path

import pytest

from merge_worker.recipe.experts import EXPERT_KEYS, GATE_MODES, TOP_LEVEL_KEYS
from merge_worker.structure.moe_targets import TARGETS
from support.doc_examples import ROOT, difference, programs, walk
from support.mixtures import write_llama

PAGE = ROOT / "docs" / "moe.md"
LETTERS = ("<s>", "</s>", "<unk>", *" abcdefghijklmnopqrstuvwxyz")


@pytest.mark.slow
def test_commands(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for seed, name in enumerate(("base", "math", "code")):
        write_llama(here / name, seed, rows=len(LETTERS), tokens=LETTERS, tuned=bool(seed))
    variables = {"PATH": programs(tmp_path / "bin"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    outcomes = list(walk(PAGE, here, variables))
    assert len(outcomes) == 6
    assert [text for o in outcomes if (text := difference(o, here, "/here"))] == []
    assert (here / "out" / "merge_manifest.json").exists()


def test_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE)}
    assert {target.name: ", ".join(target.bases) for target in TARGETS}.items() <= rows.items()
    words = set(re.findall(r"`(\w+)`", text))
    assert {*GATE_MODES, *EXPERT_KEYS, *TOP_LEVEL_KEYS} - {"merge_method"} <= words
