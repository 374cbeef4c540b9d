"""Markets made up for the laws: walks at any price level, with quiet stretches and unknown values."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mdms_pipeline.calculate.catalog import DEFAULTS, closure
from mdms_pipeline.calculate.indicator import SOURCES, Indicator
from mdms_pipeline.calculate.kernels import bollinger, ema, highest, lowest, macd, rsi, sma, stddev, stoch
from mdms_pipeline.calculate.run import columns, inputs, run
from mdms_pipeline.market import Candles, Floats

LEVELS = (1e8, 50_000.0, 137.0, 1e-5)  # KRW

# Every default, all that they read, and the corners: windows of one, odd and even digits in bases 2 and 4, other sources.
CATALOG: tuple[Indicator, ...] = closure(
    (
        *DEFAULTS,
        *(kind(n) for kind in (sma, stddev, highest, lowest, ema, rsi) for n in (1, 2, 3, 7, 16, 31, 64)),
        ema("volume", 9),
        highest("close", 9),
        macd(1, 2, 1),
        bollinger(7, 2.5),
        stoch(5, 1, 1),
        stoch(1, 2, 5),
    )
)


def market(seed: int = 1, bars: int = 400, level: float = 50_000.0) -> Candles:
    """A walk of 1 % per bar. Candles as they can be: low <= open, close <= high."""
    rng = np.random.default_rng(seed)
    close = level * np.exp(np.cumsum(rng.normal(0, 0.01, bars)))
    opening = np.concatenate(([level], close[:-1]))[:bars]
    high = np.maximum(opening, close) * (1 + rng.random(bars) * 0.01)
    low = np.minimum(opening, close) * (1 - rng.random(bars) * 0.01)
    volume = rng.lognormal(2, 1, bars)
    return Candles(np.arange(bars, dtype=np.int64) * 60, opening, high, low, close, volume, volume * close)


def still(candles: Candles, start: int, stop: int) -> Candles:
    """The same, with one price and no volume in [start, stop)."""
    changed = {name: getattr(candles, name).copy() for name in ("open", "high", "low", "close", "volume", "value")}
    for name in ("open", "high", "low", "close"):
        changed[name][start:stop] = candles.close[min(start, len(candles) - 1)]
    changed["volume"][start:stop] = changed["value"][start:stop] = 0.0
    return Candles(candles.opened_at, **changed)


def with_values(candles: Candles, at: Any, value: float) -> Candles:
    """The same, with every price and amount of the bars `at` set to `value`."""
    changed = {name: getattr(candles, name).copy() for name in ("open", "high", "low", "close", "volume", "value")}
    for column in changed.values():
        column[at] = value
    return Candles(candles.opened_at, **changed)


@st.composite
def markets(draw: st.DrawFn, max_bars: int = 260) -> Candles:
    """Walks with a quiet stretch and with holes, each perhaps empty."""
    bars = draw(st.integers(0, max_bars))
    candles = market(draw(st.integers(0, 1000)), bars, draw(st.sampled_from(LEVELS)))
    if bars == 0:
        return candles
    start = draw(st.integers(0, bars - 1))
    candles = still(candles, start, start + draw(st.sampled_from((0, 1, 30, 80))))
    holes = draw(st.lists(st.integers(0, bars - 1), max_size=4))
    return with_values(candles, holes, draw(st.sampled_from((np.nan, np.nan, np.inf, -np.inf)))) if holes else candles


def known(candles: Candles, indicators: tuple[Indicator, ...] = CATALOG) -> dict[str, Floats]:
    """Every source and every output of `indicators`, by name."""
    values = columns(candles, SOURCES)
    for indicator in closure(indicators):
        _, outputs = run(indicator, indicator.memory, inputs(indicator, values))
        values.update(zip(indicator.columns, outputs, strict=True))
    return values


def in_pieces(indicator: Indicator, columns: list[Floats], cuts: list[int]) -> tuple[Floats, Floats]:
    """Memory and outputs of the pieces between `cuts`, the memory carried over."""
    bars = len(columns[0])
    edges = [0, *sorted(cuts), bars]
    memory, outputs = indicator.memory, []
    for start, stop in pairwise(edges):
        memory, piece = run(indicator, memory, [column[start:stop] for column in columns])
        outputs.append(piece)
    return memory, np.concatenate(outputs, axis=1)


def same_bits(a: Floats, b: Floats) -> bool:
    """Equal bit for bit; an unknown value has no bits to compare (the sign of a NaN is nobody's)."""
    return a.shape == b.shape and bool(np.all((np.isnan(a) & np.isnan(b)) | (a.view(np.int64) == b.view(np.int64))))
