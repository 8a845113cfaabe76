"""The picture: size against rate, one line a way, limits dashed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .kinds import Measured
from .report import is_limit
from .values import size_of

WIDTH, HEIGHT = 1200, 760
LEFT, RIGHT, TOP, BOTTOM = 90, 330, 50, 60
INK, GRID, PAPER = "#202020", "#dddddd", "#ffffff"
ZBUS = ("#c1121f", "#f4722b")
OTHERS = ("#1d4e89", "#2a9d8f", "#6a4c93", "#8a6d3b", "#457b9d", "#606c38", "#b5838d", "#3d405b")
DASH, GAP = 9, 6  # pixels
UNITS = ((30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "B"))


class Line(NamedTuple):
    """(bytes, bytes per second) of one way, by size."""

    label: str
    points: tuple[tuple[int, float], ...]

    @property
    def is_limit(self) -> bool:
        return is_limit(self.label)


def lines_of(all_measured: Iterable[Measured]) -> list[Line]:
    """Each way's line in each group of rows; zbus's come first."""
    found: dict[str, dict[int, float]] = {}
    for measured in all_measured:
        row, size = measured.row, size_of(measured.row.value)
        for label, figure in measured.figures.items() if row.group and size else ():
            name = f"{label}, {row.group}" if label == "zbus" else label
            found.setdefault(name, {}).setdefault(size, size / max(figure.median, 1e-9))
    lines = [Line(label, tuple(sorted(points.items()))) for label, points in found.items()]
    return sorted(lines, key=lambda line: (line.is_limit, not line.label.startswith("zbus")))


def draw(all_measured: Iterable[Measured]) -> Image.Image:
    """The picture.

    Raises:
        ValueError: None of the rows that were measured is part of it.
    """
    lines = lines_of(all_measured)
    if not lines:
        raise ValueError("no row was measured whose size and rate could be drawn")
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(image)
    across = _Scale([size for line in lines for size, _ in line.points], LEFT, WIDTH - RIGHT)
    up = _Scale([rate for line in lines for _, rate in line.points], HEIGHT - BOTTOM, TOP)
    _axes(pen, across, up)
    zbus, others = iter(ZBUS), iter(OTHERS * 3)
    for number, line in enumerate(lines):
        ours = line.label.startswith("zbus")
        colour = next(zbus, ZBUS[0]) if ours else INK if line.is_limit else next(others)
        places = [(across(size), up(rate)) for size, rate in line.points]
        width = 4 if ours else 2
        for begin, end in itertools.pairwise(places):
            _stroke(pen, begin, end, colour, width, line.is_limit)
        for x, y in places:
            pen.ellipse((x - width - 1, y - width - 1, x + width + 1, y + width + 1), fill=colour)
        y = TOP + 26 * number
        _stroke(pen, (WIDTH - RIGHT + 24, y), (WIDTH - RIGHT + 60, y), colour, width, line.is_limit)
        pen.text((WIDTH - RIGHT + 70, y), line.label, INK, _font(16), anchor="lm")
    return image


class _Scale:
    """A logarithmic axis, of all that lies on it."""

    def __init__(self, values: list[float] | list[int], low: int, high: int) -> None:
        self._from = math.floor(math.log2(min(values)))
        self._to = max(self._from + 1, math.ceil(math.log2(max(values))))
        self._low, self._high = low, high

    def __call__(self, value: float) -> int:
        part = (math.log2(value) - self._from) / (self._to - self._from)
        return round(self._low + part * (self._high - self._low))

    def marks(self) -> list[int]:
        return [2**power for power in range(self._from, self._to + 1)]


def _axes(pen: ImageDraw.ImageDraw, across: _Scale, up: _Scale) -> None:
    for value in across.marks():
        x = across(value)
        pen.line((x, TOP, x, HEIGHT - BOTTOM), GRID)
        pen.text((x, HEIGHT - BOTTOM + 10), _size(value), INK, _font(14), anchor="ma")
    for value in up.marks():
        y = up(value)
        pen.line((LEFT, y, WIDTH - RIGHT, y), GRID)
        pen.text((LEFT - 10, y), f"{_size(value)}/s", INK, _font(14), anchor="rm")
    pen.text((LEFT, 14), "One value from process to process: its size, its rate", INK, _font(18))


def _stroke(
    pen: ImageDraw.ImageDraw,
    begin: tuple[int, int],
    end: tuple[int, int],
    colour: str,
    width: int,
    dashed: bool,
) -> None:
    if not dashed:
        pen.line((*begin, *end), colour, width)
        return
    length = math.dist(begin, end) or 1.0
    step = ((end[0] - begin[0]) / length, (end[1] - begin[1]) / length)
    for at in range(0, int(length), DASH + GAP):
        stop = min(at + DASH, length)
        piece = [begin[0] + step[0] * at, begin[1] + step[1] * at]
        piece += [begin[0] + step[0] * stop, begin[1] + step[1] * stop]
        pen.line(piece, colour, width)


def _size(value: float) -> str:
    for power, unit in UNITS:
        if value >= 2**power:
            return f"{value / 2**power:g} {unit}"
    return f"{value:g} B"


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
