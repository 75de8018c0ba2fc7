"""What is left out of a start, and what is not, each in a new process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import SegformerConfig

from models import unused_imports
from models.unused_imports import bring_back, leave_out_unused

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def left_out(monkeypatch):
    """→ function: models → packages that are left out of what follows."""

    def ask(*models, **options):
        modules = {}
        monkeypatch.setattr(unused_imports, "sys", type("Fake", (), {"modules": modules}))
        leave_out_unused(*map(str, models), **options)
        return set(modules)

    return ask


def a_model(folder, kind, *others):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    for name in others:
        (folder / name).write_text("{}")
    return folder


def test_what_is_left_out(left_out, tmp_path):
    plain, masks = a_model(tmp_path / "plain", "segformer"), a_model(tmp_path / "masks", "mask2former")
    adapted = a_model(tmp_path / "adapted", "segformer", "adapter_config.json")
    assert left_out("mit-b0") == left_out(plain) == left_out(plain / "config.json") == {"peft", "scipy"}
    assert left_out(plain, adds_adapters=True) == left_out(adapted) == set()
    assert left_out(masks) == left_out(plain, masks) == {"peft"}


def test_what_is_not_known_is_left_alone(left_out, tmp_path):
    alone = tmp_path / "adapters"
    alone.mkdir()
    (alone / "adapter_config.json").write_text("{}")
    (tmp_path / "damaged.json").write_text("[]")
    for model in (alone, "some/model", "no id at all", tmp_path / "none", tmp_path / "damaged.json", ""):
        assert left_out(model) == set(), model


def test_what_was_downloaded_is_known(left_out, tmp_path, monkeypatch):
    files = {"config.json": str(a_model(tmp_path / "plain", "segformer") / "config.json")}
    monkeypatch.setattr(unused_imports, "try_to_load_from_cache", lambda model, name: files.get(name))
    assert left_out("some/model") == {"peft", "scipy"}
    files["adapter_config.json"] = files["config.json"]
    assert left_out("some/model") == set()


def test_transformers_does_without_and_this_project_with_it(tmp_path):
    SegformerConfig().save_pretrained(tmp_path)
    code = """
import sys
from models.unused_imports import bring_back, leave_out_unused
leave_out_unused(sys.argv[1])
import torch
import models.universal
from models.calibration import fit_temperature
assert sys.modules["peft"] is None and sys.modules["scipy"] is None
scores = torch.tensor([[2.0, 0.0]] * 3)
print(fit_temperature(scores, torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.float64)))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(2 / 0.6931472, rel=1e-3)  # odds of 2 : 1 are e^(2 / T)


def test_bringing_back_what_was_never_left_out():
    bring_back("json")
    bring_back("no_such_package")
    assert sys.modules["json"] is json
