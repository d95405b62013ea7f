"""docs/python.md: its code runs, its reference is that of the code.

`pytest tests/docs/test_python_page.py --update-goldens` writes the reference.
"""

import enum
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import merge_launch as ml
import merge_worker as mw
from merge_worker.api.plans import PlanChoices
from merge_worker.api.runs import RunChoices
from merge_worker.method import Method
from merge_worker.options import BY_NAME
from support.doc_examples import blocks, programs
from support.paths import SOURCES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
BEGIN, END = "<!-- reference: made from the code -->\n", "<!-- end of reference -->\n"
HIDDEN = {"inner", "record", "measured", "advice"}
"""Attributes of the classes that are not part of the interface."""
OWN_HELP = {
    "relative_to": "where relative paths of models start; default: the current folder",
    "methods": "files with more merge methods, and functions decorated with `merge_method`",
    "resume": "continue an unfinished merge in `out`; default: True",
    "deadline_s": "stop cleanly this many seconds after the call; Stopped is raised",
    "rank": "number of this process of `world` that share the merge; default: 0",
    "world": "number of processes that share the merge; default: 1",
    "patience_s": "how long a rank that is done waits for ranks that have not begun; default: 10",
}


def signature(function: Any, name: str) -> str:
    """Return `name(…) -> …`, wrapped at 100 columns, with annotations as they are written."""
    made = inspect.signature(function)
    parts: list[str] = []
    for parameter in made.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        prefix = "**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else ""
        text = f"{prefix}{parameter.name}: {parameter.annotation}"
        if parameter.default is not inspect.Parameter.empty:
            text += f" = {parameter.default!r}"
        parts.append(text)
    end = f") -> {made.return_annotation}"
    line = f"{name}({', '.join(parts)}{end}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n{end}"


def members(kind: type) -> Iterator[str]:
    """Yield the public attributes and methods of a class with their types."""
    for name, value in vars(kind).items():
        if name.startswith("_") or name in HIDDEN:
            continue
        if isinstance(value, property):
            assert value.fget is not None
            yield f"{name}: {inspect.signature(value.fget).return_annotation}"
        elif inspect.isfunction(value):
            yield signature(value, name)
    own = inspect.get_annotations(kind)
    yield from (f"{name}: {hint}" for name, hint in own.items() if name not in HIDDEN)


def options(kind: Any) -> list[str]:
    rows = [
        f"| `{name}` | `{_plain(hint)}` | {OWN_HELP.get(name) or BY_NAME[name].help} |".replace(
            " | None", " \\| None"
        )
        for name, hint in kind.__annotations__.items()
    ]
    return ["| option | type | |", "|---|---|---|", *rows, ""]


def _plain(hint: Any) -> str:
    return str(getattr(hint, "__forward_arg__", hint)).replace("|", "\\|")


def entry(module: Any, prefix: str, name: str) -> list[str]:
    value, title = getattr(module, name), f"{prefix}.{name}"
    if inspect.ismodule(value):
        classes = [
            v for v in vars(value).values() if inspect.isclass(v) and v.__module__ == value.__name__
        ]
        lines = [f"- `{prefix}.{name}.{c.__name__}`: {inspect.getdoc(c)}" for c in classes]
        return [f"### {title}", "", *(line.replace("\n", " ") for line in lines), ""]
    text = inspect.getdoc(value) or ""
    if inspect.isclass(value):
        shown = [f"{prefix}.{name}", *(f"    {line}" for line in _indented(members(value)))]
        if issubclass(value, enum.Enum):
            shown = [f"{prefix}.{name}: {', '.join(item.name for item in value)}"]
    else:
        shown = [signature(value, title)]
    return [f"### {title}", "", "```text", *shown, "```", "", text, ""]


def _indented(items: Iterator[str]) -> Iterator[str]:
    for item in items:
        yield from item.splitlines()


def reference() -> str:
    lines = [line for name in mw.__all__ for line in entry(mw, "mw", name)]
    lines += [line for name in ml.__all__ for line in entry(ml, "ml", name)]
    lines += ["### Options of plan and average", "", *options(PlanChoices)]
    lines += ["### Options of merge", "", *options(RunChoices)]
    return "\n".join(lines)


def test_the_reference_is_that_of_the_code(request: pytest.FixtureRequest) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{before}{BEGIN}\n{reference()}\n{END}{after}"
    if request.config.getoption("--update-goldens"):
        PAGE.write_text(made, encoding="utf-8")
    assert made == PAGE.read_text(encoding="utf-8")


def test_every_public_name_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for prefix, module in (("mw", mw), ("ml", ml)):
        assert [n for n in module.__all__ if f"### {prefix}.{n}\n" not in page] == []


def test_a_method_is_at_most_fifteen_lines() -> None:
    (text,) = [block.text for block in blocks(PAGE) if block.name == "my.py"]
    assert len(text.splitlines()) <= 15
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    assert isinstance(namespace["scaled_sum"], Method)


@pytest.mark.slow
def test_the_code_runs(tmp_path: Path) -> None:
    """All blocks of the page in order: Python in one process, commands after their files."""
    (tmp_path / "models").mkdir()
    make = tmp_path / "make.py"
    make.write_text(MODELS)
    env = {**os.environ, "PYTHONPATH": SOURCES, "HOME": str(tmp_path / "home")}
    env |= {"PATH": programs(tmp_path / "bin"), "PWD": str(tmp_path)}
    env = {name: value for name, value in env.items() if not name.startswith("MERGE_")}
    run = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
    subprocess.run([sys.executable, make], check=True, **run)  # type: ignore[call-overload]
    code: list[str] = []
    for kind, name, text in blocks(PAGE):
        if name:
            (tmp_path / name).write_text(text, encoding="utf-8")
        elif kind == "python":
            code.append(text)
    code.append(TRAINING)
    (tmp_path / "page.py").write_text("\n\n".join(code))
    done = subprocess.run([sys.executable, "page.py"], **run)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unknown method 'tise' (did you mean 'ties'?)" in done.stdout
    assert "2 checkpoints merged" in done.stdout and (tmp_path / "look.html").is_file()
    for block in blocks(PAGE):
        for command in block.text.splitlines() if block.kind == "bash" else ():
            done = subprocess.run(["bash", "-c", command], **run)  # type: ignore[call-overload]
            assert done.returncode == 0, done.stderr
    assert (tmp_path / "scaled" / "merge_manifest.json").is_file()


def test_the_callback_has_at_most_ten_lines() -> None:
    (text,) = [block.text for block in blocks(PAGE) if "TrainerCallback" in block.text]
    body = text.partition("class ")[2]
    assert len(body.strip().splitlines()) <= 10


MODELS = """
import copy
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
)
base = LlamaForCausalLM(config).bfloat16()
base.save_pretrained("models/base")
for name in ("math", "code", "chat"):
    model = copy.deepcopy(base)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    model.save_pretrained(f"models/{name}")
"""
TRAINING = """
from transformers import Trainer, TrainingArguments

words = [torch.randint(3, 64, (8,)) for _ in range(20)]
arguments = TrainingArguments(
    "run", max_steps=10, save_steps=5, per_device_train_batch_size=2, report_to=[],
    use_cpu=True, disable_tqdm=True,
)
trainee = AutoModelForCausalLM.from_pretrained("models/base", dtype=torch.float32)
Trainer(
    model=trainee, args=arguments, callbacks=[MergeWithStart()],
    train_dataset=[{"input_ids": ids, "labels": ids} for ids in words],
).train()
import glob
merged = sorted(glob.glob("run/merged-*"))
for folder in merged:
    mw.verify(folder)
from safetensors.torch import load_file
ours = load_file("run/merged-10/model.safetensors")["model.norm.weight"]
parts = [load_file(f"{f}/model.safetensors")["model.norm.weight"].double()
         for f in ("models/base", "run/checkpoint-10")]
torch.testing.assert_close(ours, (sum(parts) / 2).float())
print(len(merged), "checkpoints merged")
"""
