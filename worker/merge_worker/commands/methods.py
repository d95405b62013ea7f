"""The methods for people: a list, and a page each, both made from the code."""

from __future__ import annotations

import argparse

from .. import methods
from ..errors import UsageError, input_errors
from ..messages import nearest, printable
from ..method import BaseRole, Method, Parameter
from ..options import SCHEDULES


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?")


@input_errors("methods")
def command(arguments: argparse.Namespace) -> str:
    """The list, or the page of one. UsageError with the nearest name."""
    if arguments.name is None:
        return method_list()
    try:
        return method_page(methods.get(arguments.name))
    except KeyError:
        hint = nearest(arguments.name, methods.names())
        raise UsageError(f"no method '{printable(arguments.name)}'{hint}") from None


def method_list() -> str:
    """One line per method: name, first line of its formula.

    In a job's archive, which holds no docstrings, the names of its parameters instead.
    """
    found = [methods.get(name) for name in methods.names()]
    width = max(len(method.name) for method in found) + 2
    return "\n".join(f"{method.name:<{width}}{_summary(method)}".rstrip() for method in found)


def _summary(method: Method) -> str:
    return method.doc.partition("\n")[0] or ", ".join(p.name for p in method.parameters)


def method_page(method: Method) -> str:
    """Formula, models, parameters with defaults, paper."""
    least, most = method.min_models, method.max_models
    if least == most:
        count = f"{least}"
    else:
        count = f"{least} or more" if most is None else f"{least} to {most}"
    base = {
        BaseRole.IGNORED: "a base_model joins the models",
        BaseRole.OPTIONAL: "base_model optional",
        BaseRole.REQUIRED: "base_model required",
    }[method.base]
    lines = [method.name + (" (experimental)" if method.experimental else ""), ""]
    lines += [method.doc, ""] if method.doc else []
    lines += [f"models: {count}; {base}"]
    if method.parameters:
        lines += ["parameters:", *(f"  {_parameter(p)}" for p in method.parameters)]
    if method.modifiers:
        lines += ["of every such method:", *(f"  {_MODIFIERS[p.name]}" for p in method.modifiers)]
    return "\n".join([*lines, f"reference: {method.reference}"])


_MODIFIERS = {
    "lines_alpha": "lines_alpha, lines_beta (float, together): LiNeS, the result's difference from "
    "the base times",
    "lines_beta": "  alpha + beta * (l-1)/(L-1) in layer l of L, times alpha outside of layers "
    "(arXiv:2410.17146)",
    "schedule": f"schedule (str, in place of weights; models from old to new): {SCHEDULES}",
}


def _parameter(parameter: Parameter) -> str:
    kind = parameter.type.__name__ + (" per model" if parameter.per_model else "")
    given = "required" if parameter.required else f"default {parameter.default}"
    return f"{parameter.name} ({kind}, {given})"
