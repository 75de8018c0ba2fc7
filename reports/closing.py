"""The last lines of a run: the numbers and the paths that matter, and what to do next."""

import shlex
from pathlib import Path

import numpy as np

from cli_utils import count_of
from metrics_utils import per_category_iou
from reports.intervals import load_per_image

WORST = 5  # classes that are named


def closing_lines(output_dir: Path, metrics: dict[str, float]) -> list[str]:
    """What a run came to, for a terminal; of what lies in its folder and its metrics, by name."""
    lines = []
    if "eval_mean_iou" in metrics:
        images = load_per_image(output_dir)
        interval = f"{metrics['eval_mean_iou_low']:.3f} to {metrics['eval_mean_iou_high']:.3f}"
        lines.append(f"mean IoU      {metrics['eval_mean_iou']:.4f} (95 % interval {interval})")
        lines[0] += f", {count_of(len(images.names), 'image')}"
    if "train_mean_iou" in metrics:
        lines.append(f"mean IoU      {metrics['train_mean_iou']:.4f} on the training images")
    if "eval_mean_iou" in metrics:
        lines.append(f"boundary IoU  {metrics['eval_boundary_mean_iou']:.4f}")
        lines.append(f"pixels right  {metrics['eval_overall_accuracy']:.2%}")
        iou = per_category_iou(images.counts)
        order = [i for i in np.argsort(iou, kind="stable").tolist() if iou[i] == iou[i]]
        named = ", ".join(f"{images.class_names[i]} {iou[i]:.3f}" for i in order[:WORST])
        lines += [f"lowest IoU    {named}"] * (len(order) > 2)
    files = {"page": "report.html", "pictures": "contact_sheet.png", "model": "model.safetensors"}
    lines += [f"{word:<13} {output_dir / name}" for word, name in files.items() if (output_dir / name).is_file()]
    if (output_dir / "model.safetensors").is_file():
        command = ["python", "predict.py", "--model", str(output_dir), "--output_dir", "predicted", "PHOTOS"]
        lines.append(f"to predict    {shlex.join(command)}")
    return lines
