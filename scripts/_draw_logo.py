"""Draws the icon and the banner of ComfyUI's registry: docs/icon.png, banner.png.

A Z of three links between four ComfyUIs; in the banner, tensors go along a bus beside it. Drawn
large and made small, with lines and circles alone: no font, so it looks the same everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs"
ICON = (400, 400)  # square, at most 400: what the registry shows
BANNER = (1260, 540)  # 21:9
OVER = 4  # times as large it is drawn
GROUND, PANEL = (24, 26, 36), (37, 41, 58)
LINK, NODE, WAY = (94, 129, 244), (240, 243, 255), (58, 64, 90)
TENSORS = ((94, 129, 244), (82, 196, 183), (245, 176, 86), (232, 106, 128))
USAGE = """usage: scripts/draw-logo

Draws docs/icon.png and docs/banner.png anew. Needs Pillow: the Python of your
ComfyUI has it.
"""
Point = tuple[float, float]


class Sheet:
    """A picture to draw on, in units of its final pixels."""

    def __init__(self, size: tuple[int, int], ground: tuple[int, int, int]) -> None:
        from PIL import Image, ImageDraw

        self._size = size
        self._image: Image.Image = Image.new("RGB", (size[0] * OVER, size[1] * OVER), ground)
        self._pen: ImageDraw.ImageDraw = ImageDraw.Draw(self._image)

    def circle(self, at: Point, radius: float, colour: tuple[int, int, int]) -> None:
        x, y = at[0] * OVER, at[1] * OVER
        r = radius * OVER
        self._pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: tuple[int, int, int]) -> None:
        """With round ends and corners."""
        large = [(x * OVER, y * OVER) for x, y in points]
        self._pen.line(large, fill=colour, width=round(width * OVER))
        for point in points:
            self.circle(point, width / 2, colour)

    def box(
        self, at: Point, size: tuple[float, float], radius: float, colour: tuple[int, int, int]
    ) -> None:
        """A rectangle with round corners, by its upper left one."""
        x, y, r = at[0] * OVER, at[1] * OVER, radius * OVER
        corners = (x, y, x + size[0] * OVER, y + size[1] * OVER)
        self._pen.rounded_rectangle(corners, r, fill=colour)

    def made(self) -> Image.Image:
        """The picture, in its final size."""
        from PIL import Image

        return self._image.resize(self._size, Image.Resampling.LANCZOS)


def mark(sheet: Sheet, at: Point, size: float) -> None:
    """The Z, by its upper left corner."""
    (x, y), part = at, size / 100
    corners = [(x + a * part, y + b * part) for a, b in ((14, 18), (86, 18), (14, 82), (86, 82))]
    sheet.line(corners, 12 * part, LINK)
    for corner in corners:
        sheet.circle(corner, 13 * part, NODE)
        sheet.circle(corner, 6 * part, GROUND)


def icon() -> Image.Image:
    sheet = Sheet(ICON, GROUND)
    width, height = ICON
    sheet.box((20, 20), (width - 40, height - 40), 64, PANEL)
    mark(sheet, (70, 70), width - 140)
    return sheet.made()


def banner() -> Image.Image:
    sheet = Sheet(BANNER, GROUND)
    width, height = BANNER
    middle = height / 2
    sheet.box((60, 90), (360, 360), 58, PANEL)
    mark(sheet, (105, 135), 270)
    for row, colour in enumerate(TENSORS):
        y = middle + (row - 1.5) * 84
        sheet.line([(420, middle), (520, y), (width - 150, y)], 10, WAY)
        sheet.circle((width - 150, y), 22, NODE)
        sheet.circle((width - 150, y), 11, GROUND)
        for column in range(4):
            x = 560 + column * 118 + row * 26
            sheet.box((x, y - 24), (48, 48), 10, colour)
    return sheet.made()


def main(arguments: list[str]) -> int:
    if arguments:
        sys.stdout.write(USAGE)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    try:
        pictures = {"icon.png": icon(), "banner.png": banner()}
    except ModuleNotFoundError as error:
        sys.stderr.write(f"draw-logo: this Python ({sys.executable}) has no {error.name}\n")
        return 2
    for name, picture in pictures.items():
        picture.save(FOLDER / name, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
