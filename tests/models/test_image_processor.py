"""Image processors say what training did, in files that stock transformers acts on."""

import json

import numpy as np
import pytest
import torch
import transformers as T
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from cli_utils import UserError
from data.preprocessing import EvaluationProtocol
from models.image_processor import load_image_processor, save_processor_config
from models.inference import predict_ids

NAMES = ["sky", "road", "car"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = T.SegformerConfig(
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=16,
        id2label=dict(enumerate(NAMES)),
    )
    model = T.SegformerForSemanticSegmentation(config).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)  # so that every class is predicted somewhere
    return model


@pytest.fixture
def folder(model, tmp_path):
    """A trained model without an image processor."""
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def read(file):
    return json.loads(file.read_text())


def test_image_processor_says_what_training_did(folder, tmp_path, caplog):
    processor = load_image_processor(str(folder), image_size=64, do_reduce_labels=True)
    assert f"{folder} has no image processor; SegformerImageProcessor is used" in caplog.text
    processor.save_pretrained(tmp_path)
    saved = read(tmp_path / "preprocessor_config.json")
    assert saved["size"] == {"height": 64, "width": 64} and saved["do_reduce_labels"] is True
    assert load_image_processor(str(folder)).do_reduce_labels is False
    processor.save_pretrained(folder)
    again = load_image_processor(str(folder))
    assert again.do_reduce_labels is True
    assert again(Image.new("RGB", (90, 70)), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


def test_the_old_name_of_label_reduction_is_not_handed_on(folder):
    # As in nvidia/segformer-b0-finetuned-ade-512-512.
    old = {"image_processor_type": "SegformerImageProcessor", "reduce_labels": True, "size": 512}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    settings = load_image_processor(str(folder), do_reduce_labels=False).to_dict()
    assert settings["do_reduce_labels"] is False and "reduce_labels" not in settings
    assert settings["size"] == {"height": 512, "width": 512}


def test_image_processor_from_scratch_is_segformers():
    processor = load_image_processor("nvidia/mit-b0", from_scratch="mit-b0")
    assert type(processor) is T.SegformerImageProcessor
    assert processor.to_dict()["size"] == {"height": 512, "width": 512}


@pytest.mark.parametrize("kind", [T.MobileViTImageProcessor, T.DPTImageProcessor, T.BeitImageProcessor])
def test_image_processors_show_the_whole_image(kind, folder):
    kind(**({"keep_aspect_ratio": True} if kind is T.DPTImageProcessor else {})).save_pretrained(folder)
    processor = load_image_processor(str(folder), image_size=96, do_reduce_labels=False)
    processor.save_pretrained(folder)
    image = Image.new("RGB", (200, 100))
    for p in (processor, AutoImageProcessor.from_pretrained(folder)):
        assert type(p) is kind
        assert p(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 96, 96)
        assert p.do_reduce_labels is False


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_damaged_image_processors_are_not_replaced(folder, name):
    (folder / name).write_text("{ not")
    with pytest.raises(UserError, match=f"model/{name} cannot be read: "):
        load_image_processor(str(folder))


# ---- channels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_channels", "mean", "std"),
    [
        (1, [0.449], [0.226]),
        (2, [0.449, 0.449], [0.226, 0.226]),
        (3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        (5, [0.485, 0.456, 0.406, 0.449, 0.449], [0.229, 0.224, 0.225, 0.226, 0.226]),
    ],
)
def test_means_of_other_channels(folder, num_channels, mean, std):
    load_image_processor(str(folder), num_channels=num_channels).save_pretrained(folder)
    saved = read(folder / "preprocessor_config.json")
    assert saved["image_mean"] == pytest.approx(mean) and saved["image_std"] == pytest.approx(std)
    for again in (load_image_processor(str(folder)), load_image_processor(str(folder), num_channels=num_channels)):
        assert EvaluationProtocol.from_image_processor(again).num_channels == num_channels
        assert again.image_mean == pytest.approx(mean)


def test_channels_of_a_processor_that_does_not_normalize(folder):
    T.MobileViTImageProcessor().save_pretrained(folder)
    processor = load_image_processor(str(folder), num_channels=4)
    assert processor.image_mean == processor.image_std == (0.5,) * 4
    assert EvaluationProtocol.from_image_processor(processor).num_channels == 4


# ---- the evaluated protocol -----------------------------------------------------------------------------------------


def test_both_files_are_written(folder):
    processor = load_image_processor(str(folder), image_size=64, do_reduce_labels=True)
    save_processor_config(folder, processor, EvaluationProtocol(64))
    for_old, for_new = read(folder / "preprocessor_config.json"), read(folder / "processor_config.json")
    assert for_old["size"] == {"height": 64, "width": 64}
    assert for_new["image_processor"] == for_old | {"size": {"shortest_edge": 64, "longest_edge": 256}}
    assert for_old["do_reduce_labels"] is True and for_old["image_processor_type"] == "SegformerImageProcessor"


@pytest.mark.parametrize("kind", [T.SegformerImageProcessor, T.BeitImageProcessor, T.MobileViTImageProcessor])
def test_a_protocol_survives_reloading_and_saving_again(kind, folder):
    kind().save_pretrained(folder)
    processor = load_image_processor(str(folder), image_size=64, do_reduce_labels=False)
    protocol = EvaluationProtocol.from_image_processor(processor)
    save_processor_config(folder, processor, protocol)
    stock = AutoImageProcessor.from_pretrained(folder)
    for size, expected in (((100, 50), (64, 128)), ((50, 75), (96, 64)), ((500, 50), (26, 256))):
        assert stock(Image.new("RGB", size), return_tensors="pt")["pixel_values"].shape[2:] == expected
    again = load_image_processor(str(folder))
    assert again.to_dict() == processor.to_dict()
    assert EvaluationProtocol.from_image_processor(again) == protocol
    # The size that is asked for wins over the one in the files.
    other = load_image_processor(str(folder), image_size=32)
    assert EvaluationProtocol.from_image_processor(other).short_side == 32


def test_images_of_one_size(folder):
    processor = load_image_processor(str(folder), image_size=64)
    sizes = {(360, 480), (180, 240), (357, 480)}  # all shown as 64 × 96 pixels
    protocol = EvaluationProtocol(64)
    save_processor_config(folder, processor, protocol, sizes)
    files = read(folder / "preprocessor_config.json"), read(folder / "processor_config.json")["image_processor"]
    assert [file["size"] for file in files] == [{"height": 64, "width": 96}] * 2
    again = load_image_processor(str(folder))
    assert again.to_dict() == processor.to_dict()
    assert EvaluationProtocol.from_image_processor(again) == protocol
    save_processor_config(folder, processor, protocol, sizes | {(480, 360)})
    assert read(folder / "preprocessor_config.json")["size"] == {"height": 64, "width": 64}
    assert "shortest_edge" in read(folder / "processor_config.json")["image_processor"]["size"]


def test_squares_for_architectures_that_take_nothing_else(folder):
    processor = load_image_processor(str(folder), image_size=48)
    save_processor_config(folder, processor, EvaluationProtocol(64, square=True, slide_crop=64), [(64, 96), (64, 99)])
    expected = {"height": 64, "width": 64}  # the model's, not the processor's
    assert read(folder / "preprocessor_config.json")["size"] == expected
    assert read(folder / "processor_config.json")["image_processor"]["size"] == expected


def test_pipeline_predicts_as_evaluated(model, folder):
    protocol = EvaluationProtocol(64)
    processor = load_image_processor(str(folder), image_size=64)

    def agreement(height: int, width: int) -> float:
        """Share of pixels on which stock transformers agrees with the protocol."""
        pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        prediction = np.full((height, width), -1)
        for segment in pipeline("image-segmentation", model=str(folder), device="cpu")(image):
            prediction[np.asarray(segment["mask"]) > 0] = NAMES.index(segment["label"])
        expected = predict_ids(model, image, protocol).numpy()
        assert len(np.unique(expected)) == 3
        return (prediction == expected).mean()

    processor.save_pretrained(folder)
    assert agreement(100, 150) < 0.99
    assert agreement(100, 100) > 0.999
    save_processor_config(folder, processor, protocol)
    assert agreement(100, 150) > 0.999  # shown as 64 × 96 pixels, which needs no rounding to multiples of 32
    assert agreement(100, 160) < 0.99  # 64 × 102 pixels instead of 64 × 128
    save_processor_config(folder, processor, protocol, [(100, 160), (50, 80)])
    assert agreement(100, 160) > 0.999


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("image_mean", [float("nan")] * 3),
            ("image_mean", "x"),
            ("image_std", [0, 0.2, 0.2]),
            ("image_std", [1, 1]),
        ),
        *(("rescale_factor", float("nan")), ("rescale_factor", 0), ("size", {"height": -1, "width": 64})),
        *(("size", {"shortest_edge": 10**9}), ("size", {"shortest_edge": float("nan")})),
    ],
)
def test_numbers_that_make_nonsense_of_images_are_refused(folder, key, value):
    """Else every pixel would be class 0, or memory run out."""
    settings = T.SegformerImageProcessor().to_dict() | {key: value}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"preprocessor_config.json or processor_config.json.* has {key} "):
        load_image_processor(str(folder))


def test_images_are_scaled_as_the_processor_says(folder):
    """Against transformers' own arithmetic, of a file that scales to 0…2."""
    processor = T.SegformerImageProcessor(rescale_factor=2 / 255, size={"height": 32, "width": 32})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    [shown] = EvaluationProtocol.from_image_processor(processor).preprocess(image)[None]
    torch.testing.assert_close(shown, processor(image, return_tensors="pt")["pixel_values"][0], atol=1e-5, rtol=1e-5)
