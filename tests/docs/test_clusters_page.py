"""docs/clusters.md: every command of it runs as it stands, in the order of the page."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from support.doc_examples import ROOT, difference, programs, walk

PAGE = ROOT / "docs" / "clusters.md"


@pytest.fixture
def variables(fakes, models, work: Path, tmp_path: Path) -> dict[str, str]:
    """The models of the page, jobs that run at once."""
    (work / "models").mkdir()
    for source, name in zip(models, ("math", "code", "chat"), strict=True):
        source.rename(work / "models" / name)
    shutil.copytree(work / "models" / "chat", work / "models" / "base")
    path = programs(tmp_path / "bin")
    return {"PATH": path, "FAKE_RUN": "1", "MERGE_LAUNCH_PYTHON": sys.executable}


@pytest.mark.slow
def test_every_command(work: Path, variables: dict[str, str]) -> None:
    outcomes = list(walk(PAGE, work, variables))
    assert [text for outcome in outcomes if (text := difference(outcome, work, "/here"))] == []
    printed = {outcome.command: outcome.out for outcome in outcomes}
    assert len(printed) > 20
    assert "soup" in printed["merge-launch jobs"]
    assert "2 tensors merged" in printed["merge-launch logs soup"]
    table = printed["merge-launch sweep sweep.yml results --sort loss"]
    assert table.count(" done ") == 4 and table.count(" 0.5 ") >= 4
    assert "gpuvolta" in printed["merge-launch profile show gadi"]
    assert (
        "#PBS -P ab12\n"
        in printed["merge-launch render pbs soup models/math models/code --profile gadi"]
    )


def test_flags_of_the_page_are_flags(launch) -> None:
    """Also those of the running text."""
    helps = "".join(launch(name, "--help").out for name in ("slurm", "pbs", "beaker", "local"))
    helps += launch("sweep", "s.yml", "slurm", "--help").out
    helps += launch("sweep", "s.yml", "results", "--help").out
    # What a profile hands to the scheduler is not ours.
    text = re.sub(r"^directive = .*$", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    words = set(re.findall(r"(?<![\w'=-])--[a-z][a-z-]+", text)) - {"--help"}
    assert [word for word in sorted(words) if f"{word} " not in helps] == []
