"""What people and programs call things: tables that pairing, the table readers and the class lists look into.

A new program's layout is a row here wherever its names are all that is special about it. Words are in lower case and
are compared with the words of a name: `ISIC_Training_GroundTruth`, `labelsTr` and `train2017` have four, two and two.
"""

import importlib.util

# ---- files ----------------------------------------------------------------------------------------------------------

HEIF_EXTENSIONS = {".heic", ".heif"} if importlib.util.find_spec("pillow_heif") else set()
IMAGE_EXTENSIONS = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm"),
    *(".jp2", ".j2k", ".jpx"),
    *HEIF_EXTENSIONS,
}
MASK_EXTENSIONS = IMAGE_EXTENSIONS - HEIF_EXTENSIONS
VIDEO_EXTENSIONS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
# Pictures, or arrays that stand for them, which are not read. Extension → what to do about it.
UNREAD_EXTENSIONS = {
    **dict.fromkeys((".heic", ".heif"), "pip install pillow-heif reads them, or `mogrify -format png *.heic`"),
    **dict.fromkeys(
        (".npy", ".npz", ".mat", ".nii", ".nii.gz", ".mha", ".nrrd", ".dcm", ".h5", ".raw"), "write them as PNG files"
    ),
    **dict.fromkeys(
        ".exr .hdr .dds .psd .svg .avif .jxl .jpf .img .jpe .tga .czi .nd2 .svs".split(), "convert them to PNG"
    ),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"), "develop them to JPEG or PNG"),
    **dict.fromkeys(
        (".mp4", ".avi", ".mov", ".mkv", ".webm"), "extract their frames (predict.py takes films by name)"
    ),
}
# What operating systems, network drives and archives leave behind, besides all that begins with a dot.
LITTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}

# ---- names of folders -----------------------------------------------------------------------------------------------

IMAGE_WORDS = {
    *("image", "images", "img", "imgs", "photo", "photos", "photograph", "photographs", "picture", "pictures"),
    *("pic", "pics", "rgb", "rgbs", "input", "inputs", "frame", "frames", "jpegimages", "pngimages", "original"),
    *("originals", "sat", "satellite", "leftimg", "bild", "bilder", "fotos", "imagenes", "x"),
}
MASK_WORDS = {
    *(
        "mask",
        "masks",
        "msk",
        "msks",
        "label",
        "labels",
        "lbl",
        "lbls",
        "annotation",
        "annotations",
        "annot",
        "annots",
    ),
    *("ann", "anns", "anno", "annos", "gt", "gts", "groundtruth", "groundtruths", "truth", "seg", "segs", "segm"),
    *("segmentation", "segmentations", "semantic", "semantics", "semseg", "segmap", "segmaps", "target", "targets"),
    *("trimap", "trimaps", "labelmap", "labelmaps", "gtfine", "gtcoarse", "segmentationclass", "manual", "maske"),
    *("masken", "y"),
}
# Pictures that are made from masks, or that tell other things than classes: never a candidate.
OTHER_WORDS = {
    *("segmentationobject", "visualization", "visualizations", "visualisation", "visualisations", "viz", "vis"),
    *("overlay", "overlays", "blend", "blended", "preview", "previews", "thumbnail", "thumbnails", "thumb", "thumbs"),
    *("instance", "instances", "panoptic", "depth", "disparity", "polygon", "polygons", "colormap", "colormaps"),
    *("prediction", "predictions", "human", "contour", "contours"),
}
# Of folders that hold the same masks in several forms, the first that is there counts.
VARIANTS = (
    ("segmentationclass", "segmentationclasspng", "segmentationclassraw", "segmentationclassaug"),
    ("gtfine", "gtcoarse"),
)
SPLIT_NAMES = {
    "train": ("train", "training", "trainset", "trainval"),
    "validation": ("validation", "val", "valid", "dev", "eval", "evaluation", "valset"),
    "test": ("test", "testing", "testset"),
}
# Too short to be trusted alone; in one name with a word for images or masks, as in nnU-Net's imagesTr.
SHORT_SPLIT_NAMES = {"tr": "train", "trn": "train", "ts": "test", "tst": "test"}
# Words that may stand beside a split's name and change nothing: `train_set`, `val_data`.
FILLERS = {"set", "data", "dataset", "split", "folder", "files"}

# ---- names of files -------------------------------------------------------------------------------------------------

# What tools and datasets append to the name of an image to name its mask, and the other way round.
MASK_SUFFIXES = (
    *("_mask", "_masks", "_label", "_labels", "_lbl", "_seg", "_segs", "_segmentation", "_segmentations"),
    *("_annotation", "_annotations", "_annot", "_ann", "_gt", "_groundtruth", "_ground_truth", "_target", "_semantic"),
    *("_L", "_m", "-mask", "-label", "-seg", "-gt", ".mask", " mask", "mask", "_matte", "_manual1", "_labelIds"),
    *("_labelTrainIds", "_gtFine_labelTrainIds", "_gtFine_labelIds", "_gtCoarse_labelTrainIds"),
    *("_gtCoarse_labelIds", "_train_id", "_label_noBoundary", "___fuse", "___save", "_watershed_mask"),
)
MASK_PREFIXES = ("mask_", "masks_", "label_", "labels_", "seg_", "gt_", "annotation_", "mask-", "label-", "mask", "gt")
IMAGE_SUFFIXES = (
    *("_image", "_img", "_images", "_imgs", "_rgb", "_IRRG", "_sat", "_photo", "_input", "_raw", "_orig"),
    *("_original", "_leftImg8bit", "_color", "_0000", "_training", "-image", "-img", " image"),
)
IMAGE_PREFIXES = (
    *("image_", "images_", "img_", "photo_", "rgb_", "sat_", "input_", "satellite_", "image-", "img-", "image", "img"),
)
# Other forms of the same annotation beside the masks, as in Cityscapes: files with these names are passed over.
OTHER_SUFFIXES = ("_gtFine_color", "_gtFine_instanceIds", "_gtFine_instanceTrainIds", "_gtCoarse_color",
                  "_gtCoarse_instanceIds", "_instanceIds", "_instanceTrainIds")  # fmt: skip
# Of masks in several forms that both would do, the first.
PREFERRED_SUFFIXES = ("_gtFine_labelTrainIds", "_gtFine_labelIds", "_gtCoarse_labelTrainIds", "_gtCoarse_labelIds")

# ---- files of exporters ---------------------------------------------------------------------------------------------

COCO_FILES = ("annotations*.json", "instances_*.json", "_annotations.coco.json")
PANOPTIC_FILES = ("panoptic*.json",)
POSSIBLE_COCO_FILES = ("result.json", "labels.json", "coco*.json", "*.json")  # which are looked into, in this order
YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
YOLO_CLASS_FILES = ("classes.txt", "obj.names", "predefined_classes.txt")
# Lists of the images of a split, one a line.
LIST_FOLDERS = ("ImageSets/Segmentation", "ImageSets", "ImageSets/Main", "splits", "")
# Words that may stand beside the split's in the name of a list: `train_list.txt`.
LIST_WORDS = FILLERS | {"list", "lists", "image", "images", "img", "imgs", "ids", "names", "pairs"}
DEFAULT_LISTS = ("default", "trainval", "all")  # the training split, where it is the only list
# Class lists in a dataset's folder, ours first, then those of programs. Those of the second kind have names that other
# files have as well: they count only if they hold classes.
CLASS_LIST_FILES = ("id2label.json", "labels.json", "classes.json", "class_dict.csv", "labelmap.txt")
POSSIBLE_CLASS_LIST_FILES = (
    *("_classes.csv", "dataset.json", "config.json", "class_names.txt", "label_colors.txt", "classes.txt"),
    *("names.txt", "labels.txt", "obj.names", "classes.csv", "labels.csv"),
)
# Files that only other programs can read → which of their exports is read here.
UNREADABLE_EXPORTS = {
    "annotations.xml": "CVAT's own format: export the task as `Segmentation mask 1.1` or `COCO 1.0`",
    "via_*.json": "of the VGG Image Annotator: export it as COCO",
    "*.ndjson": "of Labelbox: convert it to COCO or to PNG masks",
    "*.lblprj": "of a labelling program: export it as COCO or as PNG masks",
    "*.gpkg": "vector data of a GIS: burn it into PNG or GeoTIFF masks first (gdal_rasterize -ot Byte)",
    "*.shp": "vector data of a GIS: burn it into PNG or GeoTIFF masks first (gdal_rasterize -ot Byte)",
    "*.geojson": "vector data of a GIS: burn it into PNG or GeoTIFF masks first (gdal_rasterize -ot Byte)",
    "*.xml": "XML annotations: export them as COCO or as PNG masks",
    "*.tfrecord": "TensorFlow records: export the data as COCO or as PNG masks",
    "*.zip": "an archive: unpack it first",
    "*.tar": "an archive: unpack it first",
    "*.tar.gz": "an archive: unpack it first",
}

# The same of JSON files, by keys that they begin with.
UNREADABLE_JSON = {
    (
        "categories",
        "items",
    ): "Datumaro's own format: `datum convert -i FOLDER -if datumaro -f coco_instances -o coco -- "
    "--save-media` makes COCO of it",
    ("_via_img_metadata",): "of the VGG Image Annotator: export it as COCO",
    ("openlabel",): "OpenLABEL: export it as COCO or as PNG masks",
}

# ---- tables ---------------------------------------------------------------------------------------------------------

COLUMNS = {
    "image": (
        *("image", "pixel_values", "img", "images", "input", "photo", "picture"),
        *("file_name", "image_file_name", "image_path", "filename"),
    ),
    "label": (
        *("label", "annotation", "mask", "segmentation_mask", "semantic_mask", "segmentation", "seg_map"),
        *("labels", "annotations", "masks", "label_image", "gt", "ground_truth"),
        *("mask_file_name", "label_file_name", "mask_path", "label_path"),
    ),
}
SPLIT_COLUMNS = ("split", "subset", "partition")
NO_FILE = {"", "nan", "none", "null", "na", "n/a", "-"}  # cells that stand for no file
CLASS_COLUMNS = {
    "id": ("id", "value", "pixel value", "pixel_value", "index", "idx", "class_id", "label_id", "class id", "pixel"),
    "name": ("name", "class", "class_name", "label", "category", "class name", "classes"),
    "color": ("color", "colour", "rgb", "color_rgb"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
}
IGNORED_CLASS_NAMES = ("__ignore__",)
# Class lists whose format says that a class of this name is none → the name.
IGNORED_BY_FORMAT = {"dataset.json": "ignore"}  # nnU-Net
