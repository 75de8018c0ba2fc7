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
        if not seen.any():
            return
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

    def front(self, at, outline, label, shader, z=0.0, lit=True):
        """Paint an outline of local (x, y) in the upright plane at local z; `at` is a (origin, axes) place."""
        origin, axes = at
        self.face(origin + z * axes[2], axes[0], Y, outline, label, shader, lit)

    def flat(self, at, outline, label, shader, y=0.0):
        """Paint an outline of local (x, z) in the level plane at local y."""
        origin, axes = at
        self.face(origin + y * Y, axes[0], axes[2], outline, label, shader)

    def facing(self, x, z, y=0.0):
        """A place at (x, y, z) whose front faces the camera, for flat figures."""
        return np.array([x, y, z]), np.stack([self.right, Y, self.forward])

    def pick(self, colours, spread=12):
        """One of the colours, moved a little."""
        return (self.rng.choice(colours) + self.rng.normal(0, spread, 3)).clip(4, 250).astype(np.float32)

    def prism(self, at, outline, z0, z1, label, shader):
        """A solid with cross-section `outline` (convex, anticlockwise, local x and y) from local z0 to z1."""
        origin, axes = at
        eye = axes @ (self.eye - origin)
        for z, visible in ((z0, eye[2] < z0), (z1, eye[2] > z1)):
            if visible:
                self.front(at, outline, label, shader, z)
        for p, q in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            edge, length = (q - p), np.hypot(*(q - p))
            if edge[1] * (eye[0] - p[0]) - edge[0] * (eye[1] - p[1]) > 0:
                start = origin + p @ axes[:2] + z0 * axes[2]
                self.face(start, edge @ axes[:2] / length, axes[2], rect(0, 0, length, z1 - z0), label, shader)

    def box(self, at, x, y, z, label, shader, soft=0.0):
        """A box between the pairs x, y, z of local coordinates; `soft`: radius of its rounded edges."""
        self.prism(at, rect(x[0], y[0], x[1], y[1], soft), z[0], z[1], label, shader)

    def shadow(self, at, x, z, strength=0.5, y=0.01):
        """Darken (strength < 0: brighten) softly what lies in the horizontal plane y around local (x, z) pairs."""
        origin, axes = shifted(at, np.mean(x), y, np.mean(z))
        radius = np.ptp(x) / 2, np.ptp(z) / 2
        covered = self._cover(origin, axes[0], axes[2], oval(0, 0, radius[0] * 1.5, radius[1] * 1.5))
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
        return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)), Image.fromarray(
            self.ids[::SUPERSAMPLING, ::SUPERSAMPLING].copy()
        )


# ---- shapes ---------------------------------------------------------------------------------------------------------


def turned(angle):
    """Rows right, up, back of a frame turned by `angle` radians about the vertical."""
    return np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])


def place(x, z, angle=0.0, y=0.0):
    """(origin, axes) of an object that stands at (x, y, z); at angle 0 its front looks at the viewer."""
    return np.array([x, y, z]), turned(angle)


def shifted(at, x=0.0, y=0.0, z=0.0):
    return at[0] + (x, y, z) @ at[1], at[1]


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


def ridge(rng, width, low, high):
    """A skyline by midpoint displacement between heights `low` and `high`, down to y = -1."""
    line = rng.uniform(0, 1, 5)
    for k in range(5):
        middle = (line[1:] + line[:-1]) / 2 + rng.normal(0, 0.35 / 2**k, len(line) - 1)
        line = np.insert(line, np.arange(1, len(line)), middle)
    line = low + (high - low) * (line - line.min()) / np.ptp(line)
    x = np.linspace(-width / 2, width / 2, len(line))
    return np.concatenate([np.column_stack([x, line]), [[width / 2, -1], [-width / 2, -1]]])


# ---- surfaces: each returns a shader --------------------------------------------------------------------------------


def surface(function):
    """Let function(cv, s, t, *options) be called with its options alone; that returns the shader of (cv, s, t)."""
    return lambda *args, **kwargs: lambda cv, s, t: function(cv, s, t, *args, **kwargs)


def toned(colour, tone):
    return np.asarray(colour, np.float32) * tone[:, None]


def matte(colour, rough=0.06, scale=3.0):
    return lambda cv, s, t: toned(colour, 1 + rough * cv.noise(s, t, scale))


def wood(colour):
    return lambda cv, s, t: toned(colour, 1 + 0.08 * cv.noise(s, t, (0.7, 6.0)) + 0.04 * cv.noise(s, t, 2.0))


def gloss(colour):
    """Glass and screens: slanting reflections."""
    return lambda cv, s, t: toned(colour, 0.95 + 0.2 * np.sin(2.5 * s + 3.5 * t) + 0.1 * cv.noise(s, t, 4.0))


@surface
def folds(cv, s, t, colour, period, depth=0.3, along=0):
    """Cloth that hangs in folds, or anything else with soft stripes along s (0) or t (1)."""
    phase = (s, t)[along] * (2 * np.pi / period) + 0.25 * cv.noise(s, t, 5.0)
    return toned(colour, 1 - depth / 2 + depth * np.sin(phase) + 0.05 * cv.noise(s, t, 2.0))


@surface
def cylinder(cv, s, t, colour, x, radius):
    """Something round about the vertical through s = x, lit from one side."""
    across = np.clip((s - x) / radius, -1, 1)
    return toned(colour, 0.62 + 0.5 * np.sqrt(1 - across**2) - 0.2 * across + 0.06 * cv.noise(s, t, 1.0))


@surface
def leaves(cv, s, t, colour, scale, contrast=0.3):
    """Foliage: clumps of light and shade, sprinkled with single leaves, yellower where bright."""
    tone = contrast * (0.5 * cv.noise(s, t, scale) + 0.4 * np.sign(cv.noise(s, t, scale / 7)))
    return np.asarray(colour, np.float32) * (1 + tone[:, None] * np.array((1.15, 1.0, 0.7), np.float32))


@surface
def grid(cv, s, t, colour, joint, du, dv, gap, vary=0.1, shift=0.5):
    """Bricks, tiles or boards of du x dv metres with joints `gap` wide; each row is moved by `shift` of a brick."""
    row = np.floor(t / dv)
    along = s / du + shift * row
    column = np.floor(along)
    tone = 1 + 0.06 * cv.noise(s, t, 2.0)
    out = toned(colour, tone + vary * (2 * cv.cell(column, row) - 1))
    gaps = ((along - column) * du < gap) | (t - row * dv < gap)
    out[gaps] = toned(joint, tone[gaps])
    return out


@surface
def facade(cv, s, t, wall, glass, du, dv):
    """Rows of framed windows of a building, each pane with its own reflection."""
    column, row = np.floor(s / du), np.floor(t / dv)
    u, v = np.abs(s / du - column - 0.5), t / dv - row
    out = toned(wall, 1 + 0.09 * cv.noise(s, t, 6.0) + 0.05 * np.sign(np.sin(t * 21)) - 0.2 * (v < 0.06))
    out[(u < 0.31) & (v > 0.22) & (v < 0.87)] = np.asarray(wall) * 0.45 + 120
    pane = (u < 0.26) & (v > 0.27) & (v < 0.83) & (u > 0.02)
    out[pane] = toned(glass, 0.45 + 0.8 * cv.cell(column, row) + 0.35 * (v - 0.5) + 0.15 * cv.noise(s, t, 3.0))[pane]
    return out


@surface
def panels(cv, s, t, colour, wide, tall):
    """Doors or drawers of wide x tall metres, each with a bevel and a knob."""
    u, v = s % wide, t % tall
    edge = np.minimum(np.minimum(u, wide - u), np.minimum(v, tall - v))
    dark = (edge < 0.015) | (np.hypot(u - wide * 0.85, v - tall * 0.55) < 0.03)
    return toned(colour, 1 + 0.05 * cv.noise(s, t, (0.7, 6.0)) - 0.5 * dark + 0.12 * (np.abs(edge - 0.06) < 0.012))


def garden(cv, s, t):
    """What a window shows: a blurred, bright garden and sky behind white bars."""
    far = np.clip((t - 1.4 + 0.12 * cv.noise(s, t, 4.0)) * 5, 0, 1)
    out = toned((150, 176, 118), 1 - far) + toned((222, 236, 248), far) + 10 * cv.noise(s, t, 3.0)[:, None]
    out[(s % 0.62 < 0.05) | (np.abs(t - 1.62) < 0.03)] = (236, 234, 228)
    return out


@surface
def landscape(cv, s, t, ground, above, spot):
    """A landscape in oils."""
    level = t - t.mean() + 0.1 * cv.noise(s, t, 3.0)
    out = np.where((level > 0)[:, None], above, ground) * (1 + 0.14 * cv.noise(s, t, 0.8))[:, None]
    out[(s - s.mean()) ** 2 + (level - 0.12) ** 2 < 0.012] = spot
    return out


@surface
def water(cv, s, t, colour, scale):
    """Ripples along s, with foam where the waves are highest."""
    wave = 0.6 * cv.noise(s, t, (scale * 5, scale)) + 0.5 * cv.noise(s, t, (scale * 1.2, scale * 0.3))
    return toned(colour, 1 + 0.14 * wave) + toned((85, 90, 88), np.clip(wave - 0.9, 0, 1.2))


@surface
def sky(cv, s, t, top, bottom, clouds):
    """A gradient up a plane 3 km away, with lit clouds; `clouds` is their threshold."""
    height = np.clip(t / 1700, 0, 1) ** 0.7
    cover = cv.noise(s, t, (9000, 3600)) + 0.2 * cv.noise(s, t, 2000) - clouds
    alpha = np.clip(cover * 1.3, 0, 0.95)
    blue = (toned(bottom, 1 - height) + toned(top, height)) * (1 - alpha)[:, None]
    return blue + toned((252, 250, 247), alpha * (1 - 0.14 * np.clip(cover - 0.5, 0, 1)))


SKIN = (224, 178, 148), (190, 138, 104), (122, 82, 58), (236, 196, 172)
CLOTHES = np.array(
    [(170, 40, 44), (38, 62, 120), (226, 222, 212), (52, 52, 58), (216, 168, 52), (66, 120, 96), (120, 70, 130)]
)
PAINT = (176, 30, 34), (34, 66, 128), (222, 222, 220), (42, 44, 48), (126, 132, 138), (196, 150, 40), (40, 96, 84)
PLASTER = (188, 120, 92), (206, 186, 148), (160, 88, 72), (170, 176, 182), (222, 206, 182), (140, 116, 98)
GREENS = (64, 104, 40), (84, 116, 44), (48, 90, 48), (104, 122, 46)
PETALS = (222, 50, 60), (244, 196, 50), (190, 90, 190)
STONE = (128, 122, 114), (112, 106, 104), (150, 146, 140)
TIMBER = (128, 84, 52), (96, 66, 48), (176, 138, 94), (150, 104, 64)
SKIES = (74, 128, 196), (96, 142, 200), (116, 148, 188)


# ---- things outdoors ------------------------------------------------------------------------------------------------


def pile(cv, at, label, colour, size, lumps, contrast=0.3):
    """Overlapping lumps, each (x, y, radius, tone) in units of `size`: a crown, a bush, a rock, a flower."""
    for x, y, radius, tone in lumps:
        outline = blob(cv.rng, x * size, y * size, radius * size * 1.15, radius * size)
        cv.front(at, outline, label, leaves(colour * tone, size * 0.6 + 0.3, contrast))


def tree(cv, x, z, height, y=0.0):
    at, thick, spread = cv.facing(x, z, y), 0.035 * height, 0.3 * height
    cv.shadow(place(x, z, y=y), (-spread, spread), (-spread, spread))
    trunk = np.array([(-thick, 0), (thick, 0), (0.6 * thick, height * 0.6), (-0.6 * thick, height * 0.6)])
    cv.front(at, trunk, "tree", cylinder(cv.pick(STONE) * (0.9, 0.75, 0.6), 0, thick))
    rise = np.arange(9) / 9  # clumps from the dark underside up to the sunlit top
    turn = cv.rng.uniform(0, 6.3) + rise * 21.6
    x, y = np.cos(turn) * (0.22 - 0.14 * rise), 0.5 + 0.37 * rise + 0.04 * np.sin(turn)
    radius = cv.rng.uniform(0.13, 0.2, 9) * (1.15 - 0.4 * rise)
    pile(cv, at, "tree", cv.pick(GREENS), height, zip(x, y, radius, 0.62 + 0.63 * rise, strict=True))


def rock(cv, x, z, size):
    cv.shadow(place(x, z), (-size, size), (-size * 0.6, size * 0.6), 0.6)
    lumps = (0, 0.35, 0.62, 0.72), (-0.15, 0.45, 0.46, 1.0), (-0.3, 0.55, 0.26, 1.2)
    pile(cv, cv.facing(x, z, -0.15 * size), "rock", cv.pick(STONE, 6), size, lumps, 0.2)


def bush(cv, x, z, size):
    cv.shadow(place(x, z), (-size, size), (-size * 0.6, size * 0.6), 0.6)
    lumps = (0, 0.45, 0.7, 0.7), (-0.4, 0.62, 0.4, 0.95), (0.35, 0.68, 0.36, 1.1), (-0.05, 0.85, 0.32, 1.3)
    pile(cv, cv.facing(x, z), "plant", cv.pick(GREENS), size, lumps)


def flower_bed(cv, x, z):
    cv.flat(place(x, z), blob(cv.rng, 0, 0, 1.7, 1.1), "earth", matte((96, 74, 54), 0.2), 0.02)
    for dx, dz in cv.rng.uniform((-1.3, -0.7), (1.3, 0.7), (26, 2)):
        at = cv.facing(x + dx, z + dz)
        pile(cv, at, "plant", np.array((70, 110, 48)), 0.2, [(0, 0.8, 0.9, 1)])
        pile(cv, at, "flower", cv.pick(PETALS), 0.14, [(0, 2.5, 1, 1), (0, 2.5, 0.35, 0.6)], 0.15)


def palm(cv, x, z, height):
    at, lean, green = cv.facing(x, z), cv.rng.uniform(-0.22, 0.22) * height, cv.pick(GREENS)
    cv.shadow(place(x, z), (-1.6, 1.6), (-1, 1))
    rise = np.linspace(0, 1, 12)[:, None]
    middle, half = np.hstack([lean * rise**2, rise * height]), (0.2 - 0.07 * rise) * (1, 0)
    cv.front(at, np.concatenate([middle + half, (middle - half)[::-1]]), "palm", folds((134, 110, 82), 0.3, along=1))
    out = np.linspace(0, 1, 9)[:, None]
    for turn in np.linspace(-0.5, np.pi + 0.5, 11) + cv.rng.normal(0, 0.1, 11):
        reach = cv.rng.uniform(0.3, 0.42) * height
        drop = np.sin(turn) * 0.8 * out - 0.55 * out**2
        spine = reach * np.hstack([np.cos(turn) * out, drop]) + (lean, height)
        half = 0.09 * reach * np.sin(np.pi * np.clip(out + 0.12, 0, 1)) * (0.4, 1)
        frond = np.concatenate([spine + half, (spine - 1.4 * half)[::-1]])
        cv.front(at, frond, "palm", folds(green * cv.rng.uniform(0.7, 1.2), 0.16))


def person(cv, x, z, y=0.0):
    at, h, step = cv.facing(x, z, y), cv.rng.uniform(1.6, 1.85), cv.rng.uniform(0.03, 0.12)
    skin, top, trousers = cv.pick(SKIN, 6), cv.pick(CLOTHES), cv.pick(CLOTHES)
    hair = cv.pick([(40, 30, 24), (96, 66, 38), (150, 130, 110)])
    cv.shadow(place(x, z, y=y), (-0.35, 0.35), (-0.28, 0.28), 0.6)
    parts = []  # (outline in units of the height, colour, x of the axis, radius)
    for s in (-1, 1):
        foot, hand = s * step, s * (0.135 + step * 0.6)
        leg = (foot - 0.045, 0), (foot + 0.06, 0), (s * 0.055 + 0.05, 0.5), (s * 0.055 - 0.055, 0.5)
        arm = (s * 0.1, 0.82), (s * 0.13, 0.78), (hand + 0.03, 0.47), (hand - 0.03, 0.47)
        parts += [(leg, trousers * (0.9 + 0.1 * s), foot, 0.09), (arm, top * 0.82, s * 0.12, 0.06)]
        parts += [
            (rect(foot - 0.05, 0, foot + 0.075, 0.035), hair, 0, 0.2),
            (oval(hand, 0.455, 0.03, 0.035), skin, 0, 0.2),
        ]
    body = (
        (-0.1, 0.46),
        (0.1, 0.46),
        (0.115, 0.6),
        (0.13, 0.8),
        (0.06, 0.85),
        (-0.06, 0.85),
        (-0.13, 0.8),
        (-0.115, 0.6),
    )
    cap = (-0.06, 0.92), (-0.045, 0.97), (0.05, 0.97), (0.062, 0.92), (0.055, 0.985), (0, 1.01), (-0.055, 0.985)
    parts += [(body, top, 0, 0.15), (rect(-0.03, 0.83, 0.03, 0.89), skin * 0.85, 0, 0.1)]
    parts += [(oval(0, 0.93, 0.055, 0.07), skin, 0, 0.07), (cap, hair, 0, 0.1)]
    for outline, colour, middle, radius in parts:
        cv.front(at, np.array(outline) * h, "person", cylinder(colour, middle * h, radius * h))


def car(cv, x, z, angle):
    """A car whose length lies along local x; at angle pi/2 or -pi/2 it stands along the street."""
    at, a, w = place(x, z, angle), cv.rng.uniform(1.95, 2.3), 0.86
    high, mid = cv.rng.uniform(1.4, 1.55), cv.rng.uniform(0.84, 0.95)
    paint, glass = matte(cv.pick(PAINT), 0.03), gloss((66, 80, 92))
    cv.shadow(at, (-a, a), (-w, w), 0.75)
    body = (-a, 0.3), (a, 0.3), (a, 0.62), (0.86 * a, mid - 0.08), (0.45 * a, mid), (-0.9 * a, mid), (-a, 0.8)
    cv.prism(at, np.array(body), -w, w, "car", paint)
    tail, nose = np.array([(-0.86 * a, mid), (-0.55 * a, high)]), np.array([(0.48 * a, mid), (0.12 * a, high)])
    cv.prism(at, np.array([tail[0], nose[0], nose[1], tail[1]]), -w * 0.9, w * 0.9, "car", paint)
    for side in (-1, 1):
        for left, right in ((-0.74, -0.24), (-0.19, 0.3)):
            low, up = (right * a, mid + 0.06), (min(right, 0.1) * a, high - 0.07)
            pane = np.array([(left * a, mid + 0.06), low, up, (max(left, -0.53) * a, high - 0.07)])
            cv.front(at, pane, "car", glass, side * w * 0.9)
        for wheel in (-0.62 * a, 0.62 * a):
            cv.front(at, oval(wheel, 0.33, 0.36, 0.36), "car", matte((26, 26, 28)), side * (w + 0.01))
            cv.front(at, oval(wheel, 0.33, 0.2, 0.2), "car", matte((150, 152, 156)), side * (w + 0.01))
    for end, light, screen in ((-1, (190, 24, 22), tail), (1, (244, 240, 214), nose)):
        origin, axes = shifted(at, end * (a + 0.01))
        slope = np.hypot(*(screen[1] - screen[0]))
        parts = [(rect(-w, 0.3, w, 0.4), (40, 40, 42)), (rect(-0.26, 0.46, 0.26, 0.58), (228, 226, 216))]
        parts += [(rect(s * 0.6 - 0.2, 0.6, s * 0.6 + 0.2, 0.76), light) for s in (-1, 1)]
        for outline, colour in parts:
            cv.face(origin, axes[2], Y, outline, "car", matte(colour))
        up = (screen[1] - screen[0]) / slope @ axes[:2]
        origin = shifted(at, *screen[0])[0] + end * 0.02 * axes[0]
        cv.face(origin, axes[2], up, rect(-w * 0.78, 0.06, w * 0.78, slope - 0.06), "car", glass)


def streetlight(cv, x, z, reach=0.0, height=6.0):
    at, grey = cv.facing(x, z), cv.pick([(72, 78, 82), (46, 58, 52)])
    arm = rect(min(0, reach), height - 0.2, max(0, reach), height)
    for outline in (rect(-0.11, 0, 0.11, height), rect(-0.2, 0, 0.2, 0.9), arm):
        cv.front(at, outline, "streetlight", cylinder(grey, 0, 0.2))
    cv.front(at, rect(reach - 0.55, height - 0.3, reach + 0.55, height + 0.1, 0.1), "streetlight", matte(grey * 1.3))
    glow = rect(reach - 0.4, height - 0.42, reach + 0.4, height - 0.24, 0.05)
    cv.front(at, glow, "streetlight", matte((250, 244, 214)), lit=False)


def traffic_light(cv, x, z):
    at, on = cv.facing(x, z), cv.rng.integers(3)
    cv.front(at, rect(-0.09, 0, 0.09, 3.2), "pole", cylinder((84, 88, 90), 0, 0.09))
    cv.front(at, rect(-0.3, 2.3, 0.3, 3.7, 0.1), "traffic light", matte((34, 38, 36)))
    for k, colour in enumerate(np.array([(60, 220, 110), (250, 190, 50), (240, 50, 40)])):
        bulb = matte(colour * (1 if k == on else 0.28))
        cv.front(at, oval(0, 2.56 + 0.44 * k, 0.18, 0.18), "traffic light", bulb, lit=False)


def bench(cv, x, z, angle):
    at, colour = place(x, z, angle), cv.pick(TIMBER)
    cv.shadow(at, (-0.9, 0.9), (-0.4, 0.4), 0.6)
    for leg in (-0.75, 0.65):
        cv.box(at, (leg, leg + 0.12), (0, 0.45), (-0.25, 0.25), "bench", matte((60, 62, 64)))
    cv.box(at, (-0.95, 0.95), (0.42, 0.5), (-0.28, 0.25), "bench", wood(colour))
    cv.box(at, (-0.95, 0.95), (0.5, 0.98), (0.22, 0.28), "bench", grid(colour, colour * 0.4, 2.5, 0.16, 0.025))


def sailboat(cv, x, z, size):
    at = cv.facing(x, z)
    cv.shadow(place(x, z), (-size * 0.5, size * 0.5), (-size * 0.3, size * 0.3))
    hull = np.array([(-0.42, -0.02), (0.4, -0.02), (0.55, 0.17), (-0.5, 0.14)])
    cv.front(at, hull * size, "boat", folds(cv.pick(PAINT), size * 0.12, 0.15, along=1))
    cv.front(at, rect(-0.02, 0.1, 0.025, 1.0) * size, "boat", matte((120, 92, 66)))
    for sail in ([(0.04, 0.24), (0.46, 0.26), (0.04, 0.97)], [(-0.04, 0.24), (-0.36, 0.26), (-0.04, 0.85)]):
        cv.front(at, np.array(sail) * size, "boat", folds((236, 230, 216), size * 0.3, 0.14))


def house(cv, x, z, angle):
    wall, roof = cv.pick(PLASTER), cv.pick([(142, 70, 52), (96, 84, 80), (120, 58, 48)])
    cv.shadow(place(x, z, angle), (-5, 5), (-4, 4))
    cv.box(place(x, z, angle), (-4, 4), (0, 3), (-3, 3), "house", facade(wall, (92, 110, 124), 2, 2.9))
    gable = np.array([(-3.5, 2.9), (3.5, 2.9), (0, 5.4)])
    cv.prism(place(x, z, angle - np.pi / 2), gable, -4.4, 4.4, "house", grid(roof, roof * 0.6, 0.5, 0.4, 0.06))


def parasol(cv, x, z):
    """A parasol, which has no class in ADE20K, above a towel."""
    at, cloth = cv.facing(x, z), folds(cv.pick(CLOTHES), 0.6, 0.5)
    cv.shadow(place(x, z), (-1.1, 1.1), (-0.8, 0.8))
    cv.flat(place(x, z - 1), rect(-0.6, 0, 0.6, 1.9), "towel", folds(cv.pick(CLOTHES), 0.3, 0.4), 0.03)
    cv.front(at, rect(-0.04, 0, 0.04, 2.2), None, matte((230, 228, 222)))
    cv.front(at, np.array([(-1.3, 1.6), (0, 1.75), (1.3, 1.6), (0.7, 2.15), (0, 2.35), (-0.7, 2.15)]), None, cloth)


def shop(cv, side, z, long):
    """The ground floor of a building on one side of the street: shop window and signboard."""
    at = place(side * 7.97, z + long / 2, side * np.pi / 2)  # local x along the street, the front towards the road
    bright, half = cv.pick(CLOTHES), long / 2
    cv.front(at, rect(0.4 - half, 0.15, half - 0.4, 3.5), "building", matte(cv.pick(TIMBER) * 0.7))
    cv.front(at, rect(0.8 - half, 0.7, half - 0.8, 2.6), "windowpane", gloss((128, 142, 148)))
    cv.front(at, rect(0.5 - half, 2.8, half - 0.5, 3.7), "signboard", matte(bright), -0.06)
    for x in np.arange(1 - half, half - 1, 0.45):  # letters
        letter = rect(x, 3.05, x + cv.rng.uniform(0.15, 0.35), 3.45)
        cv.front(at, letter, "signboard", matte(245 - 0.8 * bright), -0.08)


def outdoors(rng, size, eye, horizon, yaw):
    warm = rng.random() < 0.4
    sun, air = (rng.uniform(-0.9, 0.9), 0.7, rng.uniform(-0.9, -0.2)), (226, 206, 180) if warm else (196, 212, 226)
    cv = Canvas(rng, size, eye, rng.uniform(-yaw, yaw), horizon, 0.95, sun, (air, 500.0))
    heaven = sky(cv.pick(SKIES, 8), cv.pick([(238, 216, 186) if warm else (206, 222, 236)], 6), rng.uniform(0.2, 1.2))
    cv.front(cv.facing(*(3000 * cv.forward)[[0, 2]]), rect(-4000, -60, 4000, 4000), "sky", heaven, lit=False)
    return cv


def hills(cv, distance, high, label, shader):
    cv.front(cv.facing(*(distance * cv.forward)[[0, 2]]), ridge(cv.rng, distance * 3, 0.1 * high, high), label, shader)


def street(rng, size):
    cv = outdoors(rng, size, (rng.uniform(-2, 2), rng.uniform(1.8, 2.6), 0), rng.uniform(0.52, 0.62), 0.14)
    asphalt, stone = cv.pick([(98, 98, 102), (116, 110, 104)], 6), cv.pick([(170, 162, 152), (150, 148, 146)], 6)

    def road(cv, s, t):
        out = toned(asphalt, 1 + 0.08 * cv.noise(s, t, 3.0) + 0.07 * cv.noise(s, t, (2.0, 60.0)))
        dash, zebra = (np.abs(s) < 0.08) & (t % 6 < 3) & (t > 13), (np.abs(t - 9.5) < 1.5) & (s % 1.0 < 0.5)
        out[dash | zebra] = out[dash | zebra] * 0.3 + 150
        return out

    cv.flat(place(0, 0), rect(-4, -3, 4, 400), "road", road)
    for side in (-1, 1):
        paving = grid(stone, stone * 0.72, 0.9, 0.9, 0.04, 0.12)
        cv.box(place(side * 6, 0), (-2, 2), (0, 0.15), (-3, 400), "sidewalk", paving)
        z = -4.0
        while z < 130:
            long, tall = rng.uniform(8, 16), rng.uniform(7, 17)
            wall, glass = cv.pick(PLASTER), cv.pick([(96, 116, 136), (120, 130, 132)])
            shade = facade(wall, glass, rng.uniform(1.8, 2.6), rng.uniform(2.9, 3.5))
            cv.box(place(side * (8 + tall), z), (-tall, tall), (0, tall), (0, long), "building", shade)
            if z < 32:
                shop(cv, side, z, long)
            z += long + rng.choice((0, 0, 3))
        for z in np.arange(rng.uniform(9, 15), 90, rng.uniform(11, 16)):
            tree(cv, side * 5, z, rng.uniform(3.8, 5.5), 0.15)
        for z in np.arange(rng.uniform(6, 9), 70, 7.5):
            if rng.random() < 0.55:
                car(cv, side * 3.0, z, side * np.pi / 2)
        streetlight(cv, side * 4.4, rng.uniform(12, 18), -side * 1.5)
        traffic_light(cv, side * 4.3, rng.uniform(8.5, 11))
    for _ in range(6):
        at = place(rng.uniform(-60, 60), rng.uniform(170, 260), rng.uniform(-0.5, 0.5))
        shade = facade(cv.pick([(150, 160, 172), (176, 160, 140)]), (100, 122, 148), 4.0, 4.5)
        cv.box(at, (-15, 15), (0, rng.uniform(35, 90)), (0, 20), "skyscraper", shade)
    car(cv, rng.choice((-1.0, 1.0)), rng.uniform(16, 26), np.pi / 2)
    person(cv, rng.uniform(-2, 2), rng.uniform(8.6, 10.4))
    for _ in range(6):
        person(cv, rng.choice((-1, 1)) * rng.uniform(5.2, 7.3), rng.uniform(6, 24), 0.15)
    cable_box = place(rng.choice((-5.0, 5.0)), rng.uniform(6.5, 9), 0.1, 0.15)  # has no class in ADE20K
    cv.box(cable_box, (-0.3, 0.3), (0, 1.0), (-0.2, 0.2), None, matte((112, 124, 112)))
    return cv


def park(rng, size):
    cv = outdoors(rng, size, (0, rng.uniform(1.6, 2.2), 0), rng.uniform(0.44, 0.54), 0.25)
    green, grey, side = cv.pick(GREENS, 7) + 22, cv.pick([(112, 112, 122), (124, 112, 104)], 6), rng.choice((-1, 1))

    def slope(cv, s, t):
        out = toned(grey, 1 + 0.3 * cv.noise(s + t, t, 500.0))
        out[t + 26 * cv.noise(s, t, 300.0) > 220] = (236, 240, 246)  # snow
        return out

    hills(cv, 900, rng.uniform(260, 360), "mountain", slope)
    hills(cv, 300, 34, "hill", leaves(green * 0.8, 90.0, 0.2))
    cv.flat(place(0, 0), rect(-400, -3, 400, 420), "grass", leaves(green, 6.0, 0.16))
    lake = blob(rng, side * 17, rng.uniform(22, 26), 14, 11)
    cv.flat(place(0, 0), lake, "water", water((86, 122, 146), 6.0), 0.02)
    z = np.linspace(-2, 110, 60)
    middle = -side * (1.2 + 0.05 * z) + 2.4 * np.sin(z / rng.uniform(7, 10) + rng.uniform(0, 6))
    trail = np.concatenate([np.column_stack([middle - 1.2, z]), np.column_stack([middle + 1.2, z])[::-1]])
    cv.flat(place(0, 0), trail, "path", matte(cv.pick([(190, 166, 130), (172, 160, 146)], 6), 0.1), 0.015)
    house(cv, -side * rng.uniform(10, 15), rng.uniform(34, 42), rng.uniform(-0.5, 0.5))
    boards, at = cv.pick([(214, 208, 196), (140, 104, 70)]), place(-side * 9, 23, rng.uniform(-0.25, 0.25))
    cv.box(at, (-7, 7), (0, 1.4), (0, 0.08), "fence", grid(boards, boards * 0.4, 0.24, 3.0, 0.05, 0.2, 0))
    for _ in range(9):
        tree(cv, rng.uniform(-45, 45), rng.uniform(48, 90), rng.uniform(8, 13))
    for x in (-1, 1):
        tree(cv, x * rng.uniform(5, 8), rng.uniform(11, 18), rng.uniform(5, 8))
        rock(cv, side * rng.uniform(4, 8), rng.uniform(8, 12), rng.uniform(0.5, 0.9))
    flower_bed(cv, -side * rng.uniform(3.4, 4.6), rng.uniform(6, 8))
    bush(cv, side * rng.uniform(3.6, 5.5), rng.uniform(9, 14), rng.uniform(0.8, 1.2))
    bench(cv, side * rng.uniform(1.8, 2.6), rng.uniform(5.5, 8), side * rng.uniform(0.2, 0.9))
    for walker in rng.uniform((7, 10, 12), (10, 14, 20)):
        person(cv, np.interp(walker, z, middle) + rng.uniform(-0.7, 0.7), walker)
    streetlight(cv, -side * rng.uniform(2.6, 3.4), rng.uniform(11, 15), height=3.8)
    return cv


def coast(rng, size):
    cv = outdoors(rng, size, (0, rng.uniform(1.8, 2.6), 0), rng.uniform(0.46, 0.56), 0.15)
    blue, beach = (
        cv.pick([(52, 118, 148), (44, 100, 142), (70, 134, 140)], 6),
        cv.pick([(222, 198, 152), (206, 182, 142)], 6),
    )
    side, world = rng.choice((-1, 1)), place(0, 0)
    hills(cv, 1400, 170, "mountain", leaves(cv.pick([(86, 104, 78), (112, 112, 104)]), 500.0, 0.2))
    cv.flat(world, rect(-3000, 5, 3000, 1395), "sea", water(blue, 9.0))
    x = np.linspace(-60, 60, 70)
    shore = 11 + side * 0.24 * x + 0.5 * np.sin(x / 2.1 + rng.uniform(0, 6)) + 0.8 * np.sin(x / 5.3)
    foam, wet, dry = water((206, 222, 222), 2.0), matte(beach * 0.68), leaves(beach, 5.0, 0.1)
    for y, (out, label, shade) in enumerate(((1.4, "sea", foam), (0.5, "sand", wet), (-0.9, "sand", dry)), 1):
        outline = np.concatenate([np.column_stack([x, shore + out]), [(60, -3), (-60, -3)]])
        cv.flat(world, outline, label, shade, 0.006 * y)
    for z in rng.uniform(22, 60, 4):
        sailboat(cv, rng.uniform(-0.45, 0.45) * z, z, rng.uniform(4, 7))
    deck, at = cv.pick(TIMBER), place(side * rng.uniform(-6, -4), 4, side * rng.uniform(0.0, 0.15))
    for z in np.arange(4, 30, 4.0):
        cv.box(at, (-1.1, -0.8), (-0.1, 1.0), (z, z + 0.3), "pier", matte(deck * 0.6))
        cv.box(at, (0.8, 1.1), (-0.1, 1.0), (z, z + 0.3), "pier", matte(deck * 0.6))
    cv.box(at, (-1.2, 1.2), (0.8, 1.05), (-1, 30), "pier", grid(deck, deck * 0.45, 3.0, 0.3, 0.04, 0.2))
    for _ in range(4):
        rock(cv, side * rng.uniform(3, 8), rng.uniform(9, 13), rng.uniform(0.6, 1.4))
    for near in (3, 5):
        palm(cv, side * rng.uniform(near, near + 1.5), rng.uniform(near + 4, near + 6), rng.uniform(4.2, 5.8))
    parasol(cv, rng.uniform(-1.2, 1.2) - 0.5 * side, rng.uniform(5.5, 7.5))
    for _ in range(4):
        person(cv, rng.uniform(-3.5, 3.5), rng.uniform(5, 10))
    return cv


# ---- things indoors -------------------------------------------------------------------------------------------------


def hang(cv, wall, x, y, label, shader, frame=(70, 54, 40), border=0.06):
    """Something framed on a wall, between the pairs x and y of the wall's metres."""
    cv.box(wall, x, y, (-0.05, 0), label, wood(frame))
    inner = rect(x[0] + border, y[0] + border, x[1] - border, y[1] - border)
    cv.front(wall, inner, label, shader, -0.055)


def window(cv, wall, half, cloth=None):
    """A window, the light that falls through it on the floor, and curtains at its sides."""
    cv.front(wall, rect(-half, 0.85, half, 2.15), "windowpane", garden, -0.02, lit=False)
    cv.box(wall, (-half - 0.1, half + 0.1), (0.78, 0.86), (-0.16, 0), "windowpane", matte((232, 230, 224)))
    cv.shadow(wall, (-half - 0.3, half + 0.3), (-2.4, -0.6), -0.28)
    for x in () if cloth is None else (-half - 0.38, half - 0.16):
        cv.front(wall, rect(x, 0.1, x + 0.54, 2.3), "curtain", folds(cloth, 0.16, 0.4), -0.18)


def sofa(cv, at, width):
    half, colour = width / 2, cv.pick([(124, 60, 52), (70, 88, 112), (150, 144, 134), (92, 104, 78), (176, 146, 108)])
    cloth, edges = matte(colour, 0.07), np.linspace(-half + 0.2, half - 0.2, 4)
    cv.shadow(at, (-half, half), (-0.95, 0), 0.7)
    cv.box(at, (-half, half), (0.06, 0.3), (-0.9, 0), "sofa", matte(colour * 0.8))
    cv.box(at, (-half + 0.05, half - 0.05), (0.2, 0.88), (-0.26, 0), "sofa", cloth, 0.1)
    for left, right in zip(edges[:-1] + 0.01, edges[1:] - 0.01, strict=True):
        cv.box(at, (left, right), (0.28, 0.48), (-0.9, -0.2), "sofa", matte(colour * 1.06), 0.05)
        cv.box(at, (left, right), (0.46, 0.86), (-0.34, -0.2), "sofa", cloth, 0.09)
        tilt = turned(cv.rng.uniform(-0.3, 0.3))[::2, ::2]
        cushion = shifted(at, cv.rng.uniform(left + 0.2, right - 0.2), 0.68, -0.4)
        cv.prism(
            cushion, rect(-0.2, -0.19, 0.2, 0.19, 0.07) @ tilt, -0.08, 0.04, "cushion", folds(cv.pick(CLOTHES), 0.11)
        )
    for left in (-half, half - 0.22):
        cv.box(at, (left, left + 0.22), (0.06, 0.64), (-0.93, 0), "sofa", cloth, 0.09)


def table(cv, at, x, z, height, label, colour, leg=0.08):
    cv.shadow(at, (-x, x), (-z, z), 0.6)
    for lx in (-x + 0.03, x - 0.03 - leg):
        for lz in (-z + 0.03, z - 0.03 - leg):
            cv.box(at, (lx, lx + leg), (0, height), (lz, lz + leg), label, wood(colour))
    cv.box(at, (-x, x), (height - 0.07, height), (-z, z), label, wood(colour))


def chair(cv, at, colour):
    table(cv, at, 0.23, 0.23, 0.47, "chair", colour, 0.06)
    for x in (-0.23, 0.17):
        cv.box(at, (x, x + 0.06), (0.4, 0.95), (0.17, 0.23), "chair", wood(colour))
    cv.box(at, (-0.23, 0.23), (0.6, 0.95), (0.18, 0.22), "chair", folds(colour, 0.115))


def chest(cv, at, x, y, depth, label, colour, columns, rows):
    """A piece of furniture on a wall whose front is a grid of doors or drawers."""
    cv.shadow(at, x, (-depth, 0), 0.6)
    cv.box(at, x, y, (-depth, 0), label, wood(colour))
    front = panels(colour, np.ptp(x) / columns, np.ptp(y) / rows)
    cv.front(shifted(at, x[0], y[0]), rect(0, 0, np.ptp(x), np.ptp(y)), label, front, -depth - 0.005)


def lamp(cv, at, height, size):
    """A lamp with a shining shade that lights what is painted after it."""
    x, y, z = at[0]
    at = cv.facing(x, z, y)
    cv.front(at, oval(0, 0.02, size * 0.8, 0.04), "lamp", matte((64, 56, 48)))
    cv.front(at, rect(-0.035, 0, 0.035, height), "lamp", cylinder((120, 98, 62), 0, 0.035))
    low, top = height - size * 1.3, size * 0.65
    shade = cylinder(cv.pick([(250, 226, 176), (244, 214, 190)], 5), 0, size * 1.2)
    cv.front(at, np.array([(-size, low), (size, low), (top, height), (-top, height)]), "lamp", shade, lit=False)
    cv.lamps.append((at[0] + Y * low, 0.12))


def ceiling_light(cv, x, z, drop):
    at = cv.facing(x, z, 2.65 - drop)
    cv.front(at, rect(-0.03, 0, 0.03, drop), "light", matte((70, 66, 60)))
    cv.front(at, oval(0, 0, 0.2, 0.15), "light", cylinder((252, 240, 206), 0, 0.3), lit=False)


def pot_plant(cv, at, height):
    cv.shadow(at, (-0.3, 0.3), (-0.3, 0.3), 0.6)
    at, green, rim, out = cv.facing(at[0][0], at[0][2]), cv.pick(GREENS), 0.17 * height, np.linspace(0, 1, 8)[:, None]
    for turn in np.linspace(0.25, np.pi - 0.25, 9) + cv.rng.normal(0, 0.12, 9):
        reach = cv.rng.uniform(0.5, 0.75) * height
        spine = reach * np.hstack([np.cos(turn) * out * 0.75, np.sin(turn) * out - 0.1 * out**3]) + (0, 0.25 * height)
        half = np.array([-np.sin(turn), np.cos(turn)]) * 0.1 * height * np.sin(np.pi * np.clip(out + 0.1, 0, 1))
        leaf = np.concatenate([spine + half, (spine - half)[::-1]])
        cv.front(at, leaf, "plant", leaves(green * cv.rng.uniform(0.7, 1.3), 0.5, 0.15))
    pot = np.array([(-rim * 0.7, 0), (rim * 0.7, 0), (rim, height * 0.3), (-rim, height * 0.3)])
    cv.front(at, pot, "pot", cylinder(cv.pick([(176, 96, 66), (226, 222, 212), (78, 90, 104)]), 0, rim))


def room(rng, size, width, depth, floor=None):
    """An empty room: (canvas, back, near and far wall, flip). A wall's place is its middle at the floor, its local z
    points out of the room; the near wall is the left one where flip is 1, the right one where it is -1."""
    tall, flip = 2.65, int(rng.choice((-1, 1)))
    eye = rng.uniform(-0.4, 0.4), rng.uniform(1.35, 1.6), 0
    yaw, horizon, zoom = rng.uniform(-0.22, 0.22), rng.uniform(0.38, 0.48), rng.uniform(0.8, 0.9)
    cv = Canvas(rng, size, eye, yaw, horizon, zoom, sun=(flip, 0.2, -0.6))
    cv.ambient = 0.66
    cv.lamps += [(np.array([0, 2.1, depth * 0.6]), 0.4), (np.array([-flip * width * 0.4, 1.6, depth * 0.6]), 0.6)]
    boards, paint = cv.pick(TIMBER) + 25, cv.pick([(206, 198, 182), (184, 196, 200), (204, 186, 160), (180, 190, 170)])
    stripe = rng.uniform(0.12, 0.4)
    paper = grid(paint, paint * rng.uniform(0.9, 1.0), stripe, 9.0, stripe / 2, 0.0, 0.0)
    slab = rect(-width / 2 - 0.05, -1, width / 2 + 0.05, depth + 0.05)  # overlaps the walls: no gap at the edges
    cv.flat(place(0, 0), slab, "floor", floor or grid(boards, boards * 0.55, 1.4, 0.13, 0.008, 0.16, 0.37))
    cv.flat(place(0, 0), slab, "ceiling", matte((232, 228, 220), 0.02, 5.0), tall)
    back, left, right = place(0, depth), *(place(s * width / 2, depth / 2, s * np.pi / 2) for s in (-1, 1))
    for wall, half in ((back, width / 2), (left, depth / 2 + 1), (right, depth / 2 + 1)):
        cv.front(wall, rect(-half - 0.05, -0.05, half + 0.05, tall + 0.05), "wall", paper)
        cv.box(wall, (-half, half), (0, 0.09), (-0.02, 0), None, matte((226, 222, 212)))  # skirting board
        cv.shadow(wall, (-half, half), (-0.35, 0.35), 0.4)
        cv.shadow(wall, (-half, half), (-0.3, 0.3), 0.25, tall - 0.01)
    near, far = (left, right)[::flip]
    return cv, back, near, far, flip


def living_room(rng, size):
    width, depth = rng.uniform(4.6, 5.4), rng.uniform(4.4, 5.2)
    cv, back, near, _, flip = room(rng, size, width, depth)
    timber, rug, middle = cv.pick(TIMBER), cv.pick(CLOTHES) * 0.7 + 40, place(flip * 0.2, depth - 2.1)
    window(cv, shifted(back, -flip * 1.7), 0.55, cv.pick(CLOTHES))
    oils = landscape(cv.pick(CLOTHES), cv.pick(SKIES), cv.pick(PAINT))
    hang(cv, shifted(back, flip * 0.6), (-0.5, 0.5), (1.3, 1.95), "painting", oils)
    cv.flat(middle, rect(-1.4, -0.95, 1.4, 0.95), "rug", matte(rug * 0.6 + 60, 0.1), 0.012)
    cv.flat(middle, rect(-1.25, -0.8, 1.25, 0.8), "rug", folds(rug, 0.3, along=rng.integers(2)), 0.014)
    lamp(cv, shifted(back, flip * 1.95, z=-0.35), 1.6, 0.27)
    sofa(cv, shifted(back, flip * 0.6, z=-0.05), rng.uniform(2.0, 2.3))
    table(cv, middle, 0.55, 0.3, 0.42, "coffee table", timber)
    cupboard = shifted(near, rng.uniform(0.2, 0.6) * flip)
    chest(cv, cupboard, (-0.8, 0.8), (0.05, 0.55), 0.45, "cabinet", timber, 3, 1)
    screen = shifted(cupboard, z=-0.2)
    hang(cv, screen, (-0.6, 0.6), (0.58, 1.32), "television receiver", gloss((44, 50, 60)), (24, 24, 26), 0.04)
    pot_plant(cv, shifted(back, -flip * 0.8, z=-0.4), rng.uniform(0.9, 1.2))
    ceiling_light(cv, rng.uniform(-0.5, 0.5), depth * 0.6, 0.35)
    return cv


def bedroom(rng, size):
    depth = rng.uniform(4.4, 5.0)
    cv, back, near, far, flip = room(rng, size, rng.uniform(4.2, 4.8), depth)
    timber, linen = cv.pick(TIMBER), matte((232, 228, 220), 0.05)
    rug = folds(cv.pick(CLOTHES) * 0.7 + 40, 0.35)
    cv.flat(place(0, depth - 2.2), rect(-1.6, -1.0, 1.6, 1.0), "rug", rug, 0.014)
    bed = shifted(back, flip * rng.uniform(0.1, 0.4), z=-0.05)
    for x in (-1.28, 1.28):
        chest(cv, shifted(bed, x), (-0.25, 0.25), (0.0, 0.52), 0.4, "chest of drawers", timber, 1, 2)
        lamp(cv, shifted(bed, x, 0.52, -0.2), 0.5, 0.17)
    cv.shadow(bed, (-0.9, 0.9), (-2.1, 0), 0.75)
    cv.box(bed, (-0.95, 0.95), (0, 1.15), (-0.08, 0), "bed", wood(timber))
    cv.box(bed, (-0.88, 0.88), (0.05, 0.3), (-2.05, -0.08), "bed", wood(timber * 0.8))
    cv.box(bed, (-0.87, 0.87), (0.28, 0.56), (-2.05, -0.08), "bed", linen, 0.08)
    cv.box(bed, (-0.92, 0.92), (0.24, 0.62), (-2.09, -0.75), "bed", folds(cv.pick(CLOTHES), 0.28, 0.2), 0.12)
    for x in (-0.78, 0.1):
        cv.box(bed, (x, x + 0.68), (0.56, 0.92), (-0.36, -0.16), "pillow", folds((240, 236, 228), 0.3, 0.1), 0.1)
    oils = landscape(cv.pick(CLOTHES), cv.pick(SKIES), cv.pick(PAINT))
    hang(cv, bed, (-0.5, 0.5), (1.4, 2.0), "painting", oils)
    window(cv, shifted(far, -flip * 0.1), 0.6, cv.pick(CLOTHES))
    chest(cv, shifted(near, flip * 1.2), (-0.7, 0.7), (0, 2.15), 0.55, "wardrobe", timber * 1.1, 2, 1)
    chair(cv, place(-flip * 1.5, depth - 2.4, flip * rng.uniform(0.6, 1.2)), timber)
    ceiling_light(cv, rng.uniform(-0.4, 0.4), depth * 0.55, 0.35)
    return cv


def kitchen(rng, size):
    width, depth = rng.uniform(3.9, 4.5), rng.uniform(4.0, 4.6)
    tile = np.array([(196, 188, 176), (150, 146, 142), (176, 120, 92)][rng.integers(3)])
    cv, back, _, far, flip = room(rng, size, width, depth, grid(tile, tile * 0.65, 0.4, 0.4, 0.012, 0.1, 0.0))
    front = cv.pick([(222, 214, 198), (120, 140, 132), (150, 100, 64), (84, 98, 118)])
    steel, timber, half = cv.pick([(206, 208, 210), (226, 224, 218)], 5), cv.pick(TIMBER) + 20, width / 2
    glaze = cv.pick([(226, 222, 210), (164, 192, 190)])
    cv.front(back, rect(-half, 0.9, half, 1.5), "wall", grid(glaze, glaze * 0.75, 0.2, 0.1, 0.01), -0.005)
    window(cv, back, 0.45)
    chest(cv, back, (-half, half), (0.05, 0.86), 0.6, "cabinet", front, 6, 1)
    cv.box(
        back,
        (-half, half),
        (0.86, 0.92),
        (-0.64, 0),
        "countertop",
        matte(cv.pick([(72, 70, 72), (190, 184, 176)]), 0.12),
    )
    for x in (-half, 0.75):
        chest(cv, back, (x, x + half - 0.75), (1.5, 2.25), 0.35, "cabinet", front, 2, 1)
    cv.box(back, (-0.36, 0.36), (0.68, 0.94), (-0.67, -0.05), "sink", matte((214, 216, 218)))
    cv.flat(back, rect(-0.3, -0.58, 0.3, -0.1, 0.06), "sink", matte((140, 146, 150)), 0.945)
    stove, fridge = shifted(back, flip * 0.95), shifted(back, -flip * (half - 0.38))
    cv.box(stove, (-0.34, 0.34), (0, 0.95), (-0.68, 0), "stove", matte((58, 60, 64)))
    cv.front(stove, rect(-0.28, 0.2, 0.28, 0.66, 0.04), "stove", gloss((40, 42, 48)), -0.69)
    cv.front(stove, rect(-0.3, 0.76, 0.3, 0.88), "stove", matte((186, 188, 190)), -0.69)
    for x in (-0.18, 0.18):
        cv.flat(stove, oval(x, -0.35, 0.13, 0.13), "stove", matte((20, 20, 22)), 0.96)
    chest(cv, fridge, (-0.36, 0.36), (0.03, 1.85), 0.7, "refrigerator", steel, 1, 2)
    at = place(flip * 0.3, depth - 1.8, rng.uniform(-0.3, 0.3))
    table(cv, at, 0.6, 0.38, 0.75, "table", timber)
    for x, z, turn in ((-0.3, 0.62, 0), (0.95, 0.1, 1.4), (-0.95, -0.1, -1.5)):
        chair(cv, (shifted(at, x, 0, z)[0], turned(turn)), timber * 0.9)
    pot_plant(cv, shifted(far, -flip * 0.6, z=-0.35), rng.uniform(0.9, 1.2))
    ceiling_light(cv, flip * 0.3, depth - 1.8, 0.6)
    return cv


# ---- the dataset ----------------------------------------------------------------------------------------------------

SCENES = (street, living_room, park, bedroom, coast, kitchen, street, living_room, park, coast)
PORTRAIT = (1, 4, 6)  # positions in SCENES


def render_scene(seed, split, index):
    """(RGB image, mask in annotation ids) of one scene; it depends on nothing but its arguments."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    short, long = rng.integers(480, 561), rng.integers(640, 721)
    return SCENES[index](rng, (short, long) if index in PORTRAIT else (long, short)).finish()


def is_complete(folder):
    """Whether `folder` holds both splits, with exactly one annotation for each image."""

    def stems(kind, split, suffixes):
        return sorted(path.stem for path in (folder / kind / split).glob("*") if path.suffix.lower() in suffixes)

    images = [stems("images", split, {".jpg", ".jpeg", ".png"}) for split in SPLITS]
    return all(images) and images == [stems("annotations", split, {".png"}) for split in SPLITS]


def render_toy_dataset(output_dir: str | os.PathLike = "ADE20k_toy_dataset", seed: int = 0) -> Path:
    """Render the toy dataset into `output_dir`, unless a complete dataset is already there.

    Another `seed` gives other pictures; the same seed gives the same bytes with the same Pillow and NumPy. Returns the
    folder. Raises UserError when the folder holds anything but a complete dataset. The pictures are rendered beside it
    and moved into place at the end, so that an interrupted run leaves no half dataset behind.
    """
    output_dir = Path(output_dir)
    if is_complete(output_dir):
        print(f"{output_dir}: using the dataset that is already there")
        return output_dir
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(
            f"{output_dir} exists, but is no complete dataset (images/ and annotations/, each with training/ and "
            "validation/, one annotation for every image); remove it or choose another folder"
        )
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
        if target.exists():
            target.rmdir()  # empty, as checked above; Windows does not rename onto a folder
        finished.rename(target)
    print(f"{output_dir}: rendered {len(SCENES)} training and {len(SCENES)} validation images")
    return output_dir


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="ADE20k_toy_dataset", help="folder to render into")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another world")
    arguments = parser.parse_args()
    render_toy_dataset(arguments.output_dir, arguments.seed)
