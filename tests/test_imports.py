"""The package's import graph, read from its source, has no circles, and every import points upstream.

Imports inside functions count. Imports for type checking alone do not.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "fasttrace": ROOT / "src/fasttrace",
    "fasttrace.kernels": ROOT / "kernels",
    "fasttrace.analysis": ROOT / "analysis",
}

# From upstream to downstream. A part imports only from itself and from earlier lines. "fasttrace" is the package's
# __init__ with the public functions.
ORDER = [
    ("errors", "version"),
    ("memory", "optional", "packaged", "places", "processor", "protocols", "windows"),
    ("cache", "settings"),
    ("show",),
    ("recall",),
    ("facts", "kernels"),
    ("ops",),
    ("models",),
    ("runs",),
    ("cluster",),
    ("tracing", "editing"),
    ("needs", "workflow"),
    ("store",),
    ("analysis",),
    ("fasttrace",),
    ("benchmarks",),
    ("studies",),
    ("study",),
    ("cli",),
]
LINE = {part: number for number, line in enumerate(ORDER) for part in line}


def module_files() -> dict[str, Path]:
    """{module name: file}. A package's name leads to its __init__.py."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            if path.is_relative_to(ROOT / "analysis/results"):
                continue  # what studies found, and how, is not part of the package
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


FILES = module_files()


def imports_of(name: str) -> set[str]:
    """The other modules of the package that a module imports."""
    path = FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # A name imported from a package is one of its modules or is defined in its __init__.
            found |= {inner if (inner := f"{source}.{alias.name}") in FILES else source for alias in node.names}
    return {one for one in found if one in FILES} - {name}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Every node except those under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from executed(other)
        else:
            yield from executed(child)


GRAPH = {name: imports_of(name) for name in FILES}


def part_of(name: str) -> str:
    """Part of the package that a module belongs to: facts, ops, cli, …"""
    return name.split(".")[1] if "." in name else name


def test_what_counts_as_an_import():
    assert "fasttrace.store" in GRAPH["fasttrace"], "an import in a function"
    assert "fasttrace.cli.deliver" in GRAPH["fasttrace.cli.sql"], "a relative import"
    assert "fasttrace.ops.native" in GRAPH["fasttrace.ops.rank_one"], "a module imported from its package"
    assert "fasttrace.facts" in GRAPH["fasttrace.workflow"], "a name in a package's __init__"
    assert "if TYPE_CHECKING:\n    from fasttrace.store" in FILES["fasttrace.study"].read_text()
    assert not {name for name in GRAPH["fasttrace.study"] if part_of(name) == "store"}, "an import for types alone"


def test_there_are_no_circles():
    TopologicalSorter(GRAPH).prepare()  # raises CycleError with the circle


def test_imports_point_upstream():
    unplaced = {part_of(name) for name in GRAPH} - set(LINE)
    assert not unplaced, "expected every part of the package in ORDER"
    downstream = {
        f"{name} imports {imported}"
        for name, imports in GRAPH.items()
        for imported in imports
        if part_of(name) != part_of(imported) and LINE[part_of(imported)] >= LINE[part_of(name)]
    }
    assert not downstream
