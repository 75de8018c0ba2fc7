"""Render `ADE20k_toy_dataset/`: ten training and ten validation pictures with masks, in the layout of ADE20K.

    python toy_dataset.py --output_dir ADE20k_toy_dataset --seed 1

Everything is drawn here with NumPy and Pillow, so a first training run needs no download. Each scene (street, park,
living room, bedroom) is a small 3D world of textured polygons seen by a pinhole camera: `Canvas.face` paints one
polygon into image, mask and depth buffer together, which gives perspective, occlusion and exact masks. Lengths are
metres, x points right, y up, z away from the viewer; colours are RGB 0-255.

A folder that already holds images and annotations, such as the real ADE20K toy archive unzipped in its place, is used
as it is.
"""

import contextlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from cli_utils import UserError, parse_arguments, run_cli

SPLITS = {"training": "train", "validation": "val"}
SUPERSAMPLING = 2  # the image is the mean of 2x2 samples; the mask takes one of them, so ids are never mixed
NEAR, FAR = 0.2, 1e4
# Annotation files of ADE20K hold 1 + training id; 0 is unlabelled.
CLASSES = json.loads((Path(__file__).parent / "labels" / "ade20k.json").read_text())
RAW_ID = {entry["name"]: entry["id"] + 1 for entry in CLASSES} | {None: 0}

AIR = (198, 212, 226)  # the colour that far things take on
SKIN = (224, 178, 148), (190, 138, 104), (122, 82, 58), (236, 196, 172)
COLOURS = (170, 40, 44), (38, 62, 120), (226, 222, 212), (52, 52, 58), (216, 168, 52), (66, 120, 96), (120, 70, 130)
PLASTER = (188, 120, 92), (206, 186, 148), (160, 88, 72), (170, 176, 182), (222, 206, 182), (140, 116, 98)
GREENS = (64, 104, 40), (84, 116, 44), (48, 90, 48), (104, 122, 46)
GREYS = (98, 98, 102), (116, 110, 104), (124, 112, 104)
TIMBER = (128, 84, 52), (96, 66, 48), (176, 138, 94), (150, 104, 64)
GRAIN = 0.1, (0.7, 6.0)  # the roughness and the scales of wood


class Canvas:
    """Image, mask and depth buffer of one scene, with its camera, light and noise.

    `horizon`: height of the eye level from the top (0 to 1); `sun`: direction to the light; `haze`: how far one sees;
    `lamps`: (position, power) of lights in a room. A place is an origin (3,) with axes (3, 3), whose rows are local x
    (right), y (up) and z (back). A shader is a function (canvas, s, t) of the local x and y (n,) of the points of a
    polygon; it returns their colours (n, 3).
    """

    def __init__(self, rng, size, eye, yaw, horizon, sun, ambient, haze=FAR):
        width, height = (SUPERSAMPLING * side for side in size)
        self.rng, self.eye, self.camera, self.haze = rng, np.array(eye, float), place(0, 0, yaw)[1], haze
        self.sun, self.ambient, self.lamps = np.array(sun) / np.linalg.norm(sun), ambient, []
        self.focal, self.centre = 0.9 * np.sqrt(width * height), np.array([width / 2, height * horizon])
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.ids = np.zeros((height, width), np.uint8)
        self.depth = np.full((height, width), FAR, np.float32)
        # Periodic noise whose amplitude falls with frequency, as in natural surfaces; mean 0, deviation 1.
        frequency = np.hypot(np.fft.fftfreq(1024)[:, None], np.fft.rfftfreq(1024)) * 1024
        tile = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((1024, 1024))) / np.maximum(frequency, 3) ** 1.25)
        self.tile = ((tile - tile.mean()) / tile.std()).astype(np.float32)

    def noise(self, s, t, scale):
        """Smooth noise (n,) at metres (s, t), repeating after `scale` metres, or after (scale s, scale t)."""
        offset = self.rng.integers(1024, size=2)
        columns, rows = ((a * (1024 / m)).astype(int) for a, m in zip((s, t), np.broadcast_to(scale, 2), strict=True))
        return self.tile[(rows + offset[0]) & 1023, (columns + offset[1]) & 1023]

    def pick(self, colours, spread=10):
        """One of the colours, moved a little."""
        return (self.rng.choice(colours) + self.rng.normal(0, spread, 3)).clip(4, 250).astype(np.float32)

    def _cover(self, at, outline):
        """Flat pixel indices, s, t and depth, (n,) each, of the polygon `outline` (N, 2) in local x and y."""
        basis = np.stack([self.camera @ at[1][0], self.camera @ at[1][1], self.camera @ (at[0] - self.eye)], axis=1)
        corners, points = np.column_stack([outline, np.ones(len(outline))]) @ basis.T, []
        for p, q in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if p[2] >= NEAR:
                points.append(p)
            if (p[2] >= NEAR) != (q[2] >= NEAR):
                points.append(p + (q - p) * (NEAR - p[2]) / (q[2] - p[2]))
        size = self.ids.shape[::-1]
        stencil, box = Image.new("L", size), (0, 0, 0, 0)
        if points:
            points = np.array(points)
            points = self.centre + self.focal * points[:, :2] / points[:, 2:] * (1, -1)
            ImageDraw.Draw(stencil).polygon([tuple(p) for p in points], fill=1)
            # A pixel more than the corners span, however they are rounded.
            low, high = np.floor(points.min(axis=0)) - 1, np.ceil(points.max(axis=0)) + 2
            box = tuple(int(side) for side in (*low.clip(0, size), *high.clip(0, size)))
        rows, columns = np.nonzero(np.asarray(stencil.crop(box)))
        rows, columns = rows + box[1], columns + box[0]
        rays = np.stack([columns - self.centre[0], self.centre[1] - rows, np.full(len(rows), self.focal)]) / self.focal
        s, t, nearness = (np.linalg.inv(basis) @ rays).astype(np.float32)
        nearness = np.maximum(nearness, 1 / FAR)
        return rows * stencil.width + columns, s / nearness, t / nearness, 1 / nearness

    def face(self, at, outline, label, shader, z=0.0, lit=True):
        """Paint an outline of local (x, y), moved to local z; `label`: a class name, or None for unlabelled."""
        origin, (u, v) = shifted(at, z=z)[0], at[1][:2]
        index, s, t, depth = self._cover((origin, at[1]), outline)
        # The tolerance lets what is painted later in the same plane, as a picture on a wall, win.
        seen = depth <= self.depth.reshape(-1)[index] * 1.003
        index, s, t, depth = index[seen], s[seen], t[seen], depth[seen]
        colour = np.asarray(shader(self, s, t), np.float32)
        if lit:
            normal = np.cross(u, v)
            normal = normal * -np.sign(normal @ (origin - self.eye))
            light = np.full(len(s), self.ambient + 0.34 * (normal @ self.sun), np.float32)
            for position, power in self.lamps:
                offset = origin - position
                light += power / (0.6 + offset @ offset + 2 * (s * (u @ offset) + t * (v @ offset)) + s * s + t * t)
            clear = np.exp(-depth / self.haze)
            colour = colour * (light * clear)[:, None] + toned(AIR, 1 - clear)
        self.rgb.reshape(-1, 3)[index] = colour
        self.depth.reshape(-1)[index] = depth
        self.ids.reshape(-1)[index] = RAW_ID[label]

    def flat(self, at, outline, label, shader, y=0.0):
        """Paint an outline of local (x, z) in the level plane at local y."""
        self.face((at[0], at[1][[0, 2, 1]]), outline, label, shader, y)

    def prism(self, at, outline, z0, z1, label, shader):
        """A solid with cross-section `outline` (convex, anticlockwise, local x and y) from local z0 to z1."""
        origin, axes = at
        eye = axes @ (self.eye - origin)
        for z, visible in ((z0, eye[2] < z0), (z1, eye[2] > z1)):
            if visible:
                self.face(at, outline, label, shader, z)
        for p, q in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            edge, length = (q - p), np.hypot(*(q - p))
            if edge[1] * (eye[0] - p[0]) - edge[0] * (eye[1] - p[1]) > 0:
                side = shifted(at, *p, z0)[0], np.stack([edge @ axes[:2] / length, axes[2], axes[1]])
                self.face(side, rect(0, 0, length, z1 - z0), label, shader)

    def box(self, at, x, y, z, label, shader, soft=False):
        """A box between the pairs x, y, z of local coordinates, with rounded edges where `soft`."""
        rounded = oval(np.mean(x), np.mean(y), np.ptp(x) / 2, np.ptp(y) / 2, 0.35)
        self.prism(at, rounded if soft else rect(x[0], y[0], x[1], y[1]), z[0], z[1], label, shader)

    def shadow(self, at, rx, rz, strength=0.6, y=0.01):
        """Darken (strength < 0: brighten) softly what lies in the level plane y within rx, rz of `at`."""
        index, s, t, depth = self._cover((at[0] + (0, y, 0), at[1][[0, 2, 1]]), oval(0, 0, rx * 1.5, rz * 1.5))
        near = np.abs(self.depth.reshape(-1)[index] / depth - 1) < 0.02
        distance = np.cbrt(np.abs(s[near] / rx) ** 3 + np.abs(t[near] / rz) ** 3)
        self.rgb.reshape(-1, 3)[index[near]] *= 1 - strength * np.clip(1.5 - distance, 0, 1)[:, None] ** 1.3

    def finish(self):
        """(RGB image, mask) after exposure, tint, vignette and sensor noise."""
        height, width = (n // SUPERSAMPLING for n in self.ids.shape)
        image = self.rgb.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean(axis=(1, 3))
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        image *= (1 - 0.16 * (x * x + y * y))[..., None] * self.rng.uniform(1.0, 1.15) * self.rng.normal(1, 0.02, 3)
        image = np.clip(image + self.rng.normal(0, 2.2, image.shape), 0, 255).astype(np.uint8)
        return Image.fromarray(image), Image.fromarray(self.ids[::SUPERSAMPLING, ::SUPERSAMPLING].copy())


def place(x, z, angle=0.0, y=0.0):
    """The place of an object that stands at (x, y, z), turned by `angle`; at 0 its front looks at the viewer."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([x, y, z]), np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])


def shifted(at, x=0.0, y=0.0, z=0.0):
    return at[0] + (x, y, z) @ at[1], at[1]


def rect(x0, y0, x1, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def taper(x0, y0, half0, x1, y1, half1):
    """A limb or trunk from (x0, y0) up to (x1, y1) with these half widths."""
    return np.array([(x0 - half0, y0), (x0 + half0, y0), (x1 + half1, y1), (x1 - half1, y1)])


def oval(x, y, rx, ry, power=1.0):
    """An ellipse; the smaller `power`, the squarer."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    unit = np.column_stack([np.cos(turn), np.sin(turn)])
    return np.sign(unit) * np.abs(unit) ** power * (rx, ry) + (x, y)


def toned(colour, tone):
    return np.asarray(colour, np.float32) * tone[:, None]


def matte(colour, rough=0.06, scale=3.0):
    return lambda cv, s, t: toned(colour, 1 + rough * cv.noise(s, t, scale))


def folds(colour, period, depth=0.25):
    """Cloth that hangs in folds or has soft stripes."""
    return lambda cv, s, t: toned(colour, 0.9 + depth * np.sin(s * (6.28 / period) + 0.25 * cv.noise(s, t, 5.0)))


def cylinder(colour, radius):
    """Something round about the vertical through s = 0, lit from one side."""
    return lambda cv, s, t: toned(colour, 1.05 - 0.4 * (s / radius + 0.3) ** 2 + 0.06 * cv.noise(s, t, 1.0))


def leaves(colour, scale):
    """Clumps of light and shade, sprinkled with single leaves."""
    return lambda cv, s, t: toned(colour, 1 + 0.15 * cv.noise(s, t, scale) + 0.12 * np.sign(cv.noise(s, t, scale / 7)))


def grid(colour, joint, du, dv, gap, shift=0.5, vary=0.07):
    """Bricks, boards, drawers or panes, du x dv metres, joints `gap` wide; each row is moved by `shift` bricks."""

    def shader(cv, s, t):
        row = np.floor(t / dv)
        along = s / du + shift * row
        column = np.floor(along)
        tone = 1 + 0.07 * cv.noise(s, t, 3.0)
        out = toned(colour, tone + vary * cv.noise(column, row, 20.0))
        gaps = ((along - column) * du < gap) | (t - row * dv < gap)
        out[gaps] = toned(joint, tone[gaps])
        return out

    return shader


def crown(cv, at, size, label, colour):
    """A tree's crown, a bush or a flower: irregular lumps from the dark underside up to the sunlit top."""
    turn, start = np.linspace(0, 2 * np.pi, 40, endpoint=False), cv.rng.uniform(0, 6.3)
    for rise in np.arange(9) / 9:
        waves = sum(cv.rng.normal() / np.sqrt(k) * np.cos(k * turn + cv.rng.uniform(0, 6.3)) for k in (2, 3, 5, 8, 13))
        outline = oval(0, 0, 1.15, 1) * cv.rng.uniform(0.33, 0.5) * (1.15 - 0.4 * rise) * (1 + 0.075 * waves)[:, None]
        outline += np.cos(start + 21.6 * rise) * (0.55 - 0.35 * rise), 0.4 + 0.9 * rise
        cv.face(at, outline * size, label, leaves(colour * (0.62 + 0.63 * rise), size * 0.6 + 0.3))


def tree(cv, x, z, height, y=0.0):
    at, thick = place(x, z, y=y), 0.035 * height
    cv.shadow(at, 0.36 * height, 0.24 * height)
    cv.face(at, taper(0, 0, thick, 0, height * 0.6, thick * 0.6), "tree", cylinder((114, 90, 68), thick))
    crown(cv, shifted(at, y=0.35 * height), 0.4 * height, "tree", cv.pick(GREENS))


def person(cv, x, z, y=0.0):
    at, h, step = place(x, z, y=y), cv.rng.uniform(1.6, 1.85), cv.rng.uniform(0.03, 0.12)
    skin, top, trousers, hair = (cv.pick(colours) for colours in (SKIN, COLOURS, COLOURS, TIMBER))
    cv.shadow(at, 0.35, 0.28)
    parts = [(oval(0, 0.655, 0.125, 0.2, 0.5), top)]  # outlines in units of the height, and their colours
    for s in (-1, 1):
        hand = s * (0.135 + step * 0.6)
        parts += [(taper(s * step, 0, 0.045, s * 0.055, 0.5, 0.055), trousers), (oval(hand, 0.45, 0.03, 0.04), skin)]
        parts += [(taper(hand, 0.46, 0.028, s * 0.105, 0.82, 0.03), top * 0.82)]
    for outline, colour in (*parts, (oval(0, 0.94, 0.06, 0.072), hair * 0.6), (oval(0, 0.92, 0.05, 0.065), skin)):
        cv.face(at, outline * h, "person", cylinder(colour, 0.16 * h))


def car(cv, x, z, angle):
    """A car whose length lies along local x; at angle pi/2 or -pi/2 it stands along the street."""
    at, a, w, paint = place(x, z, angle), cv.rng.uniform(1.95, 2.3), 0.86, matte(cv.pick(COLOURS), 0.03)
    high, mid = cv.rng.uniform(1.4, 1.55), cv.rng.uniform(0.84, 0.95)
    cv.shadow(at, a, w, 0.75)
    body = (-1, 0.3), (1, 0.3), (1, 0.62), (0.86, mid - 0.08), (0.45, mid), (-0.9, mid), (-1, 0.8)
    cv.prism(at, np.array(body) * (a, 1), -w, w, "car", paint)
    cabin = np.array([(-0.86, mid), (0.48, mid), (0.12, high), (-0.55, high)]) * (a, 1)
    cv.prism(at, cabin, -w * 0.9, w * 0.9, "car", matte((62, 76, 88), 0.25, 5.0))
    cv.box(at, (-0.57 * a, 0.14 * a), (high - 0.06, high + 0.02), (-w * 0.92, w * 0.92), "car", paint)
    for side in (-w, w):
        for low, up in ((-0.84, -0.55), (-0.2, -0.2), (0.46, 0.12)):
            cv.face(at, taper(low * a, mid, 0.06, up * a, high, 0.05), "car", paint, side * 0.91)
        for wheel in (-0.62 * a, 0.62 * a):
            cv.face(at, oval(wheel, 0.33, 0.36, 0.36), "car", matte((26, 26, 28)), side * 1.01)
            cv.face(at, oval(wheel, 0.33, 0.2, 0.2), "car", matte((150, 152, 156)), side * 1.02)
        for end, light in ((-1, (190, 24, 22)), (1, (244, 240, 214))):
            bumper = shifted(at, end * (a + 0.01))[0], at[1][[2, 1, 0]]
            cv.face(bumper, oval(side * 0.7, 0.66, 0.2, 0.08, 0.4), "car", matte(light))


def outdoors(rng, size, horizon):
    eye = rng.uniform(-1.5, 1.5), rng.uniform(1.7, 2.4), 0
    sun = rng.uniform(-0.9, 0.9), 0.7, rng.uniform(-0.9, -0.2)
    cv = Canvas(rng, size, eye, rng.uniform(-0.15, 0.15), horizon + rng.uniform(-0.05, 0.05), sun, 0.74, haze=800.0)
    blue, clouds = cv.pick([(74, 128, 196), (116, 148, 188)]), rng.uniform(0.2, 1.2)

    def sky(cv, s, t):
        cover = cv.noise(s, t, (9000, 3600)) + 0.2 * cv.noise(s, t, 2000) - clouds
        white = np.clip(np.maximum(1.2 * cover, np.exp(-np.abs(t) / 900)), 0, 0.95)
        return toned(blue, 1 - white) + toned((236, 241, 246), white)

    cv.face(place(0, 3000), rect(-5000, -60, 5000, 4000), "sky", sky, lit=False)
    return cv


def street(rng, size):
    cv = outdoors(rng, size, 0.57)
    paving, white = grid((166, 158, 150), (118, 112, 106), 0.9, 0.9, 0.04), matte((206, 204, 200), 0.1)
    cv.flat(place(0, 0), rect(-4, -3, 4, 400), "road", matte(cv.pick(GREYS, 4), 0.12))
    for x in np.arange(-3.75, 4):  # a zebra crossing
        cv.flat(place(x, 9.5), rect(-0.25, -1.5, 0.25, 1.5), "road", white)
    for side in (-1, 1):
        cv.box(place(side * 19, 0), (-15, 15), (0, 0.15), (-3, 400), "sidewalk", paving)
        z = -4.0
        while z < 130:
            long, tall, wide = rng.uniform(8, 16), rng.uniform(7, 17), rng.uniform(1.8, 2.6)
            windows = grid((92, 108, 122), cv.pick(PLASTER), wide, wide * 1.4, wide / 2, 0, 0.25)
            cv.box(place(side * (8 + tall), z), (-tall, tall), (0, tall), (0, long), "building", windows)
            z += long + rng.choice((0, 0, 3))
        for z in np.arange(rng.uniform(9, 15), 90, rng.uniform(11, 16)):
            tree(cv, side * 5, z, rng.uniform(3.8, 5.5), 0.15)
        for z in np.arange(rng.uniform(6, 9), 70, 7.5):
            if rng.random() < 0.55:
                car(cv, side * 3.0, z, side * np.pi / 2)
        at, grey = place(side * 4.4, rng.uniform(9, 15)), matte(cv.pick([(66, 74, 76)]), 0.15)
        for outline in (taper(0, 0, 0.14, 0, 6, 0.09), rect(0, 5.8, -side, 6), oval(-side * 1.3, 5.85, 0.55, 0.2)):
            cv.face(at, outline, "streetlight", grey)
    for x in rng.uniform(-60, 60, 6):
        windows = grid((100, 122, 148), cv.pick([(150, 160, 172), (176, 160, 140)]), 3.0, 4.0, 1.3, 0, 0.2)
        cv.box(place(x, rng.uniform(170, 260)), (-15, 15), (0, rng.uniform(35, 90)), (0, 20), "skyscraper", windows)
    person(cv, rng.uniform(-2, 2), rng.uniform(8.6, 10.4))
    for _ in range(6):
        person(cv, rng.choice((-1, 1)) * rng.uniform(5.2, 7.3), rng.uniform(6, 24), 0.15)
    return cv


def park(rng, size):
    cv = outdoors(rng, size, 0.49)
    x, z = np.linspace(-1500, 1500, 200), np.linspace(-2, 110, 60)
    skyline = np.column_stack([x, 190 + 60 * cv.noise(x, 0 * x, 9000.0)])
    cv.face(place(0, 900), [*skyline, (1500, -1), (-1500, -1)], "mountain", leaves(cv.pick(GREYS), 400.0))
    cv.flat(place(0, 0), rect(-400, -3, 400, 420), "grass", leaves(cv.pick(GREENS) + 22, 6.0))
    lake = place(15, rng.uniform(21, 25))
    cv.flat(lake, oval(0, 0, 14, 11, 0.8), "water", matte((104, 138, 160), 0.14, (30, 6)), 0.02)
    middle = -1.2 - 0.05 * z + 2.4 * np.sin(z / rng.uniform(7, 10) + rng.uniform(0, 6))
    trail = np.concatenate([np.column_stack([middle - 1.2, z]), np.column_stack([middle + 1.2, z])[::-1]])
    cv.flat(place(0, 0), trail, "path", matte(cv.pick([(190, 166, 130), (172, 160, 146)]), 0.1), 0.015)
    boards, at = cv.pick([(214, 208, 196), (140, 104, 70)]), place(-9, 23, rng.uniform(-0.25, 0.25))
    cv.box(at, (-7, 7), (0, 1.4), (0, 0.08), "fence", grid(boards, boards * 0.4, 0.24, 3.0, 0.05, 0))
    for x in (-1, 1):
        for _ in range(5):
            tree(cv, x * rng.uniform(5, 45), rng.uniform(48, 90), rng.uniform(8, 13))
        tree(cv, x * rng.uniform(5, 8), rng.uniform(11, 18), rng.uniform(5, 8))
    bed = place(rng.uniform(-4.6, -3.4), rng.uniform(6, 8))
    cv.shadow(bed, 1.4, 0.8)
    for x, z in rng.uniform((-1.3, -0.7), (1.3, 0.7), (20, 2)):
        crown(cv, shifted(bed, x, 0, z), 0.25, "plant", cv.pick(GREENS))
        crown(cv, shifted(bed, x, 0.3, z), 0.15, "flower", cv.pick([(222, 50, 60), (244, 196, 50), (190, 90, 190)]))
    table(cv, place(rng.uniform(1.6, 2.4), rng.uniform(6, 8), rng.uniform(0.2, 0.9)), 0.95, 0.25, 0.48, "bench")
    for z in rng.uniform((7, 10, 12), (10, 14, 20)):
        person(cv, -1.2 - 0.05 * z + rng.uniform(-0.7, 0.7), z)
    return cv


def table(cv, at, x, z, height, label):
    timber = matte(cv.pick(TIMBER), *GRAIN)
    cv.shadow(at, x, z)
    for leg in (0.05 - x, x - 0.13):
        cv.box(at, (leg, leg + 0.08), (0, height), (0.05 - z, z - 0.05), label, timber)
    cv.box(at, (-x, x), (height - 0.07, height), (-z, z), label, timber)


def lamp(cv, at, height, size):
    """A lamp with a shining shade that lights what is painted after it."""
    cv.face(at, taper(0, 0, size * 0.3, 0, height, 0.02), "lamp", cylinder((120, 98, 62), size * 0.3))
    shade = cylinder(cv.pick([(250, 226, 176)], 5), size * 1.2)
    cv.face(at, taper(0, height - size * 1.3, size, 0, height, size * 0.65), "lamp", shade, lit=False)
    cv.lamps.append((shifted(at, 0, height - size)[0], 0.12))


def room(rng, size, yaw):
    """A room with window, painting, rug and light: (canvas, back, left and right wall). A wall's place is its middle
    at the floor, its local z points out of the room."""
    width, depth, tall = rng.uniform(4.4, 5.2), rng.uniform(4.4, 5.1), 2.65
    eye, yaw = (rng.uniform(-0.4, 0.4), rng.uniform(1.35, 1.6), 0), yaw + rng.uniform(-0.08, 0.08)
    cv = Canvas(rng, size, eye, yaw, rng.uniform(0.38, 0.48), sun=(1, 0.2, -0.6), ambient=0.66)
    cv.lamps += [(np.array([0, 1.9, depth * 0.6]), 0.4), (np.array([-width * 0.2, 1.6, depth * 0.6]), 0.6)]
    boards, white = cv.pick(TIMBER) + 25, matte((236, 232, 222), 0.02)
    paint, bulb = cv.pick([(206, 198, 182), (184, 196, 200), (180, 190, 170)]), cylinder((255, 222, 140), 0.4)
    slab = rect(-width / 2 - 0.05, -1, width / 2 + 0.05, depth + 0.05)  # overlaps the walls: no gap at the edges
    cv.flat(place(0, 0), slab, "floor", grid(boards, boards * 0.55, 1.4, 0.13, 0.008, 0.37, 0.1))
    cv.flat(place(0, 0), slab, "ceiling", white, tall)
    back, left, right = place(0, depth), *(place(s * width / 2, depth / 2, s * np.pi / 2) for s in (-1, 1))
    for wall, half in ((back, width / 2), (left, depth / 2 + 1), (right, depth / 2 + 1)):
        paper = grid(paint, paint * 0.95, 0.3, 9.0, 0.15, 0)
        cv.face(wall, rect(-half - 0.05, -0.05, half + 0.05, tall + 0.05), "wall", paper)
        cv.box(wall, (-half, half), (0, 0.09), (-0.02, 0), None, white)  # skirting board, which has no class
        for y in (0.01, tall - 0.01):
            cv.shadow(wall, half, 0.35, 0.35, y)
    rug, cloth = folds(cv.pick(COLOURS) * 0.7 + 40, 0.3), folds(cv.pick(COLOURS), 0.16)
    cv.flat(place(0.2, depth - 2.1), rect(-1.5, -1, 1.5, 1), "rug", rug, 0.014)
    cv.face(place(rng.uniform(-0.4, 0.4), depth * 0.6), oval(0, 2.5, 0.22, 0.13), "light", bulb, lit=False)
    cv.box(back, (0, 1), (1.4, 2), (-0.05, 0), "painting", matte((70, 54, 40)))
    cv.face(back, rect(0.06, 1.46, 0.94, 1.94), "painting", leaves(cv.pick(COLOURS), 1.0), -0.055)
    cv.box(back, (-2, -0.8), (0.8, 2.15), (-0.06, 0), "windowpane", white)
    cv.face(back, rect(-1.95, 0.85, -0.85, 2.1), "windowpane", leaves((196, 218, 190), 1.5), -0.07, lit=False)
    for bar in (rect(-1.42, 0.85, -1.38, 2.1), rect(-1.95, 1.65, -0.85, 1.69)):
        cv.face(back, bar, "windowpane", white, -0.075)
    for x in (-2.3, -0.96):
        cv.face(back, rect(x, 0.1, x + 0.46, 2.3), "curtain", cloth, -0.18)
    cv.shadow(shifted(back, -1.4, z=-1.5), 0.9, 0.9, -0.28)  # the light from the window
    return cv, back, left, right


def living_room(rng, size):
    cv, back, left, _ = room(rng, size, -0.16)
    wood, colour = cv.pick(TIMBER), cv.pick([(124, 60, 52), (70, 88, 112), (150, 144, 134), (176, 146, 108)])
    lamp(cv, shifted(back, 1.95, z=-0.35), 1.6, 0.27)
    sofa, half, cloth = shifted(back, 0.6, z=-0.05), rng.uniform(1.0, 1.15), matte(colour, 0.07)
    cv.shadow(shifted(sofa, z=-0.45), half, 0.45, 0.7)
    cv.box(sofa, (-half, half), (0.06, 0.3), (-0.9, 0), "sofa", matte(colour * 0.8))
    for x in half * np.array((-0.82, -0.27, 0.28)):
        seat, start = (x, x + half * 0.54), x + rng.uniform(0, 0.15)
        cv.box(sofa, seat, (0.28, 0.9), (-0.34, 0), "sofa", cloth, True)
        cv.box(sofa, seat, (0.28, 0.48), (-0.9, -0.2), "sofa", matte(colour * 1.06), True)
        cv.box(sofa, (start, start + 0.4), (0.47, 0.86), (-0.5, -0.36), "cushion", folds(cv.pick(COLOURS), 0.11), True)
    for x in (-half, half - 0.2):
        cv.box(sofa, (x, x + 0.2), (0.06, 0.64), (-0.93, 0), "sofa", cloth, True)
    table(cv, shifted(back, 0.4, z=-2.1), 0.55, 0.3, 0.42, "coffee table")
    cupboard = shifted(left, rng.uniform(0.5, 0.9))
    cv.shadow(shifted(cupboard, z=-0.22), 0.8, 0.23)
    cv.box(cupboard, (-0.8, 0.8), (0, 0.55), (-0.45, 0), "cabinet", grid(wood, wood * 0.45, 0.8, 0.27, 0.02, 0))
    cv.box(cupboard, (-0.6, 0.6), (0.58, 1.32), (-0.25, -0.2), "television receiver", matte((36, 40, 48), 0.3))
    return cv


def bedroom(rng, size):
    cv, back, _, right = room(rng, size, 0.12)
    wood, bed, linen = cv.pick(TIMBER), shifted(back, 0.3, z=-0.05), folds((240, 236, 228), 0.3, 0.1)
    for x in (-1.2, 1.2):
        drawers = grid(wood, wood * 0.45, 0.6, 0.26, 0.02)
        cv.box(shifted(bed, x), (-0.22, 0.22), (0, 0.52), (-0.4, 0), "chest of drawers", drawers)
        lamp(cv, shifted(bed, x, 0.52, -0.2), 0.5, 0.17)
    cv.shadow(shifted(bed, z=-1.05), 0.9, 1.05, 0.75)
    cv.box(bed, (-0.95, 0.95), (0, 1.15), (-0.08, 0), "bed", matte(wood, *GRAIN))
    cv.box(bed, (-0.88, 0.88), (0.05, 0.3), (-2.05, -0.08), "bed", matte(wood * 0.8, *GRAIN))
    cv.box(bed, (-0.87, 0.87), (0.28, 0.56), (-2.05, -0.08), "bed", linen, True)
    cv.box(bed, (-0.92, 0.92), (0.24, 0.62), (-2.09, -0.75), "bed", folds(cv.pick(COLOURS), 0.28, 0.15), True)
    for x in (-0.78, 0.1):
        cv.box(bed, (x, x + 0.68), (0.5, 0.9), (-0.36, -0.16), "pillow", linen, True)
    cv.box(right, (-1.4, 0), (0, 2.15), (-0.55, 0), "wardrobe", grid(wood, wood * 0.5, 0.7, 2.2, 0.03, 0))
    return cv


SCENES = (street, living_room, park, bedroom, street, living_room, park, bedroom, street, park)
PORTRAIT = (2, 4, 7)  # positions in SCENES


def render_scene(seed: int, split: str, index: int) -> tuple[Image.Image, Image.Image]:
    """(RGB image, mask in annotation ids) of one scene; it depends on nothing but its arguments."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    short, long = rng.integers(480, 561), rng.integers(640, 721)
    pictures = SCENES[index](rng, (short, long) if index in PORTRAIT else (long, short)).finish()
    return tuple(map(ImageOps.mirror, pictures)) if rng.random() < 0.5 else pictures


def is_complete(folder):
    """Whether `folder` holds both splits, with exactly one annotation for each image."""

    def stems(kind, split, suffixes):
        return sorted(path.stem for path in (folder / kind / split).glob("*") if path.suffix.lower() in suffixes)

    images = [stems("images", split, {".jpg", ".jpeg", ".png"}) for split in SPLITS]
    return all(images) and images == [stems("annotations", split, {".png"}) for split in SPLITS]


def render_toy_dataset(output_dir: str | Path = "ADE20k_toy_dataset", seed: int = 0) -> Path:
    """Render the toy dataset into `output_dir`, unless a complete dataset is already there, and return that folder.

    Another `seed` gives other pictures; the same seed gives the same bytes with the same Pillow and NumPy. Raises
    UserError when the folder holds anything else. An interrupted run leaves no half dataset behind.
    """
    output_dir = Path(output_dir)
    if is_complete(output_dir):
        print(f"{output_dir}: using the dataset that is already there")
        return output_dir
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        wanted = "images/ and annotations/, each with training/ and validation/, one annotation for every image"
        raise UserError(f"{output_dir} exists but is not a complete dataset ({wanted}); move it or use another folder")
    target = output_dir.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        finished = Path(temporary, "data")
        for split, short in SPLITS.items():
            for kind in ("images", "annotations"):
                (finished / kind / split).mkdir(parents=True)
            for index in range(len(SCENES)):
                image, mask = render_scene(seed, split, index)
                name = f"ADE_{short}_{index + 1:08d}"
                image.save(finished / "images" / split / f"{name}.jpg", quality=92)
                mask.save(finished / "annotations" / split / f"{name}.png")
        with contextlib.suppress(OSError):
            target.rmdir()  # an empty one, as checked above; Windows does not rename onto a folder
        try:
            finished.rename(target)
        except OSError:
            if not is_complete(target):  # by another process, while this one was rendering
                raise
    print(f"{output_dir}: rendered {len(SCENES)} training and {len(SCENES)} validation images")
    return output_dir


@dataclass
class ToyArguments:
    """Where to, and which pictures."""

    output_dir: str = field(default="ADE20k_toy_dataset", metadata={"help": "folder to render into", "metavar": "DIR"})
    seed: int = field(default=0, metadata={"help": "another seed gives another world"})


def main(argv: list[str] | None = None) -> Path:
    """`render_toy_dataset` with the flags of the command line, or of `argv`."""
    (args,) = parse_arguments((ToyArguments,), argv, description=__doc__)
    return render_toy_dataset(args.output_dir, args.seed)


if __name__ == "__main__":
    run_cli(main)
