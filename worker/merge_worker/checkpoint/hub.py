"""Models of the Hugging Face Hub: small files at once, headers by ranges, weights when needed.

Everything goes through huggingface_hub, so the user's cache, token, mirror (`HF_ENDPOINT`) and
offline mode apply. Files in the cache are not downloaded again.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..messages import printable
from ..system.packages import missing_package
from .header import INDEX, WEIGHTS, Shard, read_shard, shard_of
from .json_files import is_inside

HEAD_BYTES = 1 << 20
"""First bytes of a file to fetch: more than most headers, and still little."""

PAGE_SUFFIXES = (
    *(".zip", ".tar.gz", ".parquet", ".pdf"),
    *(".png", ".jpg", ".jpeg", ".gif", ".mp4"),
)
"""Endings of files that belong to the page of a model on the Hub, and are not downloaded."""

_LARGE_SUFFIXES = (
    "safetensors bin pt pth ckpt gguf ggml h5 msgpack onnx ot onnx_data npz npy pkl nemo distcp "
    "mlmodel tflite"
)
_LARGE = [
    *(f"*.{suffix}" for suffix in _LARGE_SUFFIXES.split()),
    *(f"*{suffix}" for suffix in PAGE_SUFFIXES),
    "original/*",
    "onnx/*",
    "runs/*",
    "coreml/*",
    ".git*",
]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ADAPTER = re.compile(r"adapter_model\.(safetensors|bin)")
_IN_PARTS = re.compile(r"(?!adapter_).*\.safetensors")
_WHOLE = re.compile(r"adapter_model\.(safetensors|bin)|(diffusion_)?pytorch_model.*\.bin")
_REVISION = re.compile(r"[\w./*?-]+")  # or a pattern of revisions
_SNAPSHOT = re.compile(r".*/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?")


def is_hub_name(word: str, revision: bool = False) -> bool:
    """Return whether a word has the form `org/name`, or `org/name@revision` if that may follow."""
    name, at, commit = word.partition("@") if revision else (word, "", "")
    return bool(_HUB_NAME.fullmatch(name) and (not at or _REVISION.fullmatch(commit)))


def snapshot(path: Path) -> tuple[str, str] | None:
    """Return the Hub name and commit of a folder in the Hub's cache, None for other folders."""
    match = _SNAPSHOT.fullmatch(path.absolute().as_posix())
    return (f"{match[1]}/{match[2]}", match[3]) if match else None


def in_snapshot(path: Path) -> tuple[str, str, str] | None:
    """Return Hub name, commit and relative name of a file in the Hub's cache, else None."""
    for folder in path.absolute().parents:
        if origin := snapshot(folder):
            return *origin, path.absolute().relative_to(folder).as_posix()
    return None


class _RemoteFile(NamedTuple):
    repository: str
    commit: str
    name: str
    size: int


class Hub:
    """Files on the Hub that one command may read, by their paths in the cache.

    `pins` maps names and revisions of models to the commits to use instead. Threads share it.
    """

    def __init__(self) -> None:
        self.pins: dict[tuple[str, str | None], str] = {}
        self._files: dict[str, _RemoteFile] = {}
        self._busy: dict[str, threading.Lock] = {}
        self._downloaded: set[str] = set()
        self._guard = threading.Lock()

    def names(self, folder: Path) -> list[str]:
        """Return the names of the files on the Hub that belong to a folder of the cache."""
        return [file.name for path, file in self._files.items() if path == str(folder / file.name)]

    def is_not_downloaded(self, path: str) -> bool:
        """Return whether a file is on the Hub but not in the cache."""
        return path in self._files and not Path(path).exists()

    def describe(self, path: str) -> tuple[str, str, int]:
        """Return the model of a file on the Hub, its name there and its bytes."""
        file = self._files[path]
        return file.repository, file.name, file.size

    def size(self, path: str) -> int:
        """Return the bytes of a file on the Hub."""
        return self._files[path].size

    def resolve_revision(self, name: str, revision: str | None) -> Path:
        """Return the folder of a model in the cache, with all files but the weights.

        Raises InputError if the model or revision does not exist, or the Hub is unreachable.
        """
        revision = self.pins.get((name, revision), revision)
        client = _client(name)
        label = name + (f"@{revision}" if revision else "")
        try:
            folder = Path(client.snapshot_download(name, revision=revision, ignore_patterns=_LARGE))
        except Exception as error:  # network, Hub and disk raise classes of their own
            raise InputError(f"{label}: {_reason(client, error)}") from None
        if not client.constants.HF_HUB_OFFLINE:
            try:
                info = client.HfApi().model_info(name, revision=folder.name, files_metadata=True)
            except Exception as error:
                if not any(folder.glob("*.safetensors")):
                    raise InputError(f"{label}: {_reason(client, error)}") from None
                return folder  # no connection: use the cache as it is
            sizes = {item.rfilename: int(item.size or 0) for item in info.siblings or ()}
            self._register(folder, name, sizes)
        return folder

    def revisions(self, name: str) -> list[str]:
        """Return the branches and tags of a model; without a connection, those in the cache.

        Raises InputError if there are none.
        """
        client = _client(name)
        try:
            refs = client.HfApi().list_repo_refs(name)
            return [ref.name for ref in (*refs.branches, *refs.tags)]
        except Exception as error:
            stored = Path(client.constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
            folder = stored / "refs"
            names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            if found := sorted(names):
                return found
            raise InputError(f"{name}: {_reason(client, error)}") from None

    def _register(self, folder: Path, name: str, sizes: dict[str, int]) -> None:
        """Remember all files; download at once what cannot be read in parts: adapters, pickles."""
        for file, size in sizes.items():
            if not is_inside(file):
                raise InputError(f"{name}: the Hub lists a file elsewhere: '{printable(file)}'")
            self._files[str(folder / file)] = _RemoteFile(name, folder.name, file, size)
        if INDEX not in sizes and WEIGHTS not in sizes:
            parts = any("/" not in n and _IN_PARTS.fullmatch(n) for n in sizes)
            for file in filter((_ADAPTER if parts else _WHOLE).fullmatch, sizes):
                self.download(str(folder / file))

    def read_header(self, path: Path) -> Shard:
        """Fetch only the header of a file. Raises InputError."""
        file = self._files[str(path)]
        client = _client(file.repository)
        url = client.hf_hub_url(file.repository, file.name, revision=file.commit)

        def fetch(first: int, last: int) -> bytes:
            from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

            headers = {**build_hf_headers(), "Range": f"bytes={first}-{last}"}
            try:
                response = get_session().get(url, headers=headers)
                hf_raise_for_status(response)
            except Exception as error:
                raise InputError(f"{file.repository}: {_reason(client, error)}") from None
            return bytes(response.content[: last - first + 1])

        head = fetch(0, min(HEAD_BYTES, file.size) - 1)
        length = int.from_bytes(head[:8], "little")
        if len(head) < 8 + length <= file.size:
            head += fetch(len(head), 7 + length)
        return shard_of(path, file.size, head)

    def download(self, path: str) -> bool:
        """Download a file unless it is in the cache; return whether it was downloaded.

        Other threads that ask for the same file wait until it is checked. Raises InputError.
        """
        file = self._files.get(path)
        if file is None:
            return False
        with self._guard:
            lock = self._busy.setdefault(path, threading.Lock())
        with lock:
            if Path(path).exists():
                return False
            client = _client(file.repository)
            try:
                client.hf_hub_download(file.repository, file.name, revision=file.commit)
            except Exception as error:
                reason = _reason(client, error)
                raise InputError(f"{file.repository}: {file.name}: {reason}") from None
            if path.endswith(".safetensors"):
                read_shard(Path(path))
            self._downloaded.add(path)
        return True

    def adopt(self, other: Hub) -> None:
        """Take over the files that another Hub knows."""
        self._files |= other._files

    def remove_download(self, path: str) -> None:
        """Remove a file that this process downloaded."""
        if path in self._downloaded:
            for place in (Path(path).resolve(), Path(path)):
                with contextlib.suppress(OSError):
                    place.unlink()
            self._downloaded.discard(path)


def prepare_upload(name: str, private: bool) -> str:
    """Make sure that a Hub model can be written, and return a line about who will see it.

    The repository is made here, before the merge: only that proves the right to write. One that
    exists stays as visible as it is. Raises InputError.
    """
    client = _client(name)
    api = client.HfApi()
    try:
        user = api.whoami()["name"]
    except Exception as error:
        if isinstance(error, client.errors.LocalTokenNotFoundError) or not client.get_token():
            why = "no token; set HF_TOKEN, or: hf auth login"
        else:
            why = f"the token was refused: {_reason(client, error)}"
        raise InputError(f"--push {name}: {why}") from None
    try:
        client.create_repo(name, private=private, exist_ok=True)
        is_private = bool(api.model_info(name).private)
    except Exception as error:
        raise InputError(
            f"--push {name}: {user} may not write there: {_reason(client, error)}\n"
            f"  give a token with the right to write, or a name of {user}/"
        ) from None
    who = "private" if is_private else "public; --private keeps a new one to yourself"
    return f"push       {name} as {user}, {who}"


def upload(files: Iterable[tuple[str, Path | bytes]], name: str) -> str:
    """Upload files by name to a Hub model that is there, and return its URL. Raises InputError."""
    client = _client(name)
    try:
        added = [client.CommitOperationAdd(path, content) for path, content in files]
        done = client.HfApi().create_commit(name, added, commit_message="Upload merged model")
    except Exception as error:
        raise InputError(
            f"--push {name}: not uploaded: {_reason(client, error)}\n"
            f"  the merge is done; the same command only uploads, without what is there already"
        ) from None
    return f"uploaded   {done.commit_url or name}"


def _client(name: str) -> Any:
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise missing_package(
            f"{name}: not a folder here, and for a model of the Hub",
            "huggingface_hub",
            otherwise="or give the path of a folder",
        ) from None
    disable_progress_bars()
    return huggingface_hub


def _reason(client: Any, error: Exception) -> str:
    """Return what went wrong, and the way out."""
    errors = client.errors
    if isinstance(error, errors.GatedRepoError):
        return "gated; accept its terms on the Hub, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such folder here, and no such model on the Hub; if it is private, set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return "unknown revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        offline = client.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
        return f"no such folder here, not in the Hub's cache, and {why}"
    return f"the Hub answered: {printable(str(error).strip().split(chr(10))[0])[:200]}"
