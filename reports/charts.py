"""Line charts: one description, drawn as SVG by a macro of `macros.html.j2` and as PNG by `draw_charts`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 18, 34, 26  # around the area of the lines
POINTS = 400  # of a line, at most
STEEP = 20  # the highest value over the median from which the scale is logarithmic
COLORS = ("#1f6feb", "#c2410c", "#595959")  # of the lines in a PNG; those of pages are in the style
ENLARGED = 2  # a PNG is that many times as large as the chart, and drawn twice as large again, for smooth lines


@dataclass(frozen=True)
class Series:
    """A line: its name, and points (x, y) by rising x; NaN leaves a gap."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """mark: a point (x, y) with a word that is to be seen, as the best one."""

    title: str
    series: tuple[Series, ...]
    mark: tuple[float, float, str] | None = None

    @property
    def values(self) -> list[float]:
        return [y for line in self.series for _, y in line.points if math.isfinite(y)]

    @property
    def logarithmic(self) -> bool:
        values = self.values
        return bool(values) and min(values) > 0 and max(values) > STEEP * float(np.median(values))

    def layout(self) -> dict:
        """Where everything is, in pixels of `WIDTH` x `HEIGHT`: ticks as (pixel, text), lines as lists of points."""
        xs = [x for line in self.series for x, _ in line.points] or [0]
        x_ticks = nice_ticks(min(xs), max(xs), 6)
        x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
        scale = math.log10 if self.logarithmic else float
        values = [scale(y) for y in self.values] or [0.0]
        ticks = nice_ticks(min(values), max(values), 4)
        low, high = min(ticks[0], *values), max(ticks[-1], *values)
        high = high if high > low else low + 1

        def x_pixel(x: float) -> float:
            return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

        def y_pixel(y: float) -> float:
            return round(HEIGHT - BOTTOM - (scale(y) - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

        back = (lambda tick: 10**tick) if self.logarithmic else float
        lines = []
        for number, line in enumerate(self.series):
            pieces = [[(x_pixel(x), y_pixel(y)) for x, y in piece] for piece in _pieces(_thinned(line.points))]
            lines.append({"name": line.name, "number": number, "pieces": pieces})
        return {
            "title": self.title + " (logarithmic)" * self.logarithmic,
            "x_ticks": [(x_pixel(tick), short(tick)) for tick in x_ticks if x_low <= tick <= x_high],
            "y_ticks": [(y_pixel(back(tick)), short(back(tick))) for tick in ticks],
            "lines": lines,
            "mark": self.mark and (x_pixel(self.mark[0]), y_pixel(self.mark[1]), self.mark[2]),
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "top": TOP,
            "bottom": HEIGHT - BOTTOM,
        }


def short(value: float) -> str:
    """ "0.25", "6e-5", "12,000": a number as a tick has it."""
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.10g}" if abs(value) >= 1000 else f"{value:.4g}"


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, from at or below `low` to at or above `high`."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """A line cut where a value is not finite."""
    pieces = [[]]
    for x, y in points:
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of many points the lowest and the highest of each stretch, so that no peak is lost."""
    if len(points) <= POINTS:
        return list(points)
    kept = []
    for stretch in np.array_split(np.arange(len(points)), POINTS // 2):
        ys = [points[i][1] for i in stretch]
        ends = {int(stretch[f([y if math.isfinite(y) else 0 for y in ys])]) for f in (np.argmin, np.argmax)}
        kept += [points[i] for i in sorted(ends)]
    return kept


def draw_charts(charts: Sequence[Chart], columns: int = 2) -> Image.Image:
    """The charts as one picture, dark on white."""
    scale = 2 * ENLARGED
    rows = -(-len(charts) // columns)
    columns = min(columns, len(charts))
    picture = Image.new("RGB", (columns * WIDTH * scale, rows * HEIGHT * scale), "white")
    draw = ImageDraw.Draw(picture)
    small, large = (ImageFont.load_default(size=size * scale) for size in (11, 14))
    for number, chart in enumerate(charts):
        layout = chart.layout()
        dx, dy = (number % columns) * WIDTH, (number // columns) * HEIGHT

        def at(x, y, dx=dx, dy=dy):
            return (x + dx) * scale, (y + dy) * scale

        draw.text(at(LEFT, 14), layout["title"], fill="#1c1c1c", font=large, anchor="lm")
        for y, text in layout["y_ticks"]:
            draw.line([at(LEFT, y), at(WIDTH - RIGHT, y)], fill="#dddddd", width=scale // 2)
            draw.text(at(LEFT - 6, y), text, fill="#595959", font=small, anchor="rm")
        for x, text in layout["x_ticks"]:
            draw.text(at(x, HEIGHT - BOTTOM + 12), text, fill="#595959", font=small, anchor="mm")
        right = WIDTH - RIGHT
        for line in reversed(layout["lines"]):
            color = COLORS[line["number"] % len(COLORS)]
            for piece in line["pieces"]:
                points = [at(*point) for point in piece]
                if len(points) > 1:
                    draw.line(points, fill=color, width=2 * scale, joint="curve")
                else:
                    draw.circle(points[0], 3 * scale, fill=color)
            if len(layout["lines"]) > 1:
                draw.text(at(right, 14), line["name"], fill=color, font=small, anchor="rm")
                right -= small.getlength(line["name"]) / scale + 14
        if layout["mark"]:
            x, y, text = layout["mark"]
            draw.circle(at(x, y), 4 * scale, outline=COLORS[0], width=scale)
            draw.text(at(min(x, WIDTH - RIGHT - 30), y - 12), text, fill="#1c1c1c", font=small, anchor="mm")
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
