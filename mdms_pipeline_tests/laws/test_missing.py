"""An unknown value in the window is an unknown result; a recursive one passes over it; seeds count known values only."""

from __future__ import annotations

import numpy as np
import pytest

from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.kernels import atr, ema, highest, lowest, rsi, sma, stddev, tr
from mdms_pipeline.calculate.run import run
from mdms_pipeline_tests.laws.markets import CATALOG, known, market, same_bits, still, with_values

WINDOWED = [kind(n) for kind in (sma, stddev, highest, lowest) for n in (1, 2, 14, 20, 55)]
RECURSIVE = [ema(12), atr(14), rsi(14)]


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("indicator", WINDOWED, ids=str)
def test_a_window_is_unknown_exactly_while_the_hole_is_in_it(indicator: Indicator, hole: float) -> None:
    (n,) = indicator.params
    x = market(2, 3_000).close
    holes = [0, 150, 153, 1_100, 2_048]
    broken = x.copy()
    broken[holes] = hole
    whole, outputs = run(indicator, indicator.memory, [x])[1][0], run(indicator, indicator.memory, [broken])[1][0]
    touched = np.zeros(x.size, dtype=bool)
    for at in holes:
        touched[at : at + int(n)] = True
    assert np.isnan(outputs[touched]).all()
    assert same_bits(outputs[~touched], whole[~touched])


@pytest.mark.parametrize("hole", [np.nan, np.inf])
@pytest.mark.parametrize("indicator", RECURSIVE, ids=str)
def test_a_recursive_one_passes_over_the_hole(indicator: Indicator, hole: float) -> None:
    """Its other bars are as if the hole were not there."""
    x = list(np.random.default_rng(4).random((len(indicator.reads), 300)))
    holes = [3, 20, 21, 150] if indicator.kind is not rsi else [20, 21, 150]
    broken = [column.copy() for column in x]
    for column in broken:
        column[holes] = hole
    without = [np.delete(column, holes) for column in x]
    memory, outputs = run(indicator, indicator.memory, broken)
    memory_without, expected = run(indicator, indicator.memory, without)
    assert np.isnan(outputs[0, holes]).all()
    assert same_bits(np.delete(outputs, holes, axis=1), expected)
    assert same_bits(memory, memory_without)


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_an_infinite_value_is_an_unknown_one(indicator: Indicator) -> None:
    candles = market(8, 400)
    with np.errstate(invalid="ignore"):
        unknown = known(with_values(candles, [30, 200], np.nan), (indicator,))
        infinite = known(with_values(candles, [30, 200], np.inf), (indicator,))
    for column in indicator.columns:
        assert same_bits(unknown[column], infinite[column]), column
        assert not np.isinf(infinite[column]).any()


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_it_comes_back_after_a_hole(indicator: Indicator) -> None:
    values = known(with_values(market(9, 900), [400], np.nan), (indicator,))
    for column in indicator.columns:
        assert np.isnan(values[column][400]), column
        assert np.isfinite(values[column][-1]), column


def test_a_bar_after_an_unknown_close_has_no_true_range() -> None:
    candles = market(1, 10)
    close = candles.close.copy()
    close[4] = np.nan
    _, outputs = run(tr(), tr().memory, [candles.high, candles.low, close])
    assert np.flatnonzero(np.isnan(outputs[0])).tolist() == [5]


def test_a_market_that_does_not_move() -> None:
    """No direction, no width, no height: unknown. Means are exactly the price, the deviation exactly 0."""
    values = known(still(market(1, 400, 0.1), 0, 400))
    price = values["close"][0]
    assert np.isnan(values["rsi_14"]).all()
    assert np.isnan(values["bollinger_20_2_percent_b"]).all()
    assert all(np.isnan(values[f"stoch_14_3_3_{output}"]).all() for output in ("raw", "k", "d"))
    assert (values["bollinger_20_2_bandwidth"][19:] == 0.0).all()
    assert (values["stddev_20"][19:] == 0.0).all()
    assert (values["sma_200"][199:] == price).all()


def test_smoothing_waits_for_values_again() -> None:
    """In a flat window stoch is unknown; k is back at the third value of raw, d at the third of k."""
    values = known(still(market(6, 200), 50, 80))
    flat = np.flatnonzero(np.isnan(values["stoch_14_3_3_raw"][20:])) + 20
    assert flat.tolist() == list(range(63, 80))
    assert np.flatnonzero(np.isnan(values["stoch_14_3_3_k"][20:])).tolist() == list(range(43, 62))
    assert np.flatnonzero(np.isnan(values["stoch_14_3_3_d"][20:])).tolist() == list(range(43, 64))
