"""The guided tour: what may stand in the file, its first cell elsewhere, and all its cells in a folder of its own."""

import base64
import io
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
MEAN_IOU = r"mean IoU on the (training|validation) images: ([01]\.\d{3})\n"


def read_notebook():
    return nbformat.read(REPOSITORY / "Fine_tune_Segformer.ipynb", as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook, folder):
    """Runs the cells in a kernel of their own whose current folder is `folder`; raises if one of them fails."""
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell):
    data = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in data]


@pytest.fixture(scope="module")
def tour(tmp_path_factory, toy_dataset_dir):
    """The executed notebook and the folder in which it ran: two steps, small inputs, no package index, and the toy
    dataset already there, as in a second run."""
    notebook, folder = read_notebook(), tmp_path_factory.mktemp("tour")
    shutil.copytree(toy_dataset_dir, folder / "ADE20k_toy_dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("NOTEBOOK_STEPS", "2")
        patch.setenv("NOTEBOOK_IMAGE_SIZE", "64")
        execute(notebook, folder)
    return notebook, folder


def test_file_is_short_and_holds_no_results():
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len(notebook.cells) < 25
    for cell in code_cells(notebook):
        assert (cell.outputs, cell.execution_count) == ([], None)


def test_calls_functions_and_defines_none():
    for cell in code_cells(read_notebook()):
        assert not re.search(r"^\s*(async )?(def|class)\b|\blambda\b", cell.source, re.MULTILINE)


def test_first_cell_changes_nothing_where_all_is_there(tour):
    notebook, folder = tour
    assert "ERROR" not in printed(code_cells(notebook)[0])
    assert sorted(path.name for path in folder.iterdir()) == ["ADE20k_toy_dataset", "outputs"]


def test_first_cell_fetches_the_repository_elsewhere(tmp_path, monkeypatch):
    """As on Colab, with a repository of two files in place of ours."""
    remote, folder = tmp_path / "remote", tmp_path / "content"
    remote.mkdir()
    folder.mkdir()
    (remote / "run_segmentation.py").write_text("ORIGIN = 'fetched'\n")
    (remote / "requirements.txt").write_text("numpy\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "files"]):
        subprocess.run(["git", *command], cwd=remote, check=True)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    notebook = read_notebook()
    install = code_cells(notebook)[0]
    placeholder = '"https://github.com/OWNER/REPOSITORY"'
    assert placeholder in install.source
    install.source = install.source.replace(placeholder, repr(remote.as_uri()))
    use = nbformat.v4.new_code_cell("import run_segmentation\nprint(run_segmentation.ORIGIN, Path.cwd())")
    notebook.cells = [install, use]
    execute(notebook, folder)
    assert "ERROR" not in printed(install)
    assert printed(use) == f"fetched {(folder / 'fine_tune_segformer').resolve()}\n"


def test_scores_are_printed(tour):
    [text] = [text for text in map(printed, code_cells(tour[0])) if re.search(MEAN_IOU, text)]
    scores = {split: float(value) for split, value in re.findall(MEAN_IOU, text)}
    assert scores.keys() == {"training", "validation"}
    assert all(0 < score < 1 for score in scores.values())
    assert re.search(r"^sky +\d\.\d{3}", text, re.MULTILINE)


def test_pictures_are_shown(tour):
    """Image and mask, overlay, crops, predictions on both splits, segments of the pipeline: none of one colour."""
    shown = [picture for cell in code_cells(tour[0]) for picture in pictures(cell)]
    assert len(shown) == 6
    assert all(picture.std() > 10 for picture in shown)


def test_files_are_left(tour):
    outputs = tour[1] / "outputs" / "notebook"
    assert len(list((outputs / "predictions").glob("*.png"))) == 4
    assert (outputs / "model.safetensors").stat().st_size > 4 * 3_700_000  # MiT-B0 in float32
