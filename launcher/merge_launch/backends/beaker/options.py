"""The options of Beaker, named as in gantry where it has them, and the mounts they request."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from ...settings.options import option
from ..base import Resources
from .spec import DURATION, PRIORITIES, SIZE

WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
OWNED = f"{WORD}(/{WORD})?"


@dataclass(frozen=True)
class BeakerResources(Resources):
    """The options of the Beaker backend."""

    gpus: int = option(0, "GPUs", "N")
    cpus: str | None = option(None, "CPUs", "N", r"\d+(\.\d+)?", "a number such as 8 or 0.5")
    mem: str | None = option(None, "memory of the machine", "64GiB", SIZE, "a size such as 64GiB")
    shared_memory: str | None = option(
        None, "size of /dev/shm", "10GiB", SIZE, "a size such as 10GiB"
    )
    cluster: tuple[str, ...] = option(
        (), "cluster that may run the job (repeatable)", "ORG/NAME", OWNED, "such as ai2/jupiter"
    )
    workspace: str | None = option(
        None,
        "workspace; default: that of the Beaker config",
        "ORG/NAME",
        OWNED,
        "such as ai2/merging",
    )
    budget: str | None = option(
        None, "budget; default: that of the workspace", "ORG/NAME", OWNED, "such as ai2/research"
    )
    group: tuple[str, ...] = option(
        (), "a group that the experiment joins (repeatable)", "NAME", OWNED, "a name"
    )
    description: str | None = option(
        None, "description on the page; default: methods and models", "WORDS"
    )
    priority: str = option(
        "normal",
        "priority of the job",
        pattern="|".join(PRIORITIES),
        expected=" or ".join(PRIORITIES),
    )
    image: str | None = option(
        None,
        "an image with python and torch; docker://TAG for a Docker image",
        "AUTHOR/NAME",
        r"(docker://)?[A-Za-z0-9][A-Za-z0-9_.:/@-]*",
        "AUTHOR/NAME or docker://TAG",
    )
    weka: tuple[str, ...] = option(
        (),
        "mount a Weka bucket, by default at /weka/BUCKET (repeatable)",
        "BUCKET[:/PATH]",
        rf"{WORD}(:/[^:]*)?",
        "BUCKET or BUCKET:/PATH",
        accumulates=True,
    )
    mount: tuple[str, ...] = option(
        (),
        "mount a dataset (name or id), a folder in it, or a host's folder (repeatable)",
        "SOURCE[:SUB]:/PATH",
        r"[^:]+(:[^:/][^:]*)?:/[^:]*",
        "DATASET:/PATH, DATASET:SUB/FOLDER:/PATH or /HOST/PATH:/PATH",
        accumulates=True,
    )
    secret: tuple[str, ...] = option(
        (),
        "set a variable from a secret of the workspace (repeatable)",
        "VAR=SECRET",
        r"[A-Za-z_][A-Za-z0-9_]*=.+",
        "VARIABLE=SECRET",
        accumulates=True,
    )
    timeout: str | None = option(
        None, "time limit; the merge stops cleanly before it", "24h", DURATION, "such as 30m or 4h"
    )
    min_runtime: str | None = option(
        None, "time during which the job cannot be preempted", "1h", DURATION, "such as 30m or 4h"
    )
    no_auto_resume: bool = option(False, "do not restart a preempted job")
    retries: int = option(0, "how often a failed job is restarted", "N")
    replicas: int = option(
        1, "machines that share the merge, each with these resources", "N", minimum=1
    )


class Mount(NamedTuple):
    """A dataset, bucket or folder of the host, or its subfolder `sub`, mounted at `path`."""

    kind: str
    source: str
    sub: str
    path: str


def requested_mounts(resources: BeakerResources) -> list[Mount]:
    """Return the mounts that --weka and --mount request."""
    result = []
    for word in resources.weka:
        bucket, _, path = word.partition(":")
        result.append(Mount("weka", bucket, "", path or f"/weka/{bucket}"))
    for word in resources.mount:
        source, *sub, path = word.split(":")
        kind = "hostPath" if source.startswith("/") else "beaker"
        result.append(Mount(kind, source, "".join(sub), path))
    return result


def implied_mounts(resources: BeakerResources, paths: Iterable[str]) -> list[Mount]:
    """Return the buckets of `paths` below /weka/BUCKET, except beside requested mounts there."""
    requested = [mount.path.lower() for mount in requested_mounts(resources)]
    result: dict[str, Mount] = {}
    for path in paths:
        match = re.match(rf"/weka/({WORD})(?=/|$)", posixpath.normpath(path))
        if match is None:
            continue
        place = match[0].lower()
        if not covered(place, requested) and not any(covered(path, [place]) for path in requested):
            result.setdefault(match[0], Mount("weka", match[1], "", match[0]))
    return list(result.values())


def covered(path: str, by: list[str]) -> bool:
    """Return whether a path lies in one of the folders `by`."""
    plain = PurePosixPath(posixpath.normpath(path))
    return any(plain.is_relative_to(posixpath.normpath(folder)) for folder in by)
