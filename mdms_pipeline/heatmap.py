"""The picture of a survey: symbols down, time across. Blue is traded (the darker the more of its slots), red unknown, amber maintenance."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from PIL import Image, ImageDraw

from mdms_pipeline.drawing import GREY, blank, font, png
from mdms_pipeline.market import Floats
from mdms_pipeline.store.slots import Survey

WHITE, PALE, DARK, RED, AMBER = ((1, 1, 1), (0.87, 0.92, 0.97), (0.03, 0.32, 0.61), (0.84, 0.19, 0.15), (0.99, 0.68, 0.20))
LEGEND = (("every slot traded", DARK), ("no trade", PALE), ("maintenance", AMBER), ("unknown", RED), ("not listed", WHITE))
SEEN = 0.75  # of a cell's colour, at least, for what is missing in it
# Pixels.
SYMBOL, LEAST, WIDTH = 9, 96, 880  # a row of the map; the least of all rows; the picture
LEFT, RIGHT, ABOVE, BELOW, LEGEND_HEIGHT = 70, 30, 24, 24, 24  # around a map: labels, title, times; below all
LABELLED = 130  # symbols of which each has its label


def colours(survey: Survey) -> Floats:
    """(symbols, columns, 3): each cell mixes what its slots are. What a person looks for is seen where it is only one of many slots."""
    total = np.maximum(survey.expected, 1)
    quiet = (survey.no_trade / np.maximum(survey.traded + survey.no_trade, 1))[:, :, None]
    image = quiet * np.array(PALE) + (1 - quiet) * np.array(DARK)
    for counts, colour in ((survey.maintenance, AMBER), (survey.unknown, RED)):
        share = np.where(counts > 0, np.maximum(counts / total, SEEN), 0.0)[:, :, None]
        image = share * np.array(colour) + (1 - share) * image
    found: Floats = np.where(survey.expected[:, :, None] > 0, image, np.array(WHITE))
    return found


def picture(surveys: Sequence[Survey]) -> bytes:
    """One heat map per timeframe, below each other, as a PNG."""
    heights = [max(LEAST, SYMBOL * len(survey.symbols)) for survey in surveys]
    image, pen = blank(WIDTH, sum(heights) + (ABOVE + BELOW) * len(heights) + LEGEND_HEIGHT)
    top = 0
    for height, survey in zip(heights, surveys, strict=True):
        _draw(image, pen, top + ABOVE, height, survey)
        top += ABOVE + height + BELOW
    _legend(pen, top)
    return png(image)


def _draw(image: Image.Image, pen: ImageDraw.ImageDraw, top: int, height: int, survey: Survey) -> None:
    """One map with its title, symbols and times; `top` is its first row of pixels."""
    n, columns = survey.expected.shape
    width = WIDTH - LEFT - RIGHT
    cells = Image.fromarray(np.rint(colours(survey) * 255).astype(np.uint8))
    image.paste(cells.resize((width, height), Image.Resampling.NEAREST), (LEFT, top))
    pen.rectangle((LEFT - 1, top - 1, LEFT + width, top + height), outline=GREY)
    pen.text((LEFT, top - 6), _title(survey), "black", font(11), anchor="ls")
    for place in np.unique(np.linspace(0, columns - 1, min(8, columns)).round().astype(int)).tolist():
        pen.text((LEFT + width * (place + 0.5) / columns, top + height + 5), _day(survey, place), "black", font(10), anchor="mt")
    for i in range(0, n, -(-n // LABELLED)):
        pen.text((LEFT - 4, top + height * (i + 0.5) / n), survey.symbols[i], "black", font(8 if n > 20 else 10), anchor="rm")


def _title(survey: Survey) -> str:
    slots = survey.expected.sum()
    shares = {name: getattr(survey, name).sum() / max(slots, 1) for name in ("traded", "no_trade", "maintenance", "unknown")}
    said = ", ".join(f"{share:.1%} {name.replace('_', ' ')}" for name, share in shares.items())
    return f"{survey.timeframe}: {slots:,} slots, {said}"


def _legend(pen: ImageDraw.ImageDraw, top: int) -> None:
    each = (WIDTH - 2 * LEFT) // len(LEGEND)
    for i, (text, colour) in enumerate(LEGEND):
        left = LEFT + i * each
        pen.rectangle((left, top + 4, left + 18, top + 16), fill=tuple(round(255 * part) for part in colour), outline=GREY)
        pen.text((left + 24, top + 10), text, "black", font(11), anchor="lm")


def _day(survey: Survey, place: int) -> str:
    span = int(survey.edges[-1] - survey.edges[0])
    return datetime.fromtimestamp(int(survey.edges[place]), UTC).strftime("%Y-%m-%d" if span > 20 * 86_400 else "%m-%d %H:%M")
