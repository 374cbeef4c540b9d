"""Prices in another unit change what is in KRW by that factor, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.market import Candles
from mdms_pipeline_tests.laws.markets import CATALOG, known, market, same_bits
from mdms_pipeline_tests.tolerances import SCALE

RATIOS = ("rsi", "raw", "k", "d", "percent_b", "bandwidth")


def power(indicator: Indicator, output: str) -> int:
    """1 for a column in KRW, 0 for a ratio or an amount of the base asset."""
    return 0 if output in RATIOS or indicator.source == "volume" else 1


def scaled(candles: Candles, factor: float) -> Candles:
    prices = {name: getattr(candles, name) * factor for name in ("open", "high", "low", "close", "value")}
    return Candles(opened_at=candles.opened_at, volume=candles.volume, **prices)


@pytest.mark.parametrize("factor", [2.0**10, 2.0**-20, 1_000.0, 1 / 3])
@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_scale(indicator: Indicator, factor: float) -> None:
    candles = market(5, 300)
    before, after = known(candles, (indicator,)), known(scaled(candles, factor), (indicator,))
    for output, column in zip(indicator.kind.writes, indicator.columns, strict=True):
        expected = before[column] * factor ** power(indicator, output)
        if np.frexp(factor)[0] == 0.5:
            assert same_bits(expected, after[column]), column
        else:
            assert np.array_equal(np.isnan(expected), np.isnan(after[column]))
            np.testing.assert_allclose(after[column], expected, rtol=0, atol=SCALE * np.nanmax(np.abs(expected)), err_msg=column)
