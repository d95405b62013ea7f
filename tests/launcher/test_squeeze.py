"""What is left of the sources in a payload: the same code on the same lines, without words."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import worker
from launcher.squeeze import without_words

SOURCES = Path(worker.__file__).parent


def code_of(text: str) -> str:
    """The syntax tree with line numbers, less strings that are statements and the annotations of
    functions that nothing decorates."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for field in ("col_offset", "end_col_offset", "end_lineno"):
            if hasattr(node, field):
                setattr(node, field, 0)
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
        body = getattr(node, "body", None)
        if isinstance(body, list) and len(body) > 1:
            body[:] = [each for each in body if not is_string(each)]
    return ast.dump(tree, include_attributes=True)


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
    assert without_words(text) == "def f(a, *b, c = {}, **d):\n    x: int = a\n"
    told = "@merge_method(SPAN)\ndef f(a: Tensor, *, t: float = 0.5) -> Tensor:\n    return a\n"
    assert without_words(told) == told
    field = "class A:\n    x: int = 1\n\n    def g(self, é: 'ü') -> '→': return é\n"
    assert without_words(field) == "class A:\n    x: int = 1\n\n    def g(self, é): return é\n"


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
