"""Images of 16 bits and floats through the scripts: training, evaluation, prediction, going on, training again."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from factories.runs import draw_pair, flags_for, save_tiny_config
from PIL import Image
from safetensors.torch import load_file

import export_onnx
import predict
import run_segmentation
from cli_utils import UserError

KINDS = {
    "uint16": ("uint16", 4, lambda bands: bands * 40 + 200),
    "reflectance": ("float32", 4, lambda bands: bands / 255),
    "metres": ("float32", 3, lambda bands: bands * 12 - 50),
}


def make_dataset(folder, dtype, count, scaled):
    """Some corners are nodata. Returns the folder and the training pixels (C, n), NaN where nothing is known."""
    rng, pixels = np.random.default_rng(0), []
    for split, number in (("train", 3), ("val", 2)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for index in range(number):
            image, mask = draw_pair(rng, 40 + 7 * index, 64, 0)
            bands = np.asarray(image).astype(np.float64)
            bands = scaled(np.concatenate([bands, 255 - bands[..., :1]], axis=-1)[..., :count]).astype(dtype)
            bands[-6:, -6:] = -9999 if dtype == "float32" else 7
            options = {"photometric": "minisblack", "planarconfig": "contig"}
            nodata = [(42113, "s", 0, "7", True)] if dtype != "float32" else []
            tifffile.imwrite(folder / split / "images" / f"{index}.tif", bands, extratags=nodata, **options)
            mask.save(folder / split / "masks" / f"{index}.png")
            known = bands.astype(np.float64)
            known[-6:, -6:] = np.nan
            pixels += [known.reshape(-1, count).T] if split == "train" else []
    (folder / "classes.json").write_text(json.dumps({"0": "background", "1": "disc", "2": "bar"}))
    return folder, np.concatenate(pixels, axis=1)


def run(data, model, out, *options):
    argv = [*flags_for(data, "")[2:], *model, "--output_dir", str(out), "--max_steps", "2", "--eval_strategy", "no"]
    return run_segmentation.main(
        [*argv, "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2", *options]
    )


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """Dataset, its training pixels, its flags, the folder of a run, and its metrics."""
    folder = tmp_path_factory.mktemp(request.param)
    dtype, count, _ = KINDS[request.param]
    data, pixels = make_dataset(folder / "data", *KINDS[request.param])
    model = ["--from_scratch", str(save_tiny_config(folder / "config")), "--num_channels", str(count)]
    metrics = run(data, model, folder / "out", "--do_train", "--do_eval", "--do_predict")
    return data, pixels, model, folder / "out", metrics, dtype


def settings_of(folder):
    return json.loads((folder / "preprocessor_config.json").read_text())


def test_statistics_of_the_training_pixels_are_saved(trained):
    data, pixels, _, out, _, dtype = trained
    for folder in (out, out / "checkpoint-1"):
        settings = settings_of(folder)
        assert settings["image_dtype"] == dtype and settings["rescale_factor"] == 1.0
        assert np.allclose(settings["image_mean"], np.nanmean(pixels, axis=1), rtol=1e-6)
        assert np.allclose(settings["image_std"], np.nanstd(pixels, axis=1), rtol=1e-6)
    assert settings_of(out)["image_mean"] == settings_of(out / "checkpoint-1")["image_mean"]


def test_predictions_are_what_was_scored(trained, tmp_path):
    data, _, _, out, metrics, dtype = trained
    assert 0 <= metrics["eval_mean_iou"] <= 1
    argv = ["--model", str(out), "--device", "cpu", "--image_size", "64", "--output_dir"]
    predict.main([*argv, str(tmp_path / "out"), str(data / "val" / "images")])
    for name in ("0.png", "1.png"):
        one, other = (np.array(Image.open(folder / name)) for folder in (out / "predictions", tmp_path / "out"))
        assert np.array_equal(one, other) and one.max() <= 2
    other = tmp_path / "other.tif"
    count = len(settings_of(out)["image_mean"])
    tifffile.imwrite(other, np.zeros((count, 40, 40), np.uint8), photometric="minisblack", planarconfig="separate")
    with pytest.raises(SystemExit) as exit_:
        predict.main([*argv, str(tmp_path / "more"), str(other)])
    assert f"other.tif (bands of uint8, and the model was trained on {dtype}: convert" in exit_.value.code


def test_a_run_that_goes_on_has_the_saved_statistics(trained, tmp_path):
    data, _, model, out, metrics, _ = trained
    checkpoint = shutil.copytree(out / "checkpoint-1", tmp_path / "checkpoint-1")
    again = run(data, model, tmp_path / "resumed", "--do_train", "--resume_from_checkpoint", str(checkpoint))
    assert again["train_loss"] == metrics["train_loss"]
    first, resumed = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "resumed"))
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in first.items())


def test_a_second_run_has_the_saved_statistics(trained, tmp_path):
    """On other images, whose own would differ."""
    data, _, model, out, metrics, dtype = trained
    again = run(data, ["--model_name_or_path", str(out)], tmp_path / "eval", "--do_eval")
    assert again["eval_mean_iou"] == metrics["eval_mean_iou"]
    half = shutil.copytree(data, tmp_path / "half")
    for kind, suffix in (("images", "tif"), ("masks", "png")):
        (half / "train" / kind / f"2.{suffix}").unlink()
    run(half, ["--model_name_or_path", str(out)], tmp_path / "second", "--do_train")
    assert settings_of(tmp_path / "second")["image_mean"] == settings_of(out)["image_mean"]
    with pytest.raises(UserError, match=rf"--num_channels is 5, but .*trained on {model[-1]} bands of {dtype}"):
        run(half, ["--model_name_or_path", str(out), "--num_channels", "5"], tmp_path / "third", "--do_train")


def test_models_of_other_numbers_are_refused(trained, tmp_path):
    data, _, model, out, _, dtype = trained
    eight = shutil.copytree(out, tmp_path / "eight")
    for name in ("preprocessor_config.json", "processor_config.json"):
        content = json.loads((eight / name).read_text())
        del content.get("image_processor", content)["image_dtype"]
        (eight / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"images have bands of {dtype}, and .*eight was trained on uint8"):
        run(data, ["--model_name_or_path", str(eight)], tmp_path / "out", "--do_eval")


@pytest.mark.parametrize("trained", ["uint16"], indirect=True)
def test_a_graph_that_takes_images_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="takes bands of uint16, and such a graph takes images of 8 bits: export with"):
        export_onnx.main(["--model", str(trained[3]), "--output", str(tmp_path / "a.onnx")])


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["reflectance"], indirect=True)
def test_exported_with_logits(trained, tmp_path):
    data, _, _, out, _, _ = trained
    graph = tmp_path / "a.onnx"
    found = export_onnx.main(["--model", str(out), "--output", str(graph), "--logits", "--image_size", "64"])
    assert found["different"] == 0
    images = [str(data / "val" / "images")]
    predict.main(["--model", str(graph), "--device", "cpu", "--output_dir", str(tmp_path / "out"), *images])
    one, other = (np.array(Image.open(folder / "0.png")) for folder in (out / "predictions", tmp_path / "out"))
    assert (one == other).mean() > 0.999


@pytest.mark.parametrize("trained", ["metres"], indirect=True)
def test_a_preview_shows_bands(trained, tmp_path):
    data, _, model, _, _, _ = trained
    run(data, model, tmp_path / "out", "--do_train", "--preview", str(tmp_path / "preview.png"))
    assert np.asarray(Image.open(tmp_path / "preview.png")).std() > 20
