"""Render `ADE20k_toy_dataset/`: ten training and ten validation pictures with masks, in the layout of ADE20K.

    python toy_dataset.py
    python toy_dataset.py --output_dir ADE20k_toy_dataset --seed 1

Everything is drawn here with NumPy and Pillow, so a first training run needs no download. Each scene (street, park,
coast, living room, bedroom, kitchen) is a small 3D world of textured polygons seen by a pinhole camera: `Canvas.face`
paints one polygon into image, mask and depth buffer together, which gives perspective, occlusion and exact masks.
Lengths are metres, x points right, y up, z away from the viewer; colours are RGB 0-255.

A folder that already holds images and annotations, such as the real ADE20K toy archive unzipped in its place, is used
as it is.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cli_utils import UserError

SPLITS = {"training": "train", "validation": "val"}
SUPERSAMPLING = 2  # the image is the mean of 2x2 samples; the mask takes one of them, so ids are never mixed
NEAR, FAR = 0.2, 1e4
CLASS_LIST = Path(__file__).parent / "labels" / "ade20k.json"
# Annotation files of ADE20K hold 1 + training id; 0 is unlabelled.
RAW_ID = {entry["name"]: entry["id"] + 1 for entry in json.loads(CLASS_LIST.read_text())} | {None: 0}
X, Y, Z = np.eye(3)

Shader = Callable[["Canvas", np.ndarray, np.ndarray], np.ndarray]  # canvas, s (n,), t (n,) in metres -> RGB (n, 3)


class Canvas:
    """Image, mask and depth buffer of one scene, with its camera, light and noise.

    `eye` is the camera's position, `yaw` its turn to the right in radians, `horizon` the height of the eye level from
    the top (0 to 1), `zoom` the focal length over the geometric mean of the image's sides. `sun` points to the light,
    `haze` is (RGB, distance) for air that hides what is far; `lamps` lists (position, power) of lights inside a room.
    """

    def __init__(self, rng, size, eye, yaw=0.0, horizon=0.5, zoom=0.9, sun=(0, 1, 0), haze=None):
        width, height = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
        self.rng, self.eye, self.haze = rng, np.array(eye, float), haze
        self.ambient, self.lamps = 0.74, []
        self.sun = np.array(sun) / np.linalg.norm(sun)
        self.right, self.forward = turned(yaw)[[0, 2]]
        self.focal, self.centre = zoom * np.sqrt(width * height), np.array([width / 2, height * horizon])
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.ids = np.zeros((height, width), np.uint8)
        self.depth = np.full((height, width), FAR, np.float32)
        # Periodic noise whose amplitude falls with frequency, as in natural surfaces; mean 0, deviation 1.
        frequency = np.hypot(np.fft.fftfreq(1024)[:, None], np.fft.rfftfreq(1024)) * 1024
        spectrum = np.fft.rfft2(rng.standard_normal((1024, 1024))) / np.maximum(frequency, 3) ** 1.25
        tile = np.fft.irfft2(spectrum)
        self.tile = ((tile - tile.mean()) / tile.std()).astype(np.float32)
        self.cells = rng.random((64, 64)).astype(np.float32)

    def noise(self, s, t, scale):
        """Smooth noise (n,) at metres (s, t), repeating after `scale` metres, or after (scale s, scale t)."""
        scale_s, scale_t = np.broadcast_to(scale, 2)
        offset = self.rng.integers(1024, size=2)
        columns, rows = ((a * (1024 / m)).astype(np.int64) for a, m in ((s, scale_s), (t, scale_t)))
        return self.tile[(rows + offset[0]) & 1023, (columns + offset[1]) & 1023]

    def cell(self, column, row):
        """A fixed random number in [0, 1) for each cell of an integer grid."""
        return self.cells[row.astype(np.int64) & 63, column.astype(np.int64) & 63]

    def _cover(self, origin, u, v, outline):
        """Flat pixel indices, (s, t) and depth of the polygon `outline` (N, 2) in the plane origin + s u + t v."""
        camera = np.stack([self.right, Y, self.forward])
        basis = np.stack([camera @ u, camera @ v, camera @ (origin - self.eye)], axis=1)
        corners = np.column_stack([outline, np.ones(len(outline))]) @ basis.T
        clipped = []
        for p, q in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if p[2] >= NEAR:
                clipped.append(p)
            if (p[2] >= NEAR) != (q[2] >= NEAR):
                clipped.append(p + (q - p) * (NEAR - p[2]) / (q[2] - p[2]))
        if len(clipped) < 3 or abs(np.linalg.det(basis)) < 1e-9:
            return None
        clipped = np.array(clipped)
        points = self.centre + self.focal * clipped[:, :2] / clipped[:, 2:] * (1, -1)
        height, width = self.ids.shape
        low = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(int)
        high = np.clip(np.ceil(points.max(axis=0)) + 1, 0, (width, height)).astype(int)
        if (high <= low).any():
            return None
        stencil = Image.new("L", tuple(high - low))
        ImageDraw.Draw(stencil).polygon([tuple(p) for p in points - low], fill=1)
        rows, columns = np.nonzero(np.asarray(stencil))
        rows, columns = rows + low[1], columns + low[0]
        rays = np.stack([(columns - self.centre[0]) / self.focal, (self.centre[1] - rows) / self.focal])
        inverse = np.linalg.inv(basis)
        a, b, c = (inverse[:, :2] @ rays + inverse[:, 2:]).astype(np.float32)
        c = np.maximum(c, 1 / FAR)
        return rows * width + columns, a / c, b / c, 1 / c

    def face(self, origin, u, v, outline, label, shader, lit=True):
        """Paint a flat polygon. `u`, `v`: unit vectors; `label`: a class name, or None for unlabelled."""
        covered = self._cover(origin, u, v, outline)
        if covered is None:
            return
        # The tolerance lets what is painted later in the same plane, as a picture on a wall, win.
        seen = covered[3] <= self.depth.reshape(-1)[covered[0]] * 1.003
        index, s, t, depth = (a[seen] for a in covered)
        colour = np.asarray(shader(self, s, t), np.float32)
        if lit:
            normal = np.cross(u, v)
            normal = normal * -np.sign(normal @ (origin - self.eye))
            light = np.full(len(s), self.ambient + 0.34 * (normal @ self.sun), np.float32)
            for position, power in self.lamps:
                offset = origin - position
                squared = offset @ offset + 2 * (s * (u @ offset) + t * (v @ offset)) + s * s + t * t
                light += power / (0.6 + squared)
            colour = colour * light[:, None]
            if self.haze:
                air = 1 - np.exp(-depth / self.haze[1])[:, None]
                colour = colour * (1 - air) + np.asarray(self.haze[0], np.float32) * air
        self.rgb.reshape(-1, 3)[index] = colour
        self.depth.reshape(-1)[index] = depth
        self.ids.reshape(-1)[index] = RAW_ID[label]

    def card(self, x, z, y=0.0):
        """(origin, u, v) of an upright plane at (x, y, z) that faces the camera."""
        return np.array([x, y, z]), self.right, Y

    def prism(self, place, outline, z0, z1, label, shader):
        """A solid with cross-section `outline` (convex, anticlockwise, local x and y) from local z0 to z1."""
        origin, axes = place
        eye = axes @ (self.eye - origin)
        for z, visible in ((z0, eye[2] < z0), (z1, eye[2] > z1)):
            if visible:
                self.face(origin + z * axes[2], axes[0], axes[1], outline, label, shader)
        for p, q in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            edge, length = (q - p), np.hypot(*(q - p))
            if edge[1] * (eye[0] - p[0]) - edge[0] * (eye[1] - p[1]) > 0:
                start = origin + p @ axes[:2] + z0 * axes[2]
                self.face(start, edge @ axes[:2] / length, axes[2], rect(0, 0, length, z1 - z0), label, shader)

    def box(self, place, x, y, z, label, shader, soft=0.0):
        """A box between the pairs x, y, z of local coordinates; `soft`: radius of its rounded edges."""
        self.prism(place, rect(x[0], y[0], x[1], y[1], soft), z[0], z[1], label, shader)

    def shadow(self, place, x, z, strength=0.45, y=0.01):
        """Darken (strength < 0: brighten) softly what lies in the horizontal plane y around local (x, z) pairs."""
        origin, axes = place
        middle = origin + axes[0] * np.mean(x) + axes[2] * np.mean(z) + Y * y
        radius = (x[1] - x[0]) / 2, (z[1] - z[0]) / 2
        covered = self._cover(middle, axes[0], axes[2], oval(0, 0, radius[0] * 1.5, radius[1] * 1.5))
        if covered is None:
            return
        index, s, t, depth = covered
        near = np.abs(self.depth.reshape(-1)[index] / depth - 1) < 0.02
        distance = (np.abs(s[near] / radius[0]) ** 3 + np.abs(t[near] / radius[1]) ** 3) ** (1 / 3)
        self.rgb.reshape(-1, 3)[index[near]] *= 1 - strength * np.clip(1.5 - distance, 0, 1)[:, None] ** 1.3

    def finish(self):
        """(RGB image, mask) after exposure, tint, vignette and sensor noise."""
        height, width = (n // SUPERSAMPLING for n in self.ids.shape)
        image = self.rgb.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean(axis=(1, 3))
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        image *= (1 - 0.16 * (x * x + y * y))[..., None] * self.rng.uniform(1.0, 1.15) * self.rng.normal(1, 0.02, 3)
        image += self.rng.normal(0, 2.2, image.shape)
        return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)), Image.fromarray(self.ids[::2, ::2].copy())


# ---- shapes ---------------------------------------------------------------------------------------------------------


def turned(angle):
    """Rows right, up, back of a frame turned by `angle` radians about the vertical."""
    return np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])


def place(x, z, angle=0.0, y=0.0):
    """(origin, axes) of an object that stands at (x, y, z); at angle 0 its front looks at the viewer."""
    return np.array([x, y, z]), turned(angle)


def rect(x0, y0, x1, y1, soft=0.0):
    if not soft:
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)
    turn = np.linspace(0, np.pi / 2, 5)
    arc = np.column_stack([np.sin(turn), -np.cos(turn)]) * soft
    quarter = np.array([[0, 1], [-1, 0]])  # row vectors turn a quarter anticlockwise
    corners = [(x1 - soft, y0 + soft), (x1 - soft, y1 - soft), (x0 + soft, y1 - soft), (x0 + soft, y0 + soft)]
    return np.concatenate([c + arc @ np.linalg.matrix_power(quarter, k) for k, c in enumerate(corners)])


def oval(x, y, rx, ry, points=32):
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.column_stack([x + rx * np.cos(turn), y + ry * np.sin(turn)])


def blob(rng, x, y, rx, ry, bumps=0.12):
    """An oval with an irregular edge."""
    turn = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    waves = sum(rng.normal() / np.sqrt(k) * np.cos(k * turn + rng.uniform(0, 6.3)) for k in (2, 3, 5, 8, 13))
    return (oval(0, 0, rx, ry, 56)) * (1 + bumps * waves / 1.6)[:, None] + (x, y)


def ridge(rng, width, low, high, rough):
    """A skyline by midpoint displacement between heights `low` and `high`, down to y = -1."""
    line = rng.uniform(0, 1, 5)
    for k in range(5):
        middle = (line[1:] + line[:-1]) / 2 + rng.normal(0, rough / 2**k, len(line) - 1)
        line = np.insert(line, np.arange(1, len(line)), middle)
    line = low + (high - low) * (line - line.min()) / np.ptp(line)
    x = np.linspace(-width / 2, width / 2, len(line))
    return np.concatenate([np.column_stack([x, line]), [[width / 2, -1], [-width / 2, -1]]])


# ---- surfaces: each returns a shader --------------------------------------------------------------------------------


def jitter(rng, *colours, spread=14):
    """One of the colours, moved a little."""
    return np.clip(np.array(colours[rng.integers(len(colours))]) + rng.normal(0, spread, 3), 4, 250)


def matte(colour, rough=0.07, scale=2.0):
    return lambda cv, s, t: np.asarray(colour) * (1 + rough * cv.noise(s, t, scale))[:, None]


def leaves(colour, scale=5.0, contrast=0.3):
    """Foliage: clumps of light and shade, sprinkled with single leaves, yellower where bright."""

    def shade(cv, s, t):
        tone = contrast * (0.5 * cv.noise(s, t, scale) + 0.8 * np.sign(cv.noise(s, t, scale / 7)) * 0.5)
        return np.clip(np.asarray(colour) * (1 + tone[:, None] * (1.15, 1.0, 0.7)), 0, 255)

    return shade


def grid(colour, joint, du, dv, gap, vary=0.1, shift=0.5, rough=0.05):
    """Bricks, tiles or boards of du x dv metres with joints `gap` wide; each row is moved by `shift` of a brick."""

    def shade(cv, s, t):
        row = np.floor(t / dv)
        along = s / du + shift * row
        column = np.floor(along)
        u, v = (along - column) * du, t - row * dv
        tone = 1 + vary * (2 * cv.cell(column, row) - 1) + rough * cv.noise(s, t, 2.0)
        out = np.asarray(colour) * tone[:, None]
        out[(u < gap) | (v < gap)] = joint
        return out

    return shade


def facade(wall, glass, du, dv):
    """Rows of framed windows of a building, each pane with its own reflection."""

    def shade(cv, s, t):
        column, row = np.floor(s / du), np.floor(t / dv)
        u, v = s / du - column, t / dv - row
        out = np.asarray(wall) * (1 + 0.09 * cv.noise(s, t, 6.0) + 0.05 * np.sign(np.sin(t * 21)))[:, None]
        out[(v < 0.06)] *= 0.8
        out[(abs(u - 0.5) < 0.31) & (v > 0.22) & (v < 0.87)] = np.asarray(wall) * 0.45 + 120
        pane = (abs(u - 0.5) < 0.26) & (v > 0.27) & (v < 0.83) & (abs(u - 0.5) > 0.02)
        tone = 0.45 + 0.8 * cv.cell(column, row) + 0.35 * (v - 0.5) + 0.15 * cv.noise(s, t, 3.0)
        out[pane] = (np.asarray(glass) * tone[:, None])[pane]
        return out

    return shade


def folds(colour, period, depth=0.28, along=0):
    """Cloth that hangs in folds, or anything with soft stripes."""

    def shade(cv, s, t):
        phase = (s, t)[along] * (2 * np.pi / period) + 0.6 * cv.noise(s, t, 4.0)
        return np.asarray(colour) * (1 - depth / 2 + depth * np.sin(phase) + 0.05 * cv.noise(s, t, 1.0))[:, None]

    return shade


def cylinder(colour, x, radius, rough=0.06):
    """A cylinder around the vertical through s = x, lit from one side."""

    def shade(cv, s, t):
        across = np.clip((s - x) / radius, -1, 1)
        light = 0.62 + 0.5 * np.sqrt(1 - across**2) - 0.2 * across + rough * cv.noise(s, t, 1.0)
        return np.asarray(colour) * light[:, None]

    return shade


def water(colour, glint, scale):
    """Ripples along s with glints; foam where the waves are highest."""

    def shade(cv, s, t):
        wave = 0.6 * cv.noise(s, t, (scale * 5, scale)) + 0.5 * cv.noise(s, t, (scale * 1.2, scale * 0.3))
        out = np.asarray(colour) * (1 + 0.14 * wave)[:, None]
        return out + np.clip(wave - 0.9, 0, 1.2)[:, None] * np.asarray(glint) * 0.5

    return shade


def sky(top, bottom, clouds):
    """A gradient up a plane 3 km away, with lit clouds; `clouds` is their threshold."""

    def shade(cv, s, t):
        height = np.clip(t / 1700, 0, 1)[:, None] ** 0.7
        out = np.asarray(bottom) * (1 - height) + np.asarray(top) * height
        cover = cv.noise(s, t, (9000, 3600)) + 0.2 * cv.noise(s, t, 2000)
        alpha = np.clip((cover - clouds) * 1.3, 0, 0.95)[:, None]
        return out * (1 - alpha) + alpha * (
            np.array([252, 250, 247]) - 34 * np.clip(cover - clouds - 0.5, 0, 1)[:, None]
        )

    return shade


# ---- things outdoors ------------------------------------------------------------------------------------------------

SKIN = (224, 178, 148), (190, 138, 104), (122, 82, 58), (236, 196, 172)
CLOTHES = (170, 40, 44), (38, 62, 120), (226, 222, 212), (52, 52, 58), (216, 168, 52), (66, 120, 96), (120, 70, 130)
PAINT = (176, 30, 34), (34, 66, 128), (222, 222, 220), (42, 44, 48), (126, 132, 138), (196, 150, 40), (40, 96, 84)
PLASTER = (188, 120, 92), (206, 186, 148), (160, 88, 72), (170, 176, 182), (222, 206, 182), (140, 116, 98)
GREENS = (64, 104, 40), (84, 116, 44), (48, 90, 48), (104, 122, 46)


def tree(cv, x, z, height, y=0.0):
    rng = cv.rng
    card = cv.card(x, z, y)
    cv.shadow(place(x, z), (-height * 0.3, height * 0.3), (-height * 0.25, height * 0.25), 0.5, y + 0.01)
    bark, green = jitter(rng, (92, 72, 54), (112, 96, 80)), jitter(rng, *GREENS)
    thick = 0.035 * height
    trunk = [(-thick, 0), (thick, 0), (0.6 * thick, height * 0.6), (-0.6 * thick, height * 0.6)]
    cv.face(*card, np.array(trunk), "tree", cylinder(bark, 0, thick, 0.2))
    turns = rng.uniform(0, 6.3) + np.arange(9) * 2.4
    for k, turn in enumerate(turns):  # clumps from the dark underside up to the sunlit top
        dx, dy = np.cos(turn) * 0.2 * height, (0.5 + 0.37 * k / 9 + 0.04 * np.sin(turn)) * height
        radius = height * rng.uniform(0.13, 0.2) * (1.15 - 0.4 * k / 9)
        clump = blob(rng, dx * (1.1 - 0.7 * k / 9), dy, radius * 1.15, radius)
        cv.face(*card, clump, "tree", leaves(green * (0.62 + 0.07 * k), height * 0.6))


def palm(cv, x, z, height):
    rng = cv.rng
    card, green, lean = cv.card(x, z), jitter(rng, (74, 112, 44), (92, 118, 50)), rng.uniform(-0.22, 0.22) * height
    cv.shadow(place(x, z), (-1.6, 1.6), (-1, 1), 0.5)
    rise = np.linspace(0, 1, 12)
    bend = lean * rise**2
    trunk = np.concatenate(
        [
            np.column_stack([bend - 0.2 + 0.07 * rise, rise * height]),
            np.column_stack([bend + 0.2 - 0.07 * rise, rise * height])[::-1],
        ]
    )
    cv.face(*card, trunk, "palm", folds(jitter(rng, (134, 110, 82)), 0.3, 0.35, along=1))
    for turn in np.linspace(-0.5, np.pi + 0.5, 11) + rng.normal(0, 0.1, 11):
        reach, out = rng.uniform(0.3, 0.42) * height, np.linspace(0, 1, 9)
        spine = np.column_stack([np.cos(turn) * reach * out, np.sin(turn) * reach * out * 0.8 - 0.55 * reach * out**2])
        spine += (lean, height)
        half = 0.085 * reach * np.sin(np.pi * np.clip(out + 0.12, 0, 1))[:, None] * (0.4, 1)
        frond = np.concatenate([spine + half, (spine - half * (1, 1.6))[::-1]])
        cv.face(*card, frond, "palm", folds(green * rng.uniform(0.7, 1.2), 0.16, 0.5))


def person(cv, x, z, y=0.0, height=None):
    rng = cv.rng
    h = height or rng.uniform(1.6, 1.85)
    skin, top, bottom = jitter(rng, *SKIN, spread=6), jitter(rng, *CLOTHES), jitter(rng, *CLOTHES)
    hair, stride, side = (
        jitter(rng, (40, 30, 24), (96, 66, 38), (150, 130, 110)),
        rng.uniform(0.03, 0.14),
        rng.choice((-1, 1)),
    )
    cv.shadow(place(x, z), (-0.35, 0.35), (-0.28, 0.28), 0.55, y + 0.01)
    card = cv.card(x, z, y)

    def part(points, colour, at=0.0, radius=0.2):
        cv.face(*card, np.array(points) * h, "person", cylinder(colour, at * h, radius * h, 0.05))

    for s in (-1, 1):
        foot = s * stride
        part(
            [(foot - 0.045, 0), (foot + 0.06, 0), (s * 0.055 + 0.05, 0.5), (s * 0.055 - 0.055, 0.5)],
            bottom * (1 if s > 0 else 0.8),
            foot,
            0.09,
        )
        part(rect(foot - 0.05, 0, foot + 0.075, 0.035, 0.015), (44, 38, 36))
    for s in (-1, 1):
        hand = s * (0.135 + stride * 0.6)
        part([(s * 0.1, 0.82), (s * 0.13, 0.78), (hand + 0.03, 0.47), (hand - 0.03, 0.47)], top * 0.82, s * 0.12, 0.06)
        part(oval(hand, 0.455, 0.03, 0.035, 12), skin)
    part(
        [
            (-0.1, 0.46),
            (0.1, 0.46),
            (0.115, 0.6),
            (0.13, 0.8),
            (0.06, 0.85),
            (-0.06, 0.85),
            (-0.13, 0.8),
            (-0.115, 0.6),
        ],
        top,
        0,
        0.15,
    )
    part(rect(-0.03, 0.83, 0.03, 0.89), skin * 0.85)
    part(oval(0, 0.93, 0.055, 0.07, 20), skin, 0, 0.07)
    part(
        [(-0.06, 0.92), (-0.045, 0.97), (0.05, 0.97), (0.062, 0.92), (0.055, 0.985), (0, 1.01), (-0.055, 0.985)], hair
    )
    if rng.random() < 0.4:
        part(rect(side * 0.17 - 0.06, 0.36, side * 0.17 + 0.06, 0.47, 0.02), jitter(rng, (90, 54, 34), (40, 40, 46)))


def car(cv, x, z, angle, long=4.3):
    """A car whose length lies along local x; angle pi/2 puts it along a street that runs away from the viewer."""
    rng, at = cv.rng, place(x, z, angle)
    paint, w, glass = jitter(rng, *PAINT), 0.86, (58, 72, 84)
    cv.shadow(at, (-long / 2, long / 2), (-w, w), 0.75)
    a, b, n = long / 2, rng.uniform(1.4, 1.55), rng.uniform(0.84, 0.95)
    body = [(-a, 0.32), (a, 0.32), (a, 0.62), (0.86 * a, n - 0.08), (0.45 * a, n), (-0.9 * a, n), (-a, 0.8)]
    cabin = [(-0.86 * a, n), (0.48 * a, n), (0.12 * a, b), (-0.55 * a, b)]
    cv.prism(at, np.array(body), -w, w, "car", matte(paint, 0.03))
    cv.prism(at, np.array(cabin), -w * 0.9, w * 0.9, "car", matte(paint, 0.03))
    origin, axes = at
    for side in (-1, 1):
        plane = origin + side * w * 0.9 * axes[2], axes[0], Y
        for left, right in ((-0.74, -0.24), (-0.19, 0.3)):
            top_left, top_right = max(left, -0.53), min(right, 0.1)
            window = np.array(
                [(left * a, n + 0.06), (right * a, n + 0.06), (top_right * a, b - 0.07), (top_left * a, b - 0.07)]
            )
            cv.face(*plane, window, "car", matte(glass, 0.25, 3.0))
        plane = origin + side * (w + 0.01) * axes[2], axes[0], Y
        for wheel in (-0.62, 0.62):
            cv.face(*plane, oval(wheel * a, 0.33, 0.36, 0.36), "car", matte((26, 26, 28), 0.1))
            cv.face(*plane, oval(wheel * a, 0.33, 0.2, 0.2), "car", matte((150, 152, 156), 0.15))
    for end, light in ((-1, (190, 24, 22)), (1, (244, 240, 214))):
        plane = origin + end * (a + 0.01) * axes[0], axes[2], Y
        for side in (-1, 1):
            cv.face(*plane, rect(side * w * 0.7 - 0.2, 0.6, side * w * 0.7 + 0.2, 0.76, 0.05), "car", matte(light))
        cv.face(*plane, rect(-0.26, 0.46, 0.26, 0.58), "car", matte((228, 226, 216)))
        cv.face(*plane, rect(-w, 0.3, w, 0.4), "car", matte((40, 40, 42)))
        slope = np.array([(0.48 if end > 0 else -0.86) * a, n]), np.array([(0.12 if end > 0 else -0.55) * a, b])
        up = (slope[1] - slope[0]) / np.hypot(*(slope[1] - slope[0]))
        start = origin + slope[0] @ axes[:2] + end * 0.02 * axes[0]
        cv.face(
            start,
            axes[2],
            up @ axes[:2],
            rect(-w * 0.78, 0.06, w * 0.78, np.hypot(*(slope[1] - slope[0])) - 0.06),
            "car",
            matte(glass, 0.25, 3.0),
        )


def streetlight(cv, x, z, reach, height=6.0):
    card, grey = cv.card(x, z), jitter(cv.rng, (72, 78, 82), (46, 58, 52))
    for outline in (
        rect(-0.11, 0, 0.11, height),
        rect(-0.2, 0, 0.2, 0.9),
        rect(min(0, reach), height - 0.2, max(0, reach), height),
    ):
        cv.face(*card, outline, "streetlight", cylinder(grey, 0, 0.2))
    cv.face(
        *card, rect(reach - 0.55, height - 0.3, reach + 0.55, height + 0.08, 0.12), "streetlight", matte(grey * 1.3)
    )
    cv.face(
        *card,
        rect(reach - 0.4, height - 0.4, reach + 0.4, height - 0.24, 0.05),
        "streetlight",
        matte((250, 244, 214)),
        lit=False,
    )


def traffic_light(cv, x, z):
    card, lit = cv.card(x, z), cv.rng.integers(3)
    cv.face(*card, rect(-0.09, 0, 0.09, 3.2), "pole", cylinder((84, 88, 90), 0, 0.09))
    cv.face(*card, rect(-0.27, 2.3, 0.27, 3.7, 0.1), "traffic light", matte((34, 38, 36), 0.1))
    for k, colour in enumerate(((60, 220, 110), (250, 190, 50), (240, 50, 40))):
        cv.face(
            *card,
            oval(0, 2.55 + 0.44 * k, 0.17, 0.17),
            "traffic light",
            matte(np.array(colour) * (1 if k == lit else 0.28)),
            lit=False,
        )


def lettering(board, ink, size):
    """A signboard with one line of letter-like marks."""

    def shade(cv, s, t):
        mark = (
            (cv.cell(np.floor(s / size * 2.5), np.floor(t / size * 4)) < 0.62)
            & (np.abs(t) < size / 2)
            & ((s / size) % 1 < 0.78)
        )
        return np.where(mark[:, None], ink, np.asarray(board) * (1 + 0.05 * cv.noise(s, t, 2.0))[:, None])

    return shade


def bench(cv, x, z, angle, y=0.0):
    at, wood = place(x, z, angle, y), jitter(cv.rng, (140, 88, 50), (112, 78, 52))
    cv.shadow(at, (-0.9, 0.9), (-0.4, 0.4), 0.6, y + 0.01)
    for leg in (-0.75, 0.65):
        cv.box(at, (leg, leg + 0.1), (0, 0.45), (-0.25, 0.25), "bench", matte((60, 62, 64)))
    boards = grid(wood, wood * 0.4, 2.5, 0.16, 0.025)
    cv.box(at, (-0.95, 0.95), (0.42, 0.5), (-0.28, 0.25), "bench", matte(wood, 0.12, 0.8))
    cv.box(at, (-0.95, 0.95), (0.5, 0.98), (0.22, 0.28), "bench", boards)


def rock(cv, x, z, size):
    cv.shadow(place(x, z), (-size, size), (-size * 0.6, size * 0.6), 0.6)
    grey, card = jitter(cv.rng, (128, 122, 114), (112, 106, 104), spread=8), cv.card(x, z, -0.15 * size)
    for dx, scale, tone in ((0, 1, 0.72), (-0.12, 0.8, 1.0), (-0.25, 0.45, 1.2)):
        outline = blob(cv.rng, dx * size, (0.5 - dx * 0.5) * size, size * scale, size * 0.62 * scale, 0.16)
        cv.face(*card, outline, "rock", matte(grey * tone, 0.2, size * 2))


def bush(cv, x, z, size, label="plant", y=0.0):
    cv.shadow(place(x, z), (-size, size), (-size * 0.6, size * 0.6), 0.55, y + 0.01)
    green, card = jitter(cv.rng, *GREENS), cv.card(x, z, y)
    for dx, dy, scale, tone in (
        (0, 0.5, 1, 0.7),
        (-0.4, 0.62, 0.55, 0.95),
        (0.35, 0.68, 0.5, 1.1),
        (-0.05, 0.85, 0.45, 1.3),
    ):
        outline = blob(cv.rng, dx * size, dy * size, size * scale, size * scale * 0.7)
        cv.face(*card, outline * (1, 1), label, leaves(green * tone, size * 2.2, 0.34))


def boat(cv, x, z, size):
    card, hull = cv.card(x, z), jitter(cv.rng, (226, 224, 218), (166, 42, 40), (36, 72, 120), (210, 160, 60))
    cv.shadow(place(x, z), (-size * 0.5, size * 0.5), (-size * 0.3, size * 0.3), 0.4)
    cv.face(
        *card,
        np.array([(-0.42, -0.02), (0.4, -0.02), (0.55, 0.17), (-0.5, 0.14)]) * size,
        "boat",
        folds(hull, size * 0.12, 0.12, along=1),
    )
    if cv.rng.random() < 0.6:
        cv.face(*card, rect(-0.02, 0.1, 0.025, 1.0) * size, "boat", matte((120, 92, 66)))
        for sail in ([(0.04, 0.24), (0.46, 0.26), (0.04, 0.97)], [(-0.04, 0.24), (-0.36, 0.26), (-0.04, 0.85)]):
            cv.face(
                *card,
                np.array(sail) * size,
                "boat",
                folds(jitter(cv.rng, (240, 238, 228), (228, 200, 170)), size * 0.3, 0.14),
            )
    else:
        cv.face(
            *card,
            rect(-0.28, 0.13, 0.12, 0.34, 0.02) * size,
            "boat",
            grid((232, 232, 228), (60, 80, 96), size * 0.13, size * 0.3, size * 0.07),
        )


def house(cv, x, z, angle, width=8.0, y=0.0):
    at, wall, roof = (
        place(x, z, angle, y),
        jitter(cv.rng, *PLASTER),
        jitter(cv.rng, (142, 70, 52), (96, 84, 80), (120, 58, 48)),
    )
    cv.shadow(at, (-width * 0.6, width * 0.6), (-width * 0.5, width * 0.5), 0.5, y + 0.01)
    cv.box(at, (-width / 2, width / 2), (0, 3), (-3, 3), "house", facade(wall, (92, 110, 124), width / 4, 2.9))
    gable = np.array([(-3.5, 2.9), (3.5, 2.9), (0, 5.4)])
    cv.prism(
        place(x, z, angle - np.pi / 2, y),
        gable,
        -width / 2 - 0.4,
        width / 2 + 0.4,
        "house",
        grid(roof, roof * 0.6, 0.5, 0.4, 0.06),
    )


def hills(cv, distance, low, high, label, shader, rough=0.3):
    origin = cv.forward * distance
    cv.face(origin, cv.right, Y, ridge(cv.rng, distance * 3, low, high, rough), label, shader)


# ---- scenes ---------------------------------------------------------------------------------------------------------


def outdoors(rng, size, eye, horizon, zoom=0.9, haze=420.0, yaw=0.12):
    warm = rng.random() < 0.4
    sun = rng.uniform(-0.9, 0.9), rng.uniform(0.5, 0.9), rng.uniform(-0.9, -0.2)
    air = ((226, 206, 180) if warm else (196, 212, 226), haze)
    cv = Canvas(rng, size, eye, rng.uniform(-yaw, yaw), horizon, zoom, sun, air)
    top = jitter(rng, (74, 128, 196), (96, 142, 200), (116, 148, 188), spread=8)
    shade = sky(top, jitter(rng, (238, 216, 186) if warm else (206, 222, 236), spread=6), rng.uniform(0.2, 1.2))
    cv.face(cv.eye + 3000 * cv.forward - 60 * Y, cv.right, Y, rect(-4000, 0, 4000, 4000), "sky", shade, lit=False)
    return cv


def street(rng, size):
    cv = outdoors(rng, size, (rng.uniform(-2.5, 2.5), rng.uniform(1.7, 2.5), 0), rng.uniform(0.44, 0.56))
    asphalt = jitter(rng, (98, 98, 102), (112, 108, 104), spread=6)

    def road(cv, s, t):
        out = asphalt * (1 + 0.08 * cv.noise(s, t, 3.0) + 0.07 * cv.noise(s, t, (2.0, 60.0)))[:, None]
        dash = (np.abs(s - 4) < 0.08) & (t % 6 < 3) & (t > 15)
        zebra = (np.abs(t - 11.5) < 1.4) & (s % 1.0 < 0.5)
        out[dash | zebra] = out[dash | zebra] * 0.3 + 150
        return out

    cv.face(-4 * X - 3 * Z, X, Z, rect(0, 0, 8, 400), "road", road)
    stone = jitter(rng, (170, 162, 152), (150, 148, 146), spread=6)
    for side in (-1, 1):
        walk = place(side * 6, 0)
        cv.box(walk, (-2, 2), (0, 0.15), (-3, 400), "sidewalk", grid(stone, stone * 0.72, 0.9, 0.9, 0.04, 0.12))
        z = -4.0
        while z < 130:
            long, tall = rng.uniform(8, 16), rng.uniform(7, 17)
            wall, at = jitter(rng, *PLASTER), place(side * (8 + tall), z)
            shade = facade(
                wall, jitter(rng, (96, 116, 136), (120, 130, 132)), rng.uniform(1.8, 2.6), rng.uniform(2.9, 3.5)
            )
            cv.box(at, (-tall, tall), (0, tall), (0, long), "building", shade)
            if z < 32:
                shop(cv, -side * X, side * 8 * X + z * Z, long)
            z += long + (rng.uniform(2, 4) if rng.random() < 0.25 else 0)
        for z in np.arange(rng.uniform(6, 10), 90, rng.uniform(10, 15)):
            tree(cv, side * 4.8, z + rng.uniform(-1, 1), rng.uniform(4.5, 7), 0.15)
        streetlight(cv, side * 4.4, rng.uniform(10, 17), -side * 1.5)
    for _ in range(6):
        wide, tall = rng.uniform(10, 22), rng.uniform(35, 90)
        at = place(rng.uniform(-60, 60), rng.uniform(170, 260), rng.uniform(-0.5, 0.5))
        tower = facade(jitter(rng, (150, 160, 172), (176, 160, 140)), jitter(rng, (100, 122, 148)), 4.0, 4.5)
        cv.box(at, (-wide, wide), (0, tall), (0, 20), "skyscraper", tower)
    tree(cv, rng.uniform(-3, 3), 150, 14)
    for side in (-1, 1):
        for z in np.arange(rng.uniform(7, 11), 70, rng.uniform(6.5, 9)):
            if rng.random() < 0.75:
                car(cv, side * 3.0, z, side * np.pi / 2, rng.uniform(3.9, 4.7))
    car(cv, rng.choice((-1.0, 1.0)), rng.uniform(17, 30), np.pi / 2)
    traffic_light(cv, rng.choice((-4.4, 4.4)), rng.uniform(8, 9.5))
    person(cv, rng.uniform(-2, 2), rng.uniform(10.6, 12.4))
    for _ in range(6):
        person(cv, rng.choice((-1, 1)) * rng.uniform(5.2, 7.3), rng.uniform(6, 26), 0.15)
    at = place(rng.choice((-5.0, 5.0)), rng.uniform(6.5, 9), 0.1, 0.15)  # a cable box: nothing that ADE20K names
    cv.box(at, (-0.3, 0.3), (0, 1.0), (-0.2, 0.2), None, matte((112, 124, 112), 0.12))
    return cv


def shop(cv, out, corner, long):
    """The ground floor of a building's side that looks along `out`: window, door, awning and signboard."""
    rng = cv.rng
    bright, frame = jitter(rng, *CLOTHES), jitter(rng, (60, 54, 50), (120, 84, 56), (42, 62, 58))
    plane = corner + out * 0.02, Z, Y
    cv.face(*plane, rect(0.4, 0.15, long - 0.4, 3.3), "building", matte(frame, 0.1))
    cv.face(*plane, rect(0.8, 0.7, long - 2.4, 2.6), "windowpane", glazing((118, 132, 138), 1.6, 1.9))
    cv.face(*plane, rect(long - 1.9, 0.15, long - 0.8, 2.5), "door", panels(bright * 0.8))
    cv.face(
        corner + out * 0.08,
        Z,
        Y,
        rect(0.5, 2.75, long - 0.5, 3.55),
        "signboard",
        lettering(bright, (245, 240, 225), 0.5),
    )
    if rng.random() < 0.6:
        fall = (1.2 * out - 0.65 * Y) / np.hypot(1.2, 0.65)
        cv.face(corner + 2.85 * Y, Z, fall, rect(0.6, 0, long - 2.2, 1.35), "awning", folds(bright, 0.7, 0.7))


def park(rng, size):
    cv = outdoors(rng, size, (0, rng.uniform(1.6, 2.2), 0), rng.uniform(0.4, 0.5), yaw=0.25)
    green = jitter(rng, (96, 128, 52), (112, 134, 60), (84, 116, 54), spread=7)
    rock_grey = jitter(rng, (112, 112, 122), (124, 112, 104), spread=6)

    def slope(cv, s, t):
        snow = t + 26 * cv.noise(s, t, 300.0) > 235
        out = rock_grey * (1 + 0.3 * cv.noise(s + t, t, 500.0))[:, None]
        out[snow] = (236, 240, 246)
        return out

    hills(cv, 900, 90, rng.uniform(260, 360), "mountain", slope)
    hills(cv, 300, 8, 34, "hill", leaves(green * 0.8, 90.0, 0.2))
    cv.face(-400 * X, X, Z, rect(0, -3, 800, 420), "grass", leaves(green, 6.0, 0.16))
    side = rng.choice((-1, 1))
    lake = blob(rng, side * 17, rng.uniform(24, 28), 14, 11, 0.1)
    cv.face(0.01 * Y, X, Z, lake * 1.06, "earth", matte((142, 120, 88), 0.12))
    cv.face(0.02 * Y, X, Z, lake, "water", water((86, 122, 146), (160, 170, 180), 6.0))
    z = np.linspace(-2, 110, 60)
    middle = -side * (1.2 + 0.05 * z) + 2.4 * np.sin(z / rng.uniform(7, 10) + rng.uniform(0, 6))
    trail = np.concatenate([np.column_stack([middle - 1.2, z]), np.column_stack([middle + 1.2, z])[::-1]])
    cv.face(0.015 * Y, X, Z, trail, "path", matte(jitter(rng, (190, 166, 130), (172, 160, 146), spread=6), 0.1, 3.0))
    house(cv, -side * rng.uniform(12, 18), rng.uniform(38, 50), rng.uniform(-0.5, 0.5))
    fence, at = jitter(rng, (214, 208, 196), (140, 104, 70)), place(-side * 9, 24, rng.uniform(-0.25, 0.25))
    cv.shadow(at, (-7, 7), (-0.4, 0.4), 0.4)
    cv.box(at, (-7, 7), (0, 1.3), (0, 0.08), "fence", grid(fence, fence * 0.4, 0.24, 3.0, 0.05, 0.2, 0))
    for _ in range(9):
        tree(cv, rng.uniform(-45, 45), rng.uniform(48, 90), rng.uniform(8, 13))
    for x in (-1, 1):
        tree(cv, x * rng.uniform(5.5, 8), rng.uniform(11, 18), rng.uniform(6, 9))
    for _ in range(3):
        rock(cv, side * rng.uniform(4, 9), rng.uniform(8, 13), rng.uniform(0.4, 0.9))
    bed = place(-side * rng.uniform(3.4, 4.6), rng.uniform(6, 8))
    flower_bed(cv, bed)
    bush(cv, side * rng.uniform(3.6, 5.5), rng.uniform(9, 15), rng.uniform(0.7, 1.1))
    bench(cv, side * rng.uniform(1.8, 2.6), rng.uniform(6, 8.5), side * rng.uniform(0.2, 0.9))
    for z in (rng.uniform(7, 10), rng.uniform(11, 20), rng.uniform(11, 20)):
        person(cv, np.interp(z, np.linspace(-2, 110, 60), middle) + rng.uniform(-0.7, 0.7), z)
    streetlight(cv, -side * rng.uniform(2.6, 3.4), rng.uniform(11, 15), side * 0.0, 3.8)
    return cv


def flower_bed(cv, at):
    origin, axes = at
    cv.face(origin + 0.02 * Y, X, Z, blob(cv.rng, 0, 0, 1.7, 1.1), "earth", matte((96, 74, 54), 0.2))
    for x, z in cv.rng.uniform((-1.3, -0.7), (1.3, 0.7), (26, 2)):
        card, petals = (
            cv.card(origin[0] + x, origin[2] + z),
            jitter(cv.rng, (222, 50, 60), (244, 196, 50), (190, 90, 190)),
        )
        cv.face(*card, blob(cv.rng, 0, 0.16, 0.2, 0.17), "plant", leaves((70, 110, 48), 0.6))
        cv.face(*card, blob(cv.rng, 0, 0.36, 0.15, 0.13, 0.2), "flower", matte(petals, 0.25, 0.5))


def coast(rng, size):
    cv = outdoors(rng, size, (0, rng.uniform(1.8, 2.6), 0), rng.uniform(0.38, 0.48), haze=700.0, yaw=0.2)
    blue = jitter(rng, (52, 118, 148), (44, 100, 142), (70, 134, 140), spread=6)
    beach = jitter(rng, (222, 198, 152), (206, 182, 142), spread=6)
    side = rng.choice((-1, 1))
    hills(cv, 1400, 12, 150, "mountain", leaves(jitter(rng, (86, 104, 78), (112, 112, 104)), 500.0, 0.2), 0.5)
    cv.face(-3000 * X, X, Z, rect(0, 5, 6000, 1395), "sea", water(blue, (180, 180, 170), 9.0))
    x = np.linspace(-60, 60, 70)
    shore = 13 + side * 0.24 * x + 0.5 * np.sin(x / 2.1 + rng.uniform(0, 6)) + 0.8 * np.sin(x / 5.3)
    corners = [(60, -3), (-60, -3)]
    for lift, beyond, label, shade in (
        (0.01, 1.4, "sea", water((206, 222, 222), (90, 90, 90), 2.0)),
        (0.015, 0.5, "sand", matte(beach * 0.68, 0.06, 4.0)),
        (0.02, -0.9, "sand", leaves(beach, 5.0, 0.08)),
    ):
        cv.face(lift * Y, X, Z, np.concatenate([np.column_stack([x, shore + beyond]), corners]), label, shade)
    for _ in range(4):
        z = rng.uniform(24, 70)
        boat(cv, rng.uniform(-0.5, 0.5) * z, z, rng.uniform(4, 7))
    deck, at = (
        jitter(rng, (142, 110, 80), (120, 104, 90)),
        place(side * rng.uniform(-7, -5), 6, side * rng.uniform(0.0, 0.15)),
    )
    for z in np.arange(4, 30, 4.0):
        for px in (-1.1, 0.9):
            cv.box(at, (px, px + 0.25), (-0.1, 1.2), (z, z + 0.25), "pier", matte(deck * 0.6, 0.2))
    cv.box(at, (-1.2, 1.2), (0.8, 1.05), (-1, 30), "pier", grid(deck, deck * 0.45, 3.0, 0.3, 0.04, 0.2))
    for _ in range(4):
        rock(cv, side * rng.uniform(3, 9), rng.uniform(11, 15), rng.uniform(0.5, 1.3))
    palm(cv, side * rng.uniform(3.5, 5), rng.uniform(8, 10), rng.uniform(4.5, 5.8))
    palm(cv, side * rng.uniform(5.5, 8), rng.uniform(9, 12), rng.uniform(5, 7))
    parasol(cv, rng.uniform(-1.5, 1.5) - side, rng.uniform(7.5, 9))
    for _ in range(4):
        person(cv, rng.uniform(-4, 4), rng.uniform(6.5, 11))
    return cv


def parasol(cv, x, z):
    """A parasol, which no class of ADE20K names, above a towel."""
    colour, card = jitter(cv.rng, *CLOTHES), cv.card(x, z)
    cv.shadow(place(x, z), (-1.1, 1.1), (-0.8, 0.8), 0.5)
    cv.face(
        np.array([x, 0.03, z - 0.9]),
        X,
        Z,
        rect(-0.5, 0, 0.5, 1.8),
        "towel",
        folds(jitter(cv.rng, *CLOTHES), 0.25, 0.5),
    )
    cv.face(*card, rect(-0.04, 0, 0.04, 2.2), None, matte((230, 228, 222)))
    cv.face(
        *card,
        np.array([(-1.3, 1.6), (0, 1.75), (1.3, 1.6), (0.7, 2.15), (0, 2.35), (-0.7, 2.15)]),
        None,
        folds(colour, 0.6, 0.6),
    )


# ---- things indoors -------------------------------------------------------------------------------------------------


def glazing(tint, du, dv):
    """Window glass with a pale reflection running across and white bars every du x dv metres."""

    def shade(cv, s, t):
        tone = 1 + 0.15 * np.sin((s + t) * 1.7) + 0.08 * cv.noise(s, t, 4.0)
        out = np.asarray(tint) * tone[:, None]
        out[((s % du) < 0.07) | ((t % dv) < 0.07)] = (226, 224, 218)
        return out

    return shade


def panels(colour):
    """A door with two sunk panels per metre of height and a bright edge."""

    def shade(cv, s, t):
        u, v = (s % 0.5) - 0.25, (t % 1.0) - 0.5
        tone = 1 - 0.16 * ((abs(u) < 0.17) & (abs(v) < 0.4)) + 0.1 * ((abs(u) < 0.17) & (abs(v + 0.4) < 0.03))
        return np.asarray(colour) * (tone + 0.05 * cv.noise(s, t, (0.5, 4.0)))[:, None]

    return shade


def outside(cv, s, t):
    """The bright, blurred garden behind a window, with the window's bars."""
    far = np.clip((t - 1.5 + 0.12 * cv.noise(s, t, 4.0)) * 6, 0, 1)[:, None]
    out = np.array((150, 176, 118)) * (1 - far) + np.array((222, 236, 248)) * far
    out = out * (1 + 0.1 * cv.noise(s, t, 3.0))[:, None]
    out[(s % 0.62 < 0.05) | (np.abs(t - 1.62) < 0.03)] = (236, 234, 228)
    return out


def painted(rng):
    """A landscape in oils."""
    ground, above, spot = jitter(rng, *CLOTHES), jitter(rng, (170, 196, 214), (226, 196, 150)), jitter(rng, *PAINT)

    def shade(cv, s, t):
        level = t + 0.1 * cv.noise(s, t, 3.0) - t.mean()
        out = np.where((level > 0)[:, None], above, ground) * (1 + 0.14 * cv.noise(s, t, 0.8))[:, None]
        out[(s - s.mean()) ** 2 + (level - 0.12) ** 2 < 0.012] = spot
        return out

    return shade


def books(cv, s, t):
    """Spines of many colours, their height differing, on boards 0.36 m apart."""
    column, row = np.floor(s / 0.055), np.floor(t / 0.36)
    hue = cv.cell(column, row)[:, None]
    colours = np.array([*CLOTHES, (150, 120, 90)], float)[(hue[:, 0] * 8).astype(int)]
    out = colours * (0.75 + 0.3 * np.sin((s % 0.055) / 0.055 * np.pi))[:, None]
    out[(t % 0.36) > 0.24 + 0.09 * cv.cell(column + 7, row)] = (34, 28, 26)
    return out


def shifted(at, x=0.0, y=0.0, z=0.0):
    return at[0] + (x, y, z) @ at[1], at[1]


def hang(cv, wall, x, y, label, shader, frame=(70, 54, 40), border=0.06):
    """Something framed on a wall, between the pairs x and y of the wall's metres."""
    cv.box(wall, x, y, (-0.05, 0), label, matte(frame, 0.1, 0.6))
    origin, axes = shifted(wall, z=-0.055)
    inner = rect(x[0] + border, y[0] + border, x[1] - border, y[1] - border)
    cv.face(origin, axes[0], Y, inner, label, shader)


def window(cv, wall, x, top=2.15, cloth=None):
    """A window with curtains on both sides, and the light that falls in."""
    origin, axes = wall
    cv.face(*(shifted(wall, z=-0.02)[0], axes[0], Y), rect(x[0], 0.85, x[1], top), "windowpane", outside, lit=False)
    cv.box(wall, (x[0] - 0.1, x[1] + 0.1), (0.78, 0.86), (-0.16, 0), "windowpane", matte((232, 230, 224)))
    cv.shadow(shifted(wall, z=-1.5), (x[0] - 0.3, x[1] + 0.3), (-0.9, 0.9), -0.28)
    if cloth is not None:
        for start, end in ((x[0] - 0.38, x[0] + 0.16), (x[1] - 0.16, x[1] + 0.38)):
            hem = np.linspace(end, start, 12)
            line = (
                np.column_stack([hem, top + 0.14 + 0 * hem]),
                np.column_stack([hem[::-1], 0.12 + 0.03 * np.sin(hem * 24)]),
            )
            cv.face(shifted(wall, z=-0.18)[0], axes[0], Y, np.concatenate(line), "curtain", folds(cloth, 0.16, 0.4))


def sofa(cv, at, width, label="sofa"):
    rng, half = cv.rng, width / 2
    colour = jitter(rng, (124, 60, 52), (70, 88, 112), (150, 144, 134), (92, 104, 78), (176, 146, 108))
    cloth = matte(colour, 0.1, 0.7)
    cv.shadow(at, (-half, half), (-0.95, 0), 0.7)
    cv.box(at, (-half, half), (0.06, 0.3), (-0.9, 0), label, matte(colour * 0.8, 0.1, 0.7))
    cv.prism(at, rect(-half + 0.05, 0.2, half - 0.05, 0.88, 0.1), -0.26, 0, label, cloth)
    seats = 1 if width < 1.2 else 3
    edges = np.linspace(-half + 0.2, half - 0.2, seats + 1)
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        cv.prism(
            at, rect(left + 0.01, 0.28, right - 0.01, 0.48, 0.05), -0.9, -0.2, label, matte(colour * 1.06, 0.1, 0.7)
        )
        cv.prism(at, rect(left + 0.01, 0.46, right - 0.01, 0.86, 0.09), -0.34, -0.2, label, cloth)
    for left in (-half, half - 0.22):
        cv.prism(at, rect(left, 0.06, left + 0.22, 0.64, 0.09), -0.93, 0, label, cloth)
    for x in (edges[:-1] + 0.26) if seats > 1 else ():
        tilt, origin = rng.uniform(-0.3, 0.3), shifted(at, x + rng.uniform(-0.05, 0.1), 0.68, -0.4)
        spin = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        pillow = rect(-0.2, -0.19, 0.2, 0.19, 0.07) @ spin
        cv.prism(origin, pillow, -0.08, 0.04, "cushion", folds(jitter(rng, *CLOTHES), 0.11, 0.3))


def table(cv, at, x, z, height, label, colour, leg=0.07):
    wood = matte(colour, 0.13, (0.5, 3.0))
    cv.shadow(at, x, z, 0.55)
    for lx in (x[0] + 0.05, x[1] - 0.05 - leg):
        for lz in (z[0] + 0.05, z[1] - 0.05 - leg):
            cv.box(at, (lx, lx + leg), (0, height), (lz, lz + leg), label, wood)
    cv.box(at, x, (height - 0.07, height), z, label, wood)


def chair(cv, at, colour):
    table(cv, at, (-0.23, 0.23), (-0.23, 0.23), 0.47, "chair", colour, 0.055)
    for x in (-0.23, 0.175):
        cv.box(at, (x, x + 0.055), (0.4, 0.95), (0.17, 0.23), "chair", matte(colour, 0.1, 0.6))
    cv.box(at, (-0.23, 0.23), (0.62, 0.95), (0.18, 0.22), "chair", folds(colour, 0.1, 0.3))


def chest(cv, at, x, y, depth, label, colour, columns, rows, top=None):
    """A box on the wall with a grid of doors or drawers, each with a knob."""
    wide, tall = (x[1] - x[0]) / columns, (y[1] - y[0]) / rows
    if y[0] < 0.3:
        cv.shadow(at, x, (-depth, 0), 0.6)
    cv.box(at, x, y, (-depth, 0), label, matte(colour, 0.1, (0.6, 3.0)))

    def front(c, s, t):
        u, v = (s - x[0]) % wide, (t - y[0]) % tall
        edge = np.minimum(np.minimum(u, wide - u), np.minimum(v, tall - v))
        tone = 1 + 0.06 * c.noise(s, t, (0.6, 3.0)) - 0.5 * (edge < 0.015) + 0.12 * (np.abs(edge - 0.05) < 0.012)
        tone -= 0.5 * (np.hypot(u - wide / 2, v - tall * 0.8) < 0.03)
        return np.asarray(colour) * tone[:, None]

    origin, axes = shifted(at, z=-depth - 0.005)
    cv.face(origin, axes[0], Y, rect(x[0], y[0], x[1], y[1]), label, front)
    if top is not None:
        cv.box(
            at, (x[0] - 0.03, x[1] + 0.03), (y[1], y[1] + 0.05), (-depth - 0.04, 0), top[0], matte(top[1], 0.16, 0.5)
        )


def lamp(cv, at, height, size=0.22):
    """A lamp with a shining shade; stands on the place's y."""
    origin, _ = at
    card = cv.card(origin[0], origin[2], origin[1])
    cv.face(*card, oval(0, 0.02, size * 0.8, 0.04), "lamp", matte((64, 56, 48)))
    cv.face(*card, rect(-0.035, 0, 0.035, height), "lamp", cylinder((120, 98, 62), 0, 0.035))
    shade = np.array(
        [(-size, height - size * 1.3), (size, height - size * 1.3), (size * 0.65, height), (-size * 0.65, height)]
    )
    cv.face(
        *card,
        shade,
        "lamp",
        cylinder(jitter(cv.rng, (250, 226, 176), (244, 214, 190), spread=5), 0, size * 1.2),
        lit=False,
    )
    cv.lamps.append((origin + Y * (height - size), 0.12))


def pot_plant(cv, at, height):
    origin, _ = at
    card, green = cv.card(origin[0], origin[2], origin[1]), jitter(cv.rng, (60, 112, 56), (84, 124, 60), (48, 92, 60))
    cv.shadow(at, (-0.3, 0.3), (-0.3, 0.3), 0.6)
    rim = 0.17 * height
    for turn in np.linspace(0.25, np.pi - 0.25, 9) + cv.rng.normal(0, 0.12, 9):
        reach, out = cv.rng.uniform(0.5, 0.75) * height, np.linspace(0, 1, 8)[:, None]
        spine = np.hstack(
            [np.cos(turn) * reach * out * 0.75, 0.25 * height + np.sin(turn) * reach * out - 0.1 * reach * out**3]
        )
        half = np.array([-np.sin(turn), np.cos(turn)]) * 0.1 * height * np.sin(np.pi * np.clip(out + 0.1, 0, 1))
        leaf = np.concatenate([spine + half, (spine - half)[::-1]])
        cv.face(*card, leaf, "plant", leaves(green * cv.rng.uniform(0.65, 1.25), 0.5, 0.15))
    pot = np.array([(-rim * 0.7, 0), (rim * 0.7, 0), (rim, height * 0.3), (-rim, height * 0.3)])
    cv.face(*card, pot, "pot", cylinder(jitter(cv.rng, (176, 96, 66), (226, 222, 212), (78, 90, 104)), 0, rim))


def room(rng, size, width, depth, floor=None, wall=None, light="lamp"):
    """An empty room: (canvas, back wall, left wall, right wall); a wall's origin is its middle at the floor."""
    eye = rng.uniform(-0.5, 0.5), rng.uniform(1.35, 1.6), 0
    side = rng.choice((-1, 1))
    sun = side * 0.5, 0.6, -0.3
    cv = Canvas(rng, size, eye, rng.uniform(-0.22, 0.22), rng.uniform(0.36, 0.46), rng.uniform(0.78, 0.86), sun)
    cv.ambient, cv.lamps = (
        0.62,
        [(np.array([0, 2.2, depth * 0.6]), 0.45), (np.array([side * width * 0.4, 1.6, depth * 0.55]), 0.7)],
    )
    tall, boards = 2.65, jitter(rng, (156, 112, 72), (186, 150, 106), (118, 80, 56), spread=8)
    floor = floor or grid(boards, boards * 0.55, 1.4, 0.13, 0.008, 0.16, 0.37, 0.08)
    if wall is None:
        paint = jitter(
            rng, (206, 198, 182), (184, 196, 200), (204, 186, 160), (180, 190, 170), (214, 206, 204), spread=8
        )
        stripe = rng.uniform(0, 0.06)
        wall = lambda c, s, t: paint * (1 + 0.035 * c.noise(s, t, 5.0) + stripe * np.sign(np.sin(s * 16)))[:, None]  # noqa: E731
    back, left, right = (
        place(0, depth),
        place(-width / 2, depth / 2, -np.pi / 2),
        place(width / 2, depth / 2, np.pi / 2),
    )
    cv.face(-width / 2 * X, X, Z, rect(0, -1, width, depth), "floor", floor)
    cv.face(-width / 2 * X + tall * Y, X, Z, rect(0, -1, width, depth), "ceiling", matte((232, 228, 220), 0.02, 5.0))
    for (origin, axes), half in ((back, width / 2), (left, depth / 2 + 1), (right, depth / 2 + 1)):
        cv.face(origin, axes[0], Y, rect(-half, 0, half, tall), "wall", wall)
        cv.box((origin, axes), (-half, half), (0, 0.09), (-0.02, 0), None, matte((226, 222, 212)))  # skirting board
        cv.shadow((origin, axes), (-half, half), (-0.35, 0.35), 0.4)
        cv.shadow((origin, axes), (-half, half), (-0.3, 0.3), 0.25, tall - 0.01)
    return cv, back, left, right


def living_room(rng, size):
    width, depth = rng.uniform(4.6, 5.4), rng.uniform(4.4, 5.2)
    cv, back, left, right = room(rng, size, width, depth)
    near, far = (left, right) if rng.random() < 0.5 else (right, left)
    flip = 1 if near is left else -1
    window(cv, back, (-flip * 1.75 - 0.55, -flip * 1.75 + 0.55), cloth=jitter(rng, *CLOTHES))
    hang(cv, back, (-0.55 + flip * 0.7, 0.35 + flip * 0.7), (1.3, 1.95), "painting", painted(rng))
    rug = jitter(rng, *CLOTHES)
    at = place(flip * 0.2, depth - 2.1)
    weave = folds(rug, 0.3, 0.45, along=rng.integers(2))
    cv.face(at[0] + 0.012 * Y, X, Z, rect(-1.4, -0.95, 1.4, 0.95), "rug", matte(rug * 0.6 + 60, 0.1))
    cv.face(at[0] + 0.014 * Y, X, Z, rect(-1.25, -0.8, 1.25, 0.8), "rug", weave)
    sofa(cv, shifted(back, flip * 0.6, z=-0.05), rng.uniform(2.0, 2.3))
    wood = jitter(rng, (128, 84, 52), (90, 62, 46), (176, 138, 94))
    table(cv, at, (-0.55, 0.55), (-0.3, 0.3), 0.42, "coffee table", wood)
    sofa(cv, shifted(place(-flip * 1.55, depth - 2.2, flip * 1.0)), 0.9, "armchair")
    chest(cv, shifted(near, flip * 0.4), (-0.8, 0.8), (0.05, 0.55), 0.45, "cabinet", wood, 3, 1)
    hang(
        cv,
        shifted(near, flip * 0.4, z=-0.2),
        (-0.6, 0.6),
        (0.62, 1.32),
        "television receiver",
        screen,
        (24, 24, 26),
        0.04,
    )
    chest(cv, shifted(far, -flip * 0.3), (-0.55, 0.55), (0, 2.0), 0.34, "bookcase", wood * 0.8, 1, 1)
    origin, axes = shifted(far, -flip * 0.3, z=-0.35)
    for shelf in range(5):
        cv.face(origin + (0.1 + 0.38 * shelf) * Y, axes[0], Y, rect(-0.5, 0, 0.5, 0.3), "book", books)
    lamp(cv, shifted(back, flip * (width / 2 - 0.35), z=-0.45), 1.6, 0.27)
    pot_plant(cv, shifted(back, -flip * 0.75, z=-0.4), rng.uniform(0.9, 1.2))
    ceiling_light(cv, rng.uniform(-0.5, 0.5), depth * 0.55)
    return cv


def screen(cv, s, t):
    """A dark television that reflects the room."""
    glow = np.clip(1.2 - np.hypot(s - s.mean() - 0.2, t - t.mean()) * 2.0, 0.2, 1)
    return np.array((34, 40, 50)) * (0.6 + glow + 0.15 * cv.noise(s, t, 2.0))[:, None]


def ceiling_light(cv, x, z, drop=0.35):
    card = cv.card(x, z, 2.65 - drop)
    cv.face(*card, rect(-0.02, 0, 0.02, drop), "light", matte((70, 66, 60)))
    cv.face(*card, oval(0, 0, 0.2, 0.15), "light", cylinder((252, 240, 206), 0, 0.3), lit=False)


def silver(cv, s, t):
    """A mirror: the blurred, slanting reflections of a bright room."""
    streak = 0.13 * np.sin((s + 0.7 * t) * 5) + 0.1 * cv.noise(s, t, 3.0)
    return np.array((176, 190, 198)) * (0.9 + streak + 0.12 * (t - t.mean()))[:, None]


def bedroom(rng, size):
    width, depth = rng.uniform(4.2, 4.8), rng.uniform(4.4, 5.0)
    cv, back, left, right = room(rng, size, width, depth)
    near, far = (left, right) if rng.random() < 0.5 else (right, left)
    flip = 1 if near is left else -1
    wood, linen = jitter(rng, (128, 84, 52), (90, 62, 46), (190, 156, 112)), jitter(rng, *CLOTHES)
    cv.face(
        (0.014 * Y + (depth - 2.2) * Z),
        X,
        Z,
        rect(-1.6, -1.0, 1.6, 1.0),
        "rug",
        folds(jitter(rng, *CLOTHES), 0.35, 0.35),
    )
    bed = shifted(back, flip * rng.uniform(0.1, 0.4), z=-0.05)
    cv.shadow(bed, (-0.9, 0.9), (-2.1, 0), 0.75)
    cv.box(bed, (-0.95, 0.95), (0, 1.15), (-0.08, 0), "bed", matte(wood, 0.12, (0.6, 3.0)))
    cv.box(bed, (-0.88, 0.88), (0.05, 0.3), (-2.05, -0.08), "bed", matte(wood * 0.8, 0.12))
    cv.prism(bed, rect(-0.87, 0.28, 0.87, 0.56, 0.08), -2.05, -0.08, "bed", matte((232, 228, 220), 0.05, 0.9))
    cv.prism(bed, rect(-0.92, 0.24, 0.92, 0.62, 0.12), -2.09, -0.75, "bed", folds(linen, 0.28, 0.22))
    for x in (-0.44, 0.44):
        cv.prism(
            shifted(bed, x, 0.72, -0.26),
            rect(-0.34, -0.16, 0.34, 0.2, 0.1),
            -0.1,
            0.1,
            "pillow",
            folds((240, 236, 228), 0.3, 0.12),
        )
    hang(cv, shifted(bed), (-0.5, 0.5), (1.4, 2.0), "painting", painted(rng))
    for x in (-1.28, 1.28):
        stand = shifted(bed, x)
        chest(cv, stand, (-0.25, 0.25), (0.0, 0.52), 0.4, "chest of drawers", wood, 1, 2)
        lamp(cv, shifted(stand, y=0.52, z=-0.2), 0.5, 0.17)
    window(cv, shifted(far, -flip * 0.1), (-0.6, 0.6), cloth=jitter(rng, *CLOTHES))
    chest(cv, shifted(near, flip * 1.2), (-0.7, 0.7), (0, 2.15), 0.55, "wardrobe", wood * 1.1, 2, 1)
    hang(cv, shifted(near, -flip * 0.0), (-0.35, 0.35), (0.35, 1.95), "mirror", silver, (206, 176, 112))
    chair(cv, place(-flip * 1.5, depth - 2.4, flip * rng.uniform(0.6, 1.2)), wood)
    pot_plant(cv, shifted(far, -flip * 1.5, z=-0.35), rng.uniform(0.8, 1.1))
    ceiling_light(cv, rng.uniform(-0.4, 0.4), depth * 0.5)
    return cv


def kitchen(rng, size):
    width, depth = rng.uniform(3.9, 4.5), rng.uniform(4.0, 4.6)
    stone = jitter(rng, (196, 188, 176), (150, 146, 142), (176, 120, 92))
    tiles = grid(stone, stone * 0.65, 0.4, 0.4, 0.012, 0.1, 0.0)
    cv, back, left, right = room(rng, size, width, depth, tiles)
    flip = rng.choice((-1, 1))
    front, top = (
        jitter(rng, (222, 214, 198), (120, 140, 132), (150, 100, 64), (84, 98, 118)),
        jitter(rng, (72, 70, 72), (190, 184, 176)),
    )
    glaze, half = jitter(rng, (226, 222, 210), (164, 192, 190)), width / 2
    splash = shifted(back, z=-0.005)
    cv.face(splash[0], X, Y, rect(-half, 0.9, half, 1.5), "wall", grid(glaze, glaze * 0.75, 0.2, 0.1, 0.01, 0.1))
    window(cv, back, (-0.45, 0.45), 2.1)
    run = shifted(back, flip * -0.35)
    chest(cv, run, (-half + 0.35, half - 0.4), (0.05, 0.86), 0.6, "cabinet", front, 6, 1, ("countertop", top))
    for start, end in ((-half + 0.35, -0.75), (0.75, half - 0.4)):
        chest(cv, run, (start + flip * 0.35, end + flip * 0.35), (1.5, 2.25), 0.35, "cabinet", front, 2, 1)
    sink = shifted(back, z=-0.62)
    cv.box(sink, (-0.36, 0.36), (0.66, 0.93), (-0.03, 0.4), "sink", matte((214, 216, 218), 0.06))
    cv.face(sink[0] + 0.935 * Y, X, Z, rect(-0.3, 0.04, 0.3, 0.34, 0.06), "sink", matte((140, 146, 150), 0.12))
    cooker(cv, shifted(back, flip * 1.05, z=0))
    steel = jitter(rng, (206, 208, 210), (226, 224, 218), spread=5)
    chest(cv, shifted(back, -flip * (half - 0.38)), (-0.36, 0.36), (0.03, 1.85), 0.66, "refrigerator", steel, 1, 2)
    table_at = place(flip * 0.35, depth - 1.9, rng.uniform(-0.3, 0.3))
    wood = jitter(rng, (150, 104, 64), (196, 164, 120), (104, 72, 54))
    table(cv, table_at, (-0.6, 0.6), (-0.38, 0.38), 0.75, "table", wood)
    for x, z, turn in ((-0.3, 0.62, 0), (0.95, 0.1, 1.4), (-0.95, -0.1, -1.5)):
        chair(cv, (shifted(table_at, x, 0, z)[0], turned(turn)), wood * 0.9)
    card = cv.card(*shifted(table_at, 0.2)[0][[0, 2]], 0.75)
    cv.face(
        *card,
        np.array([(-0.09, 0), (0.09, 0), (0.12, 0.12), (0.05, 0.24), (-0.05, 0.24), (-0.12, 0.12)]),
        "vase",
        cylinder(jitter(rng, *CLOTHES), 0, 0.12),
    )
    for x, y in ((-0.1, 0.36), (0.0, 0.42), (0.11, 0.35)):
        cv.face(
            *card,
            blob(rng, x, y, 0.09, 0.08, 0.2),
            "flower",
            matte(jitter(rng, (222, 50, 60), (244, 196, 50), (190, 90, 190)), 0.2, 0.4),
        )
    hang(
        cv,
        shifted(left if flip > 0 else right, flip * 0.4),
        (-0.45, 0.45),
        (0.0, 2.05),
        "door",
        panels(jitter(rng, (214, 206, 190), (150, 110, 74))),
    )
    ceiling_light(cv, flip * 0.3, depth - 1.9, 0.6)
    return cv


def cooker(cv, at):
    cv.box(at, (-0.32, 0.32), (0, 0.93), (-0.64, 0), "stove", matte((58, 60, 64), 0.1))
    origin, axes = shifted(at, z=-0.645)
    cv.face(origin, X, Y, rect(-0.26, 0.2, 0.26, 0.66, 0.04), "stove", screen)
    cv.face(origin, X, Y, rect(-0.28, 0.76, 0.28, 0.88), "stove", matte((186, 188, 190)))
    for x in (-0.18, 0.18):
        cv.face(origin, X, Y, oval(x, 0.82, 0.04, 0.04), "stove", matte((40, 40, 42)))
        cv.face(at[0] + 0.935 * Y - 0.4 * Z, X, Z, oval(x, 0, 0.12, 0.12), "stove", matte((24, 24, 26), 0.2))
    card = cv.card(at[0][0] - 0.16, at[0][2] - 0.32, 0.94)
    cv.face(
        *card,
        rect(-0.13, 0, 0.13, 0.16, 0.03),
        "pot",
        cylinder(jitter(cv.rng, (190, 60, 48), (180, 182, 184)), 0, 0.13),
    )
    hood = [
        (-0.34, 1.55),
        (0.34, 1.55),
        (0.34, 1.65),
        (0.16, 1.9),
        (0.16, 2.64),
        (-0.16, 2.64),
        (-0.16, 1.9),
        (-0.34, 1.65),
    ]
    cv.face(at[0] - 0.4 * Z, X, Y, np.array(hood), "hood", cylinder((190, 192, 194), 0, 0.4))


# ---- the dataset ----------------------------------------------------------------------------------------------------

SCENES = (street, living_room, park, bedroom, coast, kitchen, street, living_room, park, coast)
PORTRAIT = (1, 4, 6)  # positions in SCENES


def render_scene(seed, split, index):
    """(RGB image, mask in annotation ids) of one scene; it depends on nothing but its arguments."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    short, long = rng.integers(480, 561), rng.integers(640, 721)
    return SCENES[index](rng, (short, long) if index in PORTRAIT else (long, short)).finish()


def is_complete(folder):
    """Whether `folder` holds images and as many annotations for both splits."""
    counts = [
        len([path for path in (folder / kind / split).glob("*") if path.suffix.lower() in suffixes])
        for split in SPLITS
        for kind, suffixes in (("images", {".jpg", ".jpeg", ".png"}), ("annotations", {".png"}))
    ]
    return min(counts) > 0 and counts[::2] == counts[1::2]


def render_toy_dataset(output_dir: str | os.PathLike = "ADE20k_toy_dataset", seed: int = 0) -> Path:
    """Render the toy dataset into `output_dir`, unless a complete dataset is already there.

    Returns the folder. Raises UserError when it holds anything else. The pictures are rendered beside it and the
    finished folder is renamed into place, so that an interrupted run leaves no half dataset behind.
    """
    output_dir = Path(output_dir)
    if is_complete(output_dir):
        print(f"{output_dir}: using the dataset that is already there")
        return output_dir
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(
            f"{output_dir} exists, but is no complete dataset (images/ and annotations/, each with training/ and "
            "validation/, one annotation for every image); remove it or choose another --output_dir"
        )
    parent = output_dir.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=parent) as temporary:
        for split, short in SPLITS.items():
            images, annotations = (Path(temporary, "data", kind, split) for kind in ("images", "annotations"))
            images.mkdir(parents=True)
            annotations.mkdir(parents=True)
            for index in range(len(SCENES)):
                image, mask = render_scene(seed, split, index)
                name = f"ADE_{short}_{index + 1:08d}"
                image.save(images / f"{name}.jpg", quality=92)
                mask.save(annotations / f"{name}.png")
        os.replace(Path(temporary, "data"), output_dir)
    print(f"{output_dir}: rendered {len(SCENES)} training and {len(SCENES)} validation images")
    return output_dir


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="ADE20k_toy_dataset", help="folder to render into")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another world")
    arguments = parser.parse_args()
    render_toy_dataset(arguments.output_dir, arguments.seed)
