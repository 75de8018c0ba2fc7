"""Which models are known to need no peft, and what a start imports of it."""

import sys

import pytest

from models import peft_import
from models.peft_import import leave_out_peft, may_have_adapters


def a_folder(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return str(folder)


def test_folders(tmp_path):
    assert not may_have_adapters(a_folder(tmp_path / "plain", "config.json"))
    assert not may_have_adapters(str(tmp_path / "plain" / "config.json"))
    assert may_have_adapters(a_folder(tmp_path / "both", "config.json", "adapter_config.json"))
    assert may_have_adapters(a_folder(tmp_path / "alone", "adapter_config.json"))
    assert may_have_adapters(str(tmp_path / "none"))


def test_the_hub(monkeypatch):
    files = {}
    monkeypatch.setattr(peft_import, "try_to_load_from_cache", lambda model, name: files.get(name))
    assert may_have_adapters("some/model")  # which was never downloaded
    files["config.json"] = "config.json"
    assert not may_have_adapters("some/model")
    files["adapter_config.json"] = "adapter_config.json"
    assert may_have_adapters("some/model")


@pytest.mark.parametrize(("name", "is_left_out"), [("config.json", True), ("adapter_config.json", False)])
def test_what_is_left_out_cannot_be_imported(tmp_path, monkeypatch, name, is_left_out):
    monkeypatch.setitem(sys.modules, "peft", sys)
    leave_out_peft(a_folder(tmp_path / "model", name))
    assert (sys.modules["peft"] is None) == is_left_out
    leave_out_peft(None)
    assert sys.modules["peft"] is None
