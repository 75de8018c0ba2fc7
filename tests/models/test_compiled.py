"""The file of the compiled kernels, and what happens where there is none."""

import logging
import os
import subprocess

import pytest
import torch
from factories.logits import random_case, stock_loss

from models import compiled
from models.losses import upsampled_cross_entropy
from models.upsampling import upsampled_argmax

needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="no C++ compiler")


@pytest.fixture
def compiled_anew(monkeypatch, tmp_path):
    """Nothing is compiled yet."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    compiled.library.cache_clear()
    yield tmp_path / "fine_tune_segformer"
    compiled.library.cache_clear()


@needs_compiler
def test_it_is_compiled_once(compiled_anew, monkeypatch):
    assert compiled.library() is not None
    (file,) = compiled_anew.iterdir()
    compiled.library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    assert compiled.library() is not None
    assert list(compiled_anew.iterdir()) == [file]


@needs_compiler
@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else_is_not_run(compiled_anew):
    file = compiled._compiled()
    file.write_bytes(b"not ours")
    os.chown(file, 12345, -1)
    assert compiled.library() is not None and file.stat().st_uid == 0


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("none", "CXX names none, which is no program here"), ("false", "returned non-zero exit status 1")],
)
def test_without_a_compiler_torch_does_it_and_the_log_says_so(compiled_anew, monkeypatch, caplog, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    logits, labels = random_case((5, 7), (13, 31), dtype=torch.float32)
    with caplog.at_level(logging.INFO):
        losses = [upsampled_cross_entropy(logits, labels) for _ in range(2)]
        upsampled_argmax(logits, (13, 31))
    torch.testing.assert_close(losses[0], stock_loss(logits, labels))
    (line,) = [record.getMessage() for record in caplog.records]
    assert reason in line and line.startswith("no compiled kernel")


def test_no_compiler_at_all_is_said(compiled_anew, monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert compiled.library() is None
    assert "there is no C++ compiler (g++, clang++, c++)" in caplog.text
