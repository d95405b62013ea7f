"""`merge-worker methods`: a list of the merge methods, and a page on each, from the code."""

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
    """Return the list, or the page of one method. UsageError with the nearest name."""
    if arguments.name is None:
        return method_list()
    try:
        return method_page(methods.get(arguments.name))
    except KeyError:
        hint = nearest(arguments.name, methods.names())
        raise UsageError(f"unknown method '{printable(arguments.name)}'{hint}") from None


def method_list() -> str:
    """Return a line for each method: its name and the first line of its docstring."""
    names = methods.names()
    width = max(map(len, names)) + 2
    return "\n".join(f"{name:<{width}}{methods.get(name).doc.splitlines()[0]}" for name in names)


def method_page(method: Method) -> str:
    """Return the formula, number of models, parameters with defaults, and paper of a method."""
    least, most = method.min_models, method.max_models
    count = f"{least} or more" if most is None else f"{least} to {most}"
    if least == most:
        count = f"{least}"
    base = {
        BaseRole.IGNORED: "a base_model is merged like the others",
        BaseRole.OPTIONAL: "base_model optional",
        BaseRole.REQUIRED: "base_model required",
    }[method.base]
    lines = [method.name + (" (experimental)" if method.experimental else ""), ""]
    lines += [method.doc, "", f"models: {count}; {base}"]
    if method.parameters:
        lines += ["parameters:", *(f"  {_parameter(p)}" for p in method.parameters)]
    if method.modifiers:
        modifiers = (f"  {_MODIFIERS[p.name]}" for p in method.modifiers)
        lines += ["of all methods of this kind:", *modifiers]
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
