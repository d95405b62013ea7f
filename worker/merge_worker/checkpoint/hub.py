"""Models of the hub: small files at once, headers by ranges, weights when they are needed.

Everything goes through huggingface_hub: its cache, token, mirror (`HF_ENDPOINT`) and offline mode
are those of the user. What is in the cache already is not asked for again.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, UsageError
from ..messages import printable
from .header import INDEX, WEIGHTS, Shard, read_shard, shard_of

# MERGED Files that the hub has. hub.py, which gets them, is imported late, since it imports this.


class Remote(NamedTuple):
    """A file that may not be here yet."""

    repository: str
    commit: str
    name: str
    size: int


files: dict[str, Remote] = {}

pins: dict[tuple[str, str | None], str] = {}
"""Commits to take for models and their revisions, where a merge is done again."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_REVISION = re.compile(r"[\w./-]+")
_SNAPSHOT = re.compile(r".*/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?")


def is_hub_name(word: str, revision: bool = False) -> bool:
    """Return whether a word has the form `org/name`, or `org/name@revision` if that may follow."""
    name, at, commit = word.partition("@") if revision else (word, "", "")
    return bool(_HUB_NAME.fullmatch(name) and (not at or _REVISION.fullmatch(commit)))


def snapshot(path: Path) -> tuple[str, str] | None:
    """Hub id and commit of a folder in a cache of the hub."""
    found = _SNAPSHOT.fullmatch(path.absolute().as_posix())
    return (f"{found[1]}/{found[2]}", found[3]) if found else None


def names(folder: Path) -> list[str]:
    """Files of weights that the hub has for a folder of its cache."""
    return [remote.name for path, remote in files.items() if Path(path).parent == folder]


def absent(path: str) -> bool:
    """Whether a file is on the hub, but not here yet."""
    return path in files and not Path(path).exists()


def size(path: str) -> int:
    return files[path].size


HEAD_BYTES = 1 << 20
"""More than the headers of most files have, and little to fetch."""

_NO_SMALL_FILES = [
    *(f"*.{end}" for end in (
        "safetensors", "bin", "pt", "pth", "ckpt", "gguf", "ggml", "h5", "msgpack", "onnx", "ot",
        "onnx_data", "npz", "npy", "pkl", "nemo", "distcp", "mlmodel", "tflite", "zip", "tar.gz",
        "png", "jpg", "jpeg", "gif", "mp4", "pdf", "parquet",
    )),
    *("original/*", "onnx/*", "runs/*", "coreml/*", ".git*"),
]  # fmt: skip

_busy: dict[str, threading.Lock] = {}
_fetched: set[str] = set()
_guard = threading.Lock()


def resolve_revision(name: str, revision: str | None) -> Path:
    """The folder of a model in the cache, with all files but the weights. InputError."""
    revision = pins.get((name, revision), revision)
    hub = _client(name)
    label = name + (f"@{revision}" if revision else "")
    try:
        place = hub.snapshot_download(name, revision=revision, ignore_patterns=_NO_SMALL_FILES)
    except Exception as error:  # of the network, of the hub, of the disk: each has its class
        raise InputError(f"{label}: {_reason(hub, error)}") from None
    folder = Path(place)
    if not hub.constants.HF_HUB_OFFLINE:
        try:
            info = hub.HfApi().model_info(name, revision=folder.name, files_metadata=True)
        except Exception as error:
            if not any(folder.glob("*.safetensors")):
                raise InputError(f"{label}: {_reason(hub, error)}") from None
            return folder  # no connection; what the cache has is looked at as it is
        sizes = {item.rfilename: int(item.size or 0) for item in info.siblings or ()}
        _register(folder, name, sizes)
    return folder


def _client(name: str) -> Any:
    try:
        import huggingface_hub as hub
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise UsageError(
            f"{name}: not a folder here, and models of the hub need huggingface_hub: "
            f"pip install huggingface_hub, or give the path of a folder"
        ) from None
    disable_progress_bars()
    return hub


def _reason(hub: Any, error: Exception) -> str:
    """What went wrong, and what to do."""
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):
        return "gated; accept its terms on the hub, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such folder here, no such model on the hub; if it is private, set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the model has no such revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        offline = hub.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        return f"no such folder here, it is not in the hub's cache, and {why}"
    return f"the hub said: {printable(str(error).strip().split(chr(10))[0])[:200]}"


def _register(folder: Path, name: str, sizes: dict[str, int]) -> None:
    """Remember the weights; fetch at once what is small, or cannot be read in parts."""
    index = folder / INDEX
    wanted = [n for n in sizes if "/" not in n and n.endswith(".safetensors")]
    if index.is_file():
        with contextlib.suppress(ValueError, AttributeError):  # told when it is opened
            wanted = list(dict.fromkeys(json.loads(index.read_text())["weight_map"].values()))
    elif WEIGHTS in wanted:
        wanted = [WEIGHTS]
    whole = [n for n in wanted if n.startswith("adapter_")]
    if not wanted:
        whole = [n for n in sizes if re.fullmatch(r"(pytorch|adapter)_model.*\.bin", n)]
    for file in (*wanted, *whole):
        if file in sizes:
            path = str(folder / file)
            files[path] = Remote(name, folder.name, file, sizes[file])
            if file in whole:
                download(path)


def read_header(path: Path) -> Shard:
    """The header of a file, fetched without the rest. InputError."""
    remote = files[str(path)]
    hub = _client(remote.repository)
    url = hub.hf_hub_url(remote.repository, remote.name, revision=remote.commit)

    def part(first: int, last: int) -> bytes:
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = {**build_hf_headers(), "Range": f"bytes={first}-{last}"}
        try:
            response = get_session().get(url, headers=headers)
            hf_raise_for_status(response)
        except Exception as error:
            raise InputError(f"{remote.repository}: {_reason(hub, error)}") from None
        return bytes(response.content[: last - first + 1])

    head = part(0, min(HEAD_BYTES, remote.size) - 1)
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 + length <= remote.size:
        head += part(len(head), 7 + length)
    return shard_of(path, remote.size, head)


def download(path: str) -> bool:
    """Fetch a file unless it is here; others that ask meanwhile wait. True if it was fetched."""
    remote = files.get(path)
    if remote is None or Path(path).exists():
        return False
    with _guard:
        lock = _busy.setdefault(path, threading.Lock())
    with lock:
        if Path(path).exists():
            return False
        hub = _client(remote.repository)
        try:
            hub.hf_hub_download(remote.repository, remote.name, revision=remote.commit)
        except Exception as error:
            raise InputError(f"{remote.repository}: {remote.name}: {_reason(hub, error)}") from None
        if path.endswith(".safetensors"):
            read_shard(Path(path))
        _fetched.add(path)
    return True


def remove_download(path: str) -> None:
    """Remove a file that was fetched by this process."""
    if path in _fetched:
        for place in (Path(path).resolve(), Path(path)):
            with contextlib.suppress(OSError):
                place.unlink()
        _fetched.discard(path)


def upload(files: Iterable[tuple[str, Path | bytes]], name: str) -> str:
    """Files by name as a model of the hub; where it is. InputError with what the hub said."""
    hub = _client(name)
    try:
        hub.create_repo(name, exist_ok=True)
        added = [hub.CommitOperationAdd(path, content) for path, content in files]
        done = hub.HfApi().create_commit(name, added, commit_message="Upload merged model")
    except Exception as error:
        raise InputError(f"--push {name}: {_reason(hub, error)}") from None
    return str(done.commit_url or name)
