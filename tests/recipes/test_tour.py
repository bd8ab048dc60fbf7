"""The notebook of ten uses: clean as it lies in the repository, and running from end to end."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest
from builders import make_world
from hub_clients import WRITER, environment
from hub_server import User, serve
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

TOUR = Path(__file__).parents[2] / "recipes" / "tour.ipynb"


@pytest.fixture
def tour() -> Any:
    return nbformat.read(TOUR, as_version=4)


def test_the_notebook_holds_no_outputs(tour: Any) -> None:
    nbformat.validate(tour)
    code = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_it_imports_coin_hf_alone(tour: Any) -> None:
    source = "\n".join(cell.source for cell in tour.cells if cell.cell_type == "code")
    nodes = ast.walk(ast.parse(source))
    modules = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name.startswith("coin_hf")} == {"coin_hf"}


def shown(tour: Any, title: str) -> str:
    """All that the code under a heading put out, as text and as HTML."""
    [start] = [k for k, cell in enumerate(tour.cells) if cell.source.startswith(f"## {title}")]
    parts = []
    for output in tour.cells[start + 1].outputs:
        data = output.get("data", {})
        parts += [output.get("text", ""), *(data.get(f"text/{k}", "") for k in ("html", "plain"))]
        parts.append(data.get("text/markdown", ""))
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.hub
def test_it_runs_from_end_to_end(tour: Any, tmp_path: Path) -> None:
    """In a kernel of its own, with small experts, and a local Hub for what it pushes."""
    make_world(tmp_path)
    [at] = [k for k, cell in enumerate(tour.cells) if "parameters" in cell.metadata.get("tags", ())]
    places = {name: str(tmp_path / name) for name in ("low", "high", "digits")}
    given = {**places, "folder": str(tmp_path / "out"), "namespace": "me"}
    stored = [
        node for node in ast.walk(ast.parse(tour.cells[at].source)) if isinstance(node, ast.Name)
    ]
    assert {node.id for node in stored} == set(given)
    tour.cells.insert(at + 1, new_code_cell("\n".join(f"{k} = {v!r}" for k, v in given.items())))
    with serve(tmp_path / "hub", tokens={WRITER: User("me", write=True)}) as hub:
        client = NotebookClient(tour, timeout=300, kernel_name="python3")
        client.execute(cwd=str(tmp_path), env=environment(hub.endpoint, tmp_path / "home", WRITER))
        assert "erasure" in hub.read("me/coded", "README.md").decode()
    assert "<svg" in shown(tour, "1. ")
    assert "'high': 'decoded'" in shown(tour, "2. ")
    assert shown(tour, "3. ").strip() == "the same: True"
    assert "averaging" in shown(tour, "5. ")
    assert "0.7" in shown(tour, "6. ")
    assert "the same: True" in shown(tour, "10. ")
