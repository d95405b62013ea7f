"""`merge-worker mergekit`: runs a recipe with mergekit itself.

The mergekit on the node is used; without one, the pinned release is installed for this run.
The result is committed like that of any merge, after a check that no tensor of the base is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.folder import is_hub_id, open_checkpoint
from ..command_line.parser import Parser
from ..errors import InputError, OutputError, ResultError, Stopped, UsageError, input_errors
from ..messages import first_names
from ..output.checksums import file_sha256
from ..output.commit import commit, loaders_last, seal, staging_name
from ..output.files import CARD, PARTIAL, RECIPE, output_errors, write_file
from ..output.journal import KEY, WorkKey, pending_commit, read_key
from ..output.lock import Lock, refuse_others
from ..output.manifest import read_manifest, worker_facts
from ..output.store import discard_others, remove_partial
from ..recipe import parse
from ..recipe.schema import ModelRef, Recipe
from ..structure.components import is_computed
from ..structure.layers import layer_of
from ..system.ranks import rank_of
from ..units import parse_duration
from .merge import read_recipe
from .options import add_options

PIN = "0.1.5"
PROGRAM = "mergekit-yaml"
LOCK = "lock-mergekit"

CARD_TEXT = """---
base_model_relation: merge
tags:
- mergekit
- merge
---

Merged by mergekit {} from this recipe:

```yaml
{}```
"""


def options(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yml", help="the recipe")
    parser.add_out("the folder of the merged model")
    add_options(parser, "mergekit")


@input_errors("mergekit")
def command(arguments: argparse.Namespace) -> str:
    """Merge RECIPE into OUT. InputError without mergekit, ResultError if tensors are missing."""
    if rank_of(arguments.ranks).world > 1:
        raise UsageError(
            "mergekit merges in one process; several nodes or replicas are not supported"
        )
    path, out = Path(arguments.recipe).absolute(), Path(arguments.out).absolute()
    text = read_recipe(path).text
    os.chdir(arguments.relative_to)  # where mergekit takes paths from, too
    recipe, flags = parse(text, str(path)), _flags(arguments)
    key = hashlib.sha256(json.dumps(["mergekit", text, flags]).encode()).hexdigest()
    with output_errors(out):
        if (read_manifest(out) or {}).get("key") == key:
            return f"{out}: this merge is already there; nothing to do"
        replaces = pending_commit(out / PARTIAL)
        if replaces is not None and read_key(out / PARTIAL) == key:
            with Lock(out / PARTIAL / LOCK, key) as lock:
                commit(out, replaces, lock.check)
            return f"{out}: committed the result of an earlier run"
        replaces = _replaced(out, key, arguments.overwrite)
    began = time.monotonic()
    limit = parse_duration(arguments.deadline) if arguments.deadline else None
    with _partial(out, key) as (staged, lock), mergekit() as (program, python, version):
        print(f"mergekit {version}: {program}", file=sys.stderr)
        _run([program, str(path), str(staged), *flags], limit)
        _check(recipe, staged, python)
        took = round(time.monotonic() - began, 3)
        facts = {"key": key, "engine": "mergekit", "mergekit": version, "seed": arguments.seed}
        facts["timings"] = {"total_s": took}
        seal(staged, _manifest(staged, text, facts), replaces, lock.check)
    return f"{out}: merged by mergekit {version} in {took:.0f} s"


def _flags(arguments: argparse.Namespace) -> list[str]:
    # For its card, mergekit asks the hub about every name, which fails on nodes without network.
    flags = ["--random-seed", str(arguments.seed), "--quiet", "--no-write-model-card"]
    if arguments.device != "auto":
        flags += ["--device", arguments.device]
    elif shutil.which("nvidia-smi"):
        flags += ["--cuda"]
    if arguments.threads:
        flags += ["--num-threads", str(arguments.threads)]
    return [*flags, *(["--trust-remote-code"] if arguments.trust_remote_code else [])]


def _replaced(out: Path, key: str, overwrite: bool) -> tuple[str, ...]:
    """Return the names in OUT that this merge replaces. OutputError if it may not."""
    if not out.exists():
        return ()
    finished = read_manifest(out) is not None
    names = [path.name for path in out.iterdir()] if out.is_dir() else [out.name]
    others = tuple(name for name in names if not name.startswith(PARTIAL))
    if (others or read_key(out / PARTIAL) not in (None, key)) and not (finished and overwrite):
        advice = "add --overwrite or choose another OUT" if finished else "choose another OUT"
        raise OutputError(f"{out}: already exists and is not this merge; {advice}")
    return others


@contextlib.contextmanager
def _partial(out: Path, key: str) -> Iterator[tuple[Path, Lock]]:
    """Create an empty folder for the files of the result; remove it after an error."""
    partial, is_new = out / PARTIAL, not out.exists()
    staged = partial / staging_name()
    with output_errors(out):
        discard_others(out, WorkKey(key), resume=False)
        partial.mkdir(parents=True, exist_ok=True)
        with Lock(partial / LOCK, key) as lock:
            try:
                refuse_others(partial, key)
                write_file(partial / KEY, json.dumps({"key": key}))
                staged.mkdir()
                yield staged, lock
            except BaseException:
                # Files that are being committed stay: the next run finishes the commit.
                if pending_commit(partial) is None:
                    with contextlib.suppress(OSError, OutputError):
                        remove_partial(out, lock.check)
                        if is_new:
                            out.rmdir()
                raise


@contextlib.contextmanager
def mergekit() -> Iterator[tuple[str, str, str]]:
    """Provide the program, the Python that runs it, and its version. InputError without one."""
    sibling = Path(sys.executable).parent / PROGRAM
    program = str(sibling) if sibling.is_file() else shutil.which(PROGRAM)
    if program is not None:
        shebang = Path(program).read_bytes().partition(b"\n")[0].decode(errors="replace")
        is_script = shebang.startswith("#!")
        python = shebang.removeprefix("#!").strip() if is_script else sys.executable
        yield program, python, _version(python)
        return
    with tempfile.TemporaryDirectory(prefix="mergekit-") as folder:
        yield from _installed(Path(folder))


def _installed(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Install mergekit into an environment that sees the packages of this Python.

    Then pip does not fetch torch and transformers again, as it does with --target, and mergekit
    imports the transformers of the node, also a custom build or an editable installation.
    """
    print(f"{PROGRAM} not found; installing mergekit {PIN} for this run", file=sys.stderr)
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python3*/site-packages")
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    own = [path for path in [*site.getsitepackages(), *user] if Path(path).is_dir()]
    lines = (f"import site; site.addsitedir({path!r})\n" for path in own)
    (packages / "of-the-node.pth").write_text("".join(lines))
    argv = [str(python), "-m", "pip", "install", "--quiet", f"mergekit=={PIN}"]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        reasons = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise InputError(
            f"mergekit {PIN} is not on this node and cannot be installed: {reasons[-1].strip()}\n"
            f"  activate an environment with it: --setup 'source …/bin/activate', or use an image"
        )
    yield str(folder / "bin" / PROGRAM), str(python), PIN


def _version(python: str) -> str:
    code = "from importlib.metadata import version; print(version('mergekit'))"
    argv = [*python.split(), "-c", code]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()
    return "(unknown version)"


def _run(argv: Sequence[str], limit_s: float | None) -> None:
    """Run mergekit, and kill what is left of it. ResultError if it fails, Stopped at the limit."""
    with subprocess.Popen(argv, start_new_session=True) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Stopped(
                "stopped before the time limit; mergekit cannot resume and starts over"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        raise ResultError(f"{PROGRAM} ended with status {code}; see its output above")


def _check(recipe: Recipe, written: Path, python: str) -> None:
    """Raise ResultError if tensors of the base are missing. Restacked layers are not compared."""
    path = _base_folder(recipe.own_refs()[0], python)
    base = open_checkpoint(path).with_weights(())
    # mergekit leaves out buffers that models compute themselves.
    expected = {n for n, info in base.tensors.items() if not is_computed(n, info.shape)}
    if any(module.sliced for module in recipe.modules):
        expected = {name for name in expected if layer_of(name) is None}
    if base.config.get("tie_word_embeddings"):
        expected.discard("lm_head.weight")
    missing = sorted(expected - set(open_checkpoint(written).tensors))
    if missing:
        raise ResultError(
            f"mergekit lost {len(missing)} of {len(expected)} tensors of {path}: "
            f"{first_names(missing)}; merge without --engine"
        )


def _base_folder(ref: ModelRef, python: str) -> Path:
    """Return the folder of a model; for a Hub name, the snapshot that mergekit has just read."""
    if not is_hub_id(ref.path):
        return Path(ref.path).expanduser()
    code = (
        "import sys; from huggingface_hub import snapshot_download as s; "
        "print(s(sys.argv[1], revision=sys.argv[2] or None, local_files_only=True))"
    )
    argv = [*python.split(), "-c", code, ref.path, ref.revision or ""]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise ResultError(f"{ref.path}: downloaded model not found; result not verified")
    return Path(done.stdout.strip().splitlines()[-1])


def _manifest(staged: Path, text: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Add recipe and card to the files that mergekit wrote; return the manifest of all files."""
    (staged / RECIPE).write_text(text, encoding="utf-8")
    (staged / CARD).write_text(CARD_TEXT.format(facts["mergekit"], text), encoding="utf-8")
    mode = staged.stat().st_mode & 0o777  # as the umask leaves it
    for path in staged.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)
    files = (path for path in sorted(staged.rglob("*")) if path.is_file())
    outputs: list[dict[str, Any]] = []
    for name in loaders_last(path.relative_to(staged).as_posix() for path in files):
        path = staged / name
        outputs.append({"file": name, "bytes": path.stat().st_size})
        if path.suffix == ".safetensors":
            outputs[-1]["sha256"] = file_sha256(path)
    recipe = {"text": text}
    return {"format": 1, "worker": worker_facts(), "recipe": recipe, "outputs": outputs, **facts}
