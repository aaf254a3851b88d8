"""The shape of the code: no import circle, rooms below rooms, modules of a size that one reads at once."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ("gsr_kernels", "bench")
    for path in sorted((ROOT / room).rglob("*.py"))
}


def imported(module: str) -> set[str]:
    """The project's modules that a module imports by name, those inside functions and under TYPE_CHECKING too."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            source = ".".join(part for part in (above, node.module) if part)
            found |= {name if (name := f"{source}.{alias.name}") in MODULES else source for alias in node.names}
    return (found & MODULES.keys()) - {module}


GRAPH = {module: imported(module) for module in MODULES}


def circles() -> list[list[str]]:
    """Sets of modules that import one another in a circle."""
    reached: dict[str, set[str]] = {}
    for start in GRAPH:
        seen, left = set(), [start]
        while left:
            for module in GRAPH[left.pop()] - seen:
                seen.add(module)
                left.append(module)
        reached[start] = seen
    found = defaultdict(list)
    for module, seen in reached.items():
        if module in seen:
            found[frozenset(other for other in seen if module in reached[other])].append(module)
    return list(found.values())


def test_the_graph_is_seen() -> None:
    assert "gsr_kernels.basis" in GRAPH["gsr_kernels.ops"] and "bench.results" in GRAPH["bench.__main__"]


def test_no_import_circle_lazy_ones_included() -> None:
    assert circles() == []


def test_distributed_never_imports_optim() -> None:
    crossing = {m: edges for m, found in GRAPH.items() if (edges := {e for e in found if ".optim" in e})}
    assert not [module for module in crossing if module.startswith("gsr_kernels.distributed")]


def test_no_module_is_longer_than_300_lines() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > 300} == {}


def test_few_crumbs() -> None:
    short = [m for m, path in MODULES.items() if path.name != "__init__.py" and len(path.read_text().splitlines()) < 30]
    assert len(short) <= 12, short


@pytest.mark.parametrize(
    "module", ["gsr_kernels", "gsr_kernels.distributed", "gsr_kernels.linalg", "gsr_kernels.cli.estimate"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    heavy = "triton", "transformers", "matplotlib", "peft"
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"
