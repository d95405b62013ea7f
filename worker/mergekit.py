"""`merge-worker mergekit`: the recipe by mergekit itself, for whoever must have it.

Takes the mergekit that is on the node, else installs the pinned release into an environment of its
own for this run. What it wrote gets its name only when no tensor of the base is lost, and a
manifest, so that the same command once more has nothing to do.
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
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import is_hub_id, open_checkpoint, read_json
from .computed import is_computed
from .errors import InputError, OutputError, ResultError, Stopped, UsageError, first_names
from .layers import layer_of
from .manifest import NAME, read_manifest, worker_facts
from .options import add_options
from .ranks import from_environment
from .recipe import ModelRef, Recipe, parse
from .units import parse_duration

PIN = "0.1.5"
PROGRAM = "mergekit-yaml"
CHUNK = 8 << 20

CARD = """---
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


def command(arguments: argparse.Namespace) -> str:
    """WorkerError: 2 wrong command, 3 no mergekit, 4 OUT is taken, 5 lost tensors, 75 stopped."""
    if from_environment().world > 1:
        raise UsageError("mergekit merges in one process; leave several nodes and replicas out")
    path, out = Path(arguments.recipe).absolute(), Path(arguments.out).absolute()
    text = path.read_text(encoding="utf-8")
    os.chdir(arguments.relative_to)  # where mergekit takes paths from, too
    recipe, flags = parse(text, str(path)), _flags(arguments)
    key = hashlib.sha256(json.dumps(["mergekit", text, flags]).encode()).hexdigest()
    if _there(out, key, arguments.overwrite):
        return f"{out}: this merge is already there; nothing to do"
    began = time.monotonic()
    limit = parse_duration(arguments.deadline) if arguments.deadline else None
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.mergekit-", dir=out.parent))
    try:
        with mergekit() as (program, python, version):
            print(f"mergekit {version}: {program}", file=sys.stderr)
            _run([program, str(path), str(partial), *flags], limit)
            _check(recipe, partial, python)
        took = round(time.monotonic() - began, 3)
        facts = {"engine": "mergekit", "mergekit": version, "seed": arguments.seed}
        _finish(out, partial, {"key": key, **facts, "timings": {"total_s": took}}, text)
    except OSError as error:
        raise OutputError(f"{out}: cannot write: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
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


def _there(out: Path, key: str, overwrite: bool) -> bool:
    """Whether OUT holds this very merge. OutputError if it holds anything else."""
    held = read_manifest(out)
    if held is not None and held.get("key") == key:
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (held and overwrite):
        advice = "add --overwrite or choose another OUT" if held else "choose another OUT"
        raise OutputError(f"{out}: holds something else already; {advice}")
    return False


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
    """In an environment that sees what this Python has, so that torch is not fetched anew."""
    print(f"no {PROGRAM} here; installing mergekit {PIN} for this run", file=sys.stderr)
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "of-the-node.pth").write_text("\n".join(_own_packages()) + "\n")
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
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if isinstance(config, dict) and config.get("tie_word_embeddings"):
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


def _finish(out: Path, partial: Path, facts: dict[str, Any], text: str) -> None:
    outputs = []
    for file in sorted(partial.glob("*.safetensors")):
        crc = 0
        with file.open("rb") as stream:
            while data := stream.read(CHUNK):
                crc = zlib.crc32(data, crc)
            os.fsync(stream.fileno())
        outputs.append({"file": file.name, "bytes": file.stat().st_size, "crc32": f"{crc:08x}"})
    recipe = {"text": text}
    value = {"format": 1, "worker": worker_facts(), "recipe": recipe, "outputs": outputs, **facts}
    (partial / "mergekit_config.yml").write_text(text)
    (partial / "README.md").write_text(CARD.format(facts["mergekit"], text))
    (partial / NAME).write_text(json.dumps(value, indent=1) + "\n")
    partial.chmod(0o777 & ~_umask())
    for file in partial.iterdir():
        file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
    if out.is_dir():
        old = out.with_name(f".{out.name}.replaced-{os.getpid()}")
        out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(out)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
