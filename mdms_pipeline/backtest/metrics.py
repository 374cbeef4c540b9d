"""Numbers that people expect of a backtest.

Returns are simple per slot, annualised by the timeframe's bars in 365 days; risk-free 0, ddof 1.

A ratio without a denominator is None: no deviation, no loss, no trade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from mdms_pipeline.market import Floats, Timeframe


@dataclass(frozen=True)
class Metrics:
    total_return: float  # fraction
    annual_return: float | None
    volatility: float | None  # annual
    sharpe: float | None  # annual
    sortino: float | None  # annual
    calmar: float | None
    max_drawdown: float  # fraction below the highest equity so far
    drawdown_days: float  # longest time below a high
    exposure: float  # mean fraction of equity in positions
    in_market: float  # fraction of slots with a position
    turnover: float | None  # bought and sold per year, in multiples of the mean equity
    fees: float  # KRW
    trades: int  # closed
    win_rate: float | None
    profit_factor: float | None
    expectancy: float | None  # KRW per closed trade
    mean_return: float | None  # of a closed trade, fraction
    mean_days: float | None  # that a closed trade was held
    losing_run: int  # closed trades in a row


def returns(equity: Floats, start: float) -> Floats:
    """Simple return of each slot; the first is from the capital."""
    before = np.concatenate(([start], equity[:-1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(before > 0, equity / before - 1, 0.0)


def sharpe(slot_returns: Floats, bars_per_year: float) -> float | None:
    """Annual Sharpe ratio, None without deviation."""
    deviation = slot_returns.std(ddof=1) if len(slot_returns) > 1 else 0.0
    return float(slot_returns.mean() / deviation * math.sqrt(bars_per_year)) if deviation > 0 else None


def sortino(slot_returns: Floats, bars_per_year: float) -> float | None:
    """As Sharpe, with the root mean square of the losses below; None where nothing was lost."""
    below = math.sqrt(float(np.mean(np.minimum(slot_returns, 0.0) ** 2))) if len(slot_returns) else 0.0
    return float(slot_returns.mean() / below * math.sqrt(bars_per_year)) if below > 0 else None


def drawdown(equity: Floats, start: float) -> Floats:
    """How far below the highest equity so far, as a fraction <= 0."""
    return equity / np.maximum.accumulate(np.maximum(equity, start)) - 1


def longest(below: Floats) -> int:
    """The most slots in a row below a high."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], below < 0, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def losing_run(profits: Floats) -> int:
    """The most losing trades in a row."""
    return longest(np.where(profits < 0, -1.0, 0.0))


def annual(total: float, slots: int, bars_per_year: float) -> float | None:
    """The yearly return that makes `total`; None where everything was lost, or it is too large to say."""
    if total <= -1 or slots == 0:
        return None
    power = math.log1p(total) * bars_per_year / slots
    return math.expm1(power) if power < 700 else None


def measure(
    equity: Floats, cash: Floats, held: np.ndarray, start: float, frame: Timeframe, profits: Floats, trade_returns: Floats, days: Floats,
    amounts: float, fees: float,
) -> Metrics:  # fmt: skip
    """All numbers of one run. `profits`, `trade_returns` and `days` are those of closed trades in the order of their closing."""
    each, below, per_year = returns(equity, start), drawdown(equity, start), frame.bars_per_year
    total = float(equity[-1] / start - 1)
    yearly = annual(total, len(equity), per_year)
    won, lost = profits[profits > 0].sum(), -profits[profits < 0].sum()
    deepest = abs(float(below.min()))
    count = len(profits)
    years = len(equity) / per_year
    with np.errstate(divide="ignore", invalid="ignore"):
        exposure = np.nan_to_num(1 - cash / equity).mean()
    return Metrics(
        total_return=total,
        annual_return=yearly,
        volatility=float(each.std(ddof=1) * math.sqrt(per_year)) if len(each) > 1 else None,
        sharpe=sharpe(each, per_year),
        sortino=sortino(each, per_year),
        calmar=yearly / deepest if yearly is not None and deepest > 0 else None,
        max_drawdown=deepest,
        drawdown_days=longest(below) * 365 / per_year,
        exposure=float(exposure),
        in_market=float((held > 0).mean()),
        turnover=float(amounts / equity.mean() / years) if equity.mean() > 0 else None,
        fees=fees,
        trades=count,
        win_rate=float((profits > 0).mean()) if count else None,
        profit_factor=float(won / lost) if lost > 0 else None,
        expectancy=float(profits.mean()) if count else None,
        mean_return=float(trade_returns.mean()) if count else None,
        mean_days=float(days.mean()) if count else None,
        losing_run=losing_run(profits),
    )


def monthly(equity: Floats, start: float, closes_at: np.ndarray) -> dict[str, float]:
    """`2026-11` -> return of that month (UTC), from the equity at the close of the month before."""
    months = [datetime.fromtimestamp(int(at) - 1, UTC).strftime("%Y-%m") for at in closes_at]
    table: dict[str, float] = {}
    before = start
    last: dict[str, float] = dict(zip(months, equity, strict=True))  # the last slot of a month wins
    for month, value in last.items():
        table[month] = float(value / before - 1)
        before = value
    return table


def buy_and_hold(close: Floats, opens: Floats, inside: np.ndarray, start: float, fee: float) -> Floats:
    """Equity of `start` KRW spread evenly over the symbols that are in the universe at the first slot, bought at their next open and held.

    Waits as cash until there is such a symbol. A market without a candle is worth its last close.
    """
    slots = len(close)
    tradable = inside[:-1] & ~np.isnan(opens[1:])
    begin = int(np.argmax(tradable.any(axis=1))) if slots > 1 and tradable.any() else -1
    if begin < 0:
        return np.full(slots, start)
    bought = np.flatnonzero(tradable[begin])
    units = start / len(bought) / (1 + fee) / opens[begin + 1, bought]
    equity = np.full(slots, start)
    last = opens[begin + 1, bought].copy()
    for slot in range(begin + 1, slots):
        now = close[slot, bought]
        last = np.where(np.isnan(now), last, now)
        equity[slot] = float(units @ last)
    return equity
