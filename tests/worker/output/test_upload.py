"""Uploads of a merge: everything it needs, and no local path."""

import json
import os
from pathlib import Path

import pytest
import yaml

from merge_worker.checkpoint.hub import snapshot
from merge_worker.errors import InputError, OutputError
from merge_worker.output.manifest import files_to_upload
from merge_worker.output.model_card import public_name
from merge_worker.recipe.schema import ModelRef
from support.checkpoint_factory import write_checkpoint
from support.recipes import average, manifest, run, some_models, some_tensors

HUB = "me/merged"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def front_matter(out: Path) -> dict[str, object]:
    value: dict[str, object] = yaml.safe_load((out / "README.md").read_text().split("---\n", 2)[1])
    return value


def write_published(out: Path, into: Path) -> None:
    into.mkdir()
    for name, content in files_to_upload(out, HUB):
        raw = content if isinstance(content, bytes) else content.read_bytes()
        (into / name).write_bytes(raw)


def test_no_path_is_uploaded(tmp_path: Path, models: list[Path]) -> None:
    (models[0] / "tokenizer_config.json").write_text("{}")
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        f"merge_method: linear\nbase_modle: {models[0]}\nmodels:\n"
        + "".join(f"- {{model: {m}, parameters: {{weight: 1}}}}\n" for m in models)
    )
    assert run("merge", recipe, tmp_path / "out", "--progress", "off") == 0
    write_published(tmp_path / "out", tmp_path / "hub")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in (tmp_path / "hub").iterdir()} == names
    for path in (tmp_path / "hub").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    assert manifest(tmp_path / "hub")["notes"], "the misspelt key"
    assert run("verify", tmp_path / "hub") == 0
    words = ("--relative-to", tmp_path, "--progress", "off")
    assert run("merge", tmp_path / "hub" / "merge_manifest.json", tmp_path / "new", *words) == 0
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_nothing_outside_is_uploaded(tmp_path: Path, models: list[Path]) -> None:
    out = tmp_path / "out"
    assert average(out, models) == 0
    value = manifest(out)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_text("private")
    (out / "sub").symlink_to(tmp_path / "home")
    for name, error in (("../home/id_rsa", InputError), ("sub/id_rsa", OutputError)):
        value["outputs"] = [{"file": name, "bytes": 7}]
        (out / "merge_manifest.json").write_text(json.dumps(value))
        with pytest.raises(error):
            list(files_to_upload(out, HUB))


def test_unfinished_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a finished merge"):
        list(files_to_upload(tmp_path, HUB))


def cached(folder: Path, name: str, seed: int) -> Path:
    place = folder / f"models--org--{name}" / "snapshots" / COMMIT
    place.parent.mkdir(parents=True)
    return write_checkpoint(place, some_tensors(seed))


def test_models_of_the_hub_in_its_cache(tmp_path: Path) -> None:
    """Ids and commits of models in the Hub's cache are taken from the folder's name."""
    first, second = cached(tmp_path, "one", 1), cached(tmp_path, "two", 2)
    assert snapshot(first) == ("org/one", COMMIT) and snapshot(tmp_path) is None
    assert public_name(ModelRef(str(second))) == f"org/two@{COMMIT}"
    local = write_checkpoint(tmp_path / "local", some_tensors(3))
    assert average(tmp_path / "out", [first, second, local]) == 0
    head = front_matter(tmp_path / "out")
    assert head["base_model"] == ["org/one", "org/two"]
    assert head["base_model_relation"] == "merge"
    inputs = manifest(tmp_path / "out")["inputs"]
    assert [(i.get("hub"), i.get("commit")) for i in inputs] == [
        *(("org/one", COMMIT), ("org/two", COMMIT)),
        (None, None),
    ]
    assert f"org/one@{COMMIT}" in manifest(tmp_path / "out")["recipe"]["text"]


def licensed(folder: Path, *heads: str) -> list[Path]:
    models = some_models(folder, len(heads))
    for model, head in zip(models, heads, strict=True):
        (model / "README.md").write_text(f"---\n{head}\n---\n# Title\nlicense: no\n")
    return models


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (("license: apache-2.0", "license: apache-2.0\ntags: [x]"), {"license": "apache-2.0"}),
        (("license: apache-2.0", "license: mit"), {}),
        (("license: apache-2.0", "tags: [x]"), {}),
        (("tags: [x]", "tags: [x]"), {}),
        (("license: [", "license: mit"), {}),
        (
            ("license: other\nlicense_name: x\nlicense_link: https://x.org/l",) * 2,
            {"license": "other", "license_name": "x", "license_link": "https://x.org/l"},
        ),
        (("license: other\nlicense_name: x", "license: other\nlicense_name: y"), {}),
    ],
)
def test_a_license_shared_by_all_models(
    heads: tuple[str, ...], expected: dict[str, str], tmp_path: Path
) -> None:
    models = licensed(tmp_path, *heads)
    assert average(tmp_path / "out", models) == 0
    head = front_matter(tmp_path / "out")
    assert {key: head[key] for key in head if key.startswith("license")} == expected
    assert head["tags"] == ["merge", "merge-launch"]


def test_unreadable_cards(tmp_path: Path) -> None:
    """Cards that never end, for a YAML parser or as files, are not read."""
    bomb = "x: &a [" + "{" * 5000 + "\nlicense: apache-2.0 # as ever"
    models = licensed(tmp_path, bomb, "license: 'apache-2.0'")
    assert average(tmp_path / "out", models) == 0
    assert front_matter(tmp_path / "out")["license"] == "apache-2.0"
    (models[1] / "README.md").unlink()
    os.mkfifo(models[1] / "README.md")
    assert average(tmp_path / "out2", models) == 0
    assert "license" not in front_matter(tmp_path / "out2")
