"""docs/checkpoints.md: what it says is typed, in its order, and answers as it says."""

from pathlib import Path

import pytest

from support import doc_models
from support.doc_examples import ROOT, difference, programs, walk
from support.fake_hub import serving

CHECKPOINTS = ROOT / "docs" / "checkpoints.md"


@pytest.mark.slow
def test_checkpoints(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    with serving() as hub:
        doc_models.make(here, hub)
        variables = {
            "PATH": programs(tmp_path / "bin"),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }
        outcomes = list(walk(CHECKPOINTS, here, variables))
        assert len(outcomes) > 20
        assert [text for o in outcomes if (text := difference(o, here, "/here"))] == []
        assert "merge_manifest.json" in hub.repositories["my-org/soup"]
