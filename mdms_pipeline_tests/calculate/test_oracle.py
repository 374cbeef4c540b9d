"""Every indicator against the naive oracle: first what kind of value, then the value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings

from mdms_pipeline.calculate.catalog import DEFAULTS
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.kernels import bollinger, ema, highest, lowest, macd, rsi, sma, stddev, stoch
from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.market import Candles, Floats
from mdms_pipeline_tests.calculate import oracle
from mdms_pipeline_tests.laws.markets import LEVELS, market, markets, still, with_values
from mdms_pipeline_tests.tolerances import ORACLE, ORACLE_DIFFERENCE

SMALL = (
    *(kind(n) for kind in (sma, stddev, highest, lowest, ema) for n in (1, 2, 5, 13, 37)),
    *(rsi(n) for n in (1, 2, 9)),
    macd(3, 8, 4),
    bollinger(6, 2.5),
    stoch(5, 3, 2),
)
DIFFERENCES = ("line", "signal", "histogram", "percent_b")


def plain(column: Floats) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in column.tolist()]


def expected(indicator: Indicator, candles: Candles) -> dict[str, list[float | None]]:
    """The oracle's outputs by name of the output."""
    name, params = indicator.kind.name, indicator.params
    high, low, close = plain(candles.high), plain(candles.low), plain(candles.close)
    if indicator.source in ("rise", "fall"):
        return {name: getattr(oracle, name)(oracle.changes(close, 1 if indicator.source == "rise" else -1), *params)}
    if indicator.source is not None:
        return {name: getattr(oracle, name)(plain(getattr(candles, indicator.source)), *params)}
    given_columns = (high, low, close) if name in ("tr", "atr", "stoch") else (close,)
    result = getattr(oracle, name)(*given_columns, *params)
    return result if isinstance(result, dict) else {name: result}


def assert_agrees(indicator: Indicator, candles: Candles) -> None:
    ours = calculate((indicator,), candles)
    for output, values in expected(indicator, candles).items():
        theirs = np.array([math.nan if value is None else value for value in values])
        column = ours[indicator.column(output)]
        assert not np.isinf(column).any()
        assert np.array_equal(np.isnan(column), np.isnan(theirs)), f"{indicator}.{output}: known at other bars"
        if (~np.isnan(theirs)).any():
            size = (
                np.nanmax(candles.close[np.isfinite(candles.close)])
                if output in ("line", "signal", "histogram")
                else np.nanmax(np.abs(theirs))
            )
            slack = ORACLE_DIFFERENCE * size if output in DIFFERENCES else 0.0
            np.testing.assert_allclose(column, theirs, rtol=ORACLE, atol=slack, err_msg=f"{indicator}.{output}")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("indicator", [*DEFAULTS, *SMALL], ids=str)
def test_the_oracle_agrees(indicator: Indicator, level: float) -> None:
    assert_agrees(indicator, market(21, 300, level))


@pytest.mark.parametrize("indicator", [*DEFAULTS, *SMALL], ids=str)
def test_the_oracle_agrees_about_the_unknown(indicator: Indicator) -> None:
    assert_agrees(indicator, still(with_values(market(22, 420), [0, 5, 31, 32, 160], np.nan), 260, 330))


@settings(max_examples=25, deadline=None)
@given(candles=markets(max_bars=90))
def test_the_oracle_agrees_on_any_market(candles: Candles) -> None:
    for indicator in SMALL:
        assert_agrees(indicator, candles)
