"""The Jinja2 templates beside this file: HTML pages, in which all values are escaped, and the model card."""

import base64
import hashlib
import html
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from cli_utils import printable

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(["html.j2"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values) -> bytes:
    """A template of this folder, filled in, as UTF-8; characters of names that nobody can see are written out, as
    `cli_utils.printable` does."""
    return printable(_environment.get_template(template).render(**values), lines=True).encode()


def page_script(name: str = "page.js") -> dict[str, str]:
    """A script of pages, and its hash, by which a page's rule lets browsers run it and no other."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return {"text": text, "digest": base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}


def plain(value) -> str:
    """Text that Markdown shows as it is, on one line: it holds no link, picture, HTML or end of a table's cell."""
    text = html.escape(printable(" ".join(str(value).split())), quote=False)
    return re.sub(r"[\\|\[\]`*~@:$]|(?<=www)\.", lambda found: f"&#{ord(found[0])};", text, flags=re.IGNORECASE)


_environment.filters["plain"] = plain
