"""The notebook as a file: no outputs, thin cells, the library imported, numbered sections."""

import ast
import runpy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from featherface.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
runner = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts/run_notebook.py")))
OTHERS = {"numpy", "pandas"}  # what a cell may import beyond the project


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(runner.NOTEBOOK, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_valid_and_carries_no_outputs(notebook):
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None


def test_cells_are_thin(notebook):
    for cell in code_cells(notebook):
        lines = cell.source.splitlines()
        assert len(lines) <= 15 and len([line for line in lines if line]) <= 12
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)]


def test_it_imports_the_project_and_tables_only(notebook):
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] == "featherface"
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"featherface", *OTHERS}


def test_it_teaches_the_library(notebook):
    """All sections but setup, training and troubleshooting call the library itself."""
    text = "\n".join(cell.source for cell in notebook.cells)
    for section in text.split("\n## ")[1:]:
        own = "ff." in section or "from featherface." in section
        assert own or section.startswith(("1 ", "5 ", "6 ", "11 ")), section
    for name in ("ff.Detector(", "ff.OnnxDetector(", "ff.draw(", "evaluate(", "compare(",
                 "export(", "plot_precision_recall(", "mixup(", "cutmix("):  # fmt: skip
        assert name in text, name


def test_sections_are_numbered_and_explained(notebook):
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    headings = [text.splitlines()[0] for text in texts if text.startswith("## ")]
    assert [int(heading.split()[1]) for heading in headings] == list(range(1, 12))
    kinds = [cell.cell_type for cell in notebook.cells]
    sections = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## ")]
    for start, end in zip(sections, [*sections[1:], len(kinds)], strict=True):
        assert "code" in kinds[start:end]


def test_each_section_from_6_on_runs_after_a_restart(notebook):
    """Its first code cell imports what it needs and finds the session again."""
    for number in range(6, 12):
        at = next(
            i for i, cell in enumerate(notebook.cells) if cell.source.startswith(f"## {number} ")
        )
        first = next(cell for cell in notebook.cells[at:] if cell.cell_type == "code")
        assert "from featherface import notebook as nb" in first.source
        assert "session = nb.current_session()" in first.source


def test_parameters_are_injected_as_papermill_does(notebook):
    copy = nbformat.from_dict(notebook)
    runner.inject(copy, {"MODE": "quick", "FRESH": True})
    tags = [cell.metadata.get("tags", []) for cell in copy.cells]
    assert tags.index(["injected-parameters"]) == tags.index(["parameters"]) + 1
    with pytest.raises(ConfigError, match="no parameter EPOCHS"):
        runner.inject(copy, {"EPOCHS": 3})


def test_the_page_needs_no_network(notebook):
    page = runner.to_html(notebook, title="a title")
    assert "<title>a title</title>" in page
    loaded = [part[:80] for part in page.split("<script")[1:] if 'src="http' in part[:200]]
    assert loaded == [] and '<link rel="stylesheet" href="http' not in page
