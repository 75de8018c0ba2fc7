"""Help and mistakes in flags are answered by every script before anything heavy is imported."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "datasets", "pandas", "pyarrow", "accelerate", "peft", "evaluate", "gradio", "onnx"}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if 'if __name__ == "__main__"' in path.read_text("utf-8"))
# Prints what a script has imported when it ends.
RUN = """
import json, runpy, sys
sys.argv = sys.argv[1:]
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
print(json.dumps([code, *{name.split(".")[0] for name, module in sys.modules.items() if module is not None}]))
"""


def run(*argv: str) -> tuple[int, set[str], str]:
    """Exit code, imported packages, and what was written of a script."""
    environment = os.environ | {"COLUMNS": "119"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *argv], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    code, *modules = json.loads(last)
    return code, {*modules}, done.stdout.removesuffix(f"{last}\n") + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script):
    code, modules, text = run(script, "--help")
    assert not code and not modules & (HEAVY | {"transformers"})
    assert text.startswith(f"usage: python {script} [--config FILE.yaml]")
    described = ast.get_docstring(ast.parse((ROOT / script).read_text("utf-8")))
    assert described.splitlines()[0] in text
    assert all(len(line) < 120 for line in text.splitlines())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_misspelt_flag_imports_nothing_heavy(script):
    code, modules, text = run(script, "--confg", "x")
    assert code == 2 and not modules & HEAVY
    assert text == "error: unknown flag --confg (did you mean --config?)\n"


def test_help_all_has_the_flags_of_the_trainer():
    code, _, text = run("run_segmentation.py", "--help_all")
    assert not code and "--gradient_accumulation_steps N" in text and "--train_val_split X" in text


def test_a_check_needs_no_torch(tmp_path):
    for folder, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in "ab":
            Image.effect_noise((96, 96), 50).convert(mode).point(lambda v: v // 100).save(
                tmp_path / "data" / folder / f"{name}.png"
            )
    pages = "--html", str(tmp_path / "a.html"), "--json", str(tmp_path / "a.json")
    code, modules, text = run("check_dataset.py", str(tmp_path / "data"), *pages)
    assert code in (0, 2) and "verdict: " in text and (tmp_path / "a.html").is_file(), text
    assert "datasets" in modules and not modules & {"torch", "torchvision", "accelerate", "peft"}
