"""The notebook of docs/ runs from its first cell to its last, in a kernel as Jupyter starts it."""

import os
import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs/own-hands.ipynb"


@pytest.mark.slow
def test_the_notebook_of_the_docs_runs_and_shows_progress(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sample1.jpg", "sample11.jpg"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(shared_dir / "data/stills" / name, tmp_path / "photos")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # with it a kernel does not show what C++ writes
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    nbclient.execute(notebook, cwd=str(tmp_path), timeout=240)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    for progress in ("Ingesting folder", "Annotating", "Sampling"):
        assert progress in said
    assert not any(noise in said for noise in ("W0000", "INFO: Created TensorFlow", "Missing packages"))
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2, "a drawn sample and a generated hand"
