"""Routing of texts as lines for a terminal, as a section of a card, and as JSON."""

from __future__ import annotations

from typing import Any

from ..messages import printable
from ..output.model_card import markdown
from .routing import Routing

MOST_COLUMNS = 8
LONGEST_NAME = 32


def names_of_experts(routing: Routing) -> list[str]:
    """Return a name for each expert: that of the texts that are its own, else its number."""
    named = {group.expert: group.name for group in routing.groups if group.expert is not None}
    return [named.get(number, f"expert {number}") for number in range(routing.experts)]


def lines(routing: Routing) -> list[str]:
    """Return the table: a row for each group of texts, a column for each expert."""
    rows = _rows(routing)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [heading(routing), *padded]


def heading(routing: Routing) -> str:
    chance = 100 * routing.top_k / routing.experts
    return (
        f"routing: share of tokens that reach each expert, mean over {len(routing.reached)} layers "
        f"({routing.top_k} of {routing.experts} are reached: {chance:.0f} % by chance)"
    )


def card_section(routing: Routing) -> str:
    """Return the section of a card, without its title."""
    head, *rows = _rows(routing)
    cells = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    table = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in cells]
    text = heading(routing).removeprefix("routing: ")
    return "\n".join([f"{text[0].upper()}{text[1:]}.", "", *table])


def _cell(text: str) -> str:
    return text if set(text) <= {"-", ":"} else markdown(text)


def _rows(routing: Routing) -> list[list[str]]:
    names = [_short(name) for name in names_of_experts(routing)]
    wide = routing.experts > MOST_COLUMNS
    columns = ["its own", "most reached"] if wide else names
    rows = [["texts", "tokens", *columns, "entropy"]]
    for number, group in enumerate(routing.groups):
        shares = [routing.share(number, expert) for expert in range(routing.experts)]
        best = max(range(routing.experts), key=lambda expert: shares[expert])
        own = "" if group.expert is None else _percent(shares[group.expert])
        cells = [own, f"{names[best]} {_percent(shares[best])}"] if wide else map(_percent, shares)
        entropies = routing.entropies(number)
        mean = sum(entropies) / len(entropies)
        rows.append([_short(group.name), str(routing.tokens[number]), *cells, f"{mean:.2f}"])
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def as_json(routing: Routing) -> dict[str, Any]:
    """Return everything, for programs and for the manifest."""
    return {
        "top_k": routing.top_k,
        "experts": names_of_experts(routing),
        "groups": [
            {
                "name": group.name,
                "expert": group.expert,
                "texts": len(group.texts),
                "tokens": routing.tokens[number],
                "share": [round(routing.share(number, e), 6) for e in range(routing.experts)],
                "first": [round(routing.share(number, e, True), 6) for e in range(routing.experts)],
                "entropy": [round(value, 6) for value in routing.entropies(number)],
            }
            for number, group in enumerate(routing.groups)
        ],
        "reached": routing.reached,
    }
