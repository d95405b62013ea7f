"""Commands of README and the pages: run in order, with the output that the page shows."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from merge_worker.search.definition import KEYS
from support import doc_models
from support.demo_models import save_demo_models
from support.doc_examples import ROOT, blocks, difference, programs, walk
from support.fake_hub import serving
from support.language_models import make, write_tokenizer

README = ROOT / "README.md"
CHECKPOINTS = ROOT / "docs" / "checkpoints.md"
IMPORTANCE = ROOT / "docs" / "importance.md"
CLUSTERS = ROOT / "docs" / "clusters.md"
SEARCH = ROOT / "docs" / "search.md"
COMMANDS = ("local", "slurm", "pbs", "beaker", "results", "best")


def with_jobs(folder: Path) -> dict[str, str]:
    """Return the variables of commands whose jobs run at once."""
    path = programs(folder / "bin")
    return {"PATH": path, "FAKE_RUN": "1", "MERGE_LAUNCH_PYTHON": sys.executable}


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
            "HF_TOKEN": "hf_test",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }
        outcomes = list(walk(CHECKPOINTS, here, variables))
        assert len(outcomes) > 20
        assert [text for o in outcomes if (text := difference(o, here, "/here"))] == []
        assert "merge_manifest.json" in hub.repositories["me/soup"]


@pytest.mark.slow
@pytest.mark.usefixtures("fakes")
def test_readme(work: Path, tmp_path: Path) -> None:
    save_demo_models(work)
    recipe = next(text for kind, name, text in blocks(README) if name == "recipe.yml")
    (work / "recipe.yml").write_text(recipe)
    variables = with_jobs(tmp_path)
    outcomes = list(walk(README, work, variables))
    assert [text for o in outcomes if (text := difference(o, work, "/models"))] == []
    assert len(outcomes) > 12


@pytest.fixture
def variables(fakes, models, work: Path, tmp_path: Path) -> dict[str, str]:
    """Make the models of the page; jobs run at once."""
    (work / "models").mkdir()
    for source, name in zip(models, ("math", "code", "chat"), strict=True):
        source.rename(work / "models" / name)
    shutil.copytree(work / "models" / "chat", work / "models" / "base")
    return with_jobs(tmp_path)


@pytest.mark.slow
def test_clusters(work: Path, variables: dict[str, str]) -> None:
    outcomes = list(walk(CLUSTERS, work, variables))
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


@pytest.mark.slow
@pytest.mark.usefixtures("fakes")
def test_search(work: Path, tmp_path: Path) -> None:
    save_demo_models(work)
    variables = with_jobs(tmp_path)
    outcomes = list(walk(SEARCH, work, variables))
    assert [text for outcome in outcomes if (text := difference(outcome, work, "/here"))] == []
    printed = {outcome.command: outcome.out for outcome in outcomes}
    table = printed["merge-launch search search.yml results --sort score --descending"]
    assert table.count(" done") == 9
    assert (work / "out" / "merge_manifest.json").exists()


def test_keys_and_flags_of_the_search_page_exist(launch) -> None:
    text = SEARCH.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(set(KEYS))
    helps = "".join(launch("search", "s.yml", name, "--help").out for name in COMMANDS)
    words = set(re.findall(r"merge-launch search [^\n]*", text))
    flags = {flag for line in words for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)}
    assert flags and [flag for flag in sorted(flags) if f"{flag} " not in helps] == []


def test_flags_of_the_cluster_page_exist(launch) -> None:
    """Check all options, including those in running text."""
    helps = "".join(launch(name, "--help").out for name in ("slurm", "pbs", "beaker", "local"))
    helps += launch("sweep", "s.yml", "slurm", "--help").out
    helps += launch("sweep", "s.yml", "results", "--help").out
    # Directives of a profile are options of the scheduler.
    text = re.sub(r"^directive = .*$", "", CLUSTERS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    words = set(re.findall(r"(?<![\w'=-])--[a-z][a-z-]+", text))
    words -= {"--help", "--ranks"}  # the latter is for merge-worker
    assert [word for word in sorted(words) if f"{word} " not in helps] == []


@pytest.mark.slow
def test_importance(tmp_path: Path) -> None:
    here = tmp_path / "here"
    folder = make(here / "models" / "math", "LlamaForCausalLM", "llama")
    write_tokenizer(folder)
    (here / "math.txt").write_text("the cat\n\nab the\n\nthe the ab\n")
    outcomes = list(walk(IMPORTANCE, here, {"PATH": programs(tmp_path / "bin")}))
    assert [text for o in outcomes if (text := difference(o, here, "/here"))] == []
    assert outcomes
