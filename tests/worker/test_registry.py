"""Methods of files, of packages and of programs: checked when loaded, used like our own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge_worker as mw
from merge_worker import methods
from merge_worker.method import Method
from merge_worker.registry import OWN, read_registry, split_words
from support.outside_methods import CLOSE, SCALED, recipe, write_methods, write_package
from support.recipes import manifest, run, shards_of


def test_a_file(tmp_path: Path) -> None:
    registry = read_registry([str(write_methods(tmp_path, SCALED + CLOSE))])
    assert registry.names() == (*methods.names(), "close", "scaled_sum")
    method = registry.get("scaled_sum")
    assert [p.name for p in method.parameters] == ["weight", "scale"]
    assert method.origin and method.origin.name == "my.py" and len(method.origin.sha256) == 64
    assert registry.get("ties") is methods.get("ties")
    with pytest.raises(KeyError):
        OWN.get("scaled_sum")


def test_words() -> None:
    assert split_words("a.py,b.py") == ("a.py", "b.py")
    assert split_words(["a.py", "b.py,,c"]) == ("a.py", "b.py", "c")
    assert split_words(None) == ()


FAULTS = {
    "x = (": r"my\.py:1: SyntaxError: '\(' was never closed",
    "\n\nx = y\n": r"my\.py:3: NameError: name 'y' is not defined",
    "import sys\nsys.exit(3)\n": r"my\.py:2: SystemExit: 3",
    "x = 1\n": r"my\.py: defines no merge method",
    "from merge_worker.methods.ties import ties\n": r"my\.py: defines no merge method",
    SCALED.replace("scaled_sum", "ties"): r"my\.py: 'ties' is a method of merge-worker",
    SCALED.replace("scaled_sum", "Sum"): r"my\.py: 'Sum' must be a lower-case name",
    SCALED.replace("*, weight", "tensors: list, weight"): (
        r"my\.py:6: TypeError: scaled_sum: 'tensors' is for a tensor; write \(\*tensors, "
    ),
    SCALED.replace("float = 1.0", "bytes = b''"): (
        r"my\.py:6: TypeError: .*scaled_sum: parameter 'scale' has type 'bytes'"
    ),
}


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_files_that_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(mw.errors.UsageError, match=FAULTS[text]):
        read_registry([str(write_methods(tmp_path, text))])


def test_a_file_that_needs_torch_where_there_is_none(tmp_path: Path) -> None:
    file = write_methods(tmp_path, "raise ImportError('No module', name='torch')\n")
    with pytest.raises(mw.errors.UsageError, match="import torch inside the functions"):
        read_registry([str(file)])


def test_every_fault_of_several_files(tmp_path: Path) -> None:
    first, second = write_methods(tmp_path), write_methods(tmp_path, SCALED + "\n", "other.py")
    with pytest.raises(mw.errors.UsageError) as caught:
        read_registry([str(first), str(second), str(tmp_path / "gone.py"), "no package!"])
    assert [fault.text for fault in caught.value.faults] == [
        "'scaled_sum' is also defined by my.py; rename one",
        "No such file or directory; give a Python file of methods",
        "neither FILE.py nor PACKAGE==VERSION",
    ] or len(caught.value.faults) == 3
    assert read_registry([str(first), str(first)]).get("scaled_sum")


def test_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(write_package(tmp_path / "site")))
    method = OWN.get("scaled_sum")
    assert method.origin and method.origin.package == method.origin.name == "soups==1.2"
    assert "scaled_sum" in OWN.names()
    read_registry(["soups", "soups==1.2"])
    with pytest.raises(mw.errors.UsageError, match=r"version 1\.2 is installed, the job needs 2"):
        read_registry(["soups==2"])
    with pytest.raises(mw.errors.UsageError, match="is not installed for"):
        read_registry(["stews"])


def test_an_installed_package_of_another_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(write_package(tmp_path / "site", method="halved")))
    with pytest.raises(mw.errors.UsageError, match=r"soups==1\.2: .* not a merge method named"):
        OWN.get("halved")


def test_the_command_lists_and_explains_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_methods(tmp_path, SCALED + CLOSE)
    assert run("methods", "--methods", file) == 0
    assert "Scaled sum of the models. (my.py)" in capsys.readouterr().out
    monkeypatch.setenv("MERGE_WORKER_METHODS", str(file))
    assert run("methods", "close") == 0
    page = capsys.readouterr().out
    assert "from: my.py, SHA-256 " in page and "reference: https://example.org" in page
    assert run("methods", "scaled_sun") == 2
    assert "did you mean 'scaled_sum'?" in capsys.readouterr().err


def test_a_merge_by_the_command_line_and_from_python(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, yml = write_methods(tmp_path), tmp_path / "r.yml"
    yml.write_text(recipe(models))
    assert run("merge", yml, tmp_path / "option", "--methods", file, "--progress", "off") == 0
    monkeypatch.setenv("MERGE_WORKER_METHODS", str(file))
    assert run("merge", yml, tmp_path / "variable", "--progress", "off") == 0
    monkeypatch.delenv("MERGE_WORKER_METHODS")
    result = mw.merge(mw.plan(yml, methods=[file]), tmp_path / "python")
    outs = [tmp_path / name for name in ("option", "variable", "python")]
    assert len({str(shards_of(out)) for out in outs}) == 1
    assert len({manifest(out)["key"] for out in outs}) == 1
    (entry,) = result.manifest["methods"]
    assert entry["name"] == "scaled_sum" and entry["from"] == "my.py"
    tensors = load_file(tmp_path / "python" / "model.safetensors")
    inputs = [load_file(model / "model.safetensors")["scale"].double() for model in models]
    expected = sum(0.5 * n * value for n, value in enumerate(inputs, 1))
    torch.testing.assert_close(tensors["scale"].double(), expected, rtol=0.01, atol=0.01)


def test_the_code_of_a_method_is_part_of_the_key(models: list[Path], tmp_path: Path) -> None:
    text = recipe(models)
    first = mw.plan(text, methods=write_methods(tmp_path))
    changed = write_methods(tmp_path, SCALED.replace("scale * w", "scale + w"))
    assert mw.plan(text, methods=changed).key != first.key


def test_a_manifest_asks_for_the_same_code(models: list[Path], tmp_path: Path) -> None:
    file = write_methods(tmp_path)
    mw.merge(mw.plan(recipe(models), methods=file), tmp_path / "out")
    made = tmp_path / "out" / "merge_manifest.json"
    assert mw.merge(mw.plan(made, methods=file), tmp_path / "again").finished
    with pytest.raises(mw.errors.InputError, match="unknown method 'scaled_sum'"):
        mw.plan(made)
    changed = write_methods(tmp_path, SCALED + "\n")
    with pytest.raises(mw.errors.InputError, match="its code differs"):
        mw.plan(made, methods=changed)


def test_a_report_needs_no_methods(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mw.merge(mw.plan(recipe(models), methods=write_methods(tmp_path)), tmp_path / "out")
    assert run("report", tmp_path / "out") == 0
    assert "out (merged)" in capsys.readouterr().out


def test_functions_of_a_program(models: list[Path]) -> None:
    @mw.merge_method
    def halved(*, weight: list[float]) -> list[float]:
        return [w / 2 for w in weight]

    entries = [{"model": model, "parameters": {"weight": 1}} for model in models]
    by_name = mw.plan({"merge_method": "halved", "models": entries}, methods=[halved])
    by_itself = mw.plan({"merge_method": halved, "models": entries})
    assert by_name.key == by_itself.key and by_name.method == "halved"
    total = dict(mw.stream(mw.average(models, dtype="float32")))["norm.weight"]
    half = dict(mw.stream(by_itself, dtype="float32"))["norm.weight"]
    torch.testing.assert_close(half, total * 1.5)
    state = {"w": torch.ones(3)}
    assert mw.merge_state_dicts([state, state], halved, weight=3.0)["w"].tolist() == [3.0] * 3


def test_a_function_of_tensors() -> None:
    namespace: dict[str, Method] = {}
    exec(SCALED + CLOSE, namespace)  # as a cell of a notebook, without a file
    base, model = {"w": torch.zeros(4)}, {"w": torch.tensor([0.1, 0.2, 0.3, 5.0])}
    merged = mw.merge_state_dicts({"m": model}, namespace["close"], base, limit=0.25)
    torch.testing.assert_close(merged["w"], torch.tensor([0.1, 0.2, 0, 0]))


def test_code_without_a_file_has_a_digest_that_does_not_depend_on_its_place() -> None:
    def digest(text: str) -> str:
        namespace: dict[str, Method] = {}
        exec(compile(text, "<cell>", "exec"), namespace)
        method = OWN.with_methods([namespace["scaled_sum"]]).get("scaled_sum")
        assert method.origin is not None
        return method.origin.sha256

    assert digest(SCALED) == digest("\n\n" + SCALED)
    assert digest(SCALED) != digest(SCALED.replace("scale * w", "scale + w"))


@pytest.mark.parametrize(
    ("wrong", "shown"), [("weight[:1]", r"\[1.0\]"), ("{}", r"\{\}"), ("None", "None")]
)
def test_coefficients_are_counted(
    wrong: str, shown: str, models: list[Path], tmp_path: Path
) -> None:
    text = SCALED.replace("[scale * w for w in weight]", wrong)
    with pytest.raises(mw.errors.UsageError, match=f"must return 3 coefficients, got {shown}"):
        mw.plan(recipe(models), methods=write_methods(tmp_path, text))


@pytest.mark.parametrize("wrong", ["base.sum()", "None"])
def test_a_tensor_of_another_shape(wrong: str) -> None:
    namespace: dict[str, Method] = {}
    begin = CLOSE.index("    return ")
    exec(SCALED + CLOSE[:begin] + f"    return {wrong}\n", namespace)
    state = {"w": torch.ones(2, 3)}
    with pytest.raises(mw.errors.UsageError, match="of the shape of its inputs"):
        mw.merge_state_dicts([state], namespace["close"], state, limit=1.0)


def test_errors_of_a_users_method_are_the_users(models: list[Path], tmp_path: Path) -> None:
    broken = SCALED.replace("scale * w", "scale.times(w)")
    with pytest.raises(mw.errors.UsageError, match=r"my\.py: method 'scaled_sum': AttributeError"):
        mw.plan(recipe(models), methods=write_methods(tmp_path, broken))
