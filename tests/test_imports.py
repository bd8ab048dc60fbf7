"""What imports what: one way down the line, and nothing heavy before it is needed."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import coin_hf

ROOT = Path(coin_hf.__file__).parent

LINE = [
    "errors", "erasure", "networks", "metrics", "recipe", "records", "hub", "fisher", "coders",
    "refiners", "experts", "data", "evaluation", "reports", "repository", "encoding", "ensemble",
    "pipeline", "recoding", "comparison", "serve", "page", "demo", "cli", "__main__",
]  # fmt: skip
"""The rooms from the errors at the bottom to the command line; each imports only those before."""

CORE = {"erasure", "networks", "fisher", "coders", "refiners"}
"""The numeric core: no file, no network, no log."""
SYSTEM = {"networks.cgroup"}
"""Modules of it that read what the kernel says of this process, which is in files."""


@cache
def parsed() -> dict[str, ast.Module]:
    """The source of every module by its dotted name below coin_hf ('' for the package itself)."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text())
    return found


def imported(tree: ast.Module) -> set[str]:
    """All dotted names a module imports, also inside its functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(tree: ast.Module, modules: set[str]) -> set[str]:
    """The modules of coin_hf that a module imports."""
    found = set()
    for name in imported(tree):
        package, _, rest = name.partition(".")
        if package == "coin_hf":
            while rest not in modules:  # the last part may be a function's or class's name
                rest = rest.rpartition(".")[0]
            found.add(rest)
    return found - {""}  # the package itself, for its version


def test_the_line_holds_every_module() -> None:
    assert {name.partition(".")[0] for name in parsed() if name} == set(LINE)


def test_a_module_imports_only_what_stands_before_it() -> None:
    trees = parsed()
    modules = set(trees)
    wrong = []
    for name, tree in trees.items():
        if not name:
            continue
        unit = name.partition(".")[0]
        for other in own(tree, modules):
            of = other.partition(".")[0]
            if of != unit and LINE.index(of) > LINE.index(unit):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    trees = parsed()
    graph = {name: own(tree, set(trees)) - {name} for name, tree in trees.items() if name}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # or a CycleError


def test_the_numeric_core_is_pure() -> None:
    trees = parsed()
    forbidden = {"datasets", "huggingface_hub", "io", "logging", "pathlib", "timm"}
    forbidden |= {"random", "requests", "safetensors", "shutil", "tempfile", "transformers"}
    for name, tree in trees.items():
        if name.partition(".")[0] not in CORE:
            continue
        for other in imported(tree):
            package, _, rest = other.partition(".")
            assert package not in forbidden, f"{name} imports {other}"
            assert package != "coin_hf" or rest.partition(".")[0] in CORE, f"{name}: {other}"
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {func.id for func in calls if isinstance(func, ast.Name)}
        assert not called & {"open", "print"} or name in SYSTEM, name


@pytest.mark.parametrize("module", ["coin_hf", "coin_hf.recipe", "coin_hf.cli", "coin_hf.errors"])
def test_importing_has_a_budget(module: str) -> None:
    heavy = ["accelerate", "datasets", "huggingface_hub", "matplotlib", "numpy", "timm", "torch"]
    script = f"import sys, {module}; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_public_names() -> None:
    for name in coin_hf.__all__:
        assert getattr(coin_hf, name).__name__ == name
    assert set(coin_hf.__all__) <= set(dir(coin_hf))
    with pytest.raises(AttributeError, match="module 'coin_hf' has no attribute 'decode'"):
        print(coin_hf.decode)
