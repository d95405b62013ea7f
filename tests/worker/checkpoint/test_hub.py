"""Models of the hub by its real client, against a server on this machine."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from merge_worker.checkpoint import hub as hub_module
from support.adapter_factory import write_adapter
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.fake_hub import COMMIT, Hub, serving
from support.paths import SOURCES

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving() as running:
        for number, name in enumerate(("one", "two")):
            random = torch.Generator().manual_seed(number)
            tensors = {f"layers.{n}.w": torch.randn(9, 7, generator=random) for n in range(6)}
            folder = write_checkpoint(tmp_path / name, tensors, shards=3, config=CONFIG)
            (folder / "tokenizer_config.json").write_text("{}")
            (folder / "picture.png").write_bytes(b"large")
            running.add(f"org/{name}", folder)
        yield running


def worker(hub: Hub, home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, since the client reads its variables once."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": SOURCES, **variables}
    command = [sys.executable, "-m", "merge_worker", *words]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)


def mean(tmp_path: Path) -> dict[str, torch.Tensor]:
    one, two = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "two")
    return {name: ((one[name].double() + two[name]) / 2).float() for name in one}


def assert_mean(tmp_path: Path, out: Path) -> None:
    merged, expected = read_tensors(out), mean(tmp_path)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)


def test_repositories_that_are_not_one_model(hub: Hub, tmp_path: Path) -> None:
    """Their files are known from the list of the Hub, none is downloaded."""
    contents = {
        "quantized": ("q4.gguf", "config.json"),
        "pipeline": ("unet/weights.safetensors", "vae/x.bin", "model_index.json"),
    }
    for name, files in contents.items():
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(b"{}")
        hub.add(f"org/{name}", tmp_path / name)
    (home := tmp_path / "home").mkdir()
    done = worker(hub, home, "average", "out", "org/quantized", "org/pipeline")
    assert done.returncode == 3
    assert "no safetensors, only GGUF: q4.gguf" in done.stderr
    assert "a pipeline of several models: unet, vae" in done.stderr
    assert "run 'hf download org/pipeline', then name the same component folder" in done.stderr
    assert sorted(hub.fetched()) == ["config.json", "model_index.json"]


def test_an_average_of_two_models(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = worker(hub, home, "average", "out", "org/one", "org/two@main", "--progress", "plain")
    assert done.returncode == 0, done.stderr
    assert_mean(tmp_path, home / "out")
    assert "downloading org/one: model-00001-of-00003.safetensors (680 bytes)\n" in done.stderr
    assert "picture.png" not in hub.fetched()
    weights = [name for name in hub.fetched() if name.endswith(".safetensors")]
    assert len(weights) == 6, "each file once"
    inputs = json.loads((home / "out" / "merge_manifest.json").read_text())["inputs"]
    assert [(i["hub"], i["commit"]) for i in inputs] == [("org/one", COMMIT), ("org/two", COMMIT)]
    assert (home / "out" / "tokenizer_config.json").is_file()
    # Now all is in the cache: nothing is fetched again, and no network is needed.
    hub.asked.clear()
    again = worker(hub, home, "average", "out", "org/one", "org/two@main")
    assert "already there" in again.stdout and hub.fetched() == []
    offline = worker(hub, home, "average", "off", "org/one", "org/two", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert_mean(tmp_path, home / "off")


def test_a_plan_needs_headers_only(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(
        "merge_method: linear\nmodels: [org/one, org/two]\nparameters: {weight: 1}\n"
    )
    done = worker(hub, tmp_path, "check", "r.yml")
    assert done.returncode == 0, done.stderr
    assert "6 merged" in done.stdout
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    spans = [span for _, name, span in hub.asked if name.endswith(".safetensors") and span]
    assert len(spans) == 6


def test_a_fault_shows_before_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    odd = {"layers.0.w": torch.ones(3)}
    hub.add("org/odd", write_checkpoint(tmp_path / "odd", odd, config=CONFIG))
    done = worker(hub, tmp_path, "average", "out", "org/one", "org/odd")
    assert done.returncode == 3 and "org/odd has 1 layer, org/one has 6" in done.stderr
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]


def test_weights_are_removed_behind_the_lanes(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = worker(hub, home, "average", "out", "org/one", "org/two", "--prune-downloads")
    assert done.returncode == 0, done.stderr
    assert_mean(tmp_path, home / "out")
    assert list((home / "hf").rglob("*.safetensors")) == []
    weights = [path for path in (home / "hf").rglob("blobs/*") if path.stat().st_size > 700]
    assert weights == []


def test_a_file_is_used_only_after_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that used it sooner could end before the file counts as downloaded, and it stayed."""
    checking, allowed = threading.Event(), threading.Event()
    file = tmp_path / "model.safetensors"
    listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file.name, size=9)])
    client = SimpleNamespace(
        constants=SimpleNamespace(HF_HUB_OFFLINE=False),
        snapshot_download=lambda name, **options: tmp_path,
        HfApi=lambda: SimpleNamespace(model_info=lambda name, **options: listed),
        hf_hub_download=lambda name, path, **options: file.write_bytes(b"x"),
    )
    monkeypatch.setattr(hub_module, "_client", lambda name: client)
    monkeypatch.setattr(hub_module, "read_shard", lambda path: checking.set() or allowed.wait())
    hub = hub_module.Hub()
    hub.resolve_revision("org/one", None)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(hub.download, str(file))
        assert checking.wait(20)
        second = pool.submit(hub.download, str(file))
        early = wait([second], timeout=0.2).done
        allowed.set()
    assert not early and first.result() and not second.result()
    hub.remove_download(str(file))
    assert not file.exists()


def test_a_local_model_and_one_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    words = ["average", "out", str(tmp_path / "one"), "org/two", "--prune-downloads"]
    done = worker(hub, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert_mean(tmp_path, tmp_path / "out")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 3


def test_pickles_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save(read_tensors(tmp_path / "two"), folder / "pytorch_model.bin")
    hub.add("org/pickled", folder)
    done = worker(hub, tmp_path, "average", "out", "org/one", "org/pickled")
    assert done.returncode == 0, done.stderr
    assert_mean(tmp_path, tmp_path / "out")


def test_modules_and_data_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    """Weights of sub-folders are known by their headers, and data is fetched once it is copied."""
    for number, name in enumerate(("one", "two")):
        folder = tmp_path / name
        write_checkpoint(folder / "2_Dense", {"linear.weight": torch.full((2, 2), float(number))})
        (folder / "voices").mkdir()
        (folder / "voices" / "af.pt").write_bytes(b"voice")
        hub.add(f"org/{name}", folder)
    (tmp_path / "r.yml").write_text(
        "merge_method: linear\nmodels: [org/one, org/two]\nparameters: {weight: 1}\n"
    )
    done = worker(hub, tmp_path, "check", "r.yml")
    assert "voices/af.pt" in done.stdout and "7 merged" in done.stdout, done.stderr
    assert "(not downloaded: part of the model's page): picture.png" in done.stdout
    assert not [name for name in hub.fetched() if name.endswith((".safetensors", ".pt"))]
    done = worker(hub, tmp_path, "merge", "r.yml", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "voices" / "af.pt").read_bytes() == b"voice"
    merged = load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")
    assert torch.equal(merged["linear.weight"], torch.full((2, 2), 0.5))
    assert [name for name in hub.fetched() if name.endswith(".pt")] == ["voices/af.pt"]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("org/none", "org/none: no such folder here, and no such model on the Hub"),
        ("org/one@v9", "org/one@v9: unknown revision"),
        ("org/gated", "org/gated: gated; accept its terms"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, tmp_path: Path, word: str, text: str) -> None:
    hub.repositories["org/gated"] = {}
    hub.gated.add("org/gated")
    done = worker(hub, tmp_path, "average", "out", "org/one", word)
    assert done.returncode == 3 and text in done.stderr and "Traceback" not in done.stderr


def test_without_a_network(hub: Hub, tmp_path: Path) -> None:
    done = worker(hub, tmp_path, "average", "out", "org/one", "org/two", HF_HUB_OFFLINE="1")
    assert done.returncode == 3 and "HF_HUB_OFFLINE is set" in done.stderr


def test_a_finished_merge_is_uploaded(hub: Hub, tmp_path: Path) -> None:
    words = ["average", "out", "org/one", "org/two", "--push", "me/merged"]
    done = worker(hub, tmp_path, *words, HF_TOKEN="hf_test")
    assert done.returncode == 0, done.stderr
    assert "push       me/merged as me, public; --private keeps a new one to" in done.stderr
    files = hub.repositories["me/merged"]
    out = tmp_path / "out"
    assert f"{hub.url}/me/merged/commit/" in done.stdout
    here = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert files.keys() == here.keys()
    assert {n for n in here if files[n] != here[n]} == {"README.md", "merge_manifest.json"}
    card = here["README.md"].replace(b'from_pretrained("out")', b'from_pretrained("me/merged")')
    assert files["README.md"] == card != here["README.md"], "others load it from the Hub"
    sizes = {e["file"]: e["bytes"] for e in json.loads(files["merge_manifest.json"])["outputs"]}
    assert sizes == {n: len(files[n]) for n in sizes}


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("me/x", "", "--push me/x: no token; set HF_TOKEN, or: hf auth login\n"),
        ("me/x", "hf_old", "--push me/x: the token was refused: the Hub answered: "),
        ("they/x", "hf_test", "--push they/x: me may not write there: "),
    ],
)
def test_the_right_to_write_is_checked_before_the_merge(
    hub: Hub, tmp_path: Path, name: str, token: str, message: str
) -> None:
    words = ["average", "out", "org/one", "org/two", "--push", name]
    done = worker(hub, tmp_path, *words, HF_TOKEN=token)
    assert done.returncode == 3 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() and name not in hub.repositories


def test_a_failed_upload_leaves_the_merge_and_is_repeated_alone(hub: Hub, tmp_path: Path) -> None:
    words = ["average", "out", "org/one", "org/two", "--push", "me/mine", "--private"]
    hub.broken = True
    done = worker(hub, tmp_path, *words, HF_TOKEN="hf_test")
    assert done.returncode == 3 and "push       me/mine as me, private\n" in done.stderr
    assert "the merge is done; the same command only uploads" in done.stderr
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}
    assert written and hub.private == {"me/mine"}
    hub.broken = False
    done = worker(hub, tmp_path, *words, HF_TOKEN="hf_test")
    assert done.returncode == 0, done.stderr
    assert f"uploaded   {hub.url}/me/mine/commit/" in done.stdout
    assert written == {p: p.stat().st_mtime_ns for p in written}
    assert "model.safetensors" in hub.repositories["me/mine"]


def test_private_asks_for_push(hub: Hub, tmp_path: Path) -> None:
    done = worker(hub, tmp_path, "average", "out", "org/one", "org/two", "--private")
    assert done.returncode == 2 and "--private requires --push ORG/NAME" in done.stderr


def test_no_path_of_this_machine_is_uploaded(hub: Hub, tmp_path: Path) -> None:
    words = ["--dtype", "float32", "--progress", "off"]
    done = worker(hub, tmp_path, "average", "local", "org/one", "org/two", *words)
    assert done.returncode == 0, done.stderr
    mine = str(tmp_path / "local")
    words = ["average", "out", "org/one", mine, "--push", "me/mine"]
    done = worker(hub, tmp_path, *words, HF_TOKEN="hf_test")
    assert done.returncode == 0, done.stderr
    assert mine in (tmp_path / "out" / "mergekit_config.yml").read_text()
    for name, content in hub.repositories["me/mine"].items():
        assert str(tmp_path).encode() not in content, name


def test_adapters_of_the_hub_on_models_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    base = {f"layers.{n}.w.weight": torch.randn(9, 7) for n in range(2)}
    hub.add("org/base", write_checkpoint(tmp_path / "base", base, config=CONFIG))
    a, b = torch.randn(2, 7), torch.randn(9, 2)
    name = "base_model.model.layers.1.w.lora_{}.weight"
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    factors = {name.format("A"): a, name.format("B"): b}
    hub.add("org/lora", write_adapter(tmp_path / "lora", config, factors))
    home = tmp_path / "home"
    home.mkdir()
    done = worker(hub, home, "average", "out", "org/base@main+org/lora@main", "org/base")
    assert done.returncode == 0, done.stderr
    merged = read_tensors(home / "out")
    expected = base["layers.1.w.weight"].double() + b.double() @ a.double()
    assert merged["layers.0.w.weight"].equal(base["layers.0.w.weight"])
    assert torch.allclose(merged["layers.1.w.weight"].double(), expected, rtol=1e-6, atol=1e-6)
    inputs = json.loads((home / "out" / "merge_manifest.json").read_text())["inputs"]
    assert inputs[0]["hub"] == "org/base" and inputs[0]["commit"] == COMMIT
    assert inputs[0]["adapter"] == {"hub": "org/lora", "commit": COMMIT}
    # Branches that have moved since do not matter: the manifest tells commits.
    shutil.rmtree(home / "hf")
    moved = {name.format("A"): a + 1, name.format("B"): b}
    hub.move("org/lora", write_adapter(tmp_path / "new", config, moved))
    hub.move("org/base", write_checkpoint(tmp_path / "newer", base, config=CONFIG))
    card = (home / "out" / "README.md").read_text()
    assert '- "org/base"\n- "org/lora"\n' in card
    again = worker(hub, home, "merge", "out/merge_manifest.json", "again")
    assert again.returncode == 0, again.stderr
    files = [home / out / "model.safetensors" for out in ("out", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_revisions_by_a_pattern(hub: Hub, tmp_path: Path) -> None:
    hub.branches["org/one"] = {}
    for step in (900, 1000, 1100):
        tensors = {"w": torch.full((3,), float(step))}
        hub.add(f"org/at-{step}", write_checkpoint(tmp_path / str(step), tensors, config=CONFIG))
        hub.branches["org/one"][f"stage1-step{step}-tokens3B"] = f"org/at-{step}"
    home = tmp_path / "home"
    home.mkdir()
    run = ["average", "out", "org/one@stage1-step*", "--last", "2"]
    done = worker(hub, home, *run)
    assert done.returncode == 0, done.stderr
    assert load_file(home / "out" / "model.safetensors")["w"].tolist() == [1050] * 3
    manifest = json.loads((home / "out" / "merge_manifest.json").read_text())
    assert manifest["recipe"]["models"] == [
        "org/one@stage1-step1000-tokens3B",
        "org/one@stage1-step1100-tokens3B",
    ]
    hub.branches["org/one"] = {}
    offline = worker(hub, home, "average", "off", *run[2:], HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert load_file(home / "off" / "model.safetensors")["w"].tolist() == [1050] * 3
