"""The methods for people: a list, and a page each, both made from the code."""

from __future__ import annotations

from . import methods
from .methods._define import Base, Method, Parameter


def method_list() -> str:
    """One line per method: name, first line of its formula."""
    found = [methods.get(name) for name in methods.names()]
    width = max(len(method.name) for method in found) + 2
    return "\n".join(f"{m.name:<{width}}{m.doc.splitlines()[0]}" for m in found)


def method_page(method: Method) -> str:
    """Formula, models, parameters with defaults, paper."""
    least, most = method.least_models, method.most_models
    if least == most:
        count = f"{least}"
    else:
        count = f"{least} or more" if most is None else f"{least} to {most}"
    base = {
        Base.IGNORED: "a base_model joins the models",
        Base.OPTIONAL: "base_model optional",
        Base.REQUIRED: "base_model required",
    }[method.base]
    lines = [method.name + (" (experimental)" if method.experimental else ""), ""]
    lines += [method.doc, "", f"models: {count}; {base}"]
    if method.parameters:
        lines += ["parameters:", *(f"  {_parameter(p)}" for p in method.parameters)]
    return "\n".join([*lines, f"reference: {method.reference}"])


def _parameter(parameter: Parameter) -> str:
    kind = parameter.type.__name__ + (" per model" if parameter.per_model else "")
    given = "required" if parameter.required else f"default {parameter.default}"
    return f"{parameter.name} ({kind}, {given})"
