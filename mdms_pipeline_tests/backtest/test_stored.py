"""What of the warehouse a backtest reads: indicators that are up to date, and what they make of slots without a trade."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mdms_pipeline.backtest.check import look_ahead, warm_up
from mdms_pipeline.backtest.decide import decide
from mdms_pipeline.backtest.find import history_of
from mdms_pipeline.backtest.history import History
from mdms_pipeline.backtest.run import backtest
from mdms_pipeline.backtest.strategy import Strategy
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.schema import FLAT, SKIP
from mdms_pipeline.vocabulary import needed
from mdms_pipeline_tests.backtest.markets import GOOD, recipe, walk, warehouse
from mdms_pipeline_tests.support import calculate

SYMBOLS = ("KRW-C0", "KRW-C1", "KRW-C2")
READS = GOOD.replace("[KRW-BTC]", "all").replace(
    "crosses_above(sma(fast), sma(slow))", "close > sma(fast) and rsi(14) < 70 and volume > sma(volume, fast)"
)


def made(folder: Path, no_trade: str = SKIP) -> tuple[Warehouse, Strategy]:
    """Three markets with many slots without a trade, everything that the strategy reads calculated."""
    store = warehouse(folder, {symbol: walk(i, 500, holes=0.3) for i, symbol in enumerate(SYMBOLS)}, "1h", no_trade=no_trade)
    strategy = recipe(folder, READS).usual
    calculate(store, SYMBOLS, ["1h"], needed(strategy.expressions))
    return store, strategy


def decided(strategy: Strategy, history: History) -> list[bytes]:
    return [grid.tobytes() for grid in decide(strategy, history).decisions]


@pytest.mark.parametrize("no_trade", [SKIP, FLAT])
def test_stored_and_calculated_indicators_decide_the_same(tmp_path: Path, no_trade: str) -> None:
    store, strategy = made(tmp_path, no_trade)
    history = history_of(store, strategy)
    assert all({"sma_5", "rsi_14", "sma_volume_5"} <= set(past.stored) for past in history.past.values())
    assert decided(strategy, history) == decided(strategy, history.unstored)
    assert look_ahead(strategy, history).passed
    assert warm_up(strategy, history).passed
    assert backtest(strategy, history).record["calculated"] == {}
    other = replace(history.unstored, no_trade=FLAT if no_trade == SKIP else SKIP)
    assert decided(strategy, other) != decided(strategy, history)  # the choice decides something here


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("UPDATE memory SET fingerprint = 'of an older kernel' WHERE symbol = 'KRW-C1'", id="older declaration"),
        pytest.param("UPDATE status SET revision = revision + 1 WHERE symbol = 'KRW-C1'", id="revised candles"),
    ],
)
def test_what_is_not_up_to_date_is_calculated_instead(tmp_path: Path, change: str) -> None:
    """A market that left the universe is not calculated any more: after an update its values are of the declaration before."""
    store, strategy = made(tmp_path)
    before = history_of(store, strategy)
    with store.write() as connection:
        connection.execute("UPDATE sma SET sma_5 = sma_5 * 1.01, sma_volume_5 = 0 WHERE symbol = 'KRW-C1'")
    tainted = decided(strategy, history_of(store, strategy))
    with store.write() as connection:
        connection.execute(change)
    after = history_of(store, strategy)
    assert tainted != decided(strategy, before)
    assert decided(strategy, after) == decided(strategy, before)
    assert after.past["KRW-C1"].stored == {}
    assert set(after.past["KRW-C0"].stored) == set(before.past["KRW-C0"].stored)
    assert backtest(strategy, after).record["calculated"]["sma_5"] == 1
    assert look_ahead(strategy, after).passed


def test_only_some_symbols_are_as_if_no_others_were_stored(tmp_path: Path) -> None:
    store, strategy = made(tmp_path, FLAT)
    only = history_of(store, strategy).only(["KRW-C2"])
    assert (only.symbols, only.no_trade) == (("KRW-C2",), FLAT)
    assert np.array_equal(only.past["KRW-C2"].candles.close, walk(2, 500, holes=0.3).close)
