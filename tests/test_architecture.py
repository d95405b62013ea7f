"""The house rules that can be read off the source. The tables below are the place to extend."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# The worker's flow, lowest first: a module imports only what stands before it. A package stands
# for its modules.
WORKER_STAGES = {
    "words and tables": "errors output_files units option_table dtypes checksum computed layers "
    "layer_count layer_fields components layer_config modules progress settings schedules cpus "
    "flush stopping turns quick_torch mounts commands misspelt from_mergekit forms families "
    "subtree",
    "what is asked for": "methods describe yaml_text recipe recipe_rules documents "
    "recipe_tokenizer recipe_names recipe_reader direct",
    "what is on disk": "header remote hub files origin views regroup opcodes pickled checkpoint "
    "dequantise token_files token_kinds token_ids chat_template vocabulary rows adapter low_rank "
    "layout",
    "plan": "cut step planned stacks heads adapted relayout text same_tokens token_rows by_token "
    "fit assemble suggest match memory effort resolve lazy opened named plan quota disk "
    "occupied probe report",
    "stream": "readahead fetch ranks crew together device buffers lane hashes outfile journal "
    "store stream evidence",
    "write": "card manifest again published spoken side_files target finish lock",
    "command": "one_pass options mergekit run cli __main__",
    "looks": "average check verify comparison compare finished lora extract_lora merge_adapters",
}
WORKER_FLOW = " ".join(WORKER_STAGES.values()).split()
METHODS_MAY_IMPORT = {"errors", "dtypes"}
# Late imports that go up, each with its reason.
UPWARD = {
    ("recipe", "recipe_reader"): "parse() stands beside Recipe, and its reader makes Recipes",
    ("remote", "hub"): "hub asks remote which files are not here yet",
}

# What login nodes run: none of it may load torch.
TORCH_FREE = {*WORKER_FLOW[: WORKER_FLOW.index("report") + 1], "store"}

WORKER_ROOTS = {"torch", "yaml"}
# Only inside functions, so that a node without them can merge.
WORKER_LATE_ROOTS = {
    *("matplotlib", "numpy", "safetensors", "tokenizers", "transformers", "huggingface_hub"),
}
LAUNCHER_ROOTS = {"typer", "jinja2", "yaml", "platformdirs", "tomli"}
# Imports that one module alone may make.
LAUNCHER_ONLY_IN = {
    "beaker": "launcher/backends/_beaker_client.py",
    "grpc": "launcher/backends/_beaker_client.py",
    "requests": "launcher/backends/_beaker_client.py",
    "subprocess": "launcher/command.py",
}

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6
# Their signature is a schema that users see: options of a command, parameters of a method.
SCHEMA_DECORATORS = {"command", "callback", "merge_method"}
VAGUE_NAMES = {"utils", "util", "common", "manager", "helpers", "misc"}


class Import(NamedTuple):
    module: str
    line: int
    late: bool
    types_only: bool


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def _targets(node: ast.Import | ast.ImportFrom, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = path.relative_to(ROOT).parts[: -node.level]
        base = ".".join((*package, *base.split("."))) if base else ".".join(package)
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if is_module(inner) else base


def imports(path: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, late: bool, types_only: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(
                Import(target, node.lineno, late, types_only) for target in _targets(node, path)
            )
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            late = True
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, late, True)
            for child in node.orelse:
                visit(child, late, types_only)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, late, types_only)

    visit(ast.parse(path.read_text(encoding="utf-8")), False, False)
    return found


def worker_part(module: str) -> str | None:
    """worker.methods.linear → methods; None for what is no part of the worker's flow."""
    root, _, rest = module.partition(".")
    return rest.partition(".")[0] if root == "worker" and rest else None


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def decorator_names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    calls = (item.func if isinstance(item, ast.Call) else item for item in node.decorator_list)
    return {ast.unparse(call).rpartition(".")[2] for call in calls}


def public_names(folder: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob("*.py") if path.stem[0] != "_")


def test_every_worker_module_has_its_place_in_the_flow() -> None:
    parts = {worker_part(module_name(path)) for path in sources("worker")} - {None}
    assert sorted(parts - set(WORKER_FLOW)) == [], "give each new module its place in WORKER_FLOW"
    assert [name for name in WORKER_FLOW if name not in parts] == [], "no such module any more"


def test_the_worker_imports_one_way() -> None:
    faults = []
    for path in sources("worker"):
        part = worker_part(module_name(path))
        if part is None:
            continue
        allowed = METHODS_MAY_IMPORT if part == "methods" else before(part)
        for item in imports(path):
            target = worker_part(item.module)
            upward = item.late and (part, target) in UPWARD
            if target is not None and target not in allowed | {part} and not upward:
                faults.append(f"{relative(path)}:{item.line} imports {item.module}")
    assert faults == []


def before(part: str) -> set[str]:
    """For a module without its place that is nothing: the test above has the better words."""
    return set(WORKER_FLOW[: WORKER_FLOW.index(part)]) if part in WORKER_FLOW else set()


def test_the_worker_imports_allowed_roots_only() -> None:
    allowed = {"worker", *WORKER_ROOTS, *sys.stdlib_module_names}
    faults = []
    for path in sources("worker"):
        for item in imports(path):
            root = item.module.partition(".")[0]
            late_enough = (item.late or item.types_only) and root in WORKER_LATE_ROOTS
            if root not in allowed and not late_enough:
                faults.append(f"{relative(path)}:{item.line} imports {item.module}")
    assert faults == []


def test_the_launcher_imports_allowed_roots_only() -> None:
    allowed = {"launcher", "worker", *LAUNCHER_ROOTS, *sys.stdlib_module_names}
    faults = []
    for path in sources("launcher"):
        for item in imports(path):
            root = item.module.partition(".")[0]
            only_in = LAUNCHER_ONLY_IN.get(root)
            if (root not in allowed and only_in is None) or only_in not in (None, relative(path)):
                faults.append(f"{relative(path)}:{item.line} imports {item.module}")
            if (worker_part(item.module) or "errors") not in TORCH_FREE:
                faults.append(f"{relative(path)}:{item.line} imports {item.module}, not torch-free")
    assert faults == []


def test_login_nodes_never_load_torch() -> None:
    heavy = ["torch", "numpy", "transformers", "safetensors", "beaker"]
    modules = ["launcher.cli", *(f"worker.{part}" for part in WORKER_FLOW if part in TORCH_FREE)]
    code = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        f"    found = [name for name in {heavy} if name in sys.modules]\n"
        "    assert not found, f'{module} loads {found}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_parts_are_small() -> None:
    faults = []
    for path in sources("launcher", "worker", "tests", "scripts"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            faults.append(f"{relative(path)}: {lines} lines, at most {MAX_FILE_LINES}")
    for path in sources("launcher", "worker"):
        for node in functions(path):
            place = f"{relative(path)}:{node.lineno} {node.name}"
            schema = bool(decorator_names(node) & SCHEMA_DECORATORS)
            first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
            # A command's options are its schema, so only its body is measured.
            start = node.body[0].lineno if schema else first
            lines = (node.end_lineno or start) - start + 1
            if lines > MAX_FUNCTION_LINES:
                faults.append(f"{place}: {lines} lines, at most {MAX_FUNCTION_LINES}")
            names = [
                a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            ]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MAX_PARAMETERS and not schema:
                faults.append(f"{place}: {count} parameters, at most {MAX_PARAMETERS}")
    assert faults == []


def test_modules_say_what_they_are() -> None:
    for path in sources("launcher", "worker"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), relative(path)
        assert path.stem not in VAGUE_NAMES, relative(path)


def test_every_method_and_backend_has_its_test() -> None:
    methods = [f"tests/worker/methods/test_{name}.py" for name in public_names("worker/methods")]
    backends = [f"tests/launcher/backends/test_{n}.py" for n in public_names("launcher/backends")]
    assert methods and backends
    assert [path for path in methods + backends if not (ROOT / path).is_file()] == []


def test_every_backend_has_a_template_and_a_golden() -> None:
    for name in public_names("launcher/backends"):
        assert list((ROOT / "templates").glob(f"{name}.*.j2")), f"templates/{name}.*.j2"
        assert list((ROOT / "tests/goldens").glob(f"{name}*")), f"tests/goldens/{name}*"
    templates = {path.name.partition(".")[0] for path in (ROOT / "templates").glob("[!_]*.j2")}
    assert templates == set(public_names("launcher/backends"))


def test_tests_are_no_packages() -> None:
    # tests/worker/__init__.py would shadow our own worker package.
    assert list((ROOT / "tests").rglob("__init__.py")) == []
