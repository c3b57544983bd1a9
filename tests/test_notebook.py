"""The notebook runs from its first cell to its last."""

from pathlib import Path

import nbclient
import nbformat
import pytest
from small_sample import small_sample

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
@pytest.mark.parametrize("sample", ["small", pytest.param("whole", marks=pytest.mark.long)])
def test_the_notebook_runs(tmp_path, sample):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if sample == "small":
        folder = small_sample(tmp_path / "images")
        code = f"import pathlib, ftrain.data\nftrain.data.sample_folder = lambda: pathlib.Path({str(folder)!r})"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(code))
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = "\n".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    )
    assert "done: validation accuracy " in printed
    assert "of its images are recognised" in printed
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3


def test_the_notebook_is_kept_without_outputs():
    """Outputs would name paths of the machine that made them."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs] == []
