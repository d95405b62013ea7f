"""What no arguments hold travels as a Beaker dataset, named by what is in it and made only once."""

from __future__ import annotations

import hashlib
import secrets
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launcher.errors import ClusterError
from launcher.job import Job
from worker.errors import printable

if TYPE_CHECKING:
    from ._beaker_client import Client

MOUNT = "/merge-launch"
PREFIX = "merge-launch-"
IN_ARGUMENTS = 1024 * 1024
"""Bytes of text that arguments are used for; Linux takes about twice as many."""
IN_SCRIPT = 64 * 1024
"""Of further recipes, which stand in the script, one argument."""
LARGEST = 32 * 1024 * 1024
"""Bytes of a file that goes up in one request."""


def files(job: Job) -> dict[str, bytes]:
    """Those of a job that arguments are too small for; none of any other."""
    further = {one["file"]: merge.text for one, merge in zip(job.further(), job.also, strict=True)}
    found = {"merge-worker.pyz.bz2": job.payload.packed, "recipe.yml": job.merge.text, **further}
    whole, in_script = (sum(map(len, some.values())) * 4 // 3 for some in (found, further))
    return found if whole > IN_ARGUMENTS or in_script > IN_SCRIPT else {}


def name(held: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for file, data in sorted(held.items()):
        digest.update(f"{file} {len(data)}\n".encode() + data)
    return PREFIX + digest.hexdigest()[:32]


def storage_url(storage: Mapping[str, str]) -> str:
    if storage.get("address"):
        return storage["address"].replace("fh://", "https://", 1)
    return f"https://{urllib.parse.urlparse(storage['urlv2']).netloc}"


def load(
    client: Client, spec: Mapping[str, Any], place: tuple[str, str], held: Mapping[str, bytes]
) -> bool:
    """Put the dataset's id where the spec has its name. False if it mounts none of ours.

    `place`: author and workspace."""
    for task in spec["tasks"]:
        for mount in task.get("datasets", []):
            word = str(mount["source"].get("beaker", ""))
            if mount["mountPath"] == MOUNT and word.startswith(PREFIX):
                mount["source"] = {"beaker": _found(client, word, place, held)}
                return True
    return False


def _found(client: Client, word: str, place: tuple[str, str], held: Mapping[str, bytes]) -> str:
    """The id of the dataset, of an earlier job or made now."""
    author, workspace = place
    found = client.dataset(author, word)
    if found is None and not held:
        raise ClusterError(
            f"beaker: the dataset {printable(f'{author}/{word}')} of this job is gone; submit the "
            f"merge anew"
        )
    if found is None:
        found = client.create_dataset(word, workspace, held) or client.dataset(author, word)
    # One of the name that is not whole: somebody makes it now, or never ended it.
    fresh = f"{word}-{secrets.token_hex(4)}"
    found = found or client.create_dataset(fresh, workspace, held)
    if found is None:
        raise ClusterError(f"beaker: the dataset {printable(word)} cannot be made; try it again")
    return found
