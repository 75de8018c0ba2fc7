"""Films: as many frames at the same times, their colours and their sound."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from cli_utils import UserError
from data.classes import ClassMap
from reports.video import split_videos, video_file, write_video

CLASS_MAP = ClassMap({0: "dark", 1: "bright"}, [[200, 0, 0], [0, 0, 200]], do_reduce_labels=True)
TIMES = (0, 40, 80, 200, 240)  # milliseconds: a frame rate that changes


def make_film(path, size=(48, 65), sound=True):
    """The left half dark, the right one bright."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = size[0], size[1] // 2 * 2, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 1
        audio = film.add_stream("aac", rate=16000) if sound else None
        picture = np.full((size[0], size[1] // 2 * 2, 3), 20, np.uint8)
        picture[:, picture.shape[1] // 2 :] = 220
        for time in TIMES:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, stream.codec_context.time_base
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
        if sound:
            tone = (np.sin(np.arange(4096) / 5) * 0.2).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate = 16000
            film.mux(audio.encode(frame))
            film.mux(audio.encode())
    return path


def predict(images):
    return [np.asarray(image.convert("L")) > 128 for image in images]


def read(path):
    """Times in milliseconds, pictures, and bytes of sound."""
    with av.open(str(path)) as film:
        times, pictures, sound = [], [], 0
        for packet in film.demux():
            if packet.stream.type == "audio":
                sound += packet.size
                continue
            for frame in packet.decode():
                times.append(round(float(frame.pts * frame.time_base) * 1000))
                pictures.append(frame.to_ndarray(format="rgb24"))
    return times, pictures, sound


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_film(tmp_path, suffix):
    source = make_film(tmp_path / f"film{suffix}", sound=suffix == ".mp4")
    target = video_file(source, tmp_path / "out", "film")
    assert target.suffix == {".mp4": ".mp4", ".avi": ".mkv"}[suffix]
    assert write_video(source, target, predict, CLASS_MAP, tmp_path / "frames") == 0
    (before, _, sound), (times, pictures, kept) = read(source), read(target)
    assert times == before and len(times) >= len(TIMES) and kept == sound
    assert suffix == ".avi" or (times == list(TIMES) and sound > 0)
    red, _, blue = pictures[-1][24, 4].astype(int)
    assert red > blue + 50
    red, _, blue = pictures[-1][24, -4].astype(int)
    assert blue > red + 50
    found = sorted((tmp_path / "frames").iterdir())
    assert [path.name for path in found][:2] == ["000000.png", "000001.png"] and len(found) == len(times)
    with Image.open(found[-1]) as ids:
        assert np.asarray(ids)[24, [4, -4]].tolist() == [1, 2]


@pytest.mark.skipif("libx264" not in av.codecs_available, reason="no encoder that stores frames in another order")
# The last tells no frame rate, so it is taken to be 25.
@pytest.mark.parametrize(("suffix", "length"), [(".avi", 2900), (".mkv", 2900), (".mp4", 2900), (".h264", 1160)])
def test_frames_that_are_stored_in_another_order(tmp_path, suffix, length):
    source, shades = tmp_path / f"film{suffix}", list(range(10, 250, 8))
    with av.open(str(source), "w") as film:
        stream = film.add_stream("libx264", rate=10, options={"bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in shades:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), format="rgb24")))
        film.mux(stream.encode())
    target = video_file(source, tmp_path / "out", "film")
    shown = []

    def predict_and_note(images):
        shown.extend(round(float(np.asarray(image).mean())) for image in images)
        return [np.zeros((48, 64), np.uint8) for _ in images]

    assert write_video(source, target, predict_and_note, CLASS_MAP) == 0
    times = read(target)[0]
    assert np.abs(np.array(shown) - shades).max() <= 3
    assert len(times) == len(shades) and times == sorted(set(times))
    assert abs((times[-1] - times[0]) - length) <= 400  # milliseconds; at the start some frames may be early


@pytest.mark.parametrize("batch_size", [2, 3, 99])
def test_frames_are_predicted_together(tmp_path, batch_size):
    """The same film and PNGs; no more frames than that are held, and sound begins with the first one."""
    source, counts = make_film(tmp_path / "film.mp4"), []

    def counted(images):
        counts.append(len(images))
        return predict(images)

    for folder, together, size in (("one", predict, 1), ("many", counted, batch_size)):
        write_video(source, tmp_path / folder / "film.mp4", together, CLASS_MAP, tmp_path / folder / "frames", size)
    frames = len(list((tmp_path / "one" / "frames").iterdir()))
    assert sum(counts) == frames and set(counts[:-1]) <= {batch_size} and len(counts) == -(-frames // batch_size)
    for path in (tmp_path / "one" / "frames").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / "frames" / path.name).read_bytes()
    one, many = (read(tmp_path / folder / "film.mp4") for folder in ("one", "many"))
    assert one[0] == many[0] and one[2] == many[2]
    assert all(np.array_equal(*pictures) for pictures in zip(one[1], many[1], strict=True))


def test_a_broken_frame_is_counted(tmp_path):
    source = make_film(tmp_path / "film.mkv", sound=False)
    packets = []
    with av.open(str(source)) as film:
        stream = film.streams.video[0]
        packets = [bytes(packet) for packet in film.demux(stream) if packet.size]
    content = source.read_bytes()
    assert content.count(packets[2]) >= 1
    middle = content.index(packets[2], content.index(packets[1]) + len(packets[1]))
    source.write_bytes(content[:middle] + b"\x00" * len(packets[2]) + content[middle + len(packets[2]) :])
    broken = write_video(source, tmp_path / "out.mkv", predict, CLASS_MAP)
    assert broken == 1 and len(read(tmp_path / "out.mkv")[0]) == len(TIMES) - 1


def test_what_is_no_film(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no film")
    with pytest.raises(UserError, match=r"a\.mp4 is no film that can be read"):
        write_video(tmp_path / "a.mp4", tmp_path / "out.mp4", predict, CLASS_MAP)
    with av.open(str(tmp_path / "sound.mp4"), "w") as film:
        audio = film.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        film.mux(audio.encode(frame))
        film.mux(audio.encode())
    with pytest.raises(UserError, match=r"sound\.mp4 has no video stream \(found: audio\)"):
        write_video(tmp_path / "sound.mp4", tmp_path / "out.mp4", predict, CLASS_MAP)
    assert not (tmp_path / "out.mp4").exists()


def test_nothing_is_left_of_a_film_that_fails(tmp_path):
    source, calls = make_film(tmp_path / "film.mp4"), []

    def fail(images):
        calls.append(images)
        if len(calls) == 3:
            raise UserError("no")
        return predict(images)

    with pytest.raises(UserError, match="no"):
        write_video(source, tmp_path / "out" / "film.mp4", fail, CLASS_MAP)
    assert list((tmp_path / "out").iterdir()) == []


def test_films_among_the_inputs(tmp_path):
    for name in ("a.MP4", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    inputs = [tmp_path / "a.MP4", tmp_path / "b.jpg", tmp_path, tmp_path / "nowhere.mp4"]
    assert split_videos(inputs) == (inputs[:1], inputs[1:])
