"""The classes of a trained model: their names, their colours, and the values that stand for them in annotations."""

import logging
from pathlib import Path

from transformers import PretrainedConfig
from transformers.utils import cached_file

from cli_utils import UserError
from data.classes import ClassMap, read_class_list

logger = logging.getLogger(__name__)


def find_class_map(
    name_or_path: str, config: PretrainedConfig, image_processor, revision: str | None = None
) -> ClassMap:
    """A trained model's classes with their colours and the values that stand for them in annotation files.

    Models trained here have the values in their configuration; of others the image processor says whether labels were
    reduced. Colours are those of the model's `labels.json` or of a list in `labels/`, whichever has the model's class
    names. A model with a single logit, whose configuration can name but one class, has the two of its `labels.json`.
    """
    files = sorted((Path(__file__).resolve().parents[1] / "labels").glob("*.json"))
    own_file = None
    try:
        own_file = cached_file(name_or_path, "labels.json", revision=revision)
        files.insert(0, own_file)
    except OSError:
        pass  # only models trained here have it
    id2label, palette = config.id2label, None
    single_logit = len(id2label) == 1
    if single_logit:
        id2label = {0: "background", 1: id2label[0]}
    for file in files:
        try:
            names, colors = read_class_list(file)
        except UserError as error:  # somebody else's, in another format
            logger.warning(f"not taken for the model's list of classes: {error}")
            continue
        if names == id2label or (single_logit and file == own_file and len(names) == 2):
            id2label, palette = names, colors
            break
    recorded = config.to_dict().get("segmentation_label_map")
    if recorded is not None:
        return ClassMap.from_config(recorded, id2label, palette)
    try:
        # As it stands in the file: older models, NVIDIA's own among them, say `reduce_labels`, which transformers 5
        # reads without acting on it.
        settings = type(image_processor).get_image_processor_dict(name_or_path, revision=revision)[0]
    except OSError:
        settings = {}  # a model without an image processor
    reduced = settings.get("do_reduce_labels", settings.get("reduce_labels", False))
    return ClassMap(id2label, palette, do_reduce_labels=bool(reduced))
