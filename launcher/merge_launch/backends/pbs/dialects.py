"""What sites with PBS want: how resources are written, what is charged, where output may go."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ...job.job import Job
    from .resources import PbsResources


Lines = Callable[["PbsResources"], list[str]]


class Dialect(NamedTuple):
    """`keep`: how output goes to the log while the job runs; without it the job itself sends it
    there. `needs`: options that the site refuses a job without. `whole`: options that the type of
    its nodes decides. `mounts`: paths → the resource that names their file systems."""

    lines: Lines
    charge: str = "-P"
    keep: str | None = None
    longest_name: int = 63
    needs: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    most_gpus: int | None = None
    launcher: str = ""
    mounts: Callable[[Iterable[str]], str] | None = None
    setup: tuple[str, ...] = ()


def unit(mem: str, times: int = 1) -> str:
    """Torque knows no bare 'g'."""
    number, letter = re.fullmatch(r"(\d+)([kmgt]?)b?", mem.lower()).groups()  # type: ignore[union-attr]
    return f"{int(number) * times}{letter}b"


def _openpbs(wanted: PbsResources) -> list[str]:
    chunk = {"ncpus": wanted.ncpus, "ngpus": wanted.ngpus}
    parts = [f"{key}={value}" for key, value in chunk.items() if value is not None]
    if wanted.mem is not None:
        parts.append(f"mem={unit(wanted.mem)}")
    if wanted.nodes == 1:
        return [f"select=1:{':'.join(parts)}"] if parts else []
    return [f"select={':'.join([str(wanted.nodes), *parts, 'mpiprocs=1'])}", "place=scatter"]


def _torque(wanted: PbsResources) -> list[str]:
    cores = f":ppn={wanted.ncpus}" if wanted.ncpus is not None else ""
    gpus = f":gpus={wanted.ngpus}" if wanted.ngpus else ""
    memory = [] if wanted.mem is None else [f"mem={unit(wanted.mem, wanted.nodes)}"]
    return [f"nodes={wanted.nodes}{cores}{gpus}", *memory]


CORES_FOR_A_GPU = {"gpuvolta": 12, "dgxa100": 16}


def _gadi(wanted: PbsResources) -> list[str]:
    """For the whole job; the queue says how many cores go with a GPU."""
    cores, gpus = wanted.ncpus, wanted.ngpus
    if cores is None and gpus:
        cores = CORES_FOR_A_GPU.get(wanted.queue or "", 12) * gpus
    found = {"ngpus": gpus or None, "ncpus": cores}
    parts = [f"{key}={value * wanted.nodes}" for key, value in found.items() if value is not None]
    if wanted.mem is not None:
        parts.append(f"mem={unit(wanted.mem, wanted.nodes).upper()}")
    return ([",".join(parts)] if parts else []) + ["wd"]


def _polaris(wanted: PbsResources) -> list[str]:
    return [f"select={wanted.nodes}:system=polaris", "place=scatter"]


def _abci(wanted: PbsResources) -> list[str]:
    return [f"select={wanted.nodes}"]


def _gadi_mounts(paths: Iterable[str]) -> str:
    found = (re.match(r"/(?:g/(data)|(scratch))/(\w+)(?:/|$)", path) for path in paths)
    names = dict.fromkeys(f"{'gdata' if m[1] else 'scratch'}/{m[3]}" for m in found if m)
    return f"storage={'+'.join(names)}" if names else ""


def _polaris_mounts(paths: Iterable[str]) -> str:
    found = (re.match(r"/(?:lus/)?(home|eagle|grand|flare)(?:/|$)", path) for path in paths)
    return f"filesystems={':'.join(dict.fromkeys(['home', *(m[1] for m in found if m)]))}"


DIALECTS = {
    # Written to the log's own path while the job runs.
    "openpbs": Dialect(_openpbs, keep="oed"),
    # There -P names a proxy user, and -k keeps output on the node.
    "torque": Dialect(_torque, charge="-A", longest_name=15),
    "gadi": Dialect(_gadi, needs=("project",), mounts=_gadi_mounts),
    "polaris": Dialect(
        _polaris,
        charge="-A",
        keep="doe",
        needs=("project", "walltime"),
        whole=("ncpus", "mem"),
        most_gpus=4,
        launcher="mpiexec -n {nodes} --ppn 1 bash",
        mounts=_polaris_mounts,
    ),
    "abci": Dialect(
        _abci,
        needs=("project",),
        whole=("ncpus", "mem"),
        most_gpus=8,
        setup=("source /etc/profile.d/modules.sh",),
    ),
    # Nothing but the lines of --resource.
    "generic": Dialect(lambda wanted: [], keep="oed"),
}
ABCI_QUEUES = {0: "rt_HC", 1: "rt_HG"}
"""By GPUs; with more of them, rt_HF."""


def queue(wanted: PbsResources) -> str | None:
    if wanted.dialect != "abci" or wanted.queue is not None:
        return wanted.queue
    return "rt_HF" if wanted.ngpus is None else ABCI_QUEUES.get(wanted.ngpus, "rt_HF")


def resource_lines(wanted: PbsResources, job: Job) -> list[str]:
    """The values of -l, one a line."""
    dialect = DIALECTS[wanted.dialect]
    own = {name for line in wanted.resource for name in _names(line)}
    lines = [line for line in dialect.lines(wanted) if own.isdisjoint(_names(line))]
    # That of a site or profile gives way to a nearer one.
    lines += {tuple(_names(line)) or line: line for line in wanted.resource}.values()
    if dialect.mounts is not None:
        mounts = dialect.mounts([*job.merge.local_models(), job.merge.out, job.merge.folder])
        named = mounts.partition("=")[0]
        if mounts and not any(line.startswith(f"{named}=") for line in wanted.resource):
            lines.append(mounts)
    return lines


WHOLE_JOB = {"ncpus", "ngpus", "mem", "nodes"}


def _overruled(wanted: PbsResources) -> Iterator[str]:
    """Of two values of -l with one name the last holds alone, and nobody hears of it."""
    lines = DIALECTS[wanted.dialect].lines
    ours = {name: line for line in lines(wanted) for name in _names(line)}
    unasked = lines(dataclasses.replace(wanted, ngpus=None, ncpus=None, mem=None, nodes=1))
    for place, value in _values_of_l(wanted):
        for name in _names(value):
            if name == "walltime":
                yield f"{place}: say --walltime, from which the worker has its deadline"
            elif name in ours and name != "place" and ours[name] not in unasked:
                yield (
                    f"{place}: it would replace '-l {ours[name]}'; write all of that there, and "
                    f"leave --ngpus, --ncpus, --mem and --nodes out"
                )
            elif name not in ours and name in WHOLE_JOB and "select" in ours:
                yield (
                    f"{place}: PBS takes nothing for the whole job beside '-l {ours['select']}'; "
                    f"say --{name}"
                )


def _names(line: str) -> list[str]:
    return re.findall(r"(?:^|,)(\w+)=", line)


def _values_of_l(wanted: PbsResources) -> Iterator[tuple[str, str]]:
    for value in wanted.resource:
        yield f"--resource {value}", value
    for line in wanted.directive:
        for value in re.findall(r"(?:^|\s)-l\s*(\S+)", line):
            yield f"--directive '{line}'", value.strip("'\"")


def faults(wanted: PbsResources, name: str) -> list[str]:
    dialect = DIALECTS[wanted.dialect]
    found = [
        f"--{each}: {wanted.dialect} refuses a job without it"
        for each in dialect.needs
        if getattr(wanted, each) is None
    ]
    found += [
        f"--{each}: what a node of {wanted.dialect} has is fixed; leave it out"
        for each in dialect.whole
        if getattr(wanted, each) is not None
    ]
    if dialect.most_gpus is not None and (wanted.ngpus or 0) > dialect.most_gpus:
        found.append(f"--ngpus {wanted.ngpus}: a node of {wanted.dialect} has {dialect.most_gpus}")
    if len(name) > dialect.longest_name:
        found.append(
            f"--name {name}: {wanted.dialect} takes {dialect.longest_name} characters at most"
        )
    cores = CORES_FOR_A_GPU.get(wanted.queue or "") if wanted.dialect == "gadi" else None
    if cores and wanted.ngpus and wanted.ncpus not in (None, cores * wanted.ngpus):
        found.append(
            f"--ncpus {wanted.ncpus}: {wanted.queue} wants {cores} for a GPU, so "
            f"{cores * wanted.ngpus}; leave it out"
        )
    if wanted.dialect == "generic":
        found += [
            f"--{each}: write it into --resource, as your site has it"
            for each in ("ngpus", "ncpus", "mem")
            if getattr(wanted, each) is not None
        ]
    return [*found, *_overruled(wanted)]
