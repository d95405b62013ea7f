"""Mistakes as data: the files, the command, and the expected exit code.

Each runs the real command in a folder of its own with four small models.
`scenarios/test_messages.py` runs them all; docs/errors.md shows their output.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from merge_worker.cli import main
from support.checkpoint_factory import write_checkpoint
from support.paths import SOURCES

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = "merge-launch"
WORKER = "merge-worker"

World = Path
Prepare = Callable[[World], object]
System = Callable[[pytest.MonkeyPatch, World], None]
TWO = "models:\n- {model: m1, parameters: {weight: 1}}\n- {model: m2, parameters: {weight: 1}}\n"

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Mistake:
    """A wrong command; `made` describes the mistake if command and recipe do not show it.

    `prepare` makes the files, `system` patches the operating system; `first` are commands to run
    before.
    """

    title: str
    command: str
    code: int
    made: str = ""
    recipe: str = ""
    prepare: Prepare | None = None
    system: System | None = None
    first: Sequence[str] = ()
    env: Mapping[str, str] | None = None


class Answer(NamedTuple):
    code: int
    text: str


def llama(seed: int, scale: float = 0.01, hidden: int = 8) -> dict[str, Tensor]:
    """Write a model of two layers, moved a little from a common base in a direction of its own."""
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (16, hidden),
        "model.embed_tokens.weight": (16, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(2):
        for name in ("mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (hidden, hidden)
    base, own = (torch.Generator().manual_seed(number) for number in (0, seed))
    made = {}
    for name, shape in shapes.items():
        start, step = (torch.randn(shape, generator=chance) for chance in (base, own))
        made[name] = (start + (scale * step if seed else 0)).bfloat16()
    return made


def make_world(folder: Path) -> Path:
    """Write base, m1, m2 and m3 to a folder."""
    for number, name in enumerate(("base", "m1", "m2", "m3")):
        write_checkpoint(folder / name, llama(number), config=CONFIG)
    return folder


def change(name: str, **tensors: Tensor | None) -> Prepare:
    """Replace, add or remove (None) tensors of a model; `__` in a name is a dot."""

    def prepare(world: World) -> None:
        from safetensors.torch import load_file, save_file

        file = world / name / "model.safetensors"
        weights = load_file(file)
        for word, value in tensors.items():
            weights.pop(word.replace("__", "."), None)
            if value is not None:
                weights[word.replace("__", ".")] = value
        save_file(weights, file, metadata={"format": "pt"})

    return prepare


def write(name: str, content: str | bytes) -> Prepare:
    def prepare(world: World) -> None:
        path = world / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def configured(name: str, **values: object) -> Prepare:
    """Set values of a model's config."""

    def prepare(world: World) -> None:
        path = world / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return prepare


def both(*parts: Prepare) -> Prepare:
    def prepare(world: World) -> None:
        for part in parts:
            part(world)

    return prepare


def refuses(call: str, number: int, *, after: int = 0, path: str = "") -> System:
    """Make `call` of os fail with this error after the first `after` calls.

    `path`: only for files below it.
    """

    def system(patch: pytest.MonkeyPatch, world: World) -> None:
        real, count = getattr(os, call), 0

        def faulty(target: object, *words: object, **more: object) -> object:
            nonlocal count
            if path in _name_of(target):
                count += 1
                if count > after:
                    raise OSError(number, os.strerror(number))
            return real(target, *words, **more)

        patch.setattr(os, call, faulty)

    return system


def _name_of(target: object) -> str:
    if isinstance(target, int):
        return str(Path(f"/proc/self/fd/{target}").readlink())
    return os.fspath(target) if isinstance(target, str | os.PathLike) else ""


def run(mistake: Mistake, world: World, patch: pytest.MonkeyPatch) -> Answer:
    """Run the mistake and return its output."""
    if mistake.recipe:
        (world / "recipe.yml").write_text(mistake.recipe, encoding="utf-8")
    for command in mistake.first:
        assert _run(command, world, patch, {}).code == 0, command
    if mistake.prepare is not None:
        mistake.prepare(world)
    with patch.context() as system:
        if mistake.system is not None:
            mistake.system(system, world)
        answer = _run(mistake.command, world, patch, mistake.env or {})
    return Answer(answer.code, normalized(answer.text, world))


def normalized(text: str, world: World) -> str:
    """Return the text without parts that differ between machines."""
    # The folder's path is long and different each time.
    text = text.replace(f"{world}/", "").replace(str(world), ".").replace(sys.executable, "python3")
    return re.sub(r" written in [\d.:]+ \w+", " written in 1.0 s", text)


def _run(command: str, world: World, patch: pytest.MonkeyPatch, env: Mapping[str, str]) -> Answer:
    program, *words = shlex.split(command)
    if program == LAUNCHER:
        return _launch(words, world, env)
    quiet = ["--progress", "off"] if words[:1] in (["merge"], ["average"]) else []
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(patch.context())
        context.chdir(world)
        for key, value in env.items():
            context.setenv(key, value)
        errors = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        printed = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        code = main([*words, *quiet])
    return Answer(code, errors.getvalue() if code else errors.getvalue() + printed.getvalue())


def _launch(words: Sequence[str], world: World, env: Mapping[str, str]) -> Answer:
    given = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(world),
        "PYTHONPATH": SOURCES,
        "COLUMNS": "100",
        "HF_HUB_OFFLINE": "1",
        "MERGE_LAUNCH_PYTHON": sys.executable,
        "MERGE_LAUNCH_PROGRESS": "off",
        **env,
    }
    argv = [sys.executable, "-m", "merge_launch", *words]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=world, env=given, timeout=300)
    return Answer(done.returncode, done.stderr)
