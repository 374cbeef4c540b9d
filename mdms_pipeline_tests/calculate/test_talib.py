"""TA-Lib beside us: equal where the conventions are, and after `stable_after` where they are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import talib

from mdms_pipeline.calculate.catalog import DEFAULTS
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.kernels import atr, bollinger, ema, highest, lowest, macd, rsi, sma, stddev, stoch, tr
from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.market import Candles, Floats
from mdms_pipeline_tests.laws.markets import market
from mdms_pipeline_tests.tolerances import TALIB, TALIB_DEVIATION

PEERS: dict[str, Callable[[Candles, Indicator], tuple[Floats, ...]]] = {
    "sma": lambda c, i: (talib.SMA(getattr(c, i.source), *i.params),),
    "ema": lambda c, i: (talib.EMA(getattr(c, i.source), *i.params),),
    "stddev": lambda c, i: (talib.STDDEV(getattr(c, i.source), *i.params),),
    "highest": lambda c, i: (talib.MAX(getattr(c, i.source), *i.params),),
    "lowest": lambda c, i: (talib.MIN(getattr(c, i.source), *i.params),),
    "rsi": lambda c, i: (talib.RSI(c.close, *i.params),),
    "tr": lambda c, i: (talib.TRANGE(c.high, c.low, c.close),),
    "atr": lambda c, i: (talib.ATR(c.high, c.low, c.close, *i.params),),
    "macd": lambda c, i: talib.MACD(c.close, *i.params),
    "bollinger": lambda c, i: tuple(talib.BBANDS(c.close, i.params[0], i.params[1], i.params[1])[at] for at in (1, 0, 2)),
    "stoch": lambda c, i: (
        talib.STOCHF(c.high, c.low, c.close, i.params[0], 1)[0],
        *talib.STOCH(c.high, c.low, c.close, i.params[0], i.params[1], 0, i.params[2], 0),
    ),
}
SAME = [i for i in DEFAULTS if i.kind in (sma, ema, stddev, highest, lowest, rsi, bollinger, stoch) and i.source not in ("rise", "fall")]


@pytest.mark.parametrize("indicator", SAME, ids=str)
def test_equal_where_the_conventions_are(indicator: Indicator) -> None:
    candles = market(31, 1_000, 137.0)
    ours = calculate((indicator,), candles)
    tolerance = TALIB_DEVIATION if indicator.kind in (stddev, bollinger) else TALIB
    for column, theirs in zip(indicator.columns, PEERS[indicator.kind.name](candles, indicator), strict=False):
        known = ~np.isnan(theirs)
        assert known[indicator.stable_after :].all()
        np.testing.assert_allclose(ours[column][known], theirs[known], rtol=tolerance, atol=tolerance * np.nanmax(np.abs(theirs)))


# indicator, its first bar and TA-Lib's, and how far they are apart at the later one (a fraction of the column's largest value)
DIFFERENT = [
    (tr(), "tr", 0, 1, 0.0),  # TA-Lib: no true range without a close before
    (atr(14), "atr_14", 13, 14, 1e-4),  # TA-Lib: so its seed is a bar later
    (macd(12, 26, 9), "macd_12_26_9_line", 25, 33, 1e-4),  # TA-Lib: line not shown before signal; the fast ema seeded at bar 25
]


@pytest.mark.parametrize(("indicator", "column", "first", "first_of_talib", "apart"), DIFFERENT, ids=[str(row[0]) for row in DIFFERENT])
def test_where_others_differ(indicator: Indicator, column: str, first: int, first_of_talib: int, apart: float) -> None:
    candles = market(32, 1_000, 137.0)
    ours, theirs = calculate((indicator,), candles)[column], PEERS[indicator.kind.name](candles, indicator)[0]
    assert (np.flatnonzero(~np.isnan(ours))[0], np.flatnonzero(~np.isnan(theirs))[0]) == (first, first_of_talib)
    distance = np.abs(ours - theirs) / np.nanmax(np.abs(theirs))
    assert distance[first_of_talib] >= apart
    assert distance[indicator.stable_after :].max() < 1e-6


def test_a_market_that_does_not_move_has_no_direction() -> None:
    still = np.full(100, 137.0)
    candles = Candles(np.arange(100), *[still] * 6)
    assert np.isnan(calculate((rsi(14),), candles)["rsi_14"]).all()
    assert talib.RSI(still, 14)[-1] == 0.0


def test_every_kind_has_a_peer() -> None:
    assert set(PEERS) == {indicator.kind.name for indicator in DEFAULTS}
