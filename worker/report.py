"""A plan in words and as JSON: what would be merged, how large, with how much memory. No torch."""

from __future__ import annotations

from typing import Any

from .dtypes import Kind
from .errors import printable
from .layers import depths
from .plan import Plan

GIB = 1 << 30


def size(count: int) -> str:
    """Bytes as people write them: `2.05 GiB`, `640 KiB`."""
    for unit, factor in (("TiB", GIB << 10), ("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} bytes"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan's facts for programs; bytes are bytes."""
    merged = [step for step in plan.steps if step.task is not None]
    return {
        "method": plan.method.name,
        "models": list(plan.labels),
        "base_model": str(plan.recipe.base) if plan.recipe.base else None,
        "tensors": {
            "merged": len(merged),
            "copied": len(plan.steps) - len(merged),
            "missing": len(plan.matches.missing),
            "surplus": len(plan.matches.surplus),
        },
        "parameters": sum(s.grid.count for s in plan.steps if s.dtype.kind is Kind.FLOAT),
        "layers": depths(step.name for step in plan.steps),
        "bytes_in": plan.input_bytes,
        "bytes_out": plan.output_bytes,
        "shards": [shard.name for shard in plan.layout.shards],
        "dtypes": sorted({step.dtype.torch_name for step in plan.steps}),
        "memory": {
            "lanes": plan.memory.lanes,
            "bound_bytes": plan.memory.bound,
            "forced_by": plan.memory.forced_by,
        },
        "warnings": list(plan.warnings),
        "key": plan.key,
    }


def describe(plan: Plan) -> str:
    """The same for people, a few aligned lines."""
    facts = as_json(plan)
    tensors = facts["tensors"]
    stacks = ", ".join(f"{printable(stack)}* {depth}" for stack, depth in facts["layers"].items())
    forced = facts["memory"]["forced_by"]
    rows = [
        ("method", plan.method.name + (" (experimental)" if plan.method.experimental else "")),
        *(("model" if i else "first", printable(name)) for i, name in enumerate(plan.labels)),
        (
            "tensors",
            f"{tensors['merged']} merged, {tensors['copied']} copied, "
            f"{tensors['missing']} missing, {tensors['surplus']} surplus",
        ),
        ("parameters", f"{facts['parameters']:,}"),
        ("layers", stacks or "none found in the names"),
        ("reads", size(plan.input_bytes)),
        ("writes", f"{size(plan.output_bytes)} in {len(facts['shards'])} file(s), "
                   f"{', '.join(facts['dtypes'])}"),
        ("memory", f"at most {size(plan.memory.bound)} of buffers in {plan.memory.lanes} lanes"
                   + (f" (needed by {printable(forced)})" if forced else "")),
    ]  # fmt: skip
    text = "\n".join(f"{name:<11}{value}" for name, value in rows)
    return "\n".join([text, *(f"warning: {warning}" for warning in plan.warnings)])
