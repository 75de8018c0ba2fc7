"""The page of `app.py`, looked at in a browser; what can be downloaded against `predict.py`."""

import json
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from factories.browser import NEEDS_CHROMIUM, browser  # noqa: F401
from factories.models import COLORS, noise, save_model
from factories.runs import free_port

import app
import cli_utils
import predict
from cli_utils import UserError
from data.arguments import EvaluationArguments
from models.inference import find_device
from models.predictor import load_predictor

OTHERS = {0: "<b>road</b>", 1: "${1+1} {{2}}", 2: "car"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two folders, of which both are called `best`."""
    folder = tmp_path_factory.mktemp("models")
    first, second = folder / "a" / "best", folder / "b" / "best"
    return [save_model(first, colors=COLORS), save_model(second, names=OTHERS)]


@pytest.fixture(scope="module")
def predictors(models):
    device = find_device("cpu")
    titles = app.titles_of([str(model) for model in models])
    return {
        title: load_predictor(str(model), EvaluationArguments(), device)
        for title, model in zip(titles, models, strict=True)
    }


LINKS = "[...document.querySelectorAll('a[href*=\"/file=\"]')]"


@pytest.fixture(scope="module")
def address(predictors):
    pytest.importorskip("gradio")
    page = app.build_page(predictors)
    yield app.serve(page, app.AppArguments(model=[], port=free_port()))
    page.close()


def predicted(model, image, folder, *flags):
    predict.main([str(image), "--model", str(model), "--output_dir", str(folder), "--device", "cpu", *flags])
    return folder


@NEEDS_CHROMIUM
def test_an_image_is_uploaded_and_its_files_are_those_of_predict(address, models, browser, tmp_path):  # noqa: F811
    photo = tmp_path / "photo.png"
    noise(60, 80).save(photo)
    browser.open(address)
    browser.wait_for("!!document.querySelector('input[type=file]')")
    browser.choose("input[type=file]", photo)
    browser.wait_for(
        "document.querySelectorAll('canvas').length == 2 && document.body.dataset.ready == 'yes'", frame=True
    )
    headings = browser.run("[...document.querySelectorAll('h2')].map(heading => heading.textContent)", frame=True)
    assert headings == ["best", "best_2"]
    names = browser.run("[...document.querySelectorAll('bdi')].map(name => name.textContent)", frame=True)
    assert set(names) <= {*OTHERS.values(), "wall", "floor", "sky"} and OTHERS[0] in names
    browser.wait_for(f"{LINKS}.length == 6")
    links = browser.run(f"{LINKS}.map(link => link.href)")
    files = {Path(urllib.parse.unquote(link)).name: urllib.request.urlopen(link).read() for link in links}
    for model, name in zip(models, ("photo_best", "photo_best_2"), strict=True):
        folder = predicted(model, photo, tmp_path / name, "--save_polygons", "geojson")
        assert files.pop(f"{name}.png") == (folder / "photo.png").read_bytes()
        assert files.pop(f"{name}.jpg") == (folder / "overlays" / "photo.jpg").read_bytes()
        assert json.loads(files.pop(f"{name}.geojson")) == json.loads((folder / "photo.geojson").read_text())
    assert files == {} and browser.problems == []  # among which would be requests to anybody else


@NEEDS_CHROMIUM
def test_what_is_no_image_is_said_in_the_page(address, browser, tmp_path):  # noqa: F811
    (tmp_path / "bad.png").write_bytes(b"no image")
    browser.open(address)
    browser.wait_for("!!document.querySelector('input[type=file]')")
    browser.choose("input[type=file]", tmp_path / "bad.png")
    said = browser.wait_for("document.querySelector('.error')?.textContent", frame=True)
    assert said == "bad.png (no image, or of an unknown format)"


def shown(path, predictors):
    """The last of what the page shows, and what is in its files, by name."""
    for html, files in app.answers(path, predictors):
        last = html, {Path(file).name: Path(file).read_bytes() for file in files}
    return last


def test_pixels_of_which_nothing_is_known(predictors, models, tmp_path):
    """Of a GeoTIFF with nodata, as predict.py does."""
    rasterio = pytest.importorskip("rasterio")
    bands = np.moveaxis(np.asarray(noise(40, 60)).clip(1), -1, 0).copy()
    bands[:, :, :10] = 0
    place = rasterio.Affine(2, 0, 500000, 0, -2, 6000000)
    file = tmp_path / "field.tif"
    options = {"height": 40, "width": 60, "count": 3, "dtype": "uint8", "nodata": 0, "crs": "EPSG:32633"}
    with rasterio.open(file, "w", driver="GTiff", transform=place, **options) as raster:
        raster.write(bands)
    one = dict([next(iter(predictors.items()))])
    files = shown(file, one)[1]
    folder = predicted(models[0], file, tmp_path / "out", "--save_polygons", "geojson")
    assert files["field.png"] == (folder / "field.png").read_bytes()
    assert json.loads(files["field.geojson"]) == json.loads((folder / "field.geojson").read_text())
    assert json.loads(files["field.geojson"])["crs"]["properties"]["name"] == "EPSG:32633"


def test_large_images_are_refused(predictors, tmp_path, monkeypatch):
    monkeypatch.setattr("data.large_images.LARGE_PIXELS", 4000)
    noise(60, 80).save(tmp_path / "large.png")
    html, files = shown(tmp_path / "large.png", predictors)
    assert "80 x 60 pixels" in html and "predict.py takes it" in html and files == {}


def test_without_gradio(monkeypatch, models):
    monkeypatch.setattr(cli_utils, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="app.py needs gradio, which is not installed: pip install gradio"):
        app.main(["--model", str(models[0])])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "a", "--port", "70000"], "--port is 70000; it must be 1 to 65535"),
        (["--model", "a", "--prot", "80"], "unknown flag --prot"),
        ([], "--model"),
        (["--model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_mistakes(flags, message):
    with pytest.raises(UserError, match=message):
        app.main(flags)


def test_a_port_that_is_taken(predictors, address):
    port = urllib.parse.urlsplit(address).port
    page = app.build_page(predictors)
    with pytest.raises(UserError, match=f"--port {port} cannot be used"):
        app.serve(page, app.AppArguments(model=[], port=port))


def test_models_are_called_by_their_last_names(tmp_path):
    (tmp_path / "outputs" / "mine").mkdir(parents=True)
    folder = str(tmp_path / "outputs" / "mine")
    assert app.titles_of([folder, "nvidia/segformer-b0", f"{folder}/"]) == ["mine", "nvidia/segformer-b0", "mine_2"]


# ---- a Space --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(server):
    """A Hub with a model of ours."""
    huggingface_hub.HfApi().create_repo("tester/model", private=False)
    server.requests.clear()
    return server


def push(*models, name="page", flags=()):
    return app.main(["--model", *map(str, models), "--push_space", name, *flags])


def test_a_space_has_all_that_it_needs(server, models, tmp_path):
    """What was uploaded starts by itself, in a process that sees nothing else of ours, and predicts."""
    assert push("tester/model", flags=["--slide_crop", "64", "--eval_flip"]) == f"{server.url}/spaces/tester/page"
    assert server.repos["spaces/tester/page"]["sdk"] == "gradio"
    files = server.files("spaces/tester/page")
    assert "predict.py" not in files and not any(path.startswith("tests") for path in files)
    for path, content in files.items():
        (tmp_path / "space" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / path).write_bytes(content)
    front = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert {"sdk": "gradio", "app_file": "space.py", "models": ["tester/model"]}.items() <= front.items()
    settings = yaml.safe_load(files["app.yaml"])
    assert settings == {"model": ["tester/model"], "slide_crop": 64, "eval_flip": True}
    noise(60, 80).save(tmp_path / "photo.png")
    script = f"""
import runpy, sys
import app

class Page:
    def launch(self, **options):
        print(options["server_name"], options["server_port"], flush=True)
        raise OSError("seen enough")
build = app.build_page
def seen(predictors):
    assert build(predictors) and [*predictors] == ["best"], predictors
    for html, names in app.answers(app.Path({str(tmp_path / "photo.png")!r}), predictors):
        print(sorted(app.Path(name).name for name in names), predictors["best"].protocol.flip, html.count("<iframe"))
    return Page()
app.build_page = seen
sys.argv = ["space.py", "--model", {str(models[0])!r}]
runpy.run_path("space.py", run_name="__main__")
"""
    env = {key: value for key, value in server.env().items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path / "space", env=env, capture_output=True, text=True, check=False)
    predicted, served = done.stdout.splitlines() or [done.stderr, ""]
    assert predicted == "['photo.geojson', 'photo.jpg', 'photo.png'] True 1" and served == "0.0.0.0 7860"
    assert done.stderr.splitlines()[-1].startswith("error: --host 0.0.0.0 --port 7860 cannot be used (seen enough)")


def test_the_folder_of_a_run_that_was_published(server, models, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"run lies here alone; publish it first \(python publish.py .*run\)"):
        push(run)
    (run / "README.md").write_text('---\n---\n```python\nmodel_id = "tester/model"\n```\n')
    push(run, name="tester/other", flags=["--private"])
    assert yaml.safe_load(server.files("spaces/tester/other")["app.yaml"]) == {"model": ["tester/model"]}
    assert server.repos["spaces/tester/other"]["private"] is True


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("tester/none", [], "has no model tester/none, or not for you .HTTP 404"),
        ("tester/model", ["--push_space", "a b"], "--push_space a b cannot name a repository"),
        ("tester/model", ["--push_space", "somebody/page"], "refused the token for somebody/page"),
        ("tester/model", ["--token", "hf_wrong"], "has no model tester/model, or not for you"),
    ],
)
def test_a_space_that_cannot_be(server, model, flags, message):
    with pytest.raises(UserError, match=message):
        push(model, flags=flags)
    assert server.commits == []


def test_a_push_that_fails(server):
    server.fail_on, server.fail_status = "commit", 503
    with pytest.raises(UserError, match="the Space tester/page failed .HTTP 503.*The same command pushes again"):
        push("tester/model")
