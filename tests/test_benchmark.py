"""The benchmark measures both sides of the same thing; that ours is faster is not for a test on a busy machine."""

import itertools
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.architectures import tiny_configs, universal_configs
from PIL import Image
from transformers import SegformerForSemanticSegmentation

import benchmark
from cli_utils import UserError, parse_arguments
from models.catalogue import MIT, MODELS, NVIDIA, Model
from models.fused_segformer import FusedSegformerDecodeHead
from reports import peers
from training import benchmark_arguments
from training.benchmark_arguments import BenchmarkArguments

TIMES = {"stock_seconds", "ours_seconds", "ratio", "smallest_ratio", "largest_ratio"}
ROW = TIMES | {"stock_peak_mb", "ours_peak_mb"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Flags for a model of a few thousand parameters and small images."""
    config = tmp_path_factory.mktemp("tiny") / "config.json"
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    config.write_text(json.dumps({"model_type": "segformer", "decoder_hidden_size": 16, **sizes}))
    return ["--variant", str(config), "--size", "64", "--num_labels", "5", "--pairs", "2", "--images", "3"]


@pytest.fixture
def without_children(monkeypatch):
    """Peaks that nobody measured, for tests of everything else."""
    monkeypatch.setattr(
        benchmark, "peak_memory", lambda args: {"stock_peak_mb": 2.0 * args.images, "ours_peak_mb": None}
    )


def as_args(tiny, tmp_path, command="train-step", **changes):
    (args,) = parse_arguments((BenchmarkArguments,), [command, *tiny], positional="command")
    return replace(args, folder=str(tmp_path), **changes)


def test_train_step_with_memory_and_json(tiny, tmp_path, capsys):
    results = benchmark.main(["train-step", *tiny, "--json", str(tmp_path / "results.json")])
    row = results["rows"]["train-step"]
    assert set(row) == ROW | {"loss_difference", "gradient_norm_difference"}
    assert row["stock_peak_mb"] > 0 and row["ours_peak_mb"] > 0
    assert 0 < row["ratio"] and row["loss_difference"] < 1e-4 and row["gradient_norm_difference"] < 1e-4
    assert set(results["environment"]) == {"processor", "gpu", "threads", "torch", "transformers"}
    assert results["options"]["size"] == 64 and results["options"]["command"] == "train-step"
    assert json.loads((tmp_path / "results.json").read_text()) == results
    printed = capsys.readouterr().out
    assert "| train-step | " in printed and f"torch {torch.__version__}" in printed and " MiB |" in printed


def test_evaluate(tiny, without_children):
    rows = benchmark.main(["evaluate", *tiny, "--growth", "4"])["rows"]
    assert list(rows) == ["evaluate", "evaluate, 4:3 photos", "evaluate, 12 images"]
    differences = {"eval_loss_difference", "eval_mean_iou_difference", "eval_overall_accuracy_difference"}
    assert set(rows["evaluate"]) == ROW | {"images"} | differences
    assert max(rows["evaluate"][name] for name in differences) < 1e-4
    assert rows["evaluate, 4:3 photos"]["images"] == 3
    growth = {"images": 12, "note": benchmark.KEEPS_LOGITS, "stock_peak_mb": 24.0, "ours_peak_mb": None}
    assert rows["evaluate, 12 images"] == growth
    assert list(benchmark.main(["evaluate", *tiny, "--pairs", "1", "--growth", "1"])["rows"]) == list(rows)[:2]


def test_predict_and_data(tiny, without_children):
    row = benchmark.main(["predict", *tiny])["rows"]["predict"]
    assert set(row) == ROW | {"different_pixels"} and row["different_pixels"] < 0.01
    row = benchmark.main(["data", *tiny])["rows"]["data"]
    assert set(row) == ROW | {"images"} and row["images"] == 3


@pytest.mark.slow
def test_photos(tiny, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "PHOTOS", {"small JPEG": (96, 64, ".jpg", 64), "large PNG": (400, 300, ".png", 64)})
    rows = benchmark.main(["photos", *tiny, "--pairs", "1"])["rows"]
    assert rows.keys() == benchmark.PHOTOS.keys()
    assert all(0 < row[f"{way}_seconds"] < 60 for row in rows.values() for way in ("whole", "image", "batch"))
    assert "| large PNG | 64 | " in capsys.readouterr().out


def test_start(tiny, capsys):
    rows = benchmark.main(["start", *tiny, "--pairs", "1"])["rows"]
    assert rows["--help"]["cpu_seconds"] < rows["import torch"]["cpu_seconds"]
    assert rows["one step on prepared data"]["cpu_seconds"] > rows["import torch"]["cpu_seconds"]
    assert "| --help | " in capsys.readouterr().out


@pytest.mark.slow
def test_export(tiny):
    row = benchmark.main(["export", *tiny])["rows"]["export"]
    assert set(row) == TIMES | {"different_pixels", "stock_output_mb", "ours_output_mb"}
    assert row["different_pixels"] < 0.01
    assert row["ours_output_mb"] == pytest.approx(64 * 85 / 2**20)  # a byte a pixel


@pytest.mark.slow
def test_peak_of_evaluation_in_a_child(tiny, tmp_path):
    peaks = benchmark.peak_memory(as_args(tiny, tmp_path, "evaluate"))
    assert set(peaks) == {"stock_peak_mb", "ours_peak_mb"} and all(peak > 0 for peak in peaks.values())


def test_a_child_that_dies_leaves_a_gap(tiny, tmp_path, monkeypatch, capsys):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no memory left >&2\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    args = as_args(tiny, tmp_path, "predict")
    peaks = benchmark.peak_memory(args)
    assert peaks == dict.fromkeys(["stock_peak_mb", "ours_peak_mb"]) | dict.fromkeys(
        ["stock_ended", "ours_ended"], "out of memory"
    )
    assert "| out of memory | out of memory |" in benchmark.as_table({"predict": peaks})
    assert "--peak_of ours ended with exit code -9: no memory left" in capsys.readouterr().err
    python.write_text("#!/bin/sh\necho a bug >&2\nexit 1\n")
    assert benchmark.peak_memory(args, ["ours"]) == {"ours_ended": "failed", "ours_peak_mb": None}


def test_own_peak_is_that_of_the_work(tiny, tmp_path, monkeypatch):
    def work(args, ours):
        return lambda: np.ones(50 * 2**20 if ours else 1, np.uint8).sum()

    monkeypatch.setitem(benchmark.MEASUREMENTS, "data", (None, work))
    assert 49 < benchmark.own_peak(as_args(tiny, tmp_path, "data", peak_of="ours")) < 60
    assert benchmark.own_peak(as_args(tiny, tmp_path, "data", peak_of="stock")) < 10


def test_all_runs_everything_and_b2(tiny, monkeypatch):
    def measure(args):
        return {args.command: {"variant": args.variant}}

    for command, (_, work) in list(benchmark.MEASUREMENTS.items()):
        monkeypatch.setitem(benchmark.MEASUREMENTS, command, (measure, work))
    monkeypatch.setattr(benchmark, "measure_train_step", measure)
    results = benchmark.main(["all", *tiny])
    assert {name: row["variant"] for name, row in results["rows"].items()} == dict.fromkeys(
        benchmark.MEASUREMENTS, tiny[1]
    ) | {"train-step, mit-b2": "mit-b2"}
    assert results["options"]["command"] == "all" and results["options"]["variant"] == tiny[1]


def test_sides_have_the_same_weights_and_only_ours_is_fused(tiny, tmp_path):
    stock, ours = (benchmark.new_model(as_args(tiny, tmp_path), side) for side in (False, True))
    assert type(stock) is type(ours) is SegformerForSemanticSegmentation
    assert not isinstance(stock.decode_head, FusedSegformerDecodeHead)
    assert isinstance(ours.decode_head, FusedSegformerDecodeHead)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name


@pytest.mark.parametrize("ours", [False, True])
def test_a_training_step_trains(tiny, tmp_path, ours):
    args = as_args(tiny, tmp_path)
    step = benchmark.training_step(args, ours)
    first = step()
    for _ in range(30):
        last = step()
    assert last < first


def test_a_wrong_loss_is_found(tiny, tmp_path, monkeypatch):
    stock = benchmark.training_numbers(as_args(tiny, tmp_path), ours=False)
    monkeypatch.setattr(benchmark, "upsampled_cross_entropy", lambda logits, *_, **__: logits.square().mean())
    ours = benchmark.training_numbers(as_args(tiny, tmp_path), ours=True)
    with pytest.raises(RuntimeError, match="do not compute the same"):
        benchmark.agree(as_args(tiny, tmp_path), stock, ours)
    with pytest.raises(RuntimeError, match="do not compute the same"):
        benchmark.agree(as_args(tiny, tmp_path), {"loss": 1.0}, {"loss": float("nan")})


def test_a_wrong_mask_is_found(tiny, monkeypatch, without_children):
    monkeypatch.setattr(benchmark, "predict_ids", lambda model, image, protocol: torch.zeros(64, 85))
    with pytest.raises(RuntimeError, match="predict different classes"):
        benchmark.main(["predict", *tiny])


def test_paired_takes_turns_after_a_first_run(tiny, tmp_path):
    calls = []
    result = benchmark.paired(
        lambda: calls.append("A"),
        lambda: calls.append("B"),
        as_args(tiny, tmp_path, pairs=3),
        agree=lambda stock, ours: {"agreed": calls.copy()},
    )
    assert "".join(calls) == "ABABABAB" and result["agreed"] == ["A", "B"]


def test_bfloat16(tiny, without_children):
    for command in ("train-step", "evaluate", "predict"):
        assert benchmark.main([command, *tiny, "--dtype", "bfloat16", "--pairs", "1"])["rows"][command]["ratio"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "100"], "--size is 100; it must be a multiple of 32, as in 128"),
        (["--pairs", "0"], "--pairs is 0; it must be at least 1"),
        (["--num_labels", "256"], "--num_labels is 256; it must be 2 to 255"),
        (["--variant", "mit-b9"], "--variant mit-b9 is neither a file nor one of mit-b0, mit-b1"),
        (["--dtype", "float16"], "--dtype is float16; it must be float32 or bfloat16"),
        (["--sise", "64"], r"unknown flag --sise \(did you mean --size\?\)"),
        (["--device", "abacus"], "--device abacus is not available; torch finds cpu"),
    ],
)
def test_mistakes(flags, message):
    with pytest.raises(UserError, match=message):
        benchmark.main(["all", *flags])


def test_what_to_measure_must_be_said():
    with pytest.raises(UserError, match="say what to measure, one of train-step, .*, all; none given"):
        benchmark.main([])
    with pytest.raises(UserError, match=r"train_step is none of them \(did you mean train-step\?\)"):
        benchmark.main(["train_step"])


def test_a_missing_package_is_named_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(benchmark_arguments, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install evaluate"):
        benchmark.main(["all"])


def test_models_are_counted_and_shown(monkeypatch):
    tiny = Model("some/tiny", MIT, None, lambda: tiny_configs()["upernet-convnext"])
    of_masks = Model("some/masks", NVIDIA, "50.0 (a paper)", lambda: universal_configs()["mask2former"])
    monkeypatch.setattr(benchmark, "MODELS", {"tiny": tiny, "masks": of_masks})
    rows = {}
    for name in benchmark.MODELS:
        args = BenchmarkArguments("models", variant=name, size=64, num_labels=3)
        model = benchmark.one_model(args)
        benchmark.model_step(args)()
        size = sum(parameter.numel() for parameter in model.parameters())
        rows[name] = {"parameters": size, "multiply_adds": benchmark.multiply_adds(model, 64), "step_mb": 512.0}
        assert rows[name]["multiply_adds"] > 1e5
    table = benchmark.models_table(rows | {"masks": rows["masks"] | {"step_mb": None}})
    assert (
        "| tiny: `--model_name_or_path some/tiny` |" in table
        and "| no published figure | 0.5 GiB | yes: MIT |" in table
    )
    assert f"| 50.0 (a paper) | out of memory | {NVIDIA.text} |" in table


def test_the_catalogue_is_what_the_documentation_lists():
    text = (Path(benchmark.__file__).parent / "docs" / "models.md").read_text(encoding="utf-8")
    for name, model in MODELS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name}: `{model.flags}` |")]
        cost, published = model.cost, model.ade20k or "no published figure"
        memory = "not measured" if cost.step is None else f"{cost.step} GiB"
        cells = [f"{cost.parameters} M", str(cost.gflops), published, memory, model.licence.text]
        assert row.strip("| ").split(" | ")[1:] == cells
    assert text.count("`--backbone ") + text.count("`--model_name_or_path ") >= len(MODELS)


# ---- what else people would pick ------------------------------------------------------------------------------------


def test_peers_are_measured_or_named(tiny, monkeypatch, capsys):
    # A compiled model, without the minutes that a compiler takes.
    monkeypatch.setattr(benchmark, "tuned", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(peers, "find_spec", lambda name: None)

    def raise_memory_error(*args):
        raise MemoryError

    monkeypatch.setattr(benchmark, "torchvision_transforms", raise_memory_error)
    rows = benchmark.main(["peers", *tiny, "--pairs", "1"])["rows"]
    step, smp, evaluation, data = rows.values()
    assert set(step) == TIMES
    assert smp == {"note": "skipped: pip install segmentation-models-pytorch"}
    assert evaluation["ratio"] > 0 and evaluation["eval_mean_iou_difference"] < 1e-4
    assert data == {"note": "out of memory"}
    printed = capsys.readouterr().out
    assert "segmentation_models.pytorch (skipped: pip install segmentation-models-pytorch) |  |" in printed


def test_segmentation_models_pytorch_is_the_same_network(tiny, tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    args = as_args(tiny, tmp_path, variant="mit-b0")
    sizes = [
        sum(parameter.numel() for parameter in model.parameters())
        for model in (peers.smp_segformer("mit-b0", 5), benchmark.new_model(args, ours=False))
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    assert benchmark.smp_step(replace(args, pairs=1))["ratio"] > 0
    with pytest.raises(peers.CannotRun, match="has no encoder mit_b9"):
        peers.smp_segformer("mit-b9", 5)


def test_time_to_score(tiny, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(6):
        ids = np.kron(rng.integers(0, 3, (2, 2)), np.ones((32, 32), int)).astype(np.uint8)
        Image.fromarray(np.stack([ids * 100] * 3, axis=-1)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(ids).save(tmp_path / "masks" / f"{i}.png")
    ticks = itertools.count()
    trained = partial(peers.train_and_score, clock=lambda: next(ticks))
    monkeypatch.setattr(benchmark, "train_and_score", trained)
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    rows = benchmark.main(["time-to-score", *tiny, "--seconds", "5", "--dataset_dir", str(tmp_path)])["rows"]
    assert list(rows) == ["ours", "stock loop", "segmentation_models.pytorch"]
    for side in ("ours", "stock loop"):
        assert rows[side]["steps"] == 4 and 0 <= rows[side]["mean_iou"] <= 1
    printed = capsys.readouterr().out
    assert "| segmentation_models.pytorch |  | skipped: pip install segmentation-models-pytorch |" in printed


def test_the_readme_has_the_rows_of_its_command(monkeypatch, tiny, capsys):
    times = {"stock_seconds": 2.0, "ours_seconds": 1.0, "ratio": 2.0, "smallest_ratio": 1.5, "largest_ratio": 2.5}
    for command, (_, work) in list(benchmark.MEASUREMENTS.items()):
        monkeypatch.setitem(benchmark.MEASUREMENTS, command, (lambda args: {args.command: times}, work))
    assert list(benchmark.main(["readme", *tiny])["rows"]) == ["train-step", "evaluate", "predict"]
    printed = capsys.readouterr().out
    readme = (Path(benchmark.__file__).parent / "README.md").read_text(encoding="utf-8")
    for title in benchmark.README_ROWS.values():
        assert f"| {title} | 2.000 s | 1.000 s | 2.00 (1.50 to 2.50) |" in printed and f"| {title} |" in readme
