"""Files, folders, patterns, lists and addresses, as people name them; downloads from a server on the loopback
interface."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from cli_utils import UserError
from data.inputs import MAX_REDIRECTS, Address, Downloads, expand


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(words):
    return [(item.name, item.source) for item in expand(words)]


def test_files_folders_and_patterns(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(
        *(tmp_path / name for name in ("a.b.JPG", "c.png", "sub/d.png", "film.mp4", "notes.txt", "raw.NEF", "[x].png"))
    )
    assert found([tmp_path / "a.b.JPG", str(tmp_path / "sub"), "~/c.png", tmp_path / "[x].png"]) == [
        ("a.b", tmp_path / "a.b.JPG"),
        ("sub", tmp_path / "sub"),
        ("c", tmp_path / "c.png"),
        ("[x]", tmp_path / "[x].png"),
    ]
    assert not caplog.text
    names = [source.name for _, source in found([tmp_path / "*"])]
    assert names == ["[x].png", "a.b.JPG", "c.png", "film.mp4", "sub"]
    assert "1 file is of kinds that are not read (1 .nef): raw.NEF" in caplog.text
    assert [source.name for _, source in found([tmp_path / "**"])] == [
        "[x].png",
        "a.b.JPG",
        "c.png",
        "film.mp4",
        "d.png",
    ]
    assert found(["missing.png"])[0][0] == "missing"  # whoever reads it says so
    assert found(["x" * 5000])[0][0] == "x" * 5000
    with pytest.raises(UserError, match="an image without a name"):
        expand([" "])
    with pytest.raises(UserError, match=r"\*\.txt matches 1 file and no image"):
        expand([tmp_path / "*.txt"])
    with pytest.raises(UserError, match=r"\*\.webp: no such file"):
        expand([tmp_path / "*.webp"])


def test_lists(tmp_path, monkeypatch):
    here = tmp_path / "here"
    touch(here / "a.png", here / "sub" / "b.jpg", tmp_path / "lists" / "near.png", tmp_path / "all" / "c.png")
    monkeypatch.chdir(here)
    lines = [
        "# a comment",
        "a.png",
        "",
        "sub/b.jpg",
        " near.png ",
        "gone/d.png",
        "../all",
        "sub/*.jpg",
        "http://h/x.png",
    ]
    (tmp_path / "lists" / "list").write_text("\r\n".join(lines), encoding="utf-16")
    assert [(item.name, str(item.source), item.listed) for item in expand([f"@{tmp_path}/lists/list"])] == [
        ("a", "a.png", True),
        ("sub/b", "sub/b.jpg", True),
        ("near", str(tmp_path / "lists" / "near.png"), True),
        ("gone/d", "gone/d.png", True),
        ("all", "../all", True),
        ("b", "sub/b.jpg", False),
        ("h/x", "http://h/x.png", False),
    ]
    (tmp_path / "abs.txt").write_text(f"{here}/a.png\n{here}/sub/b.jpg\n")
    assert [item.name for item in expand([f"@{tmp_path}/abs.txt"])] == ["a", "sub/b"]
    touch(here / "@sign.png")
    assert found(["@sign.png"])[0][0] == "@sign"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists nothing: it takes a file, a folder, a pattern or an address a line"),
        ("@other.txt", "lists '@other.txt'; name it on the command line"),
        ("a.png\n-", "lists '-'; name it"),
        ("x/a.png\nx/b.png", "not one of the files that it lists is there: x/a.png, x/b.png"),
        ("x/*.png", r"x/\*\.png: no such file or folder"),
    ],
)
def test_lists_that_are_none(tmp_path, content, message):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        expand([f"@{tmp_path}/list.txt"])


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"@.*nowhere: No such file or directory; it is a list of images"):
        expand([f"@{tmp_path}/nowhere"])


def test_addresses():
    words = [
        "https://Example.org/a%20b/c.d.JPG",
        "http://h:80/",
        "http://h/i?id=1",
        "http://h/i?id=2",
        "http://h/i?id=1",
    ]
    items = expand(words)
    assert [item.name for item in items[:2]] == ["example.org/a b/c.d", "h"]
    assert items[0].source == words[0] and items[0].source.suffix == ".jpg"
    one, two, again = (item.name for item in items[2:])
    assert one == again != two and one.startswith("h/i_")
    assert [item.name for item in expand(words[2:3])] == ["h/i"]
    assert Address("http://h/i?token=1").shown == "http://h/i?…"
    for word in ("ftp://h/a.png", "s3://b/a.png", "https://", "https://me:pw@h/a.png"):
        with pytest.raises(UserError, match="what is read is http://host/path and https://") as error:
            expand([word])
        assert "pw" not in str(error.value)
    with pytest.raises(UserError, match=r"film\.mp4\?…: films are read from files"):
        expand(["https://h/film.mp4?x"])


# ---- downloads ------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "hops":
            left = int(rest)
            self.send_response(302)
            self.send_header("Location", f"/hops/{left - 1}" if left > 1 else "/image/a.png")
            return self.end_headers()
        if kind == "away":
            self.send_response(302)
            self.send_header("Location", f"{rest}://127.0.0.1/etc/passwd")
            return self.end_headers()
        if kind == "gone":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8" if kind == "page" else "image/png")
        if kind in ("short", "announced"):
            self.send_header("Content-Length", "5000")
        if kind == "drip":
            self.wfile.write(b"X-A: " + b"a")
            for _ in range(20):
                time.sleep(0.1)
                try:
                    self.wfile.write(b"a")
                except OSError:
                    return None
        self.end_headers()
        try:
            self.wfile.write(b"x" * 1000 if kind in ("image", "short", "page") else b"x" * 300_000)
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def downloads():
    with Downloads(200_000, 20) as made:
        yield made


def test_a_download_lasts_until_the_next(server, downloads, tmp_path):
    first = downloads.path_of(Address(f"{server}/image/a.tif?x=1"))
    assert first.suffix == ".tif" and first.read_bytes() == b"x" * 1000
    second = downloads.path_of(Address(f"{server}/hops/{MAX_REDIRECTS}"))
    assert second.read_bytes() == b"x" * 1000 and not first.exists()
    assert downloads.path_of(tmp_path) is tmp_path and second.exists()
    downloads.__exit__()
    assert not second.parent.exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone/a.png", r"gone/a\.png \(the server answers 404 Not Found\)"),
        ("page/a.png", r"no image: the server sends text/html"),
        ("short/a.png", r"ends after 1,000 of 5,000 bytes"),
        ("large/a.png", r"more than 0\.190735 MB; --url_megabytes allows more"),
        (f"hops/{MAX_REDIRECTS + 1}", "infinite loop"),
        ("away/ftp", "unknown url type: ftp|not allowed"),
        ("away/file", "not allowed"),
    ],
)
def test_downloads_that_fail(server, downloads, path, message):
    with pytest.raises(UserError, match=message) as error:
        downloads.path_of(Address(f"{server}/{path}"))
    assert str(error.value).startswith(f"{server}/{path} (") and "\n" not in str(error.value)


def test_what_is_announced_as_too_large_is_not_waited_for(server):
    with Downloads(4000, 20) as downloads, pytest.raises(UserError, match="more than 0.0038147 MB"):
        downloads.path_of(Address(f"{server}/announced/a.png"))


def test_the_time_limit_holds_where_bytes_drip(server):
    start = time.monotonic()
    with (
        Downloads(200_000, 0.5) as downloads,
        pytest.raises(UserError, match="not there after 0.5 seconds; --url_sec"),
    ):
        downloads.path_of(Address(f"{server}/drip/a.png"))
    assert time.monotonic() - start < 1.5


def test_nobody_is_there(downloads):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/a\.png \(.*refused"):
        downloads.path_of(Address("http://127.0.0.1:9/a.png"))
