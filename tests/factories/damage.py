"""Ways to damage a file: bytes, text, JSON, pictures and their headers, each as a draw of a random generator."""

import io
import json
import struct
import zlib
from functools import cache
from random import Random

import numpy as np
import tifffile
from PIL import Image, features

WIDTH, HEIGHT = 12, 8
# What a length, a size or an offset may be changed to.
NUMBERS = (0, 1, 2, 3, 7, 8, 16, 31, 32, 255, 256, 1 << 15, 1 << 16, 1 << 24, 1 << 30, 1 << 31, (1 << 32) - 1)
# What may stand where something else was meant; some break lines, terminals, encodings and parsers.
TEXTS = (
    *("", " ", "a", "\n", "\0", "\x1b[31m", "\ud800", "\u202e", "\u200b", "ß", "😀", "None", "nan", "-1", "1e400"),
    *("../../etc", "/", ".", "a" * 300, "a/" * 3000, "%s{0}$(x)", "=1+1", "C:\\con", "9" * 5000, "a.png", "\\"),
    *("!!python/object/apply:os.getpid []", "\\\\server\\x", "~", "~nobody-at-all/x", "*", "[", "**/*", "-"),
    *("http://127.0.0.1:9/a.png", "file:///etc/passwd"),
)
DTYPES = [np.dtype(name) for name in ("bool", *"bBhHiIlLefdF")]
VALUES = (
    *(None, True, False, 0, -1, 1, 3.5, 255, 256, 1 << 31, 1 << 70, 1e308, -1e308, float("nan"), float("inf"), [], {}),
    *([[]], [None], {"a": {}}, [1, 2, 3, 4, 5, 6], [[0, 0, 5, 0, 5]], "0", *TEXTS),
)


def damaged_bytes(random: Random, content: bytes, other: bytes = b"") -> bytes:
    """Cut, with bits turned, numbers replaced, parts left out, doubled or taken from another file; or noise."""
    content = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        place = random.randrange(len(content) + 1)
        if random.random() < 0.6:  # headers lie at the front
            place = min(place, random.randrange(160))
        kind = random.randrange(8)
        if kind == 0:
            del content[place:]
        elif kind == 1 and place < len(content):
            content[place] ^= 1 << random.randrange(8)
        elif kind == 2:
            form = random.choice(("<I", ">I", "<H", ">H", "B"))
            number = struct.pack(form, random.choice(NUMBERS) & (1 << 8 * struct.calcsize(form)) - 1)
            content[place : place + len(number)] = number
        elif kind == 3:
            del content[place : place + random.randrange(1, 64)]
        elif kind == 4:
            content[place:place] = content[place : place + random.randrange(1, 64)]
        elif kind == 5:
            content[place:place] = random.randbytes(random.randrange(1, 64))
        elif kind == 6:
            content[place:] = other[random.randrange(len(other) + 1) :]
        elif kind == 7 and random.random() < 0.1:
            content = bytearray(random.randbytes(random.randrange(200)))
    return bytes(content)


def damaged_text(random: Random, text: str) -> bytes:
    """As `damaged_bytes`; or with something odd put in, deep brackets or a great many lines; in any encoding."""
    kind = random.randrange(6)
    place = random.randrange(len(text) + 1)
    if kind == 0:
        text = text[:place] + random.choice(TEXTS) + text[place + random.randrange(4) :]
    elif kind == 1:
        marks = random.choice("[{(<&*!-|>:,;\"'\t%@`#") * random.choice((1, 2, 40, 100_000))
        text = text[:place] + marks + text[place:]
    elif kind == 2:
        text = text[:place] + text[place:].replace(random.choice(text[place:] or "x"), random.choice(TEXTS), 1)
    elif kind == 3:
        lines = text.splitlines(keepends=True) or [""]
        lines[random.randrange(len(lines))] *= random.choice((0, 2, 1000))
        text = "".join(lines)
    elif kind == 4:
        return damaged_bytes(random, text.encode(errors="surrogatepass"), random.randbytes(40))
    others = ("utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32", "utf-7")
    encoding = random.choice(others) if random.random() < 0.4 else "utf-8"
    return text.encode(encoding, errors="surrogatepass" if encoding.startswith("utf-") else "replace")


def damaged_json(random: Random, content) -> str:
    """JSON in which some values are others, keys missing, misspelt or there twice; or any JSON at all."""
    if random.random() < 0.05:
        content = random.choice(VALUES)
    else:
        for _ in range(random.choice((1, 1, 1, 2, 5))):
            content = json.loads(json.dumps(content))  # a copy, of `VALUES` too
            _change(random, content)
    text = json.dumps(content, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.05 and "}" in text:
        place = text.index("}")
        text = text[:place] + ', "id": 1, "id": 2' + text[place:]
    return text


def _change(random: Random, content) -> None:
    """Changes one place in lists and objects."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = random.choice(keys)
        inner = content[key]
        if isinstance(inner, dict | list) and inner and random.random() < 0.8:
            content = inner
            continue
        kind = random.randrange(8)
        if kind == 0:
            del content[key]
        elif kind == 1 and isinstance(content, list):
            content.append(inner)
        elif kind == 1:
            content[random.choice(TEXTS)] = content.pop(key)
        elif kind == 2 and isinstance(inner, int | float):
            content[key] = inner * random.choice((-1, 0.5, 1e6, 1e300, 1 << 40))
        else:
            content[key] = random.choice(VALUES)
        return


# ---- pictures -------------------------------------------------------------------------------------------------------


def _saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@cache
def pictures() -> dict[str, bytes]:
    """Whole files of all formats and modes that are read, 12 x 8 pixels, the values 0, 1 and 2 where these are few."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[2:6, 3:8], ids[4:8, 6:12] = 1, 2
    gray = Image.fromarray(ids)
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    indexed = gray.copy().convert("P")
    indexed.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    alpha = rgb.convert("RGBA")
    files = {}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = {"P": indexed, "RGB": rgb, "RGBA": alpha}.get(mode) or gray.convert(mode)
        files[f"PNG {mode}"] = _saved(image, "PNG")
    files["PNG with EXIF"] = _saved(gray, "PNG", exif=_exif(6))
    files["PNG with transparency"] = _saved(indexed, "PNG", transparency=1)
    files["PNG, animated"] = _saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)])
    for mode in ("L", "RGB", "CMYK"):
        files[f"JPEG {mode}"] = _saved(rgb.convert(mode), "JPEG", exif=_exif(8))
    files["JPEG, progressive"] = _saved(rgb, "JPEG", progressive=True)
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "F", "I", "I;16", "LAB"):
        of_mode = {"P": indexed, "RGBA": alpha, "RGB": rgb, "CMYK": rgb.convert("CMYK")}
        of_mode["LAB"] = Image.new("LAB", gray.size, (90, 10, 200))
        image = of_mode.get(mode) or gray.convert(mode)
        files[f"TIFF {mode}"] = _saved(image, "TIFF")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"TIFF {compression}"] = _saved(rgb, "TIFF", compression=compression)
    files["TIFF, pages"] = _saved(gray, "TIFF", save_all=True, append_images=[gray])
    for dtype in DTYPES:
        file = io.BytesIO()
        tifffile.imwrite(file, ids.astype(dtype), extratags=[(42113, 2, 0, "-9999", True)])
        files[f"TIFF {dtype}"] = file.getvalue()
    for bands in (2, 4, 7):
        file, pixels = io.BytesIO(), np.resize(ids, (HEIGHT, WIDTH, bands))
        tifffile.imwrite(file, pixels, planarconfig="contig", photometric="minisblack")
        files[f"TIFF of {bands} bands"] = file.getvalue()
    file = io.BytesIO()
    tifffile.imwrite(file, np.resize(ids, (32, 32)), tile=(16, 16), bigtiff=True)
    files["BigTIFF in tiles"] = file.getvalue()
    files["WebP"], files["WebP, lossless"] = _saved(rgb, "WEBP"), _saved(alpha, "WEBP", lossless=True)
    files["WebP, animated"] = _saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)])
    files["GIF"], files["GIF L"] = _saved(indexed, "GIF"), _saved(gray, "GIF")
    files["GIF, animated"] = _saved(indexed, "GIF", save_all=True, append_images=[indexed.rotate(180)])
    for mode in ("1", "L", "P", "RGB"):
        files[f"BMP {mode}"] = _saved({"P": indexed, "RGB": rgb}.get(mode) or gray.convert(mode), "BMP")
    files["PPM"], files["TGA"] = _saved(rgb, "PPM"), _saved(rgb, "TGA", compression="tga_rle")
    files["PGM, plain"] = b"P2\n12 8\n255\n" + b" ".join(str(value).encode() for value in ids.reshape(-1))
    files["PFM"] = b"Pf\n12 8\n-1.0\n" + ids.astype("<f4").tobytes()
    if features.check("jpg_2000"):
        for mode in ("L", "LA", "RGB"):
            files[f"JPEG 2000 {mode}"] = _saved((gray if mode != "RGB" else rgb).convert(mode), "JPEG2000")
        files["JPEG 2000, lossy"] = _saved(rgb, "JPEG2000", irreversible=True, no_jp2=True)
    if features.check("avif"):
        files["AVIF"] = _saved(rgb, "AVIF")
    return files


def damaged_picture(random: Random) -> bytes:
    """One of `pictures`, or with any of its bytes changed, or a PNG or TIFF whose fields are changed and whose sums
    are right."""
    names = sorted(pictures())
    name = random.choice(names)
    content, kind = pictures()[name], random.randrange(5)
    if kind == 0 and name.startswith("PNG"):
        return _damaged_png(random, content)
    if kind < 2 and "TIFF" in name:
        return _damaged_tiff(random, content)
    if kind == 2 and random.random() < 0.3:
        return content
    return damaged_bytes(random, content, pictures()[random.choice(names)])


def _damaged_png(random: Random, content: bytes) -> bytes:
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    index = random.randrange(len(chunks))
    name, body = chunks[index]
    if random.random() < 0.5 and body:
        body = bytearray(body)
        if index == 0 and random.random() < 0.7:  # width, height, bits, kind of colour, …
            place, form = random.choice(((0, ">I"), (4, ">I"), (8, "B"), (9, "B"), (10, "B"), (11, "B"), (12, "B")))
            struct.pack_into(form, body, place, random.choice(NUMBERS) & (1 << 8 * struct.calcsize(form)) - 1)
        else:
            body[random.randrange(len(body))] = random.randrange(256)
        chunks[index] = name, bytes(body)
    else:
        bomb = b"a\0\0" + zlib.compress(bytes(1 << 26), 1)[: random.choice((100, 1 << 17, 1 << 20))]
        named = random.choice(b"PLTE tRNS eXIf zTXt iCCP IDAT acTL fcTL fdAT IEND".split())
        body = bomb if named in (b"zTXt", b"iCCP") else random.randbytes(random.randrange(40))
        chunks.insert(index + random.randrange(2), (named, body))
    sums = [struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks]
    whole = (struct.pack(">I", len(body)) + name + body + of for (name, body), of in zip(chunks, sums, strict=True))
    return content[:8] + b"".join(whole)


def _damaged_tiff(random: Random, content: bytes) -> bytes:
    """Changes an entry of the first directory: its tag, its kind, its count or its value."""
    end = "<" if content[:2] == b"II" else ">"
    content, is_big = bytearray(content), content[2:3] in b"+" or content[3:4] in b"+"
    size, head, form = (20, 8, "Q") if is_big else (12, 2, "I")
    (offset,) = struct.unpack_from(end + form, content, 8 if is_big else 4)
    (count,) = struct.unpack_from(end + ("Q" if is_big else "H"), content, offset)
    for _ in range(random.choice((1, 1, 2, 3))):
        entry = offset + head + size * random.randrange(count)
        place, of = random.choice(((0, "H"), (2, "H"), (4, form), (4 + struct.calcsize(form), form)))
        if place + 4 > 8 and random.random() < 0.7:
            place, of = 4 + struct.calcsize(form), form
        struct.pack_into(end + of, content, entry + place, random.choice(NUMBERS) & (1 << 8 * struct.calcsize(of)) - 1)
    return bytes(content)


def odd_array(random: Random) -> np.ndarray:
    """A mask's array of any kind of number, with values that stand for nothing elsewhere."""
    dtype = random.choice([dtype for dtype in DTYPES if dtype.kind in "iuf"])
    shape = random.choice(((HEIGHT, WIDTH), (HEIGHT, WIDTH), (WIDTH, HEIGHT), (1, HEIGHT, WIDTH), (HEIGHT, WIDTH, 1),
                           (HEIGHT, WIDTH, 3), (3, HEIGHT, WIDTH), (1, 1)))  # fmt: skip
    array = np.random.default_rng(random.randrange(1 << 30)).integers(0, 3, shape).astype(dtype)
    odd = (0.5, 1e10, 1e20, 3.4e38, 1e300, -9999, float("nan"), float("inf"), -float("inf"), 255, 254, 65535, 1 << 31,
           (1 << 63) - 1, -1, 32767, -32768)  # fmt: skip
    with np.errstate(all="ignore"):
        for _ in range(random.randrange(3)):
            value = random.choice(odd)
            if np.issubdtype(dtype, np.integer):
                low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
                value = int(min(max(value, low), high)) if np.isfinite(value) else low
            array.reshape(-1)[: random.randrange(1, array.size + 1)] = value
    return array


def tiff_of(random: Random, array: np.ndarray) -> bytes:
    """A TIFF file of it, which may state what stands for no data."""
    stated = (
        "1e20",
        "-9999",
        "nan",
        "inf",
        "255",
        "1",
        "0.5",
        "-3.4028234663852886e+38",
        "4294967295",
        "x",
        "9" * 400,
    )
    nodata = random.choice((None, *stated))
    file, tags = io.BytesIO(), [] if nodata is None else [(42113, 2, 0, nodata, True)]
    compression = random.choice((None, "zlib"))
    tifffile.imwrite(file, array, extratags=tags, compression=compression)
    return file.getvalue()
