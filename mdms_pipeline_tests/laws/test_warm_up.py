"""`first` and `stable_after` are what they say."""

from __future__ import annotations

import numpy as np
import pytest

from mdms_pipeline.calculate.catalog import closure
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.kernels import atr, ema, macd, rsi, sma, stoch, tr
from mdms_pipeline.market import Candles
from mdms_pipeline_tests.laws.markets import CATALOG, known, market, same_bits
from mdms_pipeline_tests.tolerances import FORGOTTEN_SEED

LATER = 3_000  # bars that two histories share


def is_windowed(indicator: Indicator) -> bool:
    return all(part.kind.settles(*part.params) == 0 or part.kind is tr for part in closure((indicator,)))


def histories(indicator: Indicator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Its outputs over the same later candles: with another 700 before them, and with none."""
    before, later = market(11, 700, 48_000.0), market(12, LATER, 50_000.0)
    both = Candles(*(np.concatenate((getattr(before, name), getattr(later, name))) for name in Candles.__dataclass_fields__))
    long, short = known(both, (indicator,)), known(later, (indicator,))
    return {name: long[name][700:] for name in indicator.columns}, {name: short[name] for name in indicator.columns}


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_first_value_is_where_it_is_declared(indicator: Indicator) -> None:
    values = known(market(bars=300), (indicator,))
    for column, first in zip(indicator.columns, indicator.first, strict=True):
        assert np.isnan(values[column][:first]).all(), column
        assert np.isfinite(values[column][first]), column


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_stable_after_the_seed_is_forgotten(indicator: Indicator) -> None:
    long, short = histories(indicator)
    for column in indicator.columns:
        apart = np.abs(long[column] - short[column])
        assert np.isfinite(apart[indicator.stable_after :]).all()
        if is_windowed(indicator):
            assert same_bits(long[column][indicator.stable_after :], short[column][indicator.stable_after :]), column
        else:
            assert apart[indicator.stable_after :].max() <= FORGOTTEN_SEED * np.nanmax(apart), column


@pytest.mark.parametrize("indicator", [ema(200), ema(12), rsi(14), atr(14), macd(12, 26, 9)], ids=str)
def test_stable_after_is_not_said_too_late(indicator: Indicator) -> None:
    """At half of it the seed still shows."""
    long, short = histories(indicator)
    apart = np.max([np.abs(long[column] - short[column]) for column in indicator.columns], axis=0)
    assert apart[indicator.stable_after // 2] > 1e-6 * np.nanmax(apart)


def test_figures_of_the_defaults() -> None:
    assert {i.call: (i.first, i.stable_after) for i in (tr(), sma(20), sma("rise", 14), ema(26), rsi(14), atr(14))} == {
        "tr()": ((0,), 1),
        "sma(20)": ((19,), 19),
        "sma(rise, 14)": ((14,), 14),
        "ema(26)": ((25,), 205),  # 25 + 180: 0.926^180 < 1e-6
        "rsi(14)": ((14,), 201),  # 14 + 187: 0.929^187 < 1e-6
        "atr(14)": ((13,), 201),  # the range before the first bar, 13, 187
    }
    assert macd(12, 26, 9).first == (25, 33, 33)
    assert stoch(14, 3, 3).first == (13, 15, 17)
    assert macd(12, 26, 9).stable_after == 205 + 8 + 62
