"""Against vectorbt on backtesting.py's data: SMA 10/20, long only, fee 0.0005, next open. It fills and marks as we do, to the last bar."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from mdms_pipeline.backtest.engine import Fill, Side, Size, Terms
from mdms_pipeline_tests.backtest.test_peer import CASH, FEE, MARKETS, crossings, market_of, traded
from mdms_pipeline_tests.tolerances import PEER_EQUITY


def theirs(frame: Any, size: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vectorbt

        enter, leave = (np.roll(signal[:, 0], 1) & (np.arange(len(frame)) > 0) for signal in crossings(frame))  # filled one bar later
        return vectorbt.Portfolio.from_signals(
            frame["Close"], enter, leave, price=frame["Open"], size=size, fees=FEE, init_cash=CASH, direction="longonly", freq="1D"
        )


@pytest.mark.parametrize("name", MARKETS)
@pytest.mark.parametrize(("size", "by", "amount"), [(1.0, Size.UNITS, 1.0), (np.inf, Size.FRACTION, 1.0)], ids=["one unit", "all in"])
def test_same_orders_and_equity(name: str, size: float, by: Size, amount: float) -> None:
    peer = theirs(MARKETS[name], size)
    outcome = traded(market_of(MARKETS[name]), crossings(MARKETS[name]), Terms(FEE, -1.0, 1.0, 0.0, 0.0, 1, int(by), amount, 0.0, 0.0, 0.0))
    orders = peer.orders.records
    assert len(orders) >= 4
    assert outcome.fills[:, Fill.SLOT].tolist() == orders["idx"].tolist()
    assert (outcome.fills[:, Fill.SIDE] == Side.BUY).tolist() == (orders["side"] == 0).tolist()
    assert outcome.fills[:, Fill.PRICE].tolist() == orders["price"].tolist()
    for ours, kept in ((Fill.UNITS, "size"), (Fill.FEE, "fees")):
        np.testing.assert_allclose(outcome.fills[:, ours], orders[kept], rtol=PEER_EQUITY)
    np.testing.assert_allclose(outcome.equity, peer.value().to_numpy(), rtol=PEER_EQUITY)
