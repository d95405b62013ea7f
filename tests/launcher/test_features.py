"""A job carries what its recipe asks for and its models show; with that it merges, and without
it says what is missing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from vocabularies import CONFIG, LETTERS, SPECIAL, bpe, llama, save_tokenizer

from launcher import needs, payload, preflight
from launcher.settings import MergeOptions, WorkerOptions
from launcher.source import read_source
from worker import methods
from worker.features import FEATURES

LINEAR = frozenset({"linear"})
BUDGET_BYTES = 96 * 1024
"""Of base64: one argument of a program, with room to spare."""
WORST_BYTES = 160 * 1024
"""Of a recipe of all methods that needs all features: two arguments, and room for the next."""
DRIVER = """
import contextlib, io, json, sys
from pathlib import Path
found = []
for archive, recipe, out in json.loads(Path(sys.argv[1]).read_text()):
    for name in [name for name in sys.modules if name.partition(".")[0] == "worker"]:
        del sys.modules[name]
    sys.path.insert(0, archive)
    from worker.cli import main
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["merge", recipe, out, "--progress", "off", "--device", "cpu"])
    found.append([code, said.getvalue()])
    sys.path.remove(archive)
print(json.dumps(found))
"""
TOKENS = [*SPECIAL, *LETTERS]


def model(folder: Path, tokens: list[str] | None = None) -> Path:
    write_checkpoint(folder, llama(len(TOKENS), folder.name), config=CONFIG)
    save_tokenizer(folder, bpe(tokens or TOKENS))
    return folder


def pair(folder: Path) -> list[str]:
    return [str(model(folder / name)) for name in ("a", "b")]


def recipe(models: list[str], **more: Any) -> dict[str, Any]:
    listed = [{"model": name, "parameters": {"weight": 1}} for name in models]
    return {"merge_method": "linear", "models": listed, **more}


def with_adapter(folder: Path) -> dict[str, Any]:
    first, second = pair(folder)
    name = "base_model.model.model.layers.0.mlp.gate_proj.lora_"
    adapter = folder / "adapter"
    write_checkpoint(adapter, {f"{name}A.weight": torch.ones(2, 8),
                               f"{name}B.weight": torch.ones(8, 2)})  # fmt: skip
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["gate_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return recipe([first, f"{second}+{adapter}"])


def with_template(folder: Path) -> dict[str, Any]:
    return recipe(pair(folder), chat_template="chatml")


def quantised(folder: Path) -> dict[str, Any]:
    codes, scale = torch.ones(4, 4).to(torch.float8_e4m3fn), torch.tensor([2.0])
    tensors = {"w": codes, "w_scale_inv": scale}
    names = [str(write_checkpoint(folder / n, tensors, config={})) for n in "ab"]
    return recipe(names, dequantize=True)


def layers(folder: Path) -> dict[str, Any]:
    part = {"sources": [{"model": name, "layer_range": [0, 1]} for name in pair(folder)]}
    return {"merge_method": "linear", "slices": [part], "parameters": {"weight": 1}}


def renamed(folder: Path) -> dict[str, Any]:
    first, _ = pair(folder)
    other = {name.removeprefix("model."): t for name, t in llama(len(TOKENS), "c").items()}
    write_checkpoint(folder / "c", other, config=CONFIG)
    save_tokenizer(folder / "c", bpe(TOKENS))
    return recipe([first, str(folder / "c")])


def pickled(folder: Path) -> dict[str, Any]:
    first, second = pair(folder)
    file = Path(second) / "model.safetensors"
    file.unlink()
    torch.save(llama(len(TOKENS), "b"), file.with_name("pytorch_model.bin"))
    return recipe([first, second])


def several(folder: Path) -> str:
    listed = recipe(pair(folder))
    return "\n---\n".join(map(json.dumps, ({**listed, "name": "spare"}, listed)))


def scheduled(folder: Path) -> dict[str, Any]:
    listed = [{"model": name} for name in pair(folder)]
    return {**recipe([]), "models": listed, "parameters": {"schedule": "ema:0.5"}}


def with_tokenizer(folder: Path) -> dict[str, Any]:
    return recipe(pair(folder), tokenizer={"source": "union"})


def of_other_tokens(folder: Path) -> dict[str, Any]:
    other = model(folder / "other", [*SPECIAL, *reversed(LETTERS)])
    return recipe([str(model(folder / "a")), str(other)])


CASES: dict[str, Callable[[Path], Any]] = {
    "adapters": with_adapter,
    "chat_template": with_template,
    "dequantize": quantised,
    "documents": several,
    "layers": layers,
    "layouts": renamed,
    "pickled": pickled,
    "schedule": scheduled,
    "tokenizer": with_tokenizer,
    "vocabularies": of_other_tokens,
}
ELSEWHERE = {"hub", "manifests"}
"""One needs a server, and is tested with it; the other is never in a job."""


def seen(path: Path, **options: Any) -> frozenset[str]:
    merge = read_source([str(path), str(path.with_suffix(""))], MergeOptions(), None, "/")
    return preflight.look(merge, WorkerOptions(**options), everything=False).features


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each case: the features that the launcher gives it, and how it ends with and without."""
    folder = tmp_path_factory.mktemp("features")
    runs, found = [], {}
    bare = folder / "bare.pyz"
    bare.write_bytes(payload.build(methods=LINEAR).archive)
    for feature, made in CASES.items():
        path, archive = folder / f"{feature}.yml", folder / f"{feature}.pyz"
        text = made(folder / feature)
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        found[feature] = [seen(path)]
        archive.write_bytes(payload.build(methods=LINEAR, features=found[feature][0]).archive)
        runs += [[str(a), str(path), f"{a}-{feature}"] for a in (archive, bare)]
    (folder / "runs.json").write_text(json.dumps(runs))
    argv = [sys.executable, "-I", "-c", DRIVER, str(folder / "runs.json")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    ends = iter(json.loads(done.stdout.splitlines()[-1]))
    return {feature: [*begun, next(ends), next(ends)] for feature, begun in found.items()}


def test_every_feature_is_tested() -> None:
    assert set(CASES) | ELSEWHERE == set(FEATURES)


@pytest.mark.parametrize("feature", CASES)
def test_a_job_has_what_its_merge_needs_and_no_more(merges, feature: str) -> None:
    assert merges[feature][0] == {feature}


@pytest.mark.parametrize("feature", CASES)
def test_with_it_the_job_merges(merges, feature: str) -> None:
    code, said = merges[feature][1]
    assert code == 0, said


@pytest.mark.parametrize("feature", CASES)
def test_without_it_the_job_says_so_in_a_line(merges, feature: str) -> None:
    code, said = merges[feature][2]
    (line,) = said.splitlines()
    assert code == 2
    assert line.startswith(f"merge-worker: {FEATURES[feature]}: this job does not carry")
    assert line.endswith("Submit it again")


def test_models_that_are_elsewhere_may_need_what_only_they_show(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_text(json.dumps(recipe(["/gone/a", "/gone/b+/gone/adapter"])))
    assert seen(path) == {"adapters", *needs.UNSEEN}
    path.write_text(json.dumps(recipe(["/gone/a", "org/name"])))
    assert seen(path, dequantize=True) == {"dequantize", "hub", *needs.UNSEEN}
    path.write_text(json.dumps(recipe(pair(tmp_path))))
    assert seen(path) == frozenset()
    assert seen(path, push="org/merged") == {"hub"}


def size(names: frozenset[str], features: frozenset[str] = frozenset()) -> int:
    return len(payload.build(methods=names, features=features).encoded)


def test_one_method_keeps_the_budget() -> None:
    sizes = {name: size(frozenset({name})) for name in methods.names()}
    assert {name: n for name, n in sizes.items() if n > BUDGET_BYTES} == {}


@pytest.mark.parametrize("feature", FEATURES)
def test_one_feature_keeps_the_budget(feature: str) -> None:
    assert size(LINEAR, frozenset({feature})) <= BUDGET_BYTES


def test_models_that_nobody_saw_keep_the_budget() -> None:
    assert size(LINEAR, needs.UNSEEN) <= BUDGET_BYTES


@pytest.mark.parametrize("features", [frozenset(), frozenset({"adapters"}), frozenset({"hub"})])
def test_several_methods_keep_the_budget(features: frozenset[str]) -> None:
    assert size(frozenset({"ties", "dare_ties", "slerp"}), features) <= BUDGET_BYTES


def test_everything_at_once_fits_two_arguments() -> None:
    assert size(LINEAR, frozenset(FEATURES)) <= 128 * 1024
    assert size(frozenset(methods.names()), frozenset(FEATURES)) <= WORST_BYTES
