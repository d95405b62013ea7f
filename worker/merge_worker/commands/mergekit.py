"""`merge-worker mergekit`: run a recipe with mergekit itself.

Takes the mergekit on the node, else installs the pinned release into an environment for this run.
The result is committed like that of any merge, once all tensors of the base are in it.
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
from ..errors import InputError, OutputError, ResultError, Stopped, UsageError, input_errors
from ..messages import first_names
from ..output.checksums import file_sha256
from ..output.commit import commit, loaders_last, seal
from ..output.files import CARD, FINAL_FILES, PARTIAL, RECIPE, output_errors, write_file
from ..output.journal import KEY, pending_commit, read_key
from ..output.lock import Lock, refuse_others
from ..output.manifest import read_manifest, worker_facts
from ..output.store import clear, remove_partial
from ..recipe import parse
from ..recipe.schema import ModelRef, Recipe
from ..structure.components import is_computed
from ..structure.layers import layer_of
from ..system.ranks import from_environment
from ..units import parse_duration
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


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yml")
    parser.add_argument("out", metavar="OUT")
    add_options(parser, "mergekit")


@input_errors("mergekit")
def command(arguments: argparse.Namespace) -> str:
    """WorkerError: 2 wrong command, 3 no mergekit, 4 OUT is taken, 5 lost tensors, 75 stopped."""
    if from_environment().world > 1:
        raise UsageError("mergekit merges in one process; leave several nodes and replicas out")
    path, out = Path(arguments.recipe).absolute(), Path(arguments.out).absolute()
    text = path.read_text(encoding="utf-8")
    os.chdir(arguments.relative_to)  # where mergekit takes paths from, too
    recipe, flags = parse(text, str(path)), _flags(arguments)
    key = hashlib.sha256(json.dumps(["mergekit", text, flags]).encode()).hexdigest()
    with output_errors(out):
        if (read_manifest(out) or {}).get("key") == key:
            return f"{out}: this merge is already there; nothing to do"
        if (
            read_key(out / PARTIAL) == key
            and (replaces := pending_commit(out / PARTIAL)) is not None
        ):
            with Lock(out / PARTIAL / LOCK, key):
                commit(out, replaces)
            return f"{out}: finished what an earlier run had merged"
        replaces = _replaced(out, key, arguments.overwrite)
    began = time.monotonic()
    limit = parse_duration(arguments.deadline) if arguments.deadline else None
    with _partial(out, key) as staged, mergekit() as (program, python, version):
        print(f"mergekit {version}: {program}", file=sys.stderr)
        _run([program, str(path), str(staged), *flags], limit)
        _check(recipe, staged, python)
        took = round(time.monotonic() - began, 3)
        facts = {
            "key": key,
            "engine": "mergekit",
            "mergekit": version,
            "seed": arguments.seed,
            "timings": {"total_s": took},
        }
        seal(out, _manifest(staged, text, facts), replaces)
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
        raise OutputError(f"{out}: holds something else already; {advice}")
    return others


@contextlib.contextmanager
def _partial(out: Path, key: str) -> Iterator[Path]:
    """Make an empty folder for the files of the result; nothing is left of it after an error."""
    partial, made = out / PARTIAL, not out.exists()
    staged = partial / FINAL_FILES
    with output_errors(out):
        partial.mkdir(parents=True, exist_ok=True)
        with Lock(partial / LOCK, key):
            try:
                refuse_others(partial, key)
                clear(partial)
                write_file(partial / KEY, json.dumps({"key": key}))
                staged.mkdir()
                yield staged
            except BaseException:
                # Files that are being committed stay: the next run finishes that.
                if pending_commit(partial) is None:
                    remove_partial(out)
                    with contextlib.suppress(OSError):
                        if made:
                            out.rmdir()
                raise


@contextlib.contextmanager
def mergekit() -> Iterator[tuple[str, str, str]]:
    """The program, the Python that runs it, and its release. InputError if there is none."""
    beside = Path(sys.executable).parent / PROGRAM
    found = str(beside) if beside.is_file() else shutil.which(PROGRAM)
    if found is not None:
        first = Path(found).read_bytes().partition(b"\n")[0].decode(errors="replace")
        python = first.removeprefix("#!").strip() if first.startswith("#!") else sys.executable
        yield found, python, _release(python)
        return
    with tempfile.TemporaryDirectory(prefix="mergekit-") as folder:
        yield from _installed(Path(folder))


def _installed(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Install mergekit into an environment that sees the packages of this Python.

    So pip does not fetch torch and transformers anew, as it does with --target, and mergekit
    imports the node's own build of transformers, also one that is installed as editable.
    """
    print(f"no {PROGRAM} here; installing mergekit {PIN} for this run", file=sys.stderr)
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python3*/site-packages")
    lines = (f"import site; site.addsitedir({path!r})\n" for path in _own_packages())
    (packages / "of-the-node.pth").write_text("".join(lines))
    argv = [str(python), "-m", "pip", "install", "--quiet", f"mergekit=={PIN}"]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise InputError(
            f"mergekit {PIN} is not on this node and cannot be installed: {said[-1].strip()}\n"
            f"  bring it with --setup 'source …/bin/activate', or with the image"
        )
    yield str(folder / "bin" / PROGRAM), str(python), PIN


def _own_packages() -> list[str]:
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [path for path in [*site.getsitepackages(), *user] if Path(path).is_dir()]


def _release(python: str) -> str:
    code = "from importlib.metadata import version; print(version('mergekit'))"
    argv = [*python.split(), "-c", code]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()
    return "of an unknown release"


def _run(argv: Sequence[str], limit_s: float | None) -> None:
    """ResultError if it fails; Stopped at the limit or by a signal, with nothing left running."""
    with subprocess.Popen(argv, start_new_session=True) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Stopped("stopped before the time limit; mergekit begins anew") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        raise ResultError(f"{PROGRAM} ended with status {code}; its own words are above")


def _check(recipe: Recipe, written: Path, python: str) -> None:
    """Whatever the base holds must be there; of restacked layers only what is in none."""
    path = _base_folder(recipe.own_refs()[0], python)
    held = set(open_checkpoint(written).tensors)
    base = open_checkpoint(path)
    # It leaves buffers out that models compute themselves.
    expected = {n for n, held in base.tensors.items() if not is_computed(n, held.shape)}
    if any(module.sliced for module in recipe.modules):
        expected = {name for name in expected if layer_of(name) is None}
    if base.config.get("tie_word_embeddings"):
        expected.discard("lm_head.weight")
    lost = sorted(expected - held)
    if lost:
        raise ResultError(
            f"mergekit lost {len(lost)} of {len(expected)} tensors of {path}: {first_names(lost)}; "
            f"leave --engine away"
        )


def _base_folder(ref: ModelRef, python: str) -> Path:
    """Where mergekit has put a model of the hub, which it has just read."""
    if not is_hub_id(ref.path):
        return Path(ref.path).expanduser()
    code = (
        "import sys; from huggingface_hub import snapshot_download as s; "
        "print(s(sys.argv[1], revision=sys.argv[2] or None, local_files_only=True))"
    )
    argv = [*python.split(), "-c", code, ref.path, ref.revision or ""]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise ResultError(f"{ref.path}: nobody can tell where it is, so the result is not checked")
    return Path(done.stdout.strip().splitlines()[-1])


def _manifest(staged: Path, text: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Add recipe and card to what mergekit wrote; returns the manifest of all of it."""
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
