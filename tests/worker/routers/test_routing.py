"""`routing` counts what the routers of a finished mixture choose, and records it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.errors import OutputError
from merge_worker.output import evaluation
from merge_worker.output.files import MANIFEST, PARTIAL
from support.recipes import manifest, run
from support.specialists import PROMPTS, moe_recipe, write_dense, write_expert


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    base = write_dense(tmp_path_factory.mktemp("dense") / "base")
    experts = {n: write_expert(base, base.parent / n, i) for i, n in enumerate(PROMPTS, 1)}
    return base, experts


@pytest.fixture
def moe(parts: tuple[Path, dict[str, Path]], tmp_path: Path) -> Path:
    recipe = moe_recipe(tmp_path / "moe.yml", *parts, gate_mode="mlp_input")
    assert run("merge", recipe, tmp_path / "out", "--progress", "off") == 0
    return tmp_path / "out"


def chosen_by_transformers(out: Path, text: str) -> list[Tensor]:
    """Return for each layer the experts of each token, in order of their scores [tokens, 2]."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    found: list[Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda *values: found.append(values[2][2]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    return found


def test_counts_are_those_of_the_model_itself(
    moe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = manifest(moe)["routing"]
    assert facts["experts"] == list(PROMPTS) and facts["top_k"] == 2
    for number, (name, texts) in enumerate(PROMPTS.items()):
        layers = zip(*(chosen_by_transformers(moe, text) for text in texts), strict=True)
        joined = [torch.cat(parts) for parts in layers]
        group = facts["groups"][number]
        counts = [[int((layer == e).sum()) for e in range(3)] for layer in joined]
        assert [layer[number] for layer in facts["reached"]] == counts
        tokens = sum(len(text) + 1 for text in texts)
        assert group["name"] == name and group["tokens"] == tokens == len(joined[0])
        first = [sum(int((layer[:, 0] == e).sum()) for layer in joined) for e in range(3)]
        assert group["first"] == pytest.approx([n / (2 * tokens) for n in first], abs=1e-6)


def test_it_is_printed_and_recorded_after_the_build(
    parts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = moe_recipe(tmp_path / "moe.yml", *parts, gate_mode="mlp_input")
    out = tmp_path / "out"
    capsys.readouterr()
    assert run("merge", recipe, out, "--progress", "off") == 0
    text = capsys.readouterr().out
    assert "(2 of 3 are reached: 67 % by chance)" in text
    assert run("verify", out) == 0
    card = (out / "README.md").read_text()
    assert card.count("## Routing of the prompts") == 1
    row = next(line for line in text.splitlines() if line.startswith("reverse"))
    assert f"| {' | '.join(row.split('  ')[0:1])} | 20 |" in card
    capsys.readouterr()
    assert run("merge", recipe, out, "--progress", "off") == 0
    assert "routing" not in capsys.readouterr().out  # it is there already


def test_it_waits_for_other_records(
    moe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "PATIENCE_S", 0.0)
    before = (moe / MANIFEST).read_bytes()
    with evaluation.recording(moe):
        capsys.readouterr()
        assert run("routing", moe) == OutputError.exit_code
        assert "another merge writes here" in capsys.readouterr().err
    assert (moe / MANIFEST).read_bytes() == before and not (moe / PARTIAL).exists()


def test_entropy_by_hand() -> None:
    from merge_worker.routers.routing import Group, Routing

    group = Group("a", ((1, 2), (3, 4)), 0)
    counts = [[[4, 0]], [[2, 2]], [[3, 1]]]
    routing = Routing((group,), (4,), 1, counts, counts)
    assert routing.entropies(0) == pytest.approx([0.0, 1.0, 0.811278], abs=1e-6)
    assert routing.share(0, 0) == pytest.approx(0.75)


@pytest.mark.parametrize("ending", ["png", "html"])
def test_texts_of_files_and_pictures(
    ending: str, moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (moe / "merge_manifest.json").read_bytes()
    sums = tmp_path / "sums.txt"
    sums.write_text("1+2=3;\n\n4+4=8;5+5=10;\n")
    picture = tmp_path / f"r.{ending}"
    capsys.readouterr()
    words = ("--texts", f"add={sums}", "--texts", f"other={sums}", "--plot", picture)
    assert run("routing", moe, *words, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [group["expert"] for group in facts["groups"]] == [0, None]
    assert [group["tokens"] for group in facts["groups"]] == [19, 19]
    assert picture.stat().st_size > 1000
    assert (moe / "merge_manifest.json").read_bytes() == before


def test_other_models_and_words_are_refused(
    parts: Any, moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _ = parts
    text = tmp_path / "t.txt"
    text.write_text("1+2=3;")
    cases = [
        (2, (base,), "no mergekit_config.yml with prompts"),
        (3, (base, "--texts", f"a={text}"), "no router found in LlamaForCausalLM"),
        (2, (moe, "--texts", str(text)), "write NAME=FILE"),
        (3, (moe, "--texts", "a=missing.txt"), "missing.txt"),
        (2, (moe, "--plot", "r.gif"), "must end in"),
        (3, (tmp_path / "none", "--texts", f"a={text}"), "none"),
    ]
    for code, words, expected in cases:
        capsys.readouterr()
        assert run("routing", *words) == code
        error = capsys.readouterr().err
        assert expected in error and "Traceback" not in error and len(error.splitlines()) <= 3


@pytest.mark.slow
def test_training_drops_the_routing_of_former_routers(moe: Path, tmp_path: Path) -> None:
    from support.tiny_mixtures import write_texts

    texts = write_texts(tmp_path / "texts.jsonl")
    words = ("--data", texts, "--steps", "3", "--length", "32", "--batch", "4")
    assert run("train-routers", moe, *words, "--progress", "off") == 0
    assert "routing" not in manifest(moe)
    assert "## Routing" not in (moe / "README.md").read_text()
    assert run("verify", moe) == 0
    assert run("routing", moe) == 0
    assert "routing" in manifest(moe) and run("verify", moe) == 0
