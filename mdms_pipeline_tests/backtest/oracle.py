"""A second engine: plain Python, one object per order and position, written from docs/backtest.md.

It shares no code with the compiled one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

# price from which the tick holds -> tick, as Upbit's policy prints them
TICKS = [("1000000", "1000"), ("500000", "500"), ("100000", "100"), ("50000", "50"), ("10000", "10"), ("5000", "5"), ("1000", "1"),
         ("100", "1"), ("10", "0.1"), ("1", "0.01"), ("0.1", "0.001"), ("0.01", "0.0001"), ("0.001", "0.00001"), ("0.0001", "0.000001"),
         ("0.00001", "0.0000001"), ("0", "0.00000001")]  # fmt: skip
PATIENCE = 3


def tick(price: Decimal) -> Decimal:
    return next(Decimal(size) for bound, size in TICKS if price >= Decimal(bound))


def slip(price: float, buying: bool, ticks: float | None) -> float:
    """One or more ticks against us, then onto the tick table against us."""
    if ticks is None:
        return price
    exact = Decimal(repr(price))
    moved = exact + tick(exact) * Decimal(repr(ticks)) * (1 if buying else -1)
    moved = max(moved, Decimal(0))
    size = tick(moved)
    count = moved / size
    near = count.to_integral_value()
    if abs(count - near) > Decimal("0.000001"):
        near = count.to_integral_value(ROUND_CEILING if buying else ROUND_FLOOR)
    return float(max(near, Decimal(1)) * size)


@dataclass
class Position:
    units: float
    price: float
    stop: float
    target: float
    trail: float
    high: float
    last: float
    bars: int = 0


@dataclass
class Order:
    side: str
    slot: int
    amount: float
    rank: float = 0.0


@dataclass
class Rules:
    """Everything that an engine needs, as lists of rows [slot][symbol]; None where there is no such rule."""

    candles: list[list[tuple[float, float, float, float, float] | None]]  # open high low close value
    enter: list[list[bool]]
    leave: Any  # callable (slot, symbol, entry_price, bars_held) -> bool
    rank: Any = None
    stop: Any = None  # callable (slot, symbol, price) -> distance in KRW
    target: Any = None
    trail: Any = None
    size: Any = None  # callable (slot, symbol, equity, close) -> KRW
    gone: dict[int, int] = field(default_factory=dict)
    fee: float = 0.0005
    ticks: float | None = 1.0
    part: float = 0.01
    minimum: float = 5000.0
    places: int = 10


@dataclass
class Ledger:
    fills: list[tuple[Any, ...]] = field(default_factory=list)  # slot symbol side reason price units
    troubles: list[tuple[Any, ...]] = field(default_factory=list)  # slot symbol side trouble cause
    equity: list[float] = field(default_factory=list)


class Book:
    def __init__(self, rules: Rules, cash: float) -> None:
        self.rules, self.cash, self.ledger = rules, cash, Ledger()
        self.positions: dict[int, Position] = {}
        self.orders: dict[int, Order] = {}

    def run(self, end: int) -> Ledger:
        for slot in range(end):
            self.at_open(slot)
            self.in_bar(slot)
            equity = self.cash + sum(self.positions[s].units * self.positions[s].last for s in sorted(self.positions))
            self.ledger.equity.append(equity)
            self.at_close(slot, equity)
        for symbol, order in sorted(self.orders.items()):
            patient = end - 1 - order.slot >= PATIENCE
            self.trouble(min(order.slot + PATIENCE, end - 1), symbol, order.side, "lapsed", "no candle" if patient else "ended")
        return self.ledger

    def trouble(self, *what: Any) -> None:
        self.ledger.troubles.append(what)

    def at_open(self, slot: int) -> None:
        here = {s: order for s, order in sorted(self.orders.items()) if self.rules.candles[slot][s] is not None}
        for symbol, order in here.items():
            del self.orders[symbol]
            if slot > order.slot + PATIENCE:
                self.trouble(order.slot + PATIENCE, symbol, order.side, "lapsed", "no candle")
            elif order.side == "sell":
                self.sell(slot, symbol, self.rules.candles[slot][symbol][0], "exit")  # type: ignore[index]
        buyers = [(s, o) for s, o in here.items() if o.side == "buy" and slot <= o.slot + PATIENCE]
        for symbol, order in sorted(buyers, key=lambda pair: -pair[1].rank if not math.isnan(pair[1].rank) else math.inf):
            if len(self.positions) >= self.rules.places:
                self.trouble(slot, symbol, "buy", "rejected", "full")
            else:
                self.buy(slot, symbol, order)

    def buy(self, slot: int, symbol: int, order: Order) -> None:
        r = self.rules
        opened, _, _, _, value = r.candles[slot][symbol]  # type: ignore[misc]
        price = slip(opened, True, r.ticks)
        limits = [(order.amount / price, None), (self.cash / (1 + r.fee) / price, "cash"), (r.part * value / price, "participation")]
        units, why = min(limits, key=lambda pair: pair[0])
        if units <= 0 or units * price < r.minimum:
            self.trouble(slot, symbol, "buy", "rejected", why or "minimum")
            return
        if why:
            self.trouble(slot, symbol, "buy", "clipped", why)
        self.cash = max(0.0, self.cash - units * price - r.fee * (units * price))
        levels = [price - f(order.slot, symbol, price) if f else -math.inf for f in (r.stop, r.trail)]
        target = price + r.target(order.slot, symbol, price) if r.target else math.inf
        self.positions[symbol] = Position(units, price, levels[0], target, levels[1], price, price)
        self.ledger.fills.append((slot, symbol, "buy", "entry", price, units))

    def sell(self, slot: int, symbol: int, base: float, why: str) -> None:
        r, position = self.rules, self.positions[symbol]
        forced = why == "delisted"
        price = base if forced else slip(base, False, r.ticks)
        most = math.inf if forced else r.part * r.candles[slot][symbol][4] / price  # type: ignore[index]
        units = min(position.units, most)
        partly = units < position.units
        if not forced and (units <= 0 or units * price < r.minimum):
            self.trouble(slot, symbol, "sell", "rejected", "participation" if partly else "minimum")
            return
        if partly:
            self.trouble(slot, symbol, "sell", "clipped", "participation")
        self.cash = self.cash + units * price - r.fee * (units * price)
        self.ledger.fills.append((slot, symbol, "sell", why, price, units))
        position.units -= units
        if position.units == 0:
            del self.positions[symbol]

    def in_bar(self, slot: int) -> None:
        for symbol in sorted(self.positions):
            candle, position = self.rules.candles[slot][symbol], self.positions[symbol]
            if candle is None:
                continue
            opened, high, low, close, _ = candle
            if low <= max(position.stop, position.trail):
                level = max(position.stop, position.trail)
                self.sell(slot, symbol, min(level, opened), "stop" if position.stop >= position.trail else "trailing")
            elif high >= position.target:
                self.sell(slot, symbol, max(position.target, opened), "target")
            if symbol in self.positions and self.rules.gone.get(symbol) == slot:
                self.sell(slot, symbol, close, "delisted")
            if symbol not in self.positions:
                continue
            position.last, position.bars, position.high = close, position.bars + 1, max(position.high, high)
            if self.rules.trail:
                raised = position.high - self.rules.trail(slot, symbol, position.high)
                position.trail = raised if raised > position.trail else position.trail

    def at_close(self, slot: int, equity: float) -> None:
        r = self.rules
        for symbol in range(len(r.candles[slot])):
            candle = r.candles[slot][symbol]
            if candle is None:
                continue
            if symbol in self.positions:
                position = self.positions[symbol]
                if r.leave(slot, symbol, position.price, position.bars):
                    self.orders[symbol] = Order("sell", slot, 0.0)
            elif r.enter[slot][symbol] and r.gone.get(symbol) != slot:
                self.consider(slot, symbol, candle[3], equity)

    def consider(self, slot: int, symbol: int, close: float, equity: float) -> None:
        r = self.rules
        for rule, must_stay_above_zero in ((r.stop, True), (r.trail, True), (r.target, False)):
            away = rule(slot, symbol, close) if rule else 1e-300
            if math.isnan(away) or away <= 0 or (must_stay_above_zero and away >= close):
                self.trouble(slot, symbol, "buy", "rejected", "level")
                return
        amount = r.size(slot, symbol, equity, close)
        if math.isnan(amount) or math.isinf(amount) or amount <= 0:
            self.trouble(slot, symbol, "buy", "rejected", "unknown size")
            return
        self.orders[symbol] = Order("buy", slot, amount, r.rank(slot, symbol) if r.rank else 0.0)
