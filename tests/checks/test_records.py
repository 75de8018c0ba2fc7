"""Verdict, exit code and files of a report."""

import json

import numpy as np
import pytest
from factories.broken_datasets import NAMES, make_clean
from factories.datasets import load_splits
from PIL import Image

from checks.judge import find_faults
from checks.records import DatasetReport, Finding
from checks.scan import scan
from data.classes import ClassMap


def report_of(*severities):
    findings = [Finding(f"kind-{severity}", severity, "what", "how") for severity in severities]
    return DatasetReport("data", "CamVid", {"train": 1}, {0: "a"}, {"train": [5]}, [], findings, 1.0)


@pytest.mark.parametrize(
    "severities, code, strict, verdict",
    [
        ((), 0, 0, "fit for training"),
        (("info",), 0, 0, "fit for training"),
        (("warning", "info"), 0, 1, "fit for training, but look at the warnings: 0 errors and 1 warning"),
        (("error", "warning", "warning"), 2, 2, "not fit for training: 1 error and 2 warnings"),
    ],
)
def test_verdict_and_exit_code(severities, code, strict, verdict):
    report = report_of(*severities)
    assert (report.exit_code(), report.exit_code(strict=True), report.verdict()) == (code, strict, verdict)
    assert json.loads(json.dumps(report.to_json()))["verdict"] == verdict


def test_findings_keep_the_worst_twenty(tmp_path):
    root = make_clean(tmp_path, counts=(30, 4))
    for i, file in enumerate(sorted((root / "train" / "masks").iterdir())):
        mask = np.array(Image.open(file))
        mask[: i + 1, 0] = 9
        Image.fromarray(mask).save(file)
    class_map = ClassMap(NAMES)
    [found] = [
        found for found in find_faults(scan(load_splits(root), class_map), class_map) if found.severity == "error"
    ]
    assert (found.kind, found.count, len(found.files)) == ("mask-values-unknown", 30, 20)
    assert found.files[0] == "train/scene_29"
