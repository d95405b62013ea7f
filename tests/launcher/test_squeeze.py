"""What is left of the sources in a payload: the same code on the same lines, without words."""

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytest

import worker
from launcher.squeeze import BLIND, without_words

SOURCES = Path(worker.__file__).parent


class Untyped(ast.NodeTransformer):
    """Without imports for types; assignments are plain ones, but those of classes."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for each in node.body:
            if not isinstance(each, ast.AnnAssign):
                self.visit(each)
            elif each.target.lineno == each.annotation.end_lineno:
                each.annotation = ast.Constant(0, lineno=each.annotation.lineno)
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return None if ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module in ("collections.abc", "pathlib", "types", "typing") else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        return None if ast.unparse(node.targets[0]) == "__all__" else node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        several = node.target.lineno != node.annotation.end_lineno
        if node.value is None or several:
            return node
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def code_of(text: str) -> str:
    """The syntax tree with line numbers, less strings that are statements, names of types, and the
    annotations of variables and of functions that nothing decorates."""
    tree = Untyped().visit(ast.parse(text))
    for node in ast.walk(tree):
        for field in ("col_offset", "end_col_offset", "end_lineno"):
            if hasattr(node, field):
                setattr(node, field, 0)
        if isinstance(node, ast.FunctionDef) and is_blind(node):
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
        body = getattr(node, "body", None)
        if isinstance(body, list) and len(body) > 1:
            body[:] = [each for each in body if not is_string(each)]
    return ast.dump(tree, include_attributes=True)


def is_blind(node: ast.FunctionDef) -> bool:
    return {ast.unparse(each) for each in node.decorator_list} <= BLIND


def is_string(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.stem)
def test_without_words_the_code_stays_where_it_was(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert code_of(without_words(text)) == code_of(text)


def test_annotations_go_where_nothing_reads_them() -> None:
    text = (
        "def f(a: int, *b: 'x', c: dict[str, int] = {}, **d: Any) -> list[int]:\n    x: int = a\n"
    )
    assert without_words(text) == "def f(a, *b, c = {}, **d):\n    x = a\n"
    told = "@merge_method(SPAN)\ndef f(a: Tensor, *, t: float = 0.5) -> Tensor:\n    return a\n"
    assert without_words(told) == told
    field = "class A:\n    x: int = 1\n\n    def g(self, é: 'ü') -> '→': return é\n"
    assert without_words(field) == "class A:\n    x: 0 = 1\n\n    def g(self, é): return é\n"
    kept = "class A:\n    x: ClassVar[int] = 1\n    y: 0\n    @property\n    def z(self): ...\n"
    assert without_words(kept.replace("z(self)", "z(self) -> int")) == kept


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.stem)
def test_names_that_are_used_are_there(path: Path) -> None:
    """Every name that is read is bound somewhere, if it was before."""

    def missing(text: str) -> set[str]:
        bound, read = set(dir(builtins)), set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Name):
                (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler):
                bound.add(node.name or "")
        return read - bound

    text = path.read_text(encoding="utf-8")
    types = {"Tensor", *re.findall(r"^    from .* import (.*)$", text, re.MULTILINE)}
    assert missing(without_words(text)) <= missing(text) | types


def test_types_go_where_nothing_reads_them() -> None:
    text = "from typing import Any, cast\nfrom collections.abc import Iterator\nx: Any = cast(y)\n"
    assert without_words(text) == "from typing import cast\n\nx = cast(y)\n"
    text = "if TYPE_CHECKING:\n    from a import b\n\n    c = 1\nx: dict[str, 'é'] = {}\ny: int\n"
    assert without_words(text) == "\n\n\n\nx = {}\ny: int\n"
    inner = "def f(self):\n    self.x: list[int] = [1]\n    with g() as h:\n        k: int = 2\n"
    assert without_words(inner) == (
        "def f(self):\n    self.x = [1]\n    with g() as h:\n        k = 2\n"
    )
    both = "if TYPE_CHECKING:\n    a = 1\nelse:\n    a = 2\n"
    assert without_words(both) == both


def test_lists_of_names_go() -> None:
    text = "__all__ = [\n    'a',\n]\na = 1\n"
    assert without_words(text) == "\n\n\na = 1\n"


def test_an_annotation_of_several_lines_stays() -> None:
    text = "def f(\n    a: dict[\n        str, int\n    ],\n    b: int,\n) -> None: ...\n"
    assert without_words(text) == text.replace("b: int", "b").replace(" -> None", "")


def other_pythons() -> list[str]:
    """Those that are here, of the releases that the project supports."""
    names = [f"python3.{minor}" for minor in range(10, 15)]
    found = []
    for name in names:
        try:
            done = subprocess.run(
                [name, "-I", "-c", "import sys; print(sys.version_info[1])"],
                capture_output=True,
                text=True,
            )
        except OSError:
            continue
        if done.returncode == 0 and name == f"python3.{done.stdout.strip()}":
            found.append(name)
    return found


@pytest.mark.parametrize("python", other_pythons())
def test_every_python_leaves_the_same(python: str) -> None:
    code = (
        "import hashlib, sys\nfrom pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\nfrom squeeze import without_words\n"
        "paths = sorted(Path(sys.argv[1]).rglob('*.py'))\n"
        "texts = [without_words(path.read_text(encoding='utf-8')) for path in paths]\n"
        "print(hashlib.sha256(''.join(texts).encode()).hexdigest())\n"
    )
    launcher = SOURCES.parent / "launcher"

    def digest(program: str) -> str:
        argv = [program, "-I", "-c", code, str(SOURCES), str(launcher)]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    assert digest(python) == digest(sys.executable)


def test_words_go_and_lines_stay() -> None:
    text = 'x = 1  # one\n# it\'s 2\ny = f"""  # 3\n# {x}\n"""\ny = """\n  # 4\n"""\n  # 5\n'
    bare = 'x = 1\n\ny = f"""  # 3\n# {x}\n"""\ny = """\n  # 4\n"""\n\n'
    assert without_words(text) == bare


def test_a_sign_within_a_string_is_no_comment() -> None:
    text = "x = 'a  # b', \"  # c\"\n"
    assert without_words(text) == text
    assert without_words(text.replace("\n", "  # d\n")) == text


def test_docstrings_that_are_a_body_or_share_a_line_stay() -> None:
    text = 'class A(Exception):\n    """Why."""\n\n\ndef f(): "short"; return 1\n"a"; b = "c"\n'
    assert without_words(text) == text


def test_strings_below_names_go_too() -> None:
    text = 'x = 1\n"""Of x,\n# in two lines."""\n\nif x:\n    y = 2\nelse:\n    y = 3\n    "3."\n'
    bare = "x = 1\n\n\n\nif x:\n    y = 2\nelse:\n    y = 3\n\n"
    assert without_words(text) == bare


def test_a_string_that_is_continued_is_no_comment() -> None:
    text = 'x = "a\\\n# b"\n'
    assert without_words(text) == text
