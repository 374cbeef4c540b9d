"""Random candles, decisions and terms for both engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mdms_pipeline.backtest.decide import ABSENT, NO_LEAVES, NO_PROGRAM
from mdms_pipeline.backtest.engine import Decisions, Market, Op, Size, Terms
from mdms_pipeline_tests.backtest.oracle import Rules

CASH = 1e7


@dataclass
class World:
    market: Market
    decisions: Decisions
    terms: Terms
    rules: Rules  # the same, for the oracle


def candles(random: np.random.Generator, slots: int, symbols: int, level: float, wild: float) -> Market:
    """Random walks; a bar opens near the close before, values are sometimes tiny."""
    close = level * np.exp(np.cumsum(random.normal(0, wild, (slots, symbols)), axis=0))
    before = np.vstack([close[:1], close[:-1]])
    opens = before * np.exp(random.normal(0, wild / 3, close.shape))
    high = np.maximum(opens, close) * np.exp(np.abs(random.normal(0, wild / 2, close.shape)))
    low = np.minimum(opens, close) * np.exp(-np.abs(random.normal(0, wild / 2, close.shape)))
    value = np.exp(random.uniform(np.log(1e5), np.log(1e10), close.shape))
    return Market(opens, high, low, close, value, np.full(symbols, -1))


def world(seed: int) -> World:
    random = np.random.default_rng(seed)
    slots, symbols = int(random.integers(20, 120)), int(random.integers(1, 6))
    market = candles(
        random, slots, symbols, float(np.exp(random.uniform(np.log(0.5), np.log(1e8)))), float(random.choice([0.005, 0.03, 0.15]))
    )
    missing = random.random((slots, symbols)) < random.choice([0.0, 0.1, 0.6])
    for array in market[:5]:
        array[missing] = np.nan
    there = ~np.isnan(market.open)
    gone = np.array([int(np.flatnonzero(there[:, s])[-1]) if there[:, s].any() and random.random() < 0.3 else -1 for s in range(symbols)])
    market = market._replace(gone=gone)
    enter = (random.random((slots, symbols)) < 0.3) & there
    leave = (random.random((slots, symbols)) < 0.15) & there
    rank = random.choice([1.0, 2.0, 3.0, np.nan], (slots, symbols)) if random.random() < 0.7 else ABSENT

    def distances() -> Any:
        kind = random.integers(0, 3)
        if kind == 0:
            return 0.0, ABSENT
        if kind == 1:
            return float(random.choice([0.01, 0.05, 0.2])), ABSENT
        away = market.close * np.exp(random.normal(-3, 1, (slots, symbols)))
        away[random.random((slots, symbols)) < 0.05] = np.nan
        return 0.0, away

    (stop, stops), (target, targets), (trail, trails) = distances(), distances(), distances()
    by = int(random.choice([Size.FRACTION, Size.KRW, Size.RISK]))
    size = {Size.FRACTION: float(random.choice([0.1, 0.5, 1.0])), Size.KRW: float(random.choice([3e3, 1e5, 3e6])), Size.RISK: 0.01}[
        Size(by)
    ]
    risk = market.close * np.exp(random.normal(-3, 1, (slots, symbols))) if by == Size.RISK else ABSENT
    patient = int(random.integers(1, 12))
    reads_position = bool(random.random() < 0.4)
    program, leaves = NO_PROGRAM, NO_LEAVES
    if reads_position:  # close < entry_price * 0.97 or bars_held >= n
        program = np.array(
            [(Op.LEAF, 0), (Op.PRICE, 0), (Op.LEAF, 1), (Op.MUL, 0), (Op.LT, 0), (Op.BARS, 0), (Op.LEAF, 2), (Op.GE, 0), (Op.OR, 0)]
        )
        leaves = np.stack([market.close, np.full_like(market.close, 0.97), np.full_like(market.close, float(patient))])
    terms = Terms(
        float(random.choice([0.0, 0.0005, 0.01])), float(random.choice([-1.0, 0.0, 1.0, 3.0])),
        float(random.choice([0.01, 1.0])), 5000.0, 0.0,
        int(random.integers(1, symbols + 1)), by, size, stop, target, trail,
    )  # fmt: skip
    decisions = Decisions(
        enter, leave if not reads_position else np.zeros((0, 0), np.bool_), program, leaves, rank, stops, targets, trails, risk
    )

    def level(fraction: float, array: Any) -> Any:
        if fraction:
            return lambda slot, symbol, price: fraction * price
        return (lambda slot, symbol, price: float(array[slot, symbol])) if array.size else None

    def sized(slot: int, symbol: int, equity: float, close: float) -> float:
        return (
            {Size.FRACTION: size * equity, Size.KRW: size}[Size(by)]
            if by != Size.RISK
            else size * equity * (close / float(risk[slot, symbol]))
        )

    def leaves_now(slot: int, symbol: int, price: float, bars: int) -> bool:
        if reads_position:
            return bool(market.close[slot, symbol] < price * 0.97 or bars >= patient)
        return bool(leave[slot, symbol])

    rows = [[tuple(float(column[t, s]) for column in market[:5]) if there[t, s] else None for s in range(symbols)] for t in range(slots)]
    rules = Rules(
        rows, enter.tolist(), leaves_now, rank=(lambda slot, symbol: float(rank[slot, symbol])) if rank.size else None,
        stop=level(stop, stops), target=level(target, targets), trail=level(trail, trails), size=sized,
        gone={s: int(g) for s, g in enumerate(gone) if g >= 0}, fee=terms.fee, ticks=None if terms.slippage < 0 else terms.slippage,
        part=terms.participation, minimum=terms.minimum, places=terms.places,
    )  # fmt: skip
    return World(market, decisions, terms, rules)
