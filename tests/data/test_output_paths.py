"""Names from data never decide where something is written: any list of names, and files that must not be replaced."""

import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cli_utils import UserError
from data.layouts import IMAGE_EXTENSIONS, MASK_EXTENSIONS
from data.output_paths import check_writable, inner_names, output_names, refuse_inputs

DEVICES = {"con", "prn", "aux", "nul", *(f"{device}{i}" for device in ("com", "lpt") for i in range(1, 10))}
ODD = ["", ".", "..", "/", "\\", "~", "~root/x", "C:\\x", "\\\\server\\share\\x", "CON", "nul.v2", "a.", "a ", "a\nb"]
ODD += ["a" * 254, "é" * 127, "e\u0301", "é", "A", "a", "a/b", "a.png/b", "/etc/passwd", "../../x", "\udcff\udcfe"]
ODD += ["\x1b[31m", "\u202egnp.exe", "a:b", "a_2", "a_b", "overlays/a", "contact_sheet", "x/" * 800 + "y"]
name = st.one_of(st.text(max_size=12), st.sampled_from(ODD), st.lists(st.sampled_from(ODD), max_size=4).map("/".join))


def folded(path):
    """The same for what is one file on macOS or Windows."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


@given(st.lists(name, max_size=30))
@example(ODD)
@example(["a"] * 5 + ["A", "a_2", "a_2"])
@example(["a?", "a_", "a*", "A_"])
@settings(max_examples=300, deadline=None)
def test_any_names_become_paths_that_every_system_takes(names):
    paths = output_names(names, taken=["contact_sheet"])
    assert len(paths) == len(names) and paths == output_names(names, taken=["contact_sheet"])
    assert len({folded(path) for path in paths} | {"contact_sheet"}) == len(names) + 1
    for path in paths:
        assert not os.path.isabs(path) and len(path.encode()) <= 1100
        for part in path.split("/"):
            assert part and part == part.strip(".").rstrip(" ") and not part.startswith("~")
            assert not re.search('[<>:"|?*\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]', part)
            assert part.split(".")[0].strip().lower() not in DEVICES
            assert len(f".{part}.jpeg.partial".encode()) <= 210  # raises on half characters
    # A file of one name is no folder of another, whatever is appended to names.
    folders = {folded("/".join(path.split("/")[:i])) for path in paths for i in range(1, path.count("/") + 1)}
    files = {folded(path + suffix) for path in paths for suffix in IMAGE_EXTENSIONS | MASK_EXTENSIONS}
    assert not folders & files


@given(st.lists(st.from_regex(r"[a-z0-9_äß-]{1,8}(/[A-Za-z0-9 ._-]{0,8}[a-z0-9])?", fullmatch=True), unique_by=folded))
@settings(deadline=None)
def test_ordinary_names_stay_as_they_are(names):
    ordinary = [name for name in names if not ODD_PART.search(name)]
    assert output_names(["?", *ordinary, "con", "a*"])[1:-2] == ordinary


ODD_PART = re.compile(
    r"(^|/)(\.|(con|prn|aux|nul|com\d|lpt\d)(\.|$|/))|[. ](/|$)|\.(png|jpg|jpeg|bmp|webp|tif|tiff|gif)/", re.I
)


def test_examples():
    names = [
        "a/b",
        "../a",
        "/abs/x",
        "C:\\d\\y",
        "\\\\s\\t",
        "~/z",
        "CON",
        "lpt1.v",
        "t. ",
        ".h",
        "n\nm",
        "\udcff",
        "A/B",
    ]
    assert output_names(names) == [
        *("a/b", "a", "abs/x", "C_/d/y", "s/t", "_/z", "_CON", "_lpt1.v", "t", "h", "n_m", "%FF", "A/B_2")
    ]
    long = output_names(["x" * 254, "x" * 253 + "y"])
    assert [len(path) for path in long] == [180, 180] and long[0] != long[1]
    # What can stay comes before what has to change, wherever it stands.
    assert output_names(["a?", "a_", "é", "e\u0301"]) == ["a__2", "a_", "é", "e\u0301_2"]


def test_many_of_one_name_take_no_time():
    assert len(set(output_names(["same"] * 20_000))) == 20_000


@given(st.lists(st.from_regex(r"(/|\.\./|\.\./\.\./|)([ab]/){0,2}[abc]", fullmatch=True), min_size=1, unique=True))
@settings(deadline=None)
def test_names_of_tables_lead_nowhere_else(names):
    inner = inner_names(names)
    assert len(set(inner)) == len(names)
    for before, after in zip(names, inner, strict=True):
        assert not after.startswith("/") and ".." not in after.split("/")
        assert after == before or before.startswith(("/", ".."))


def test_names_of_tables():
    assert inner_names(["/home/me/raw/img/06", "/home/me/raw/img/07"]) == ["06", "07"]
    assert inner_names(["/raw/a/1", "/raw/b/1", "b/1"]) == ["a/1", "b/1_2", "b/1"]
    assert inner_names(["../a/x", "a/x", "../../a/x", "a/../../x"]) == ["a/x_2", "a/x", "a/x_3", "x"]


@given(
    outputs=st.lists(st.sampled_from(["a.png", "sub/b.png", "overlays/c.jpg", "d.png"]), unique=True),
    inputs=st.lists(st.sampled_from(["a.png", "sub/b.png", "overlays/c.jpg", "e.png"]), unique=True),
    through=st.sampled_from(["path", "dots", "symlink", "folder"]),
)
@settings(deadline=None)
def test_no_output_is_an_input(tmp_path_factory, outputs, inputs, through):
    root = tmp_path_factory.mktemp("paths")
    photos = out = root / "predictions"
    for file in inputs:
        (photos / file).parent.mkdir(parents=True, exist_ok=True)
        (photos / file).write_text("photo")
    named = [photos / file for file in inputs]
    if through == "dots":
        named = [photos / ".." / "predictions" / file for file in inputs]
    elif through == "symlink":
        named = [root / f"{index}.png" for index in range(len(inputs))]
        for link, file in zip(named, inputs, strict=True):
            link.symlink_to(photos / file)
    elif through == "folder":
        out = root / "out"
        photos.mkdir(exist_ok=True)
        out.symlink_to(photos)
    targets = [out / file for file in outputs]
    if set(outputs) & set(inputs):
        with pytest.raises(
            UserError, match=r"would be overwritten, and it is one of the .*; give another --output_dir$"
        ):
            refuse_inputs(targets, map(str, named), "--output_dir")
    else:
        refuse_inputs(targets, map(str, named), "--output_dir")


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "further")
    for path, is_folder, reason in [
        (tmp_path, False, "is a folder"),
        (tmp_path / "file" / "x.json", False, "Not a directory"),
        (tmp_path / "file", True, "is a file"),
        (tmp_path / "file" / "x", True, "Not a directory"),
        (tmp_path / ("x" * 256), False, "File name too long"),
        (Path("/proc/x/y"), True, "cannot be written"),
        (tmp_path / "nowhere" / "x", False, "No such file"),
    ]:
        with pytest.raises(UserError, match=f"^--flag .*{reason}"):
            check_writable(path, "--flag", is_folder)
    before = sorted(tmp_path.rglob("*"))
    check_writable(tmp_path / "new" / "deep" / "x.json", "--flag")
    check_writable(tmp_path / "new" / "deep", "--flag", is_folder=True)
    check_writable(tmp_path / "file", "--flag")
    check_writable("/dev/null", "--flag")
    assert sorted(tmp_path.rglob("*")) == before
