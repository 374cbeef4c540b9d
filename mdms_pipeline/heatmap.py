"""The picture of a survey: symbols down, time across. Blue is traded (the darker the more of its slots), red unknown, amber maintenance."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from mdms_pipeline.market import Floats
from mdms_pipeline.store.slots import Survey

WHITE, PALE, DARK, RED, AMBER = ((1, 1, 1), (0.87, 0.92, 0.97), (0.03, 0.32, 0.61), (0.84, 0.19, 0.15), (0.99, 0.68, 0.20))
LEGEND = (("every slot traded", DARK), ("no trade", PALE), ("maintenance", AMBER), ("unknown", RED), ("not listed", WHITE))
INCH_PER_SYMBOL, LEAST_INCHES, WIDTH_INCHES = 0.11, 1.2, 11.0
# Placed by hand: matplotlib's own layout draws each of some hundred labels twice more, 0.7 of 2.0 s (120 markets x 3 timeframes).
AROUND, LEGEND_INCHES, LABEL_INCHES = 0.6, 0.3, 0.8  # of one map: title and times together; below all; left of each
LABELLED = 130  # symbols of which each has its label
DPI = 80
COLOURS = 64


def colours(survey: Survey) -> Floats:
    """(symbols, columns, 3): each cell mixes what its slots are."""
    shape = (*survey.expected.shape, 3)
    mixed = np.zeros(shape)
    for counts, colour in ((survey.traded, DARK), (survey.no_trade, PALE), (survey.maintenance, AMBER), (survey.unknown, RED)):
        mixed += counts[:, :, None] * np.array(colour)
    total = survey.expected[:, :, None]
    image: Floats = np.where(total > 0, mixed / np.maximum(total, 1), np.array(WHITE))
    return np.clip(image, 0.0, 1.0)


def picture(surveys: Sequence[Survey]) -> bytes:
    """One heat map per timeframe, below each other, as a PNG."""
    heights = [max(LEAST_INCHES, INCH_PER_SYMBOL * len(survey.symbols)) for survey in surveys]
    total = sum(heights) + AROUND * len(heights) + LEGEND_INCHES
    figure = Figure(figsize=(WIDTH_INCHES, total), dpi=DPI)
    FigureCanvasAgg(figure)
    top = total
    for height, survey in zip(heights, surveys, strict=True):
        top -= height + AROUND
        sides = (LABEL_INCHES / WIDTH_INCHES, 1 - (LABEL_INCHES + 0.4) / WIDTH_INCHES)
        _draw(figure.add_axes((sides[0], (top + AROUND / 2) / total, sides[1], height / total)), survey)
    handles = [Patch(facecolor=colour, edgecolor="grey", label=text) for text, colour in LEGEND]
    figure.legend(handles=handles, loc="lower center", ncols=len(LEGEND), fontsize=8)
    return _small(figure)


def _small(figure: Figure) -> bytes:
    """A PNG of few colours, a third of the size; chosen to cover those of the legend, however rare."""
    drawn, held = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(held, format="png", optimize=True)
    return held.getvalue()


def _draw(axis: Axes, survey: Survey) -> None:
    n, columns = survey.expected.shape
    axis.imshow(colours(survey), aspect="auto", interpolation="nearest")
    places = np.unique(np.linspace(0, columns - 1, min(8, columns)).round().astype(int))
    axis.set_xticks(places.tolist(), [_day(survey, place) for place in places.tolist()], fontsize=7)
    step = -(-n // LABELLED)
    axis.set_yticks(range(0, n, step), list(survey.symbols[::step]), fontsize=5 if n > 20 else 7)
    slots = survey.expected.sum()
    shares = {name: getattr(survey, name).sum() / max(slots, 1) for name in ("traded", "no_trade", "maintenance", "unknown")}
    said: Any = ", ".join(f"{share:.1%} {name.replace('_', ' ')}" for name, share in shares.items())
    axis.set_title(f"{survey.timeframe}: {slots:,} slots, {said}", fontsize=8, loc="left")


def _day(survey: Survey, place: int) -> str:
    span = int(survey.edges[-1] - survey.edges[0])
    return datetime.fromtimestamp(int(survey.edges[place]), UTC).strftime("%Y-%m-%d" if span > 20 * 86_400 else "%m-%d %H:%M")
