"""The notebooks run from top to bottom on little data, say nothing on stderr, and are stored without outputs."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))
# Enough patients for a positive and a negative label in every split.
NUM_PATIENTS = 300

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'ehrjax[notebooks]'")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'ehrjax[notebooks]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'ehrjax[notebooks]'")


def _read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def _execute(notebook, folder):
    """Run all cells in `folder`, in this interpreter's own kernel whatever kernels a user has installed."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "EHRJAX_NOTEBOOK_PATIENTS": str(NUM_PATIENTS),
        "TMPDIR": str(folder),
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",  # threads of small regressions wait for each other where tests share the cores
    }
    environment.pop("MPLBACKEND", None)  # the kernel's own backend shows figures, Agg would warn
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = nbclient.NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment, cleanup_kc=True)


def _outputs(notebook):
    return [(cell, output) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_notebooks():
    names = ["01_data", "02_lstm", "03_behrt", "04_embeddings", "05_survival", "06_multimodal"]
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_clean_for_any_machine(path):
    notebook = _read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert "import ehrjax" in code[0].source and "%pip install" in code[0].source
    assert not re.search(r"(/work/|/home/|/root/|/Users/|C:\\)", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom_without_warnings(path, tmp_path):
    notebook = _read(path)
    _execute(notebook, tmp_path)
    stderr = [(cell.id, output.text) for cell, output in _outputs(notebook) if output.get("name") == "stderr"]
    assert stderr == []
    images = sum("image/png" in output.get("data", {}) for _, output in _outputs(notebook))
    assert images >= 6
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
