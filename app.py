"""A page in which images are segmented: dropped, pasted, or taken with a camera. Needs Gradio (pip install gradio).

    python app.py --model outputs/mine                                                  # then open the address it says
    python app.py --model outputs/a outputs/b nvidia/segformer-b0-finetuned-ade-512-512         # beside each other
    python app.py --model mine.onnx --host 0.0.0.0 --port 8080                          # for the whole network
    python app.py --model me/my_model --push_space my_page                              # for everybody, on the Hub

A slider says how strongly the classes cover the image, the legend tells the share of each and shows or hides it, and
what lies under the pointer is named with the model's confidence (of a file of export_onnx.py, with --confidence or
--logits). To download: for every model what predict.py writes, the indexed PNG, the overlay and, with rasterio, the
polygons.

Predictions are those of predict.py, and a model that was evaluated with --slide_crop, --eval_scales and so on
predicts as it was evaluated when it is given the same flags here. Images stay on this machine: the page loads nothing
from elsewhere, and nothing is sent but with --share, which makes an address for everybody through gradio.live.
"""

if __name__ == "__main__":
    from cli_utils import answer_early
    from reports.arguments import APP

    answer_early(__doc__, **APP)  # before the imports below, which take seconds

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

from cli_utils import UserError, check_installed, one_line, parse_arguments, run_cli, set_up_logging
from data.arguments import EvaluationArguments
from data.image_files import read_channels, rgb_view
from data.large_images import LARGE_PIXELS, open_large
from data.output_paths import output_names
from models.inference import find_device
from models.predictor import Predictor, load_predictor
from reports.arguments import APP, AppArguments
from reports.polygons import geojson
from reports.prediction_outputs import read_georeference, with_nodata
from reports.predictions import write_predictions
from reports.publishing import check_hub_access, check_model_on_hub, push_space
from reports.space import model_on_hub, space_files
from reports.viewer import View, viewer_frame, viewer_page

logger = logging.getLogger(__name__)

MAX_UPLOAD = "200mb"
SECONDS_KEPT = 3600  # of what was uploaded, and of what can be downloaded


def titles_of(models: Sequence[str]) -> list[str]:
    """What the page calls models: a folder or file by its last name, as its path is nobody's business."""
    return output_names([Path(model).resolve().name if os.path.exists(model) else model for model in models])


def segment(
    path: Path, name: str, title: str, predictor: Predictor, folder: Path
) -> tuple[Image.Image, View, list[Path]]:
    """Predicts an image, and writes what predict.py writes.

    Args:
        path: of the image. name: of the files in `folder`, without extension. title: of the model.

    Returns:
        The image to be looked at, what the model says of it, and the files.

    Raises:
        UserError: the image cannot be read, is too large, or does not fit the model.
    """
    protocol = predictor.protocol
    large = None if protocol.is_wide else open_large(path, protocol.num_channels)
    if large is not None:
        height, width = large.size
        raise UserError(
            f"the image has {width:,} x {height:,} pixels; here it may have {LARGE_PIXELS:,}; predict.py takes it"
        )
    image = read_channels(path, protocol.num_channels, path.name, protocol.image_dtype)
    place = read_georeference(path)
    both = predictor.predict_with_confidence
    predicted, confidence = both(image) if both else (predictor.predict(image), None)
    ids = next(with_nodata([predicted.to(torch.uint8)], place))
    polygons = [folder / f"{name}.geojson"] if find_spec("rasterio") else []
    [files] = write_predictions(
        [name],
        lambda _: (image, None),
        lambda _: ids,
        predictor.class_map,
        folder,
        folder / "contact_sheet.png",
        also=lambda *_: [geojson(file, predictor.class_map, place) for file in polygons],
    )
    view = View(title, predictor.class_map, ids.numpy(), None if confidence is None else confidence.numpy())
    return rgb_view(image), view, [*files, *polygons]


def answers(path: Path, predictors: dict[str, Predictor]) -> Iterator[tuple[str, list[str]]]:
    """What the page shows of an image and its files, anew after each model; the files go with the next step.

    predictors: by what the page calls them.
    """
    names = [f"{path.stem}_{title}" for title in predictors] if len(predictors) > 1 else [path.stem]
    views, files = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for (title, predictor), name in zip(predictors.items(), output_names(names), strict=True):
                photo, view, written = segment(path, name, title, predictor, Path(folder))
                views, files = [*views, view], [*files, *map(str, written)]
                yield viewer_frame(viewer_page(photo, views), views=True), files
        except UserError as error:
            logger.warning(error)
            yield viewer_frame(viewer_page(problems=[str(error)])), []


def build_page(predictors: dict[str, Predictor]):
    """The page, a `gradio.Blocks` that is not served yet."""
    for setting in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"):
        os.environ.setdefault(setting, "False")  # before the import, which reads it
    import gradio

    def answer(upload):
        if upload is None or upload.path is None:
            yield viewer_frame(viewer_page()), []
        else:
            yield from answers(Path(upload.path), predictors)

    with gradio.Blocks(title="Segmentation", fill_width=True, delete_cache=(SECONDS_KEPT, SECONDS_KEPT)) as page:
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                photo = gradio.Image(sources=["upload", "clipboard", "webcam"], label="image", type="filepath")
                # The file as it came: decoding it here would not be predict.py's, and raises on what is no image.
                photo.preprocess = lambda upload: upload
                files = gradio.File(file_count="multiple", interactive=False, label="to download")
            with gradio.Column(scale=4):
                view = gradio.HTML(viewer_frame(viewer_page()))
        photo.change(answer, photo, [view, files], show_progress="minimal", api_name="segment")
    return page


def serve(page, args: AppArguments) -> str:
    """Serves the page in threads of its own and returns its address.

    Raises:
        UserError: no such address, or somebody else has the port.
    """
    try:
        _, address, shared = page.launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            max_file_size=MAX_UPLOAD,
        )
    except OSError as error:
        raise UserError(
            f"--host {args.host} --port {args.port} cannot be used ({one_line(error)}): give others"
        ) from None
    logger.info(f"the page: {address}" + (f", and for everybody: {shared}" if shared else ""))
    return address


def publish(args: AppArguments, evaluation_args: EvaluationArguments) -> str:
    """Makes the page a Space and returns its address.

    Raises:
        UserError: a model that the Hub does not have, no token, or the push failed.
    """
    flag = "--push_space"
    models = [model_on_hub(model) for model in args.model]
    open_to_all = [check_model_on_hub(model, args.model_revision, args.token, flag) for model in models]
    space = check_hub_access(args.push_space, args.token, ".", args.private or None, None, flag, flag, space=True)
    given = {"model_revision": args.model_revision} | vars(evaluation_args)
    defaults = {"model_revision": None} | vars(EvaluationArguments())
    settings = {"model": models} | {key: value for key, value in given.items() if value != defaults[key]}
    address = push_space(space_files(space.split("/")[-1], settings, models), space, args.token, args.private or None)
    logger.info(f"published: {address}, which takes some minutes to start")
    if not all(open_to_all):
        logger.warning("not everybody may load the model: give the Space a secret HF_TOKEN that may (its settings)")
    return address


def main(argv: list[str] | None = None) -> str | None:
    """Serves the page until it is interrupted, or makes it a Space and returns its address.

    argv: command-line arguments without the program's name; None takes them from the command line.
    Raises `cli_utils.UserError` for a model or an address that cannot be used, or what the Hub refuses.
    """
    args, evaluation_args = parse_arguments(argv=argv, description=__doc__, **APP)
    set_up_logging()
    check_installed("app.py", "gradio")
    if args.push_space:
        return publish(args, evaluation_args)
    device = find_device(args.device)
    predictors = {}
    for title, model in zip(titles_of(args.model), args.model, strict=True):
        predictors[title] = one = load_predictor(model, evaluation_args, device, args.model_revision)
        logger.info(f"{model}: {one.description}, on {device}; short side {one.protocol.short_side}")
    # A line for every image is enough.
    logging.getLogger("reports.predictions").setLevel(logging.WARNING)
    page = build_page(predictors)
    serve(page, args)
    try:
        threading.Event().wait()
    finally:
        page.close()


if __name__ == "__main__":
    run_cli(main)
