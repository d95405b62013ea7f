"""`merge-worker methods`: a list of the merge methods, and a page on each, from the code."""

from __future__ import annotations

import argparse

from ..algorithms.expert_copy import MOE
from ..command_line.parser import Parser
from ..errors import UsageError, input_errors
from ..messages import nearest, printable
from ..method import BaseRole, Method, Parameter
from ..options import SCHEDULES
from ..recipe.experts import GATE_MODES
from ..registry import OWN, Registry
from ..structure.moe_targets import TARGETS
from .options import add_options, known_methods


def options(parser: Parser) -> None:
    parser.add_argument("name", metavar="METHOD", nargs="?", help="print all about this method")
    add_options(parser, "methods")


@input_errors("methods")
def command(arguments: argparse.Namespace) -> str:
    """Return the list, or the page of one method. UsageError with the nearest name."""
    known = known_methods(arguments)
    if arguments.name is None:
        return method_list(known)
    if arguments.name == MOE.name:
        return mixture_page()
    try:
        return method_page(known.get(arguments.name))
    except KeyError:
        hint = nearest(arguments.name, (*known.names(), MOE.name))
        raise UsageError(f"unknown method '{printable(arguments.name)}'{hint}") from None


def method_list(known: Registry = OWN) -> str:
    """Return a line for each method: its name, the first line of its docstring, its origin."""
    names = known.names()
    width = max(map(len, names)) + 2
    methods = [*(known.get(name) for name in names), MOE]
    return "\n".join(f"{method.name:<{width}}{_summary(method)}" for method in methods)


def _summary(method: Method) -> str:
    first = printable(next(iter(method.doc.splitlines()), ""))
    return f"{first} ({printable(method.origin.name)})".strip() if method.origin else first


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
    if method.importance:
        lines.append(f"importance: {_IMPORTANCE[method.importance]}")
    if method.parameters:
        lines += ["parameters:", *(f"  {_parameter(p)}" for p in method.parameters)]
    if method.modifiers:
        modifiers = (f"  {_MODIFIERS[p.name]}" for p in method.modifiers)
        lines += ["of all methods of this kind:", *modifiers]
    if method.origin:
        lines.append(f"from: {printable(method.origin.name)}, SHA-256 {method.origin.sha256}")
    return "\n".join([*lines, *([f"reference: {method.reference}"] if method.reference else [])])


_IMPORTANCE = {
    "squares": "a file beside each model, of kind fisher, squared_gradients or adam_v",
    "gram": "a file beside each model, of kind gram",
}


def mixture_page() -> str:
    """Return the page on mixtures of experts: their recipe, their gates, their model types."""
    width = max(len(mode) for mode in GATE_MODES)
    modes = [f"  {mode.name:<{width}}  {mode.help}" for mode in GATE_MODES.values()]
    targets = [f"  {target.name}: of {', '.join(target.bases)}" for target in TARGETS]
    lines = [MOE.name, "", MOE.doc, "", "gate_mode (default hidden, as mergekit has it):", *modes]
    lines += ["model types of results (architecture; default: the first that fits):", *targets]
    return "\n".join([*lines, f"reference: {MOE.reference}"])


_MODIFIERS = {
    "aim_omega": "aim_omega (float, 0 to 1): AIM, the result's difference from the base times "
    "1 - s (1 - aim_omega)\n    in channels whose activation is s times the largest; takes "
    "`importance:` of the base, of kind\n    activation (arXiv:2502.02421)",
    "lines_alpha": "lines_alpha, lines_beta (float, together): LiNeS, the result's difference from "
    "the base times",
    "lines_beta": "  alpha + beta * (l-1)/(L-1) in layer l of L, times alpha outside of layers "
    "(arXiv:2410.17146)",
    "balance": "balance (bool, default False): scale the task vectors of each tensor to their mean "
    "length first;\n    those that are 0 do not count (arXiv:2509.18883)",
    "schedule": f"schedule (str, in place of weights; models from old to new):\n    {SCHEDULES}",
}


def _parameter(parameter: Parameter) -> str:
    kind = parameter.type.__name__ + (" per model" if parameter.per_model else "")
    given = "required" if parameter.required else f"default {parameter.default}"
    return f"{parameter.name} ({kind}, {given})"
