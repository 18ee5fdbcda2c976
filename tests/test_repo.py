"""The rules of the house, read from the code itself: layers, doors, sizes, docstrings, names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgebench"

LAYERS = {
    "errors": 0, "units": 0, "stats": 0, "specs": 0, "device_profile": 0, "manifest": 0, "records": 0,
    "throttle_bits": 0,
    "host": 1, "kerneltext": 1, "cgroups": 1, "topology": 1, "cards": 1, "registry": 1, "artifacts": 1, "store": 1,
    "checkpoint": 1,  # below export, which turns one into another, and needs nothing but specs and errors itself
    "export": 2, "runtimes": 2, "sensors": 2,
    "engine": 3,
    "analysis": 4, "report": 4,
    "schedule": 5, "plan": 5, "selection": 5, "bench": 5, "profile": 5, "provenance": 5, "devices": 5, "doctor": 5,
    "derive": 5, "generate": 5, "metering": 5, "cooling": 5, "draft": 5, "capture": 5,
    "cli": 6, "__main__": 6,
}  # fmt: skip
FAMILIES, READERS = 2, 4
PROGRAMS = {"engine/about.py", "engine/sampler.py", "engine/worker.py"}
"""Modules that are the main program of a child process, and so own its standard streams."""
HEAVY = (
    "numpy", "sqlalchemy", "rich", "psutil", "llama_cpp", "huggingface_hub", "msgspec", "tomllib", "sqlite3",
    "onnx", "onnxruntime", "gguf", "tokenizers",
)  # fmt: skip
MOST_LINES = {"edgebench": 400, "scripts": 500, "tests": 800}
"""A test file holds one subject whole; modules and scripts can be divided."""
MOST_FUNCTION_LINES = 60
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}


# --- what is read -----------------------------------------------------------------------------------------------------


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def within(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def top(path: Path) -> str:
    """``edgebench/engine/worker.py`` belongs to ``engine``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports, wherever the statement stands, ``if TYPE_CHECKING`` included."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{prefix}.{alias.name}", node.lineno) for alias in node.names)


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level names below ``edgebench`` that a module imports."""
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "edgebench" and len(parts) > 1 and parts[1] != "__version__":
            yield parts[1], line


def strings(path: Path) -> Iterator[tuple[str, int]]:
    """String constants of a module, pieces of f-strings included, docstrings left out."""
    tree = parsed(path)
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value, node.lineno


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


# --- layers -----------------------------------------------------------------------------------------------------------


def test_every_module_belongs_to_a_layer():
    assert {top(path) for path in sources("edgebench")} - {"__init__"} == set(LAYERS)


def test_a_module_imports_lower_layers_only():
    wrong = []
    for path in sources("edgebench"):
        own = top(path)
        for name, line in own_imports(path):
            allowed = own in ("__init__", name) or LAYERS[name] <= LAYERS[own]
            if LAYERS.get(own) == LAYERS[name] == FAMILIES:
                allowed = own == name  # siblings never import each other
            if LAYERS.get(own) == READERS:
                allowed = LAYERS[name] in (0, READERS)  # readers work where no runtime is installed
            if not allowed:
                wrong.append(f"{within(path)}:{line}: {own} imports {name}")
    assert not wrong


def test_modules_of_one_layer_import_each_other_in_one_direction_only():
    needs = {name: set() for name in LAYERS}
    for path in sources("edgebench"):
        if top(path) in LAYERS:
            needs[top(path)] |= {name for name, _ in own_imports(path)} - {top(path)}
    order: list[str] = []
    while len(order) < len(needs):
        free = [name for name in needs if name not in order and needs[name] <= set(order)]
        assert free, f"a circle among {sorted(set(needs) - set(order))}"
        order += free


def test_members_of_a_family_import_its_base_but_no_other_member():
    wrong = []
    for family in ("runtimes", "sensors"):
        for path in (PACKAGE / family).glob("*.py"):
            for name, line in imports(path):
                parts = name.split(".")
                if parts[:2] == ["edgebench", family] and len(parts) > 2:
                    private = parts[2].startswith(f"_{path.stem.strip('_').split('_')[0]}")
                    if parts[2] not in ("base", path.stem) and not private:
                        wrong.append(f"{within(path)}:{line}: imports {name}")
    assert not wrong


# --- doors ------------------------------------------------------------------------------------------------------------


def test_only_the_host_knows_where_the_kernel_tells():
    named = re.compile(r"(?<![\w.])/(proc|sys)(?![\w-])|\Aproc(/|\Z)|\Asys\Z")
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}"
        for path in sources("edgebench", "scripts")
        if within_or_name(path) != "host.py"
        for text, line in strings(path)
        if named.search(text)
    ]
    assert not wrong, "use Host.proc() and Host.sys(); docstrings and comments may cite paths"


def within_or_name(path: Path) -> str:
    return within(path) if path.is_relative_to(PACKAGE) else path.name


def test_only_the_command_line_prints_and_exits():
    wrong = []
    for path in sources("edgebench"):
        if top(path) == "cli":
            continue
        allowed = {"sys.stdout", "sys.stderr", "sys.exit", "SystemExit"} if within(path) in PROGRAMS else set()
        for node in ast.walk(parsed(path)):
            said = ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""
            if said in PRINTS_OR_EXITS - allowed:
                wrong.append(f"{within(path)}:{node.lineno}: {said}")
        wrong += [f"{within(path)}:{line}: {name}" for name, line in imports(path) if name.split(".")[0] == "click"]
    assert not wrong


PRINTS_OR_EXITS = {
    "print", "input", "exit", "quit", "SystemExit", "sys.exit", "sys.stdout", "sys.stderr", "os._exit", "os.abort",
}  # fmt: skip


@pytest.mark.parametrize("argv", [["--help"], ["--version"]])
def test_the_help_imports_nothing_heavy(argv):
    code = (
        "import sys\nfrom edgebench.cli import cli\n"
        f"cli.main({argv!r}, prog_name='edgebench', standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edgebench" in done.stdout
    assert done.stderr.strip() == "[]"


def test_importing_the_package_imports_no_other():
    code = (
        "import sys; before = set(sys.modules); import edgebench;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['edgebench']"


# --- sizes, names, docstrings -----------------------------------------------------------------------------------------


def test_files_are_short_enough_to_be_read_at_once():
    lengths = {
        str(path.relative_to(ROOT)): (len(path.read_text(encoding="utf-8").splitlines()), limit)
        for folder, limit in MOST_LINES.items()
        for path in sources(folder)
    }
    assert not {name: length for name, (length, limit) in lengths.items() if length > limit}


def test_functions_are_short():
    long = {
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}": length
        for path in sources("edgebench", "scripts", "tests")
        for function in functions(parsed(path))
        if (length := function.end_lineno - function.lineno + 1) > MOST_FUNCTION_LINES
    }
    assert not long


def test_a_module_is_named_for_what_it_knows():
    places = [path for folder in ("edgebench", "scripts", "tests") for path in (ROOT / folder).rglob("*")]
    assert not [path for path in places if path.stem.strip("_") in NAMELESS]


def test_every_public_thing_says_what_it_is():
    """Methods that a Protocol of the family's ``base`` describes are described there, once."""
    silent = []
    for path in sources("edgebench"):
        tree = parsed(path)
        if not ast.get_docstring(tree):
            silent.append(f"{within(path)}: the module")
        told = promised(path)
        owners = [("", tree), *((n.name + ".", n) for n in tree.body if isinstance(n, ast.ClassDef))]
        for prefix, owner in owners:
            for node in owner.body:
                if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    continue
                public = not node.name.startswith("_") and not prefix.startswith("_")
                if public and not ast.get_docstring(node) and not (prefix and node.name in told):
                    silent.append(f"{within(path)}:{node.lineno}: {prefix}{node.name}")
    assert not silent


def promised(path: Path) -> set[str]:
    """Methods of the Protocols of the family that a module belongs to."""
    base = path.parent / "base.py"
    if path == base or not base.exists():
        return set()
    protocols = (node for node in parsed(base).body if isinstance(node, ast.ClassDef))
    return {function.name for protocol in protocols for function in functions(protocol)}


def test_every_exception_to_a_rule_has_its_reason_beside_it():
    asked = re.compile(r"#\s*(?:noqa|type:\s*ignore)(?P<codes>[:\[][^#]*)?(?P<comment>#.*)?$")
    reasoned = re.compile(r"(noqa: [A-Z0-9, ]+ - \S+|type: ignore\[[\w, -]+\]\s+# \S+)")
    silent = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources("edgebench", "scripts")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if asked.search(line) and not reasoned.search(line)
    ]
    assert not silent


def test_every_ignored_lint_rule_has_its_reason_beside_it():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[tool.ruff.lint]", 1)[1].split("[tool.mypy]", 1)[0]
    rules = re.compile(r'^\s*(?:ignore = \[)?"[A-Z]+\d*"')
    silent = [line for line in section.splitlines() if rules.match(line) and "select" not in line and "#" not in line]
    assert not silent


def test_every_test_file_has_a_test():
    empty = [
        path.name
        for path in sources("tests")
        if path.name.startswith("test_")
        and not any(function.name.startswith("test_") for function in functions(parsed(path)))
    ]
    assert not empty


def test_no_file_names_a_private_place():
    """Neither folders of somebody's machine nor hosts of package registries: pip knows its own."""
    folders = "root|work|farm"
    hosts = "|".join(re.escape(".".join(host)) for host in (("pypi", "org"), ("files", "pythonhosted", "org")))
    private = re.compile(rf"(?<![\w.}}*~-])/(?:{folders})/|{hosts}")
    wrong = [f"{path.relative_to(ROOT)}:{n}: {line.strip()[:100]}" for path, n, line in lines() if private.search(line)]
    assert not wrong


def lines() -> Iterator[tuple[Path, int, str]]:
    """Every line of every text file that belongs to the project."""
    folders = ("edgebench", "scripts", "tests", "models", "profiles", "kernels", ".ci", ".github")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    top = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a file in a git worktree
    for path in [*found, *top]:
        if "__pycache__" not in path.parts and path.suffix not in (".pyc", ".so"):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from ((path, number, line) for number, line in enumerate(text.splitlines(), 1))
