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
ARGUMENTS_BYTES = 900 * 1024
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
REQUIRED = ("version", "tasks", "tasks[0].image", "tasks[0].context", "tasks[0].result")


def faults(spec: object) -> list[str]:
    """Return every fault of a spec, each with the path of its key."""
    result = list(_walk(spec, SPEC, ""))
    if result or not isinstance(spec, dict):
        return result
    result += [f"{path}: missing" for path in REQUIRED if not _has(spec, path)]
    for number, task in enumerate(spec.get("tasks", [])):
        result += _task_faults(task, f"tasks[{number}]")
    return result


def _has(spec: Mapping[str, Any], path: str) -> bool:
    tasks = spec.get("tasks") or [{}]
    if "." not in path:
        return bool(spec.get(path))
    return path.partition(".")[2] in tasks[0]


def _walk(value: object, form: Any, path: str) -> Iterator[str]:
    if isinstance(form, dict):
        if not isinstance(value, dict):
            yield f"{path or 'spec'}: must be a mapping"
            return
        for key, inner in value.items():
            place = f"{path}.{key}" if path else str(key)
            if key not in form:
                yield f"{printable(place)}: unknown key{nearest(str(key), form)}"
            else:
                yield from _walk(inner, form[key], place)
    elif isinstance(form, list):
        if not isinstance(value, list):
            yield f"{path}: must be a list"
            return
        for number, inner in enumerate(value):
            yield from _walk(inner, form[0], f"{path}[{number}]")
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
    for key, inner in [("image", task.get("image"))] + [
        (f"datasets[{i}].source", d.get("source", {}))
        for i, d in enumerate(task.get("datasets", []))
    ]:
        if inner is not None and len(inner) != 1:
            yield f"{path}.{key}: must be exactly one of {', '.join(inner) or 'its kinds'}"
    names = [each.get("name") for each in task.get("envVars", [])]
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        yield f"{path}.envVars: {name} is set twice"
    for number, variable in enumerate(task.get("envVars", [])):
        if ("value" in variable) == ("secret" in variable):
            yield f"{path}.envVars[{number}]: must have a value or a secret"
    yield from _overlaps([d.get("mountPath", "") for d in task.get("datasets", [])], path)
    for number, text in enumerate(task.get("arguments", [])):
        size = len(text.encode(errors="surrogateescape"))
        if size > ARGUMENT_BYTES:
            yield f"{path}.arguments[{number}]: {size} bytes, at most {ARGUMENT_BYTES} fit"
    whole = sum(len(text.encode(errors="surrogateescape")) for text in task.get("arguments", []))
    if whole > ARGUMENTS_BYTES:
        yield f"{path}.arguments: {whole} bytes, at most {ARGUMENTS_BYTES} fit; shorten the recipe"


def _overlaps(mounts: list[str], path: str) -> Iterator[str]:
    plain = sorted(mount.rstrip("/").lower() + "/" for mount in mounts)
    for first, second in itertools.pairwise(plain):
        if second.startswith(first):
            yield f"{path}.datasets: {second.rstrip('/')} is mounted twice, or inside another mount"
