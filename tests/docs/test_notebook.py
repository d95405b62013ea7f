"""docs/notebook.ipynb: its cells run one after the other, as a notebook would run them.

`pytest tests/docs/test_notebook.py --slow --update-goldens` writes what they print.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import SOURCES

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebook.ipynb"
RUN = """
import ast, contextlib, io, json, sys
cells, printed, names = json.load(open("cells.json")), [], {"__name__": "__main__"}
for text in cells:
    tree = ast.parse(text)
    shown = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        shown = ast.Expression(tree.body.pop().value)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(tree, "<cell>", "exec"), names)
        value = shown and eval(compile(shown, "<cell>", "eval"), names)
        if value is not None:
            print(repr(value))
    printed.append(out.getvalue())
json.dump(printed, open("printed.json", "w"))
"""


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_form() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and 8 <= len(notebook["cells"]) <= 20
    text = "\n".join(source(cell) for cell in notebook["cells"])
    for word in ("mw.plan", "print(plan)", "mw.merge", "load_state_dict", "save_plot"):
        assert word in text


@pytest.mark.slow
def test_cells_run(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.json").write_text(json.dumps([source(cell) for cell in cells]))
    env = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "look.png").is_file() and (tmp_path / "merged").is_dir()
    if request.config.getoption("--update-goldens"):
        printed = json.loads((tmp_path / "printed.json").read_text())
        for number, (cell, text) in enumerate(zip(cells, printed, strict=True), 1):
            text = text.replace(str(tmp_path), "/here")
            output = {"name": "stdout", "output_type": "stream", "text": lines(text)}
            cell |= {"execution_count": number, "outputs": [output] if text else []}
        NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
