"""Says whether run B beats run A, or whether the images are too few to tell.

    python compare_runs.py outputs/b0 outputs/b2
    python compare_runs.py outputs/b0 outputs/b2 --html comparison.html --json comparison.json

Both folders must hold the `per_image.npz` of an evaluation on the same images (`run_segmentation.py --do_eval` writes
it). The difference is B minus A; its 95 % interval is a paired bootstrap over the images, so it speaks about other
images of the same kind, not about training again with another seed.
"""

if __name__ == "__main__":
    from cli_utils import answer_early
    from reports.arguments import COMPARE

    answer_early(__doc__, **COMPARE)  # before the imports below, which take seconds

import json
import math
from pathlib import Path

import numpy as np

from cli_utils import UserError, parse_arguments, printable, run_cli, write_text
from data.output_paths import check_files_writable
from metrics_utils import per_category_iou, score_images
from reports.arguments import COMPARE
from reports.compare_page import write_compare_page
from reports.intervals import MEASURES, PerImage, load_per_image, match_images, paired_bootstrap

CLASSES_SHOWN = 10


def read_scores(folder: str) -> dict:
    """A run's `eval_results.json`; empty where that is not there."""
    path = Path(folder, "eval_results.json")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds no scores ({error}); evaluate the run again with --do_eval") from None


def compare(a: PerImage, b: PerImage, resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """For each row of the table the two scores, `difference`, `low`, `high` and `p_value`; images must be matched."""
    table = {}
    for row, (kind, statistic) in MEASURES.items():
        counts_a, counts_b = getattr(a, kind), getattr(b, kind)
        table[row] = {"a": score_images(counts_a, statistic), "b": score_images(counts_b, statistic)}
        table[row] |= paired_bootstrap(counts_a, counts_b, statistic, resamples, seed)._asdict()
    return table


def calibration_errors(a: dict, b: dict) -> dict[str, float] | None:
    """`eval_ece` of both runs and the `difference`; None where one has none. A calibration error is of all images
    together, so there is no interval by image."""
    found = [scores.get("eval_ece") for scores in (a, b)]
    if not all(isinstance(value, int | float) for value in found):
        return None
    return {"a": found[0], "b": found[1], "difference": found[1] - found[0]}


def verdict(mean_iou: dict[str, float], images: int) -> str:
    """B (or A) is better where the whole interval of the difference in mean IoU lies on one side of zero."""
    if mean_iou["low"] > 0:
        return "B is better"
    if mean_iou["high"] < 0:
        return "A is better"
    return f"no difference can be shown with {images} image{'s' if images != 1 else ''}"


def class_changes(a: PerImage, b: PerImage) -> list[dict]:
    """One dict per class that has an IoU in both runs, greatest change first."""
    iou_a, iou_b = per_category_iou(a.counts), per_category_iou(b.counts)
    rows = [
        {"id": i, "name": a.class_names[i], "a": iou_a[i].item(), "b": iou_b[i].item()}
        | {"difference": (iou_b[i] - iou_a[i]).item(), "images": int((a.counts[:, 1, i] > 0).sum())}
        for i in np.flatnonzero(~np.isnan(iou_a - iou_b)).tolist()
    ]
    return sorted(rows, key=lambda row: -abs(row["difference"]))


def as_text(result: dict) -> str:
    """The result of `main` for a person."""
    lines = [f"A: {result['a']}", f"B: {result['b']}"]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    lines += [f"{result['images']} images; difference is B - A, 95 % interval over images", ""]
    lines += [f"{'score':<18}       A        B  difference      95 % interval       p"]
    for name, row in result["scores"].items():
        lines.append(
            f"{name:<18}  {row['a']:.4f}   {row['b']:.4f}     {row['difference']:+.4f}  "
            f"[{row['low']:+.4f}, {row['high']:+.4f}]  {row['p_value']:.4f}"
        )
    if row := result["calibration_error"]:
        lines += [f"{'calibration_error':<18}  {row['a']:.4f}   {row['b']:.4f}     {row['difference']:+.4f}"]
    lines += ["", f"mean_iou: {result['verdict']}", ""]
    shown = result["classes"][:CLASSES_SHOWN]
    width = max(len(row["name"]) for row in [*shown, {"name": "greatest changes"}])
    lines += [f"{'greatest changes':<{width}}   IoU A    IoU B  difference  images with it"]
    for row in shown:
        change = f"{row['a']:.4f}   {row['b']:.4f}     {row['difference']:+.4f}  {row['images']:>14}"
        lines.append(f"{row['name']:<{width}}  {change}")
    return "\n".join(lines)


def without_nan(value):
    """The same dicts and lists with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def main(argv: list[str] | None = None) -> dict:
    """Compares two runs, prints the outcome and returns it.

    argv: command-line arguments without the program's name; None takes them from the command line.
    Returns `a`, `b` (the folders), `images`, `scores` (see `compare`), `calibration_error` (see `calibration_errors`),
    `verdict`, `classes` (see `class_changes`) and `warnings`; `--json` holds the same, with null for NaN.
    Raises `cli_utils.UserError` where a folder holds no evaluation, or the two are not about the same images.
    """
    (args,) = parse_arguments(argv=argv, description=__doc__, **COMPARE)
    check_files_writable(args, "json", "html")
    name_a, name_b = args.runs
    a = load_per_image(name_a)
    b = match_images(a, load_per_image(name_b), name_a, name_b)
    evaluations = [read_scores(folder) for folder in args.runs]
    protocols = [evaluation.get("eval_protocol") or "unknown" for evaluation in evaluations]
    scores = compare(a, b, args.resamples, args.seed)
    result = {
        "a": name_a,
        "b": name_b,
        "images": len(a.names),
        "scores": scores,
        "calibration_error": calibration_errors(*evaluations),
        "verdict": verdict(scores["mean_iou"], len(a.names)),
        "classes": class_changes(a, b),
        "warnings": [],
    }
    if protocols[0] != protocols[1]:
        result["warnings"].append(f"evaluated under different protocols: A: {protocols[0]}. B: {protocols[1]}.")
    print(printable(as_text(result), lines=True))
    if args.json:
        write_text(args.json, json.dumps(without_nan(result), indent=2) + "\n")
    if args.html:
        write_compare_page(args.html, result, a, b, args.resamples)
    return result


if __name__ == "__main__":
    run_cli(main)
