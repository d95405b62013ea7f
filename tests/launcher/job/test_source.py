"""SOURCE words: which form, which words are paths, and the default name of OUT."""

import os
from pathlib import Path

import pytest
import yaml

from merge_launch.errors import UsageError
from merge_launch.job.source import (
    absolute,
    current_folder,
    default_name,
    job_folder,
    read_sources,
    safe_name,
)
from merge_launch.settings.groups import MergeOptions
from merge_worker.errors import UsageError as WorkerUsageError
from merge_worker.errors import WorkerError

RECIPE = b"merge_method: linear\nmodels:\n- model: a\n- model: org/name\n- model: ../b\n"


def read(*words: str, folder: str = "/w", dtype: str | None = None, **options: str):
    return read_sources(words, MergeOptions(**options), dtype, folder)[0]


def models_of(merge) -> list[str]:
    return [entry["model"] for entry in yaml.safe_load(merge.text)["models"]]


def test_direct() -> None:
    merge = read("out/", "m1", "m2", "m3")
    assert merge.out == "/w/out"
    assert models_of(merge) == ["/w/m1", "/w/m2", "/w/m3"]
    assert merge.title() == "linear of m1, m2, m3"


def test_a_hub_id_stays_one_and_everything_else_is_a_path(work: Path) -> None:
    (work / "org" / "here").mkdir(parents=True)
    given = [
        "org/name",
        "org/name@abc",
        "org/here",
        "./org/name",
        "plain",
        "/abs",
        "a/b/c",
        "org/x/",
    ]
    merge = read("out", *given, folder=str(work))
    assert merge.hub_models() == ("org/name",)
    assert models_of(merge) == [
        "org/name",
        "org/name@abc",
        f"{work}/org/here",
        f"{work}/org/name",
        f"{work}/plain",
        "/abs",
        f"{work}/a/b/c",
        f"{work}/org/x",
    ]


def test_a_path_that_exists_may_hold_a_plus(work: Path) -> None:
    (work / "step1+2").mkdir()
    (work / "user@site").mkdir()
    merge = read("out", "step1+2", "user@site", "m+lora", folder=str(work))
    assert models_of(merge) == [f"{work}/step1+2", f"{work}/user@site", f"{work}/m+{work}/lora"]


@pytest.mark.parametrize(
    ("words", "expected", "code"),
    [
        (["org/base", "org/m1", "org/m2"], "org/base: looks like a Hub model", 2),
        (["runs/soup", "m1", "m2"], "runs/soup: looks like a Hub model", 2),
        (["m1", "m1", "m2"], "m1: is one of the models", 4),
        (["m1", "m2", "m3"], "m1: holds a model", 4),
    ],
)
def test_out_forgotten(words: list[str], expected: str, code: int, models) -> None:
    with pytest.raises(WorkerError) as caught:
        read(*words)
    assert caught.value.exit_code == code
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith("OUT comes first: OUT MODEL MODEL…")


def test_out_that_cannot_be_a_model(work: Path) -> None:
    (work / "runs").mkdir()
    assert read("runs/soup", "m1", "m2", folder=str(work)).out == f"{work}/runs/soup"
    assert read("./org/base", "org/m1", "org/m2", folder=str(work)).out == f"{work}/org/base"
    assert read("org/m1", "org/m2", folder=str(work), out="org/base").out == f"{work}/org/base"


def test_the_home_folder_is_that_of_the_person_who_types(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert absolute("~/m1", "/w") == "/home/ada/m1"
    assert models_of(read("~/out", "~/m1", "/m2")) == ["/home/ada/m1", "/m2"]


def test_with_out_all_words_are_models() -> None:
    merge = read("m1", "m2", out="there")
    assert (merge.out, models_of(merge)) == ("/w/there", ["/w/m1", "/w/m2"])


def test_a_schedule_weighs_checkpoints_from_the_oldest_to_the_newest() -> None:
    merge = read("out", "m1", "m2", "m3", schedule="last-k:2")
    models = yaml.safe_load(merge.text)["models"]
    assert [Path(entry["model"]).name for entry in models] == ["m2", "m3"]
    assert [entry["parameters"]["weight"] for entry in models] == [0.5, 0.5]
    with pytest.raises(WorkerUsageError, match="--schedule and --weights exclude each other"):
        read("out", "m1", "m2", schedule="ema", weights="1,2")
    with pytest.raises(WorkerUsageError, match="no schedule 'minus-sqr' \\(did you mean"):
        read("out", "m1", "m2", schedule="minus-sqr")


def test_method_weights_base_and_dtype() -> None:
    merge = read("out", "m1", "m2", weights="2,1e0", dtype="float16")
    recipe = yaml.safe_load(merge.text)
    assert [entry["parameters"]["weight"] for entry in recipe["models"]] == [2.0, 1.0]
    assert recipe["out_dtype"] == "float16"


def test_a_recipe_travels_as_it_is(work: Path) -> None:
    Path("r.yml").write_bytes(RECIPE)
    merge = read("r.yml", "out", folder=str(work))
    assert merge.text == RECIPE
    assert merge.local_models() == (f"{work}/a", f"{work}/../b")
    assert merge.hub_models() == ("org/name",)
    assert merge.out == f"{work}/out"


def test_files_beside_models_have_to_be_there_too(work: Path) -> None:
    Path("r.yml").write_text(
        "merge_method: regmean\n"
        "models: [{model: a, data: a.txt}, {model: org/name, data: ../texts/b.jsonl}]\n"
    )
    merge = read("r.yml", "out", folder=str(work))
    assert merge.local_models() == (f"{work}/a", f"{work}/a.txt", f"{work}/../texts/b.jsonl")
    Path("f.yml").write_text(
        "merge_method: fisher\n"
        "models: [{model: a, importance: f.safetensors}, {model: b, importance: org/b/v.pt}]\n"
    )
    files = read("f.yml", "out", folder=str(work)).local_models()
    assert files == (f"{work}/a", f"{work}/b", f"{work}/f.safetensors")


@pytest.mark.parametrize("name", ["r.yaml", "r.json"])
def test_other_endings_of_recipes(work: Path, name: str) -> None:
    Path(name).write_bytes(RECIPE)
    assert read(name, folder=str(work)).text == RECIPE


def test_out_is_made_of_method_and_models(work: Path) -> None:
    Path("r.yml").write_bytes(RECIPE)
    assert read("r.yml").out == "/w/linear-a-name-b"
    assert read("r.yml", out="x").out == "/w/x"
    assert read("r.yml", "x", out="x").out == "/w/x"


def test_default_names_are_plain_and_short() -> None:
    assert default_name("ties", ["/a/m 1$/", "b'c"]) == "ties-m-1-b-c"
    assert len(default_name("ties", ["model" * 9] * 9)) <= 80
    assert safe_name("3 b") == "merge-3-b"
    assert safe_name("…") == "merge"


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], {}, "a merge needs at least two models"),
        (["out", "m1"], {}, "out m1: a merge needs at least two models; give OUT MODEL MODEL"),
        (["m1"], {"out": "x"}, "a merge needs at least two models"),
        (["gone.yml"], {}, "gone.yml: No such file or directory"),
        (["r.yml", "out", "m3"], {}, "m3: a recipe names its models and takes one OUT"),
        (["r.yml", "out"], {"out": "other"}, "OUT is given twice: out and --out other"),
        (["r.yml"], {"method": "ties"}, "--method is for a direct merge; write it into r.yml"),
        (["r.yml"], {"weights": "1,2"}, "--weights is for a direct merge"),
        (["r.yml"], {"base_model": "b"}, "--base-model is for a direct merge"),
        (["latin.yml"], {}, "latin.yml: not UTF-8 text"),
    ],
)
def test_faults(work: Path, words: list[str], options: dict[str, str], message: str) -> None:
    Path("r.yml").write_bytes(RECIPE)
    Path("latin.yml").write_bytes(b"# \xe9t\xe9\n" + RECIPE)
    with pytest.raises(UsageError) as caught:
        read(*words, **options)
    assert message in str(caught.value)


def test_faults_of_a_recipe_are_the_workers(work: Path) -> None:
    Path("r.yml").write_text("merge_method: lineal\nmodels: []\n")
    with pytest.raises(WorkerUsageError, match=r"r\.yml:1: .*did you mean 'linear'"):
        read("r.yml")
    with pytest.raises(WorkerUsageError, match="--weights has 3 values for 2 models"):
        read("out", "m1", "m2", weights="1,2,3")


def test_the_current_folder_by_the_name_it_was_entered(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "link")
    assert current_folder({"PWD": f"{tmp_path}/link"}) == f"{tmp_path}/link"
    assert current_folder({"PWD": str(tmp_path)}) == f"{tmp_path}/real"
    assert current_folder({"PWD": "relative"}) == f"{tmp_path}/real"
    assert current_folder({}) == os.path.realpath(tmp_path / "real")


def test_a_manifest_is_no_recipe_of_a_job(work: Path) -> None:
    (work / "merge_manifest.json").write_text('{"inputs": [], "recipe": {}}')
    with pytest.raises(UsageError, match=r"'merge-worker merge merge_manifest.json OUT'"):
        read("merge_manifest.json", "again", folder=str(work))


def test_two_outs_never_share_a_job_folder() -> None:
    assert job_folder("/w/soup-v1") == Path("/w/soup-v1.job")
    same = ["soup-v1", "soup v1", "soup  v1", "soup-v1-", "-soup-v1", "soup+v1"]
    foreign = ["模型", "модель", "…", "1.5", "merge-1.5", "merge", "\udce9"]
    long = ["x" * 252, "x" * 253, "x" * 200, "é" * 126]
    names = [*same, *foreign, *long]
    folders = {job_folder(f"/w/{name}").name for name in names}
    assert len(folders) == len(names)
    assert all(len(folder) <= 255 and folder.isascii() for folder in folders)
    assert job_folder("/w/soup v1/") == job_folder("/w/soup v1")
