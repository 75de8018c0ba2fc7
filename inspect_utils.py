"""Looking at a dataset: every pair decoded once, what a folder holds besides, and the quick look before training.

    records = scan(dataset)                                  # of `data_utils.load_segmentation_dataset`
    findings = find_faults(records, label_map, image_size)   # see `fault_utils`

`check_dataset.py` scans everything; `run_segmentation.py` a sample, before it starts (`quick_check`).
"""

from report_utils import DatasetReport, Finding, ImageRecord

__all__ = ["DatasetReport", "Finding", "ImageRecord"]
