"""Every notebook runs from top to bottom, and its figures are there."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DRAWS = re.compile(r"\.(\w*heatmap|top_latents|card|waterfall|picture|(\w+_)?figure)\(.*\)$")
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    kept = [c for c in notebook.cells if c.cell_type == "code" and c.outputs]
    assert not kept, "commit notebooks without outputs: they are large and go stale"
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    figures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    drawn = sum(
        DRAWS.search(c.source.rstrip().splitlines()[-1]) is not None
        for c in notebook.cells
        if c.cell_type == "code"
    )
    assert len(figures) == drawn > 0
