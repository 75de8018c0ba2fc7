"""The guided tour: what may stand in the file, its first cell elsewhere, and all its cells in a folder of its own."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
from factories.runs import save_tiny_config
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
    """The executed notebook and the folder in which it ran: two steps, a tiny model, small inputs, no package index,
    and the toy dataset already there, as in a second run."""
    notebook, folder = read_notebook(), tmp_path_factory.mktemp("tour")
    shutil.copytree(toy_dataset_dir, folder / "ADE20k_toy_dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("NOTEBOOK_MODEL", str(save_tiny_config(tmp_path_factory.mktemp("model"))))
        patch.setenv("NOTEBOOK_STEPS", "2")
        patch.setenv("NOTEBOOK_IMAGE_SIZE", "64")
        execute(notebook, folder)
    return notebook, folder


def test_file_is_short_and_holds_no_results():
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len(notebook.cells) < 30
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


def test_a_plan_is_made_and_its_reasons_are_shown(tour):
    [text] = [text for text in map(printed, code_cells(tour[0])) if "# Planned for" in text]
    plan = (tour[1] / "outputs" / "plan.yaml").read_text()
    assert plan in text and "max_steps: 2  # given" in plan
    assert re.search(r"^learning_rate: .* all weights start at random", plan, re.MULTILINE)


def test_scores_are_printed(tour):
    [text] = [text for text in map(printed, code_cells(tour[0])) if re.search(MEAN_IOU, text)]
    scores = {split: float(value) for split, value in re.findall(MEAN_IOU, text)}
    results = json.loads((tour[1] / "outputs" / "notebook" / "all_results.json").read_text())
    expected = {"training": results["train_mean_iou"], "validation": results["eval_mean_iou"]}
    assert scores == {split: round(value, 3) for split, value in expected.items()}
    assert re.search(r"^sky +\d\.\d{3}", text, re.MULTILINE)


def test_pictures_are_shown(tour):
    """Image and mask, overlay, crops, curves and confusions, predictions, segments of the pipeline, and the classes
    that ONNX Runtime finds: none of one colour."""
    shown = [picture for cell in code_cells(tour[0]) for picture in pictures(cell)]
    assert len(shown) == 7
    assert all(picture.std() > 10 for picture in shown)


def test_files_are_left(tour):
    """predict.py predicts what the run predicted."""
    outputs = tour[1] / "outputs"
    assert (outputs / "notebook" / "report.html").is_file() and (outputs / "notebook.onnx").is_file()
    predicted = {path.name: path.read_bytes() for path in (outputs / "notebook" / "predictions").glob("*.png")}
    assert len(predicted) == 4
    again = {path.name: path.read_bytes() for path in (outputs / "predicted").glob("*.png")}
    assert again.pop("contact_sheet.png") and again == predicted
