"""The dialects of PBS: how a site writes resources, charges projects and keeps output.

To add a dialect, add one row to `DIALECTS` and its name to `resources.DIALECTS`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ...job.job import Job
    from .resources import PbsResources


class Dialect(NamedTuple):
    """One dialect of PBS.

    `lines`: the values of -l for the resources of a job.
    `charge`: the option of qsub that names the project.
    `keep`: the value of -k that writes output to the log while the job runs; without one the job
    redirects its output itself.
    `required`: options without which the site rejects a job.
    `fixed`: options that the type of the node decides.
    `cores_per_gpu`: by queue, where the site wants this number exactly.
    `queue`: the queue for a number of GPUs, if the user names none.
    `launcher`: shell words that start a script on every node, if pbsdsh does not serve.
    `mounts`: the resource that names the file systems of some paths.
    `setup`: shell lines before everything else.
    `resources_by_option`: whether --ngpus, --ncpus and --mem mean anything.
    """

    lines: Callable[[PbsResources], list[str]]
    charge: str = "-P"
    keep: str | None = None
    longest_name: int = 63
    required: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    max_gpus: int | None = None
    cores_per_gpu: Mapping[str, int] = MappingProxyType({})
    queue: Callable[[int | None], str] | None = None
    launcher: str = ""
    mounts: Callable[[Iterable[str]], str] | None = None
    setup: tuple[str, ...] = ()
    resources_by_option: bool = True


def unit(mem: str, times: int = 1) -> str:
    """Return `mem`, multiplied, with a unit that ends in b: Torque does not accept a bare 'g'."""
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


GADI_CORES_PER_GPU = {"gpuvolta": 12, "dgxa100": 16}


def _gadi(wanted: PbsResources) -> list[str]:
    """Return totals of the whole job; without --ncpus, the cores that the queue has per GPU."""
    cores, gpus = wanted.ncpus, wanted.ngpus
    if cores is None and gpus:
        cores = GADI_CORES_PER_GPU.get(wanted.queue or "", 12) * gpus
    counts = {"ngpus": gpus or None, "ncpus": cores}
    parts = [f"{key}={value * wanted.nodes}" for key, value in counts.items() if value is not None]
    if wanted.mem is not None:
        parts.append(f"mem={unit(wanted.mem, wanted.nodes).upper()}")
    return ([",".join(parts)] if parts else []) + ["wd"]


def _gadi_mounts(paths: Iterable[str]) -> str:
    matches = (re.match(r"/(?:g/(data)|(scratch))/(\w+)(?:/|$)", path) for path in paths)
    names = dict.fromkeys(f"{'gdata' if m[1] else 'scratch'}/{m[3]}" for m in matches if m)
    return f"storage={'+'.join(names)}" if names else ""


def _polaris_mounts(paths: Iterable[str]) -> str:
    matches = (re.match(r"/(?:lus/)?(home|eagle|grand|flare)(?:/|$)", path) for path in paths)
    return f"filesystems={':'.join(dict.fromkeys(['home', *(m[1] for m in matches if m)]))}"


def _abci_queue(gpus: int | None) -> str:
    return {0: "rt_HC", 1: "rt_HG"}.get(gpus, "rt_HF") if gpus is not None else "rt_HF"


DIALECTS = {
    # -k oed writes to the path of the log while the job runs.
    "openpbs": Dialect(_openpbs, keep="oed"),
    # In Torque, -P names a proxy user, and -k keeps output on the node.
    "torque": Dialect(_torque, charge="-A", longest_name=15),
    "gadi": Dialect(
        _gadi, required=("project",), cores_per_gpu=GADI_CORES_PER_GPU, mounts=_gadi_mounts
    ),
    "polaris": Dialect(
        lambda wanted: [f"select={wanted.nodes}:system=polaris", "place=scatter"],
        charge="-A",
        keep="doe",
        required=("project", "walltime"),
        fixed=("ncpus", "mem"),
        max_gpus=4,
        launcher="mpiexec -n {nodes} --ppn 1 bash",
        mounts=_polaris_mounts,
    ),
    "abci": Dialect(
        lambda wanted: [f"select={wanted.nodes}"],
        required=("project",),
        fixed=("ncpus", "mem"),
        max_gpus=8,
        queue=_abci_queue,
        setup=("source /etc/profile.d/modules.sh",),
    ),
    # Only the lines of --resource.
    "generic": Dialect(lambda wanted: [], keep="oed", resources_by_option=False),
}
"""All dialects by name. A new one is one row here; its name also goes into `resources.DIALECTS`."""


def queue(wanted: PbsResources) -> str | None:
    """Return the queue that the user names, or the one that the dialect chooses."""
    choose = DIALECTS[wanted.dialect].queue
    return wanted.queue if wanted.queue is not None or choose is None else choose(wanted.ngpus)


def resource_lines(wanted: PbsResources, job: Job) -> list[str]:
    """Return the values of -l, one per line."""
    dialect = DIALECTS[wanted.dialect]
    overridden = {name for line in wanted.resource for name in _names(line)}
    lines = [line for line in dialect.lines(wanted) if overridden.isdisjoint(_names(line))]
    # A value of a site or profile gives way to a nearer one: the last wins.
    lines += {tuple(_names(line)) or line: line for line in wanted.resource}.values()
    if dialect.mounts is not None:
        mounts = dialect.mounts([*job.local_inputs(), job.merge.out, job.merge.folder])
        name = mounts.partition("=")[0]
        if mounts and not any(line.startswith(f"{name}=") for line in wanted.resource):
            lines.append(mounts)
    return lines


WHOLE_JOB = {"ncpus", "ngpus", "mem", "nodes"}


def _overruled(wanted: PbsResources) -> Iterator[str]:
    """Yield a fault for each value that would replace another: PBS silently keeps the last one."""
    lines = DIALECTS[wanted.dialect].lines
    generated = {name: line for line in lines(wanted) for name in _names(line)}
    defaults = lines(dataclasses.replace(wanted, ngpus=None, ncpus=None, mem=None, nodes=1))
    for place, value in _values_of_l(wanted):
        for name in _names(value):
            if name == "walltime":
                yield f"{place}: use --walltime, which also sets the deadline of the worker"
            elif name in generated and name != "place" and generated[name] not in defaults:
                yield (
                    f"{place}: would replace '-l {generated[name]}'; write the whole request "
                    f"there, and omit --ngpus, --ncpus, --mem and --nodes"
                )
            elif name not in generated and name in WHOLE_JOB and "select" in generated:
                yield (
                    f"{place}: PBS accepts no total for the whole job together with "
                    f"'-l {generated['select']}'; use --{name}"
                )


def _names(line: str) -> list[str]:
    return re.findall(r"(?:^|,)(\w+)=", line)


def _values_of_l(wanted: PbsResources) -> Iterator[tuple[str, str]]:
    for value in wanted.resource:
        yield f"--resource {value}", value
    for line in wanted.directive:
        for value in re.findall(r"(?:^|\s)-l\s*(\S+)", line):
            yield f"--directive '{line}'", value.strip("'\"")


def faults(wanted: PbsResources, name: str) -> Iterator[str]:
    """Yield every reason why the site would reject a job of this name and these resources."""
    dialect = DIALECTS[wanted.dialect]
    given = {option for option, value in dataclasses.asdict(wanted).items() if value is not None}
    for option in dialect.required:
        if option not in given:
            yield f"--{option}: required by {wanted.dialect}"
    for option in dialect.fixed:
        if option in given:
            yield f"--{option}: fixed by the type of node of {wanted.dialect}; omit it"
    gpus = wanted.ngpus or 0
    if dialect.max_gpus is not None and gpus > dialect.max_gpus:
        yield f"--ngpus {gpus}: a node of {wanted.dialect} has {dialect.max_gpus}"
    if len(name) > dialect.longest_name:
        yield f"--name {name}: {wanted.dialect} accepts at most {dialect.longest_name} characters"
    cores = dialect.cores_per_gpu.get(wanted.queue or "", 0) * gpus
    if cores and wanted.ncpus not in (None, cores):
        need = f"{cores // gpus} per GPU, so {cores}"
        yield f"--ncpus {wanted.ncpus}: {wanted.queue} requires {need}; omit it"
    for option in () if dialect.resources_by_option else ("ngpus", "ncpus", "mem"):
        if option in given:
            yield f"--{option}: not used by {wanted.dialect}; use --resource"
    yield from _overruled(wanted)
