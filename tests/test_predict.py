"""`predict.py` on a tiny random SegFormer: against stock transformers and `run_segmentation.py`, and bad input."""

import errno
import io
import json
import logging
import os
import shutil
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from factories.models import COLORS, NAMES, noise, save_model
from factories.trees import photo, spots
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerImageProcessor,
)

import predict
import run_segmentation
from cli_utils import UserError, run_cli
from data import large_images
from data.classes import ClassMap
from data.inputs import expand
from data.preprocessing import EvaluationProtocol
from models.predictor import Predictor
from models.trained_classes import find_class_map
from reports.arguments import models_and_inputs


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), colors=COLORS)


@pytest.fixture
def photos(tmp_path):
    """A landscape, and a portrait in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    noise(40, 60).save(folder / "a.png")
    noise(70, 50, seed=1).save(folder / "sub" / "b.v2.bmp")
    return folder


def run(model, out, *inputs, flags=()):
    return predict.main(
        [*map(str, inputs), "--model", str(model), "--output_dir", str(out), "--device", "cpu", *flags]
    )


def ids_in(path):
    with Image.open(path) as image:
        return np.asarray(image)


def stock_logits(model_dir, image, height, width):
    """The protocol written out with stock transformers: resized to (height, width), whole, logits upsampled."""
    model = AutoModelForSemanticSegmentation.from_pretrained(model_dir).eval()
    pixels = tvF.resize(tvF.pil_to_tensor(image), [height, width], antialias=True).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406, 0.5]), torch.tensor([0.229, 0.224, 0.225, 0.25])
    mean, std = mean[: len(pixels)], std[: len(pixels)]
    with torch.no_grad():
        logits = model(pixel_values=((pixels - mean[:, None, None]) / std[:, None, None])[None]).logits
        return torch.nn.functional.interpolate(logits, size=image.size[::-1], mode="bilinear", align_corners=False)


def stock_prediction(model_dir, image, height, width):
    return stock_logits(model_dir, image, height, width).argmax(dim=1)[0].numpy()


@pytest.mark.parametrize("flags", [(), ("--no_fused_ops",)])
def test_predictions_are_those_of_stock_transformers(model_dir, photos, tmp_path, flags):
    out = tmp_path / "out"
    written = run(model_dir, out, photos, flags=flags)
    assert [path.relative_to(out).as_posix() for path in written] == [
        *("a.png", "sub/b.v2.png", "overlays/a.jpg", "overlays/sub/b.v2.jpg", "contact_sheet.png")
    ]
    # Short side 64: 40x60 becomes 64x96; 70x50 becomes 90x64, rounded up to 96x64.
    for name, image, size in (("a", noise(40, 60), (64, 96)), ("sub/b.v2", noise(70, 50, seed=1), (96, 64))):
        expected = stock_prediction(model_dir, image, *size)
        found = ids_in(out / f"{name}.png")
        assert found.dtype == np.uint8 and found.shape == expected.shape
        assert len(np.unique(expected)) > 1
        assert (found == expected).mean() > 0.995  # rounding decides between classes that are almost equal
    for overlay in written[2:]:
        with Image.open(overlay) as image:
            image.load()


def test_image_size_is_the_short_side(model_dir, photos, tmp_path):
    run(model_dir, tmp_path / "out", photos / "a.png", flags=["--image_size", "128"])
    expected = stock_prediction(model_dir, noise(40, 60), 128, 192)
    assert (ids_in(tmp_path / "out" / "a.png") == expected).mean() > 0.995
    assert (stock_prediction(model_dir, noise(40, 60), 64, 96) == expected).mean() < 0.995


TEST_TIME_FLAGS = ("--slide_crop", "64", "--slide_stride", "32", "--eval_scales", "0.5", "1.5", "--eval_flip")


@pytest.mark.parametrize(("ade20k", "flags"), [(False, ()), (True, ()), (False, TEST_TIME_FLAGS)])
def test_same_pixels_as_do_predict(tmp_path, ade20k, flags):
    model = save_model(tmp_path / "model", reduce_labels=ade20k)
    data = tmp_path / "data"
    image_dir, mask_dir = ("images/validation", "annotations/validation") if ade20k else ("val/images", "val/masks")
    for folder in (image_dir, mask_dir):
        (data / folder).mkdir(parents=True)
    for seed, size in enumerate([(40, 60), (70, 50)]):
        noise(*size, seed).save(data / image_dir / f"{seed}.png")
        values = np.arange(size[0] * size[1]).reshape(size) % 3 + ade20k
        Image.fromarray(values.astype(np.uint8)).save(data / mask_dir / f"{seed}.png")
    (data / "id2label.json").write_text(json.dumps(NAMES))
    by_script = tmp_path / "run"
    run_segmentation.main(
        [
            *("--model_name_or_path", str(model), "--dataset_dir", str(data), "--output_dir", str(by_script)),
            *("--do_eval", "--do_predict", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true", *flags),
        ]
    )
    run(model, tmp_path / "out", data / image_dir, flags=flags)
    for name in ("0.png", "1.png"):
        values = ids_in(tmp_path / "out" / name)
        assert np.array_equal(values, ids_in(by_script / "predictions" / name))
        assert set(np.unique(values)) <= ({1, 2, 3} if ade20k else {0, 1, 2})


def test_sliding_windows_and_scales_change_the_prediction(model_dir, photos, tmp_path):
    run(model_dir, tmp_path / "plain", photos / "a.png")
    for i, flags in enumerate((TEST_TIME_FLAGS[:2], ("--eval_scales", "1.5"), ("--eval_flip",))):
        run(model_dir, tmp_path / f"{i}", photos / "a.png", flags=flags)
        plain, other = (ids_in(tmp_path / name / "a.png") for name in ("plain", f"{i}"))
        assert 0.5 < (plain == other).mean() < 1


def test_flags_from_a_file(model_dir, photos, tmp_path):
    run(model_dir, tmp_path / "flags", photos / "a.png", flags=["--image_size", "128", "--eval_flip"])
    config = tmp_path / "predict.yaml"
    config.write_text(f"model: {model_dir}\ndevice: cpu\nimage_size: 128\neval_flip: true\n")
    predict.main(["--config", str(config), "--output_dir", str(tmp_path / "file"), str(photos / "a.png")])
    assert np.array_equal(*(ids_in(tmp_path / name / "a.png") for name in ("flags", "file")))


def test_files_behind_a_switch(model_dir, photos, tmp_path):
    predict.main(["--model", str(model_dir), "--output_dir", str(tmp_path), "--eval_flip", str(photos / "a.png")])
    assert (tmp_path / "a.png").is_file()


def test_files_behind_the_scales(tmp_path):
    with pytest.raises(UserError) as raised:
        predict.main(["--model", "model", "--output_dir", str(tmp_path), "--eval_scales", "1", "0.5", "a.png"])
    assert "--eval_scales: 'a.png' is no number (name files and folders before this flag)" in str(raised.value)


@pytest.mark.parametrize("flags", [(), ("--threshold", "0.3")])
def test_a_single_logit_predicts_two_classes(photos, tmp_path, flags):
    model = save_model(tmp_path / "model", names={0: "road"})
    run(model, tmp_path / "out", photos / "a.png", flags=flags)
    probability = stock_logits(model, noise(40, 60), 64, 96)[0, 0].sigmoid().numpy()
    expected = probability > (0.3 if flags else 0.5)
    found = ids_in(tmp_path / "out" / "a.png")
    assert 0 < expected.mean() < 1 and found.max() == 1
    assert (found == expected).mean() > 0.995


def test_names_of_a_single_logit_s_classes(tmp_path):
    model = save_model(tmp_path / "model", names={0: "road"})
    processor = SegformerImageProcessor()
    config = SegformerConfig.from_pretrained(model)
    assert find_class_map(str(model), config, processor).id2label == {0: "background", 1: "road"}
    entries = [{"id": 0, "name": "rest", "color": [9, 9, 9]}, {"id": 1, "name": "way", "color": [1, 2, 3]}]
    (model / "labels.json").write_text(json.dumps(entries))
    class_map = find_class_map(str(model), config, processor)
    assert class_map.id2label == {0: "rest", 1: "way"} and class_map.palette == [[9, 9, 9], [1, 2, 3]]


def test_the_threshold_is_for_two_classes(model_dir, photos, tmp_path):
    with pytest.raises(UserError, match=r"--threshold is for two classes; .* has 3"):
        run(model_dir, tmp_path / "out", photos, flags=["--threshold", "0.3"])
    assert not (tmp_path / "out").exists()


def test_images_of_four_bands(tmp_path, monkeypatch, capsys):
    model = save_model(tmp_path / "model", num_channels=4)
    (tmp_path / "photos").mkdir()
    fourth = np.asarray(noise(40, 60, seed=5))[..., :1]
    image = Image.fromarray(np.concatenate([np.asarray(noise(40, 60)), fourth], axis=-1))
    image.save(tmp_path / "photos" / "a.png")
    noise(40, 60).save(tmp_path / "photos" / "b.png")
    with pytest.raises(SystemExit) as exit_:
        run(model, tmp_path / "out", tmp_path / "photos")
    assert "1 of 2 files were skipped" in exit_.value.code
    assert "b.png (3 bands, --num_channels is 4" in exit_.value.code
    expected = stock_prediction(model, image, 64, 96)
    assert (ids_in(tmp_path / "out" / "a.png") == expected).mean() > 0.995
    image.putalpha(255)
    assert (stock_prediction(model, image, 64, 96) == expected).mean() < 0.99  # the fourth band matters
    with Image.open(tmp_path / "out" / "overlays" / "a.jpg") as overlay:
        assert overlay.mode == "RGB"


@pytest.mark.parametrize("key", ["do_reduce_labels", "reduce_labels"])
def test_reduced_labels_are_written_as_in_annotation_files(model_dir, photos, tmp_path, key):
    reduced = save_model(tmp_path / "model", colors=COLORS)
    # The second key is that of older models; transformers reads it and does nothing.
    settings = json.loads((reduced / "preprocessor_config.json").read_text())
    del settings["do_reduce_labels"]
    (reduced / "preprocessor_config.json").write_text(json.dumps(settings | {key: True}))
    run(model_dir, tmp_path / "plain", photos / "a.png")
    run(reduced, tmp_path / "reduced", photos / "a.png")
    plain, raw = (Image.open(tmp_path / name / "a.png") for name in ("plain", "reduced"))
    assert np.array_equal(np.asarray(raw), np.asarray(plain) + 1)
    assert np.array_equal(np.asarray(raw.convert("RGB")), np.asarray(plain.convert("RGB")))
    assert np.array_equal(np.asarray(plain.convert("RGB")), np.array(COLORS)[np.asarray(plain)])


def test_values_that_the_model_recorded(model_dir, photos, tmp_path):
    trained_here = save_model(tmp_path / "model", reduce_labels=True, colors=COLORS)
    config = json.loads((trained_here / "config.json").read_text())
    # Merged and dropped classes: 4 and 9 are the first class, 7 the second, 2 the third, 3 is ignored.
    class_map = ClassMap(NAMES, raw_to_id={9: 0, 4: 0, 7: 1, 2: 2, 3: 255})
    (trained_here / "config.json").write_text(json.dumps(config | {"segmentation_label_map": class_map.to_config()}))
    run(model_dir, tmp_path / "plain", photos / "a.png")
    run(trained_here, tmp_path / "recorded", photos / "a.png")
    plain, recorded = (Image.open(tmp_path / name / "a.png") for name in ("plain", "recorded"))
    assert np.array_equal(np.asarray(recorded), np.array([9, 7, 2])[np.asarray(plain)])
    assert np.array_equal(np.asarray(recorded.convert("RGB")), np.asarray(plain.convert("RGB")))


def palette_of(folder):
    with Image.open(folder / "a.png") as image:
        return np.array(image.getpalette()).reshape(-1, 3)[:3].tolist()


def test_colours_come_from_a_list_with_the_model_names(photos, tmp_path):
    model = save_model(tmp_path / "model")
    run(model, tmp_path / "out", photos / "a.png")
    generated = palette_of(tmp_path / "out")
    # Somebody else's labels.json: other names, or another format.
    for content in ('[{"id": 0, "name": "dog", "color": [1, 2, 3]}]', '["wall", "floor", "sky"]'):
        (model / "labels.json").write_text(content)
        run(model, tmp_path / "out", photos / "a.png")
        assert palette_of(tmp_path / "out") == generated
    cityscapes = json.loads((Path(predict.__file__).parent / "labels" / "cityscapes.json").read_text())
    model = save_model(tmp_path / "streets", names={entry["id"]: entry["name"] for entry in cityscapes})
    run(model, tmp_path / "out", photos / "a.png")
    assert palette_of(tmp_path / "out") == [entry["color"] for entry in cityscapes[:3]] != generated


def test_photos_are_turned_upright(model_dir, tmp_path):
    image = noise(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture has to be turned by 90 degrees clockwise
    image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "upright.png")
    run(model_dir, tmp_path / "out", tmp_path / "turned.png", tmp_path / "upright.png")
    turned, upright = (ids_in(tmp_path / "out" / f"{name}.png") for name in ("turned", "upright"))
    assert turned.shape == (40, 60) and np.array_equal(turned, upright)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_image_modes(model_dir, tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    image = noise(20, 33).convert(mode)
    image.save(tmp_path / f"image.{suffix}")
    image.convert("RGB").save(tmp_path / "rgb.png")
    run(model_dir, tmp_path / "out", tmp_path / f"image.{suffix}", tmp_path / "rgb.png")
    assert np.array_equal(ids_in(tmp_path / "out" / "image.png"), ids_in(tmp_path / "out" / "rgb.png"))


def test_unreadable_files_are_named_and_the_others_predicted(model_dir, photos, tmp_path, monkeypatch, capsys):
    (photos / "broken.jpg").write_bytes(b"no image")
    whole = (photos / "sub" / "b.v2.bmp").read_bytes()
    (photos / "cut.bmp").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(photos / "deep.png")
    arguments = ["--model", str(model_dir), "--output_dir", str(tmp_path / "out"), "--device", "cpu", str(photos)]
    monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        run_cli(predict.main)
    message = exit_.value.code
    assert message.startswith("error: 3 of 5 files were skipped") and "\n" not in message
    assert all(word in message for word in ("broken.jpg", "cut.bmp", "deep.png"))
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*g")}
    assert written == {"a.png", "sub/b.v2.png", "overlays/a.jpg", "overlays/sub/b.v2.jpg", "contact_sheet.png"}


@pytest.fixture
def no_model(monkeypatch):
    """Mistakes in the inputs are found before a model is loaded."""
    monkeypatch.setattr(predict, "load_ensemble", lambda *args: pytest.fail("the model was loaded"))


def test_folder_without_images(no_model, tmp_path):
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    noise(8, 8).save(tmp_path / "empty" / ".hidden" / "a.png")
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no images in .*empty .*\.jpg .*\.png"):
        run("model", tmp_path / "out", tmp_path / "empty")


def test_no_input(no_model, tmp_path):
    with pytest.raises(UserError, match="no images: name files or folders"):
        run("model", tmp_path / "out")


def test_missing_input(no_model, tmp_path):
    with pytest.raises(UserError, match="nowhere.jpg: no such file"):
        run("model", tmp_path / "out", tmp_path / "nowhere.jpg")


def test_two_inputs_of_one_name(no_model, photos, tmp_path):
    (tmp_path / "more").mkdir()
    noise(8, 8).save(tmp_path / "more" / "a.jpg")
    with pytest.raises(UserError, match=r"photos/a\.png and .*more/a\.jpg would both become .*out/a\.png"):
        run("model", tmp_path / "out", photos, tmp_path / "more")


def test_a_file_given_twice_is_predicted_once(photos, tmp_path):
    images = predict.find_images(expand([photos, photos / "a.png"]), tmp_path / "out")
    assert images == {"a": photos / "a.png", "sub/b.v2": photos / "sub" / "b.v2.bmp"}


@pytest.mark.parametrize("inside", ["", "results"])
def test_output_in_an_input_folder(no_model, photos, inside):
    with pytest.raises(UserError, match="lies in the input folder"):
        run("model", photos / inside, photos)


def test_output_over_an_input_file(no_model, photos):
    with pytest.raises(UserError, match=r"photos/a\.png .*would be overwritten"):
        run("model", photos, photos / "a.png")


def test_image_that_is_called_as_the_contact_sheet(photos):
    noise(8, 8).save(photos / "contact_sheet.png")
    out = photos.parent / "out"
    names = list(predict.find_images(expand([photos]), out))
    files = predict.prediction_files(names, out, [out / predict.CONTACT_SHEET])
    assert [png.name for png, _ in files] == ["a.png", "contact_sheet_2.png", "b.v2.png"]


def test_what_is_passed_over_in_a_folder_is_counted(photos, caplog):
    """Pictures that are not read, and the masks of a dataset, by their folders' names or their own."""
    for name in ("c.heic", "d.NEF", "notes.txt"):
        (photos / name).write_bytes(b"")
    noise(8, 8).save(photos / "e.jpg")
    (photos / "e.jpg").rename(photos / "without_extension")
    Image.new("L", (8, 8)).save(photos / "a_mask.png")
    for folder in ("trainannot", "gtFine", "SegmentationObject"):
        (photos / folder).mkdir()
        noise(8, 8).save(photos / folder / "a.png")
    (photos / "gtFine" / "a.png").rename(photos / "gtFine" / "lone.png")  # belongs to no image, so it is one
    assert sorted(predict.find_images(expand([photos]), photos.parent / "out")) == ["a", "gtFine/lone", "sub/b.v2"]
    assert "3 files are of kinds that are not read (1 .heic, 1 .nef, 1 without extension)" in caplog.text
    assert "is a dataset: 3 masks in" in caplog.text


def test_an_input_called_like_the_contact_sheet(model_dir, photos, tmp_path):
    noise(40, 60).save(photos / "contact_sheet.png")
    written = run(model_dir, tmp_path / "out", photos)
    assert [path.name for path in written] == [
        *("a.png", "contact_sheet_2.png", "b.v2.png", "a.jpg", "contact_sheet_2.jpg", "b.v2.jpg", "contact_sheet.png")
    ]


LAYOUTS = {
    "two folders": ("images/{}", "masks/{}"),
    "a suffix": ("{}", "{}_mask"),
    "a folder more": ("x/images/{}", "x/masks/{}"),
    "CamVid": ("train/{}", "trainannot/{}"),
    "suffixes of both": ("{}_sat", "{}_mask"),
    "prefixes": ("img_{}", "mask_{}"),
    "folders that say nothing": ("one/{}", "two/{}"),
    "VOC": ("JPEGImages/{}", "SegmentationClass/{}"),
    "Cityscapes": ("leftImg8bit/ulm/{}_leftImg8bit", "gtFine/ulm/{}_gtFine_labelIds"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_of_a_dataset_are_passed_over(tmp_path, caplog, layout):
    for name in ("a", "b"):
        image, mask = (tmp_path / "data" / f"{pattern.format(name)}.png" for pattern in LAYOUTS[layout])
        photo(image)
        spots(mask)
    found = predict.find_images(expand([tmp_path / "data"]), tmp_path / "out")
    assert sorted(found) == sorted(LAYOUTS[layout][0].format(name) for name in ("a", "b"))
    assert f"{tmp_path / 'data'} is a dataset: 2 masks in" in caplog.text
    if "/" in LAYOUTS[layout][1]:  # by itself such a folder holds images like any other
        assert len(predict.find_images(expand([mask.parent]), tmp_path / "out")) == 2


def test_photographs_with_the_names_of_masks(tmp_path, caplog):
    for name in ("beach", "beach_L", "beach_mask", "old/beach"):
        photo(tmp_path / "data" / f"{name}.jpg")
    assert len(predict.find_images(expand([tmp_path / "data"]), tmp_path / "out")) == 4 and not caplog.text


def test_photos_of_kinds_that_are_not_read_are_counted(model_dir, photos, tmp_path, capsys):
    for index in range(4):
        (photos / f"IMG_{index}.HEIC").write_bytes(b"photo")
    (photos / "download").write_bytes((photos / "a.png").read_bytes())
    (photos / "notes.txt").write_text("no picture")
    assert len(run(model_dir, tmp_path / "out", photos)) == 5
    [said] = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    assert "5 files are of kinds that are not read (4 .heic, 1 without extension): IMG_0.HEIC" in said
    assert "convert to JPEG or PNG" in said
    with pytest.raises(UserError, match=r"1 file is of kinds that are not read \(1 \.heic\)"):
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / "x.HEIC").write_bytes(b"photo")
        run(model_dir, tmp_path / "out2", tmp_path / "only")


def test_an_output_folder_that_cannot_be(no_model, photos, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UserError, match="^--output_dir .*(is a file|Not a directory)"):
            run("model", folder, photos)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_size", "0"], "--image_size is 0"),
        (["--device", "abacus"], "--device abacus"),
        (["--threshold", "1.5"], "--threshold is 1.5"),
        (["--slide_stride", "32"], "--slide_stride 32 is for a sliding window"),
    ],
)
def test_bad_flags(no_model, photos, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run("model", tmp_path / "out", photos, flags=flags)


def test_a_model_that_cannot_be_had(photos, tmp_path):
    with pytest.raises(UserError, match="no/such-model"):
        run("no/such-model", tmp_path / "out", photos)
    encoder = save_model(tmp_path / "encoder", cls=SegformerForImageClassification)
    with pytest.raises(UserError, match="fine-tune it first"):
        run(encoder, tmp_path / "out", photos)
    assert not (tmp_path / "out").exists()


def test_a_revision_of_a_model_on_the_hub(hub, photos, tmp_path):
    """Its weights, its classes and the values that stand for them."""
    for revision, options in (("main", {}), ("v1", {"reduce_labels": True, "names": {0: "sea", 1: "ice", 2: "land"}})):
        folder = save_model(tmp_path / revision, colors=COLORS, **options)
        hub.offer("somebody/model", {path.name: path.read_bytes() for path in folder.iterdir()}, revision)
    found = {}
    for revision in ("main", "v1"):
        flags = [] if revision == "main" else ["--model_revision", "v1"]
        png = run("somebody/model", tmp_path / f"hub {revision}", photos / "a.png", flags=flags)[0]
        expected = run(tmp_path / revision, tmp_path / f"local {revision}", photos / "a.png")[0]
        assert png.read_bytes() == expected.read_bytes()
        found[revision] = set(np.unique(np.array(Image.open(png))).tolist())
    assert found["main"] <= {0, 1, 2} and found["v1"] <= {1, 2, 3} and found["main"] != found["v1"]
    with pytest.raises(UserError, match="--model_revision v1 is for models of the Hub"):
        run(tmp_path / "v1", tmp_path / "out", photos / "a.png", flags=["--model_revision", "v1"])


def test_the_log_says_what_the_values_mean(model_dir, photos, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging, "basicConfig", lambda **kwargs: None)  # it would take caplog's handler away
    with caplog.at_level(logging.INFO):
        run(model_dir, tmp_path / "out", photos / "a.png")
    assert "values in the PNGs: 0 wall … 2 sky" in caplog.text
    assert f"predictions of 1 image in {tmp_path / 'out'}" in caplog.text


def test_a_disk_that_fills_up_leaves_whole_files_and_says_so(model_dir, photos, tmp_path, monkeypatch):
    replace, written = os.replace, []

    def full(source, target):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        written.append(Path(target))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left.*give the same command again") as error:
        run(model_dir, tmp_path / "out", photos)
    assert "\n" not in str(error.value)
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(left) == sorted(written)
    for path in left:
        Image.open(path).load()


def test_a_folder_that_cannot_be_written_to_is_found_before_the_model_is_loaded(no_model, photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="--output_dir .*file/out cannot be written to"):
        run("model", tmp_path / "file" / "out", photos)


def test_large_images_are_predicted_in_bands(model_dir, tmp_path, monkeypatch, capsys):
    """The same files, for a model and for its exported network; the overlay shows every other pixel or so."""
    for kind in ("tif", "png"):
        noise(1400, 700).save(tmp_path / f"{kind}.{kind}")
    inputs = [tmp_path / "tif.tif", tmp_path / "png.png"]
    flags = ["--image_size", "128", "--slide_crop", "64"]
    run(model_dir, tmp_path / "whole", *inputs, flags=flags)
    monkeypatch.setattr(large_images, "LARGE_PIXELS", 700 * 1399)
    run(model_dir, tmp_path / "bands", *inputs, flags=flags)
    for name in ("tif.png", "png.png"):
        whole, bands = (Image.open(tmp_path / folder / name) for folder in ("whole", "bands"))
        assert whole.getpalette() == bands.getpalette()
        assert np.array_equal(np.asarray(whole), np.asarray(bands)) and len(np.unique(bands)) == 3
    with Image.open(tmp_path / "bands" / "overlays" / "tif.jpg") as overlay:
        assert overlay.height > 400
    assert "700x1,400 pixels, read and predicted in bands of rows" in capsys.readouterr().err


def test_what_people_drew_is_not_written_over(model_dir, tmp_path):
    """Masks have the names of their images, and so have predictions."""
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for folder, mode in ((photos, "RGB"), (masks, "L")):
        folder.mkdir()
        for name in "ab":
            Image.new(mode, (40, 32)).save(folder / f"{name}.png")
    before = {path: path.read_bytes() for path in masks.iterdir()}
    argv = ["--model", str(model_dir), "--device", "cpu", str(photos), "--output_dir"]
    with pytest.raises(UserError, match=r"masks holds files that are no predictions, .* written over: a.png, b.png"):
        predict.main([*argv, str(masks)])
    assert {path: path.read_bytes() for path in masks.iterdir()} == before
    sheet = tmp_path / "run" / predict.CONTACT_SHEET
    sheet.parent.mkdir()
    sheet.write_bytes(b"mine")
    with pytest.raises(UserError, match="written over: contact_sheet.png"):
        predict.main([*argv, str(sheet.parent)])
    for _ in range(2):  # predictions make way for those of another try
        predict.main([*argv, str(tmp_path / "out")])
    Image.new("RGB", (40, 32)).save(photos / "c.png")
    predict.main([*argv, str(tmp_path / "out")])
    (tmp_path / "out" / "overlays" / "c.jpg").unlink()
    with pytest.raises(UserError, match="written over: c.png"):
        predict.main([*argv, str(tmp_path / "out")])
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.tif").write_bytes(b"mine")
    with pytest.raises(UserError, match="written over: a.tif"):
        predict.main([*argv, str(tmp_path / "maps")])


# ---- more outputs ---------------------------------------------------------------------------------------------------


def test_all_outputs_of_an_image(model_dir, photos, tmp_path):
    flags = ["--save_confidence", "--save_areas", "--save_polygons", "geojson", "--min_area", "30"]
    run(model_dir, tmp_path / "plain", photos)
    run(model_dir, tmp_path / "out", photos, flags=flags)
    plain, ids = (ids_in(tmp_path / folder / "a.png") for folder in ("plain", "out"))
    assert 0 < (plain != ids).mean() < 0.5
    likely = stock_logits(model_dir, noise(40, 60), 64, 96).softmax(1)[0].numpy()
    expected = np.take_along_axis(likely, plain[None].astype(int), 0)[0]
    confidence = ids_in(tmp_path / "out" / "confidence" / "a.png")
    assert expected.std() > 0.02 and np.abs(confidence / 255 - expected).max() < 1.1 / 255
    rows = (tmp_path / "out" / "areas.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3
    assert rows[1].split(",")[:4] == ["a", "0", "wall", str((ids == 0).sum())]
    features = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    assert {feature["properties"]["value"] for feature in features} == set(np.unique(ids))
    assert (tmp_path / "out" / "sub" / "b.v2.geojson").is_file()


def test_images_that_are_there_are_skipped(model_dir, photos, tmp_path, capsys):
    run(model_dir, tmp_path / "out", photos)
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    (tmp_path / "out" / "sub" / "b.v2.png").unlink()
    written = run(model_dir, tmp_path / "out", photos, flags=["--skip_existing"])
    assert [path.name for path in written] == ["b.v2.png", "b.v2.jpg", "contact_sheet.png"]
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    assert "--skip_existing: 1 of 2 images are predicted already" in capsys.readouterr().err
    written = run(model_dir, tmp_path / "out", photos, flags=["--skip_existing"])
    assert written == []
    with pytest.raises(UserError, match=r"a\.png cannot be read .*; without it the image is predicted again"):
        run(model_dir, tmp_path / "out", photos, flags=["--skip_existing", "--save_areas"])


def test_files_of_all_images_have_those_that_are_skipped(tmp_path, photos):
    """The values in the PNGs are not the ids; 255 is the value of no class."""
    model, flags = save_model(tmp_path / "model", reduce_labels=True), ["--save_areas", "--save_polygons", "coco"]
    run(model, tmp_path / "out", photos, flags=flags)
    before = [(tmp_path / "out" / name).read_bytes() for name in ("areas.csv", "coco.json")]
    (tmp_path / "out" / "sub" / "b.v2.png").unlink()
    run(model, tmp_path / "out", photos, flags=[*flags, "--skip_existing"])
    assert [(tmp_path / "out" / name).read_bytes() for name in ("areas.csv", "coco.json")] == before
    content = json.loads(before[1])
    assert [entry["file_name"] for entry in content["images"]] == ["a.png", "sub/b.v2.bmp"]
    assert sum(entry["area"] for entry in content["annotations"]) == 40 * 60 + 70 * 50


def test_labelme_files_lie_beside_the_pngs(model_dir, tmp_path, photos):
    run(model_dir, tmp_path / "out", photos, flags=["--save_polygons", "labelme"])
    content = json.loads((tmp_path / "out" / "sub" / "b.v2.json").read_text())
    assert content["imagePath"] == "../../photos/sub/b.v2.bmp"
    run(model_dir, tmp_path / "out", photos, flags=["--save_polygons", "labelme"])
    for name in ("a.json", "coco.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("mine")
        with pytest.raises(UserError, match=f"written over: {name}"):
            run(model_dir, tmp_path / name, photos)


def test_a_geotiff_gives_a_geotiff(model_dir, tmp_path, monkeypatch):
    """Whole and in bands; where the image states that it knows nothing, so does the prediction."""
    import rasterio

    pixels = np.asarray(noise(40, 60)).transpose(2, 0, 1).clip(1).copy()
    pixels[:, :10, :20] = 0
    options = {"height": 40, "width": 60, "count": 3, "dtype": "uint8", "crs": "EPSG:32632", "nodata": 0}
    place = rasterio.Affine(2, 0, 500_000, 0, -2, 5_000_000)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", transform=place, **options) as raster:
        raster.write(pixels)
    found = []
    for folder in ("whole", "bands"):
        run(model_dir, tmp_path / folder, tmp_path / "a.tif", flags=["--save_areas"])
        with rasterio.open(tmp_path / folder / "a.tif") as out:
            assert out.transform == place and out.crs.to_epsg() == 32632 and out.nodata == 255
            found.append(out.read(1))
        assert np.array_equal(found[-1], ids_in(tmp_path / folder / "a.png"))
        monkeypatch.setattr(large_images, "LARGE_PIXELS", 2000)
    assert (found[0][:10, :20] == 255).all() and (found[0] != 255).sum() == 2400 - 200
    assert np.array_equal(*found)
    assert (tmp_path / "whole" / "areas.csv").read_text() == (tmp_path / "bands" / "areas.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min_area", "-1"], "--min_area is -1"),
        (["--save_polygons", "shp"], "--save_polygons shp: the formats are geojson, coco, labelme"),
    ],
)
def test_bad_flags_of_outputs(no_model, photos, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run("model", tmp_path / "out", photos, flags=flags)


OF_BANDS = ["--save_confidence", "--save_areas", "--min_area", "30", "--eval_flip", "--eval_scales", "1", "1.5"]


@pytest.mark.parametrize("polygons", ["geojson", "coco", "labelme"])
def test_bands_give_all_that_the_whole_image_gives(model_dir, photos, tmp_path, monkeypatch, polygons):
    monkeypatch.setattr(large_images, "BAND_BYTES", 2**10)
    monkeypatch.setattr("models.upsampling.CPU_TILE_BYTES_PER_THREAD", 2**12)
    # Without flags that change predictions in one case, so that both ways of predicting are seen.
    flags = ["--save_polygons", polygons, *(OF_BANDS if polygons == "geojson" else OF_BANDS[:4])]
    for folder in ("whole", "bands"):
        run(model_dir, tmp_path / folder, photos / "a.png", flags=flags)
        monkeypatch.setattr(large_images, "LARGE_PIXELS", 2000)
    whole, bands = (
        {file.relative_to(tmp_path / folder): file for file in (tmp_path / folder).rglob("*") if file.is_file()}
        for folder in ("whole", "bands")
    )
    assert whole.keys() == bands.keys() and len(whole) == 6
    for name, file in whole.items():
        if name.suffix == ".png":
            assert np.array_equal(ids_in(file), ids_in(bands[name])), name
        elif name.suffix != ".jpg":
            assert file.read_text() == bands[name].read_text(), name
    assert len(np.unique(ids_in(tmp_path / "bands" / "confidence" / "a.png"))) > 20


def test_what_needs_the_whole_image_is_refused_before_work_starts(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(large_images, "LARGE_PIXELS", 3000)
    monkeypatch.setattr(predict, "load_ensemble", lambda *args: replace(graph, needs_whole="it needs the whole"))
    graph = Predictor("a.onnx", "", ClassMap(NAMES), EvaluationProtocol(64), None, lambda image: None, None)
    with pytest.raises(UserError, match=r"b\.v2\.bmp \(50x70 pixels\) is read in bands, and it needs the whole"):
        run("a.onnx", tmp_path / "out", photos)
    assert not (tmp_path / "out" / "a.png").exists()
    monkeypatch.setattr(predict, "load_ensemble", lambda *args: replace(graph, predict_with_confidence=None))
    with pytest.raises(UserError, match=r"--save_confidence: a\.onnx gives classes alone; export the model with"):
        run("a.onnx", tmp_path / "out", photos, flags=["--save_confidence"])


# ---- several models -------------------------------------------------------------------------------------------------


def test_several_models_predict_together(model_dir, photos, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"segmentation_temperature": 3.0}))
    argv = ["--output_dir", str(tmp_path / "out"), "--device", "cpu", "--save_confidence"]
    predict.main([*argv, "--model", str(model_dir), str(other), str(photos / "a.png")])
    likely = [stock_logits(model_dir, noise(40, 60), 64, 96)[0].div(t).softmax(0).numpy() for t in (1, 3)]
    expected = sum(likely) / 2
    ids, confidence = (ids_in(tmp_path / "out" / name) for name in ("a.png", "confidence/a.png"))
    assert (ids == expected.argmax(0)).mean() > 0.999
    assert np.abs(confidence / 255 - expected.max(0)).max() < 1.1 / 255
    save_model(tmp_path / "third", names=NAMES | {1: "ground"})
    with pytest.raises(UserError, match="name of class 1: 'floor' in the one, 'ground' in the other"):
        predict.main([*argv, str(photos), "--model", str(model_dir), str(tmp_path / "third")])


def test_what_is_a_model_and_what_an_input(model_dir, photos):
    models = [str(model_dir), "graph.onnx", "somebody/model-b0"]
    inputs = [str(photos), "no/photo.jpg", "*.png", "https://example.org/a.png", "-", "@list.txt"]
    for word in inputs:
        assert models_and_inputs([*models, word], ["more.png"]) == (models, [word, "more.png"])
    assert models_and_inputs(["anything"], []) == (["anything"], [])


def test_other_outputs_replace_nothing_either(no_model, tmp_path):
    noise(8, 8).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif would be overwritten"):
        run("model", tmp_path, tmp_path / "a.tif")
    (tmp_path / "in" / "confidence").mkdir(parents=True)
    for folder in ("in", "in/confidence"):
        noise(8, 8).save(tmp_path / folder / "a.png")
    with pytest.raises(UserError, match=r"confidence/a\.png would be both a prediction and a map of confidence"):
        run("model", tmp_path / "out", tmp_path / "in")


def test_films_beside_images(model_dir, photos, tmp_path):
    import av

    with av.open(str(tmp_path / "film.mov"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for seed in range(3):
            film.mux(stream.encode(av.VideoFrame.from_image(noise(48, 64, seed))))
        film.mux(stream.encode())
    written = run(model_dir, tmp_path / "out", tmp_path / "film.mov", photos / "a.png", flags=["--video_frames"])
    assert [path.name for path in written] == ["a.png", "a.jpg", "contact_sheet.png", "film.mp4"]
    assert [path.name for path in sorted((tmp_path / "out" / "film_frames").iterdir())] == [
        *("000000.png", "000001.png", "000002.png")
    ]
    assert len(np.unique(ids_in(tmp_path / "out" / "film_frames" / "000001.png"))) > 1
    with av.open(str(tmp_path / "out" / "film.mp4")) as film:
        assert len(list(film.decode(video=0))) == 3
    flags = ["--video_frames", "--per_device_eval_batch_size", "2"]
    run(model_dir, tmp_path / "two", tmp_path / "film.mov", flags=flags)
    for name in ("000000.png", "000001.png", "000002.png"):
        one, two = (ids_in(tmp_path / folder / "film_frames" / name) for folder in ("out", "two"))
        assert np.array_equal(one, two)
    with pytest.raises(UserError, match=r"film\.mov would be overwritten|film\.mp4 would be overwritten"):
        (tmp_path / "film.mov").rename(tmp_path / "film.mp4")
        run(model_dir, tmp_path, tmp_path / "film.mp4")


def test_patterns_that_no_shell_has_seen(photos, tmp_path):
    (photos / "[x].png").write_bytes((photos / "a.png").read_bytes())
    images = predict.find_images(expand([photos / "**" / "*.bmp", photos / "[x].png"]), tmp_path / "out")
    assert images == {"b.v2": photos / "sub" / "b.v2.bmp", "[x]": photos / "[x].png"}
    with pytest.raises(UserError, match=r"\*\.webp: no such file or folder"):
        predict.find_images(expand([photos / "*.webp"]), tmp_path / "out")


def test_a_large_image_that_ends_too_early_is_left_out(model_dir, photos, tmp_path, monkeypatch):
    import rasterio

    options = {"height": 640, "width": 512, "count": 3, "dtype": "uint8", "tiled": True, "blockysize": 64}
    with rasterio.open(tmp_path / "cut.tif", "w", driver="GTiff", blockxsize=64, **options) as raster:
        raster.write(np.asarray(noise(640, 512)).transpose(2, 0, 1).copy())
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) * 3 // 4])
    monkeypatch.setattr(large_images, "LARGE_PIXELS", 300_000)
    with pytest.raises(SystemExit) as exit_:
        run(model_dir, tmp_path / "out", tmp_path / "cut.tif", photos / "a.png")
    assert "1 of 2 files were skipped" in exit_.value.code and "cut.tif (rows " in exit_.value.code
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "contact_sheet.png", "overlays"]


# ---- lists, addresses and stdin -------------------------------------------------------------------------------------


class PhotoServer(BaseHTTPRequestHandler):
    """The files of a folder; asked lists what was asked for."""

    folder, asked = None, []

    def do_GET(self):
        self.asked.append(self.path)
        file = self.folder / self.path.strip("/")
        self.send_response(200 if file.is_file() else 404)
        self.end_headers()
        if file.is_file():
            self.wfile.write(file.read_bytes())

    def log_message(self, *args):
        pass


@pytest.fixture
def photo_server(photos, monkeypatch):
    monkeypatch.setattr(PhotoServer, "folder", photos)
    monkeypatch.setattr(PhotoServer, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), PhotoServer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_lists_and_addresses_beside_files(model_dir, photos, photo_server, tmp_path):
    (photos / "c.png").write_bytes(b"no image")
    lines = [f"{photos}/sub/b.v2.bmp", f"{photos}/gone.png", f"{photo_server}/a.png", f"{photo_server}/c.png"]
    (tmp_path / "list.txt").write_text("\n".join([*lines, f"{photo_server}/gone.png"]))
    inputs, out = [photos / "a.png", f"@{tmp_path}/list.txt"], tmp_path / "out"
    with pytest.raises(SystemExit) as exit_:
        run(model_dir, out, *inputs)
    said = exit_.value.code
    assert "3 of 6 files were skipped" in said and f"{photos}/gone.png ([Errno 2] No such file" in said
    assert f"{photo_server}/c.png (no image, or of an unknown format)" in said
    assert f"{photo_server}/gone.png (the server answers 404" in said
    assert np.array_equal(ids_in(out / "127.0.0.1" / "a.png"), ids_in(out / "a.png"))
    assert ids_in(out / "sub" / "b.v2.png").shape == (70, 50)
    # Again: what is there is not asked for.
    PhotoServer.asked.clear()
    (out / "sub" / "b.v2.png").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        run(model_dir, out, *inputs, flags=["--skip_existing"])
    assert PhotoServer.asked == ["/c.png", "/gone.png"] and (out / "sub" / "b.v2.png").read_bytes() == b"mine"


class Pipe:
    """A stream of bytes, as sys.stdin and sys.stdout are."""

    def __init__(self, content=b"", terminal=False):
        self.buffer, self.isatty = io.BytesIO(content), lambda: terminal


def test_stdin_to_stdout(model_dir, photos, tmp_path, monkeypatch, capsys):
    run(model_dir, tmp_path / "out", photos / "a.png", flags=["--min_area", "9", "--eval_flip"])
    for kind in ("PNG", "TIFF"):
        content = io.BytesIO()
        Image.open(photos / "a.png").save(content, kind)
        monkeypatch.setattr(sys, "stdin", Pipe(content.getvalue()))
        monkeypatch.setattr(sys, "stdout", stdout := Pipe())
        predict.main(["--model", str(model_dir), "--device", "cpu", "-", "--min_area", "9", "--eval_flip"])
        assert stdout.buffer.getvalue() == (tmp_path / "out" / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "stdin", "error", "message"),
    [
        (["-", "a.png"], b"", UserError, "- is one image from stdin, .*: name nothing else"),
        (["-", "--output_dir", "out"], b"", UserError, "leave out --output_dir"),
        (["-", "--save_areas"], b"", UserError, "leave out --save_areas"),
        (["-"], b"", UserError, "nothing came in on stdin"),
        (["-"], b"no image", SystemExit, r"1 of 1 files were skipped: stdin \(no image"),
        (["a.png"], b"", UserError, "--output_dir is missing"),
    ],
)
def test_stdin_that_is_none(model_dir, monkeypatch, words, stdin, error, message):
    monkeypatch.setattr(sys, "stdin", Pipe(stdin))
    monkeypatch.setattr(sys, "stdout", stdout := Pipe())
    with pytest.raises(error, match=message):
        predict.main(["--model", str(model_dir), "--device", "cpu", *words])
    assert stdout.buffer.getvalue() == b""


def test_a_terminal_gets_no_png(no_model, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Pipe(terminal=True))
    with pytest.raises(UserError, match="stdout, which is a terminal: add > mask.png"):
        predict.main(["--model", "model", "-"])
