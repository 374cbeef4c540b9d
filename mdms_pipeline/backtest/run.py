"""One backtest: decide, trade, count. And its record, from which it can be made again to the bit."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numba
import numpy as np

from mdms_pipeline.backtest.decide import Columns, Decided, decide, near, terms_of
from mdms_pipeline.backtest.engine import Cause, Fill, Notice, Outcome, Reason, Side, Trouble, trade
from mdms_pipeline.backtest.history import History, HistoryError, members, not_calculated
from mdms_pipeline.backtest.metrics import Metrics, buy_and_hold, measure, monthly
from mdms_pipeline.backtest.strategy import Strategy
from mdms_pipeline.market import Floats, Instant, iso
from mdms_pipeline.vocabulary import indicator_of

ENGINE = 1  # raise it when the engine may give other trades for the same decisions
WORDS = {
    Reason.EXIT: "exit rule", Reason.STOP: "stop", Reason.TRAILING: "trailing stop", Reason.TARGET: "target",
    Reason.DELISTED: "delisted: closed at the last close", Reason.OPEN: "still open: marked at the last close",
}  # fmt: skip
CAUSES = {
    Cause.NO_CANDLE: "no candle within 3 slots", Cause.ENDED: "the data ended", Cause.CASH: "not enough cash",
    Cause.PARTICIPATION: "more than the allowed part of the bar's value", Cause.MINIMUM: "below the minimum order",
    Cause.FULL: "all places taken", Cause.UNKNOWN_SIZE: "size unknown or zero", Cause.LEVEL: "stop or target unknown or out of reach",
}  # fmt: skip


@dataclass(frozen=True)
class Trade:
    """One position, or the part of it that one sale closed."""

    symbol: str
    decided_at: Instant  # opening of the slot at whose close it was decided
    entered_at: Instant  # opening of the slot in which it filled, as is the next
    exited_at: Instant
    entry_price: float
    exit_price: float
    units: float
    fees: float  # KRW, both ways
    profit: float  # KRW, after fees
    profit_rate: float  # of what was paid, fees included
    bars: int  # slots from entry to exit
    opened: str  # why
    closed: str


@dataclass(frozen=True)
class Order:
    """One order that did not fill as it was wanted."""

    symbol: str
    decided_at: Instant
    at: Instant
    side: str
    trouble: str
    cause: str
    wanted: float  # KRW, NaN where it was not known
    filled: float  # KRW


@dataclass(frozen=True)
class Result:
    """Everything that came of one backtest."""

    strategy: Strategy
    history: History
    decided: Decided
    outcome: Outcome
    first: int  # slot
    end: int  # slot
    reference: Floats  # equity of buy and hold
    near: tuple[tuple[int, str, str], ...]  # slot, symbol, rule: decisions within 1e-6 of a threshold
    calculated: Mapping[str, int]  # columns that were not stored -> symbols

    @cached_property
    def trades(self) -> tuple[Trade, ...]:
        """In the order of closing; what is still open comes last."""
        return tuple(_trades(self))

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """Every order that was clipped, lapsed or rejected."""
        return tuple(_orders(self))

    @cached_property
    def counts(self) -> dict[str, int]:
        """`rejected: below the minimum order` -> how many."""
        return dict(Counter(f"{order.trouble}: {order.cause}" for order in self.orders).most_common())

    @cached_property
    def metrics(self) -> Metrics:
        return metrics_of(self.outcome, self.strategy, self.first)

    @property
    def opened_at(self) -> np.ndarray:
        return self.history.opened_at[self.first : self.end]

    @cached_property
    def monthly(self) -> dict[str, float]:
        return monthly(self.outcome.equity, self.strategy.capital, closes_at(self.history)[self.first : self.end])

    @cached_property
    def record(self) -> dict[str, Any]:
        """What makes the run again: the same record gives the same bits."""
        strategy = self.strategy
        return {
            "strategy": strategy.name,
            "rules": strategy.said,
            "params": dict(strategy.params),
            "from": iso(int(self.opened_at[0])),
            "to": iso(int(closes_at(self.history)[self.end - 1])),
            "symbols": list(self.history.symbols),
            "data": self.history.fingerprint,
            "revisions": {symbol: past.revision for symbol, past in self.history.past.items() if past.revision},
            "indicators": {indicator_of(call).call: indicator_of(call).fingerprint for call in strategy.calls},
            "calculated": dict(self.calculated),
            "strategy_fingerprint": strategy.fingerprint,
            "engine": ENGINE,
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "numba": numba.__version__,
                "machine": platform.machine(),
            },
            "seed": None,  # nothing here is drawn at random
            "outcome": hashlib.blake2b(b"".join(array.tobytes() for array in self.outcome), digest_size=16).hexdigest(),
        }

    @property
    def id(self) -> str:
        """Of the record: two runs of one id have the same trades and equity, bit for bit."""
        return hashlib.blake2b(json.dumps(self.record, sort_keys=True).encode(), digest_size=8).hexdigest()


def backtest(strategy: Strategy, history: History, start: Instant | None = None, end: Instant | None = None) -> Result:
    """Trade `strategy` over the slots of [start, end), from the first at which its indicators are stable.

    Raises HistoryError where the period holds no candle, or none after the warm-up.
    """
    first, last = history.period(start, end)
    history = history.until(last)  # what came later is not there
    columns = Columns(history)
    inside = members(strategy, history)
    decided = decide(strategy, history, columns, inside)
    first = max(first, decided.first)
    if first >= last:
        raise HistoryError(
            f"the period ends before the indicators of {strategy.name} are stable: no market has enough candles; collect more history"
        )
    market = history.market
    outcome = trade(market, decided.decisions, terms_of(strategy), first, last, strategy.capital)
    reference = buy_and_hold(market.close[first:last], market.open[first:last], inside[0][first:last], strategy.capital, strategy.costs.fee)
    close = tuple(place for place in near(strategy, history, columns) if first <= place[0] < last)
    return Result(strategy, history, decided, outcome, first, last, reference, close, not_calculated(strategy, history))


def closes_at(history: History) -> np.ndarray:
    """The instant at which every slot closes."""
    opened_at = history.opened_at
    return np.append(opened_at[1:], history.timeframe.after(int(opened_at[-1])))


def closed(fills: Floats) -> tuple[Floats, Floats]:
    """The sales of `fills`, and beside each the purchase that it closes."""
    sales = fills[fills[:, Fill.SIDE] == Side.SELL]
    return sales, fills[sales[:, Fill.ENTRY].astype(np.int64)]


def profits(fills: Floats) -> tuple[Floats, Floats]:
    """KRW won by each sale after both fees, and what was paid for it; a purchase's fee is shared among its sales by units."""
    sales, bought = closed(fills)
    units = sales[:, Fill.UNITS]
    paid = units * bought[:, Fill.PRICE] + bought[:, Fill.FEE] * units / bought[:, Fill.UNITS]
    return units * sales[:, Fill.PRICE] - sales[:, Fill.FEE] - paid, paid


def metrics_of(outcome: Outcome, strategy: Strategy, first: int) -> Metrics:
    won, paid = profits(outcome.fills)
    sales, bought = closed(outcome.fills)
    days = (sales[:, Fill.SLOT] - bought[:, Fill.SLOT]) * 365 / strategy.timeframe.bars_per_year
    amounts = float((outcome.fills[:, Fill.UNITS] * outcome.fills[:, Fill.PRICE]).sum())
    fees = float(outcome.fills[:, Fill.FEE].sum())
    return measure(outcome.equity, outcome.cash, outcome.held, strategy.capital, strategy.timeframe, won, won / paid, days, amounts, fees)


def _trades(result: Result) -> Iterator[Trade]:
    fills, history = result.outcome.fills, result.history
    sales, bought = closed(fills)
    won, paid = profits(fills)
    for sale, entry, profit, cost in zip(sales, bought, won, paid, strict=True):
        yield _trade(history, entry, sale, float(profit), float(cost))
    for entry, units in still_open(fills):
        symbol = int(entry[Fill.SYMBOL])
        rows = history.rows[history.symbols[symbol]]
        slot = int(rows[np.searchsorted(rows, result.end) - 1])
        price = float(history.market.close[slot, symbol])
        fee = entry[Fill.FEE] * units / entry[Fill.UNITS]
        sale = np.array([slot, symbol, Side.SELL, Reason.OPEN, price, price, units, 0.0, slot, 0.0])
        cost = units * entry[Fill.PRICE] + fee
        yield _trade(history, entry, sale, float(units * price - cost), float(cost))


def still_open(fills: Floats) -> Iterator[tuple[Floats, float]]:
    """Purchases that were not sold, with the units that are left of them."""
    left: dict[int, float] = {}
    for row, fill in enumerate(fills):
        if fill[Fill.SIDE] == Side.BUY:
            left[row] = fill[Fill.UNITS]
        else:
            entry = int(fill[Fill.ENTRY])
            left[entry] -= fill[Fill.UNITS]
            if left[entry] <= 0:
                del left[entry]
    yield from ((fills[row], units) for row, units in left.items())


def _trade(history: History, entry: Floats, sale: Floats, profit: float, cost: float) -> Trade:
    def at(row: Floats, column: Fill) -> int:
        return int(history.opened_at[int(row[column])])

    units = float(sale[Fill.UNITS])
    return Trade(
        symbol=history.symbols[int(entry[Fill.SYMBOL])],
        decided_at=at(entry, Fill.DECIDED),
        entered_at=at(entry, Fill.SLOT),
        exited_at=at(sale, Fill.SLOT),
        entry_price=float(entry[Fill.PRICE]),
        exit_price=float(sale[Fill.PRICE]),
        units=units,
        fees=float(entry[Fill.FEE] * units / entry[Fill.UNITS] + sale[Fill.FEE]),
        profit=profit,
        profit_rate=profit / cost,
        bars=int(sale[Fill.SLOT] - entry[Fill.SLOT]),
        opened="entry rule",
        closed=WORDS[Reason(int(sale[Fill.REASON]))],
    )


def _orders(result: Result) -> Iterator[Order]:
    at = result.history.opened_at
    for row in result.outcome.notices:
        yield Order(
            result.history.symbols[int(row[Notice.SYMBOL])], int(at[int(row[Notice.DECIDED])]), int(at[int(row[Notice.SLOT])]),
            "buy" if row[Notice.SIDE] == Side.BUY else "sell", Trouble(int(row[Notice.TROUBLE])).name.lower(),
            CAUSES[Cause(int(row[Notice.CAUSE]))], float(row[Notice.WANTED]), float(row[Notice.FILLED]),
        )  # fmt: skip


def numbers(metrics: Metrics) -> dict[str, float | int | None]:
    """The metrics by name."""
    return asdict(metrics)
