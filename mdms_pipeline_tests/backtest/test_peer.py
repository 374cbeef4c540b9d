"""Against backtesting.py 0.6.6 on its own data: SMA 10/20, long only, fee 0.0005, next open.

Its last bar differs by design: it closes what is open at the last open, we mark it at the last close.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from mdms_pipeline.backtest.decide import ABSENT, NO_LEAVES, NO_PROGRAM
from mdms_pipeline.backtest.engine import Bools, Decisions, Fill, Market, Outcome, Side, Size, Terms, trade
from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.market import Candles, Floats
from mdms_pipeline.rules import evaluate, parse, passes
from mdms_pipeline.vocabulary import column_of, indicator_of, vocabulary
from mdms_pipeline_tests.tolerances import PEER_EQUITY

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from backtesting import Backtest, Strategy
    from backtesting.test import BTCUSD, EURUSD, GOOG

FEE, CASH = 0.0005, 1e6
MARKETS = {"GOOG": GOOG, "BTCUSD": BTCUSD, "EURUSD": EURUSD}


class Crossing(Strategy):  # type: ignore[misc]
    size: float | None = None

    def init(self) -> None:
        close = np.asarray(self.data.Close)
        self.fast, self.slow = self.I(mean, close, 10), self.I(mean, close, 20)

    def next(self) -> None:
        before, now = self.fast[-2] - self.slow[-2], self.fast[-1] - self.slow[-1]
        if before <= 0 < now and not self.position:
            self.buy(size=self.size) if self.size else self.buy()
        elif before >= 0 > now and self.position:
            self.position.close()


def mean(close: Floats, n: int) -> Floats:
    """The same kernel for both: this test is about the engine."""
    found = calculate([indicator_of(parse(f"sma({n}) > 0", vocabulary()).calls[0])], candles_of(close))
    return next(iter(found.values()))


def candles_of(close: Floats) -> Candles:
    return Candles(np.arange(len(close)), *(np.array(close, np.float64) for _ in range(6)))


def theirs(frame: Any, size: float | None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Backtest(frame, Crossing, cash=CASH, commission=FEE, finalize_trades=True).run(size=size)


def market_of(frame: Any) -> Market:
    opened, high, low, close = (np.array(frame[name], np.float64).reshape(-1, 1) for name in ("Open", "High", "Low", "Close"))
    return Market(opened, high, low, close, np.full_like(close, np.inf), np.array([-1]))


def crossings(frame: Any) -> tuple[Bools, Bools]:
    """Where SMA 10 crosses above SMA 20, and below it, at each close; one column."""
    close = np.array(frame["Close"], np.float64)
    rules = [parse(f"crosses_{way}(sma(10), sma(20))", vocabulary()) for way in ("above", "below")]
    read = {call: mean(close, int(call.params[0])) for call in rules[0].calls}
    assert {column_of(call) for call in read} == {"sma_10", "sma_20"}
    above, below = (passes(evaluate(rule, read)).reshape(-1, 1) for rule in rules)
    return above, below


def traded(market: Market, signals: tuple[Bools, Bools], terms: Terms) -> Outcome:
    decided = Decisions(*signals, NO_PROGRAM, NO_LEAVES, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT)
    return trade(market, decided, terms, 0, len(market.close), CASH)


@pytest.mark.parametrize("name", MARKETS)
@pytest.mark.parametrize(("size", "by", "amount"), [(1, Size.UNITS, 1.0), (None, Size.FRACTION, 1.0)], ids=["one unit", "all in"])
def test_same_trades_and_equity(name: str, size: float | None, by: Size, amount: float) -> None:
    frame = MARKETS[name]
    peer = theirs(frame, size)
    outcome = traded(market_of(frame), crossings(frame), Terms(FEE, -1.0, 1.0, 0.0, 1.0, 1, int(by), amount, 0.0, 0.0, 0.0))
    fills, trades = outcome.fills, peer["_trades"]
    bought, sold = fills[fills[:, Fill.SIDE] == Side.BUY], fills[fills[:, Fill.SIDE] == Side.SELL]
    assert len(trades) >= 2
    assert bought[:, Fill.SLOT].tolist() == trades["EntryBar"].tolist()
    assert bought[:, Fill.UNITS].tolist() == trades["Size"].tolist()
    assert bought[:, Fill.PRICE].tolist() == trades["EntryPrice"].tolist()
    assert sold[:, Fill.SLOT].tolist() == trades["ExitBar"].tolist()[: len(sold)]
    assert sold[:, Fill.PRICE].tolist() == trades["ExitPrice"].tolist()[: len(sold)]
    assert len(bought) - len(sold) in (0, 1)  # what is still open they close at the last open
    np.testing.assert_allclose(outcome.equity[:-1], peer["_equity_curve"]["Equity"].to_numpy()[:-1], rtol=PEER_EQUITY)
