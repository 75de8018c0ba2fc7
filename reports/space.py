"""A Space of the Hugging Face Hub that serves `app.py`: the files that it takes, no more."""

import ast
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import yaml

from cli_utils import UserError
from reports.model_card import named_repository

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = "app.yaml"
START = f'''"""Starts the page with the flags of {SETTINGS}, on all addresses, where a Space is looked for."""

import sys
from pathlib import Path

from app import main
from cli_utils import run_cli

settings = Path(__file__).with_name("{SETTINGS}")
run_cli(lambda: main(["--config", str(settings), "--host", "0.0.0.0", *sys.argv[1:]]))
'''
# What the rooms read besides modules.
OTHERS = ("reports/*.j2", "reports/*.js", "reports/*.css", "labels/*.json", "LICENSE")


def space_files(title: str, settings: dict, models: Sequence[str]) -> dict[str, bytes]:
    """Path → content: `app.py` with all that it imports, its flags, and what the Hub wants to know.

    Args:
        settings: flags of `app.py`, by name. models: ids on the Hub.
    """
    paths = [*modules_of("app.py"), *(path for pattern in OTHERS for path in sorted(REPOSITORY.glob(pattern)))]
    files = {path.relative_to(REPOSITORY).as_posix(): path.read_bytes() for path in paths}
    front = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "app_file": "space.py",
        "models": list(models),
        "license": "apache-2.0",
    }
    matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    links = ", ".join(f"[{model}](https://huggingface.co/{model})" for model in models)
    texts = {
        "space.py": START,
        SETTINGS: yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "requirements.txt": (REPOSITORY / "requirements.txt").read_text(encoding="utf-8") + "rasterio>=1.4\n",
        "README.md": f"---\n{matter}---\n\nSegments images with {links}. The code is under the Apache License 2.0; "
        "the models have licences of their own.\n",
    }
    return files | {name: text.encode() for name, text in texts.items()}


def model_on_hub(model: str) -> str:
    """The id on the Hub of a model that may be the folder of a run that was published.

    Raises:
        UserError: it was not.
    """
    if not os.path.exists(model):
        return model
    published = named_repository(model)
    if published is None:
        raise UserError(
            f"--push_space: a Space loads its models from the Hub, and {model} lies here alone; publish it first "
            f"(python publish.py {model}), then give its id on the Hub"
        )
    return published


def modules_of(script: str) -> list[Path]:
    """The script, the modules of this repository that it imports, those that they import, and so on, sorted."""
    found, left = set(), [REPOSITORY / script]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        if (path.parent / "__init__.py").is_file():
            left.append(path.parent / "__init__.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
            files = (REPOSITORY / f"{name.replace('.', '/')}.py" for name in names)
            left += [file for file in files if file.is_file()]
    return sorted(found)
