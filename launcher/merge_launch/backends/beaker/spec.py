"""A strict check of Beaker experiment specs, since beaker-py silently drops unknown keys.

The check accepts the part of the v2 format that `templates/beaker.yaml.j2` uses.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from merge_worker.messages import nearest, printable

ARGUMENT_BYTES = 131_071
"""The longest argument of a program on Linux (MAX_ARG_STRLEN less the final NUL)."""
ARGUMENTS_BYTES = 1536 * 1024
"""The most for all arguments. Linux allows a quarter of the stack, usually 2 MiB, including the
environment."""
PRIORITIES = ("low", "normal", "high", "urgent", "immediate")
DURATION = r"(\d+(\.\d+)?[hms])+"
"""A unit is required: beaker-py reads a bare number as nanoseconds."""
SIZE = r"\d+(\.\d+)?([KMGT]i?B)"

TEXT, NAME, COUNT, FLAG, LENGTH, PATH = "text", "name", "count", "flag", "duration", "path"
NUMBER, BYTES = "number", "size"
SPEC: dict[str, Any] = {
    "version": ("v2",),
    "description": TEXT,
    "budget": NAME,
    "groups": [NAME],
    "retry": {"allowedTaskRetries": COUNT},
    "tasks": [
        {
            "name": NAME,
            "image": {"beaker": NAME, "docker": NAME},
            "command": [TEXT],
            "arguments": [TEXT],
            "envVars": [{"name": NAME, "value": TEXT, "secret": NAME}],
            "datasets": [
                {
                    "mountPath": PATH,
                    "subPath": NAME,
                    "source": {"beaker": NAME, "weka": NAME, "hostPath": PATH},
                }
            ],
            "result": {"path": PATH},
            "resources": {
                "cpuCount": NUMBER,
                "gpuCount": COUNT,
                "memory": BYTES,
                "sharedMemory": BYTES,
            },
            "constraints": {"cluster": [NAME]},
            "context": {"priority": PRIORITIES, "minRuntime": LENGTH, "autoResume": FLAG},
            "timeout": LENGTH,
            "hostNetworking": FLAG,
            "replicas": COUNT,
            "propagateFailure": FLAG,
            "propagatePreemption": FLAG,
        }
    ],
}


def faults(spec: object) -> list[str]:
    """Return every fault of a spec, each with the path of its key."""
    result = list(_walk(spec, SPEC, ""))
    if result or not isinstance(spec, dict):
        return result
    tasks = spec.get("tasks") or [{}]
    result = [f"{key}: missing" for key in ("version", "tasks") if not spec.get(key)]
    required = ("image", "context", "result")
    result += [f"tasks[0].{key}: missing" for key in required if key not in tasks[0]]
    for number, task in enumerate(tasks):
        result += _task_faults(task, f"tasks[{number}]")
    return result


def _walk(value: object, form: Any, path: str) -> Iterator[str]:
    if isinstance(form, dict) and isinstance(value, dict):
        for key, inner in value.items():
            place = f"{path}.{key}" if path else str(key)
            if key not in form:
                yield f"{printable(place)}: unknown key{nearest(str(key), form)}"
            else:
                yield from _walk(inner, form[key], place)
    elif isinstance(form, list) and isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk(inner, form[0], f"{path}[{number}]")
    elif isinstance(form, dict | list):
        kind = "mapping" if isinstance(form, dict) else "list"
        yield f"{path or 'spec'}: must be a {kind}"
    elif not _fits(value, form):
        expected = f"one of {', '.join(form)}" if isinstance(form, tuple) else f"a {form}"
        yield f"{path}: {printable(repr(value))[:60]} must be {expected}"


def _fits(value: object, form: str | tuple[str, ...]) -> bool:
    if form == FLAG:
        return isinstance(value, bool)
    if form == COUNT:
        return type(value) is int and value >= 0
    if form == NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    if not isinstance(value, str):
        return False
    if isinstance(form, tuple):
        return value in form
    if form in (LENGTH, BYTES):
        return re.fullmatch(DURATION if form == LENGTH else SIZE, value) is not None
    if form == PATH:
        return value.startswith("/") and "\0" not in value
    return form == TEXT or bool(value)


def _task_faults(task: Mapping[str, Any], path: str) -> Iterator[str]:
    datasets, variables = task.get("datasets", []), task.get("envVars", [])
    sources = {"image": task["image"]} if "image" in task else {}
    sources |= {
        f"datasets[{i}].source": mount.get("source", {}) for i, mount in enumerate(datasets)
    }
    for key, source in sources.items():
        if len(source) != 1:
            yield f"{path}.{key}: must be exactly one of {', '.join(source) or 'its kinds'}"
    names = [variable.get("name") for variable in variables]
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        yield f"{path}.envVars: {name} is set twice"
    for number, variable in enumerate(variables):
        if ("value" in variable) == ("secret" in variable):
            yield f"{path}.envVars[{number}]: must have a value or a secret"
    mounts = sorted(mount.get("mountPath", "").rstrip("/").lower() + "/" for mount in datasets)
    for first, second in itertools.pairwise(mounts):
        if second.startswith(first):
            yield f"{path}.datasets: {second.rstrip('/')} is mounted twice, or inside another mount"
    sizes = [len(text.encode(errors="surrogateescape")) for text in task.get("arguments", [])]
    for number, size in enumerate(sizes):
        if size > ARGUMENT_BYTES:
            yield f"{path}.arguments[{number}]: {size} bytes, at most {ARGUMENT_BYTES} fit"
    if (whole := sum(sizes)) > ARGUMENTS_BYTES:
        yield f"{path}.arguments: {whole} bytes, at most {ARGUMENTS_BYTES} fit; shorten the recipe"
