"""What pictures are drawn with: Pillow. A plotting library takes half a second to import and as long to draw, in every refresh."""

from __future__ import annotations

import io
from functools import cache

from PIL import Image, ImageDraw, ImageFont

COLOURS = 64
GREY = (110, 110, 110)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, `size` pixels high."""
    return ImageFont.load_default(size)


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A white picture, and the pen for it."""
    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image)


def png(image: Image.Image) -> bytes:
    """A PNG of few colours, a third of the size; chosen to cover all that are there, however rare."""
    held = io.BytesIO()
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(held, format="png", optimize=True)
    return held.getvalue()
