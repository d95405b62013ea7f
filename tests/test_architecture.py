"""House rules that can be read off the source. The tables below are the place to extend."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOMES = {"merge_worker": ROOT / "worker", "merge_launch": ROOT / "launcher"}

# Lowest first: a package imports only what stands before it.
ORDER = {
    "merge_worker": (
        "messages errors units dtypes options system command_line tensors method algorithms "
        "methods registry recipe checkpoint structure conversion adapters tokenizer inference "
        "planning output importance engine experts drawing comparison lora routers "
        "evaluation trial search commands api cli __main__"
    ).split(),
    "merge_launch": (
        "errors process table settings job backends profiles tracking submission sweeps searches "
        "evaluations api commands cli __main__"
    ).split(),
}
MOST_MODULES_IN_A_ROOT = 10

# These may import torch at their top; login nodes run everything else.
TORCH_PACKAGES = {
    "engine", "experts", "comparison", "importance", "inference", "lora", "routers", "trial",
}  # fmt: skip
HEAVY = ["torch", "numpy", "optuna", "transformers", "safetensors", "beaker"]
ROOTS = {
    "merge_worker": {"merge_worker", "torch", "yaml"},
    "merge_launch": {
        "merge_launch", "merge_worker", "jinja2", "yaml", "platformdirs", "tomli",
    },
}  # fmt: skip
# Only inside functions, so that a node without them can merge.
LATE_ROOTS = {
    "argcomplete",
    "matplotlib", "numpy", "optuna", "safetensors", "tokenizers", "transformers", "huggingface_hub",
    "typing_extensions",
}  # fmt: skip
# Imports that one module alone may make.
ONLY_IN = {
    "beaker": "merge_launch.backends.beaker.client",
    "grpc": "merge_launch.backends.beaker.client",
    "requests": "merge_launch.backends.beaker.client",
    "subprocess": "merge_launch.process",
}

MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 500, 60, 6
# Their signature is a schema that users see: options of a command, parameters of a method.
SCHEMA_DECORATORS = {"command", "callback", "merge_method", "task_vector_method"}
VAGUE_NAMES = {"utils", "util", "common", "manager", "helpers", "misc"}


class Import(NamedTuple):
    """One imported module, or a name of it."""

    module: str
    name: str | None
    line: int
    late: bool
    types_only: bool


def module_name(path: Path) -> str:
    home = next(home for home in HOMES.values() if path.is_relative_to(home))
    parts = path.relative_to(home).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for home in HOMES.values() for path in home.rglob("*.py")}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def _targets(node: ast.Import | ast.ImportFrom, module: str) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        is_package = MODULES[module].name == "__init__.py"
        parts = module.split(".") if is_package else module.split(".")[:-1]
        base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield (inner, None) if inner in MODULES else (base, alias.name)


def imports(module: str) -> list[Import]:
    """Return all imports of a module, those inside functions included."""
    result: list[Import] = []

    def visit(node: ast.AST, late: bool, types_only: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target, name in _targets(node, module):
                result.append(Import(target, name, node.lineno, late, types_only))
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        types_only = types_only or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        for child in ast.iter_child_nodes(node):
            visit(child, late, types_only)

    visit(TREES[module], False, False)
    return result


IMPORTS = {module: imports(module) for module in MODULES}


def part(module: str) -> str:
    """Return the package or top-level module that a module belongs to, '' for the root itself."""
    return [*module.split("."), ""][1]


def is_login_module(module: str) -> bool:
    return not module.startswith("merge_worker") or part(module) not in TORCH_PACKAGES


def names_in(package: str) -> set[str]:
    """Return the methods or backends of a package: its public modules and packages."""
    below = (name.removeprefix(f"{package}.") for name in MODULES if name.startswith(f"{package}."))
    return {name for name in below if "." not in name}


@pytest.mark.parametrize("root", ORDER)
def test_every_package_stands_in_the_order(root: str) -> None:
    parts = {part(module) for module in MODULES if module.startswith(f"{root}.")}
    assert sorted(parts) == sorted(ORDER[root])
    modules = [path for path in (HOMES[root] / root).glob("*.py") if path.stem[0] != "_"]
    assert len(modules) <= MOST_MODULES_IN_A_ROOT
    assert [path.name for path in HOMES[root].iterdir() if path.name[0] not in "._"] == [root]


def test_packages_import_only_what_stands_before_them() -> None:
    faults = []
    for module, items in IMPORTS.items():
        order = ORDER[module.partition(".")[0]]
        for item in items:
            same_root = item.module.partition(".")[0] == module.partition(".")[0]
            if not same_root or not part(item.module) or part(item.module) == part(module):
                continue
            if part(module) and order.index(part(item.module)) > order.index(part(module)):
                faults.append(f"{module}:{item.line} imports {item.module}")
    assert faults == []


def test_no_cycles_between_modules() -> None:
    graph = defaultdict(set)
    for module, items in IMPORTS.items():
        # The root names its interface for type checkers, and imports it when it is used.
        used = [item for item in items if part(module) or not item.types_only]
        graph[module] |= {item.module for item in used if item.module in MODULES} - {module}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*above, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


def test_imports_are_allowed() -> None:
    faults = []
    for module, items in IMPORTS.items():
        root = module.partition(".")[0]
        for item in items:
            target = item.module.partition(".")[0]
            late = (item.late or item.types_only) and target in LATE_ROOTS
            place = f"{module}:{item.line} imports {item.module}"
            if root == "merge_launch" and target in ONLY_IN:
                if module != ONLY_IN[target]:
                    faults.append(f"{place}; only {ONLY_IN[target]} may")
            elif target not in ROOTS[root] | sys.stdlib_module_names and not late:
                faults.append(place)
            if target == "torch" and is_login_module(module) and not item.late | item.types_only:
                faults.append(f"{place} at its top")
            if root == "merge_launch" and not is_login_module(item.module):
                faults.append(f"{place}, which needs torch")
            private = item.name and item.name[0] == "_" and item.name != "__version__"
            if private and item.module in MODULES:
                faults.append(f"{place}: {item.name} is private")
    assert faults == []


def test_login_nodes_never_load_torch() -> None:
    modules = sorted(name for name in MODULES if is_login_module(name) and "__main__" not in name)
    code = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert not heavy, f'{module} loads {heavy}'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parts_are_small() -> None:
    faults = []
    for module, path in MODULES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_FILE_LINES:
            faults.append(f"{module}: {lines} lines, at most {MOST_FILE_LINES}")
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                faults += [f"{module}:{node.lineno} {node.name}: {text}" for text in _large(node)]
    assert faults == []


def _large(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    calls = (item.func if isinstance(item, ast.Call) else item for item in node.decorator_list)
    if {ast.unparse(call).rpartition(".")[2] for call in calls} & SCHEMA_DECORATORS:
        start = node.body[0].lineno  # the options of a command are its schema
    else:
        start = node.lineno
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        count = len([item for item in arguments if item.arg not in ("self", "cls")])
        if count > MOST_PARAMETERS:
            yield f"{count} parameters, at most {MOST_PARAMETERS}"
    lines = (node.end_lineno or start) - start + 1
    if lines > MOST_FUNCTION_LINES:
        yield f"{lines} lines, at most {MOST_FUNCTION_LINES}"


def test_modules_have_docstrings_and_telling_names() -> None:
    for module, tree in TREES.items():
        assert ast.get_docstring(tree), module
        assert module.rpartition(".")[2] not in VAGUE_NAMES, module


def test_every_method_and_backend_is_tested() -> None:
    files = (ROOT / "tests/worker/methods").glob("test_*.py")
    tests = "\n".join(path.read_text(encoding="utf-8") for path in files)
    methods = names_in("merge_worker.methods")
    assert methods and [name for name in methods if f'"{name}"' not in tests] == []
    folder = ROOT / "tests/launcher/backends"
    backends = names_in("merge_launch.backends") - {"base", "arrays"}
    assert len(backends) == 4
    for name in backends:
        assert list((ROOT / "templates").glob(f"{name}.*.j2")), f"templates/{name}.*.j2"
        assert list((ROOT / "tests/goldens").glob(f"{name}.*")), f"tests/goldens/{name}.*"
        assert (folder / name).is_dir() or (folder / f"test_{name}.py").is_file(), name
