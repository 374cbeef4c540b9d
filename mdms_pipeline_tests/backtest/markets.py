"""Histories and strategy files in a hurry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import numpy as np

from mdms_pipeline.backtest.history import History, Past
from mdms_pipeline.backtest.strategy import Recipe, load_strategy
from mdms_pipeline.market import Candles, instant, timeframe
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import DELISTED, Page, mark, store_pages
from mdms_pipeline.store.universe import Market, store_universe
from mdms_pipeline.vocabulary import vocabulary

START = instant("2025-01-01")

GOOD = """
    title: A title
    timeframe: 1h
    universe: [KRW-BTC]
    entry: crosses_above(sma(fast), sma(slow))
    exit: crosses_below(sma(fast), sma(slow))
    size: {fraction: 0.5}
    costs: {fee: 0, slippage: 0, participation: 1}
    params:
      fast: {value: 5, sweep: [3, 5, 8]}
      slow: {value: 20, sweep: [15, 20, 30]}
"""


def write(folder: Path, text: str = GOOD, name: str = "mine") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return file


def recipe(folder: Path, text: str = GOOD) -> Recipe:
    found = load_strategy(write(folder, text), vocabulary())
    assert isinstance(found, Recipe), "\n".join(map(str, found))
    return found


def walk(seed: int, bars: int, holes: float = 0.0, frame: str = "1h", level: float = 1e9, value: float = 1e12) -> Candles:
    """A random walk without drift: a candle every slot but some holes. At 1e9 KRW a tick is too small to be a cost."""
    random = np.random.default_rng(seed)
    close = level * np.exp(np.cumsum(random.normal(0, 0.01, bars)))
    opens = np.concatenate(([level], close[:-1]))
    high, low = np.maximum(opens, close) * 1.002, np.minimum(opens, close) * 0.998
    seconds = timeframe(frame).seconds or 0
    candles = Candles(
        START + seconds * np.arange(bars, dtype=np.int64), opens, high, low, close, random.uniform(1, 9, bars), np.full(bars, value)
    )
    return candles[(random.random(bars) >= holes) | (np.arange(bars) == 0)]


def history(seed: int = 0, bars: int = 1_000, symbols: tuple[str, ...] = ("KRW-BTC",), holes: float = 0.0, frame: str = "1h") -> History:
    return History.of(timeframe(frame), {symbol: Past(walk(seed + i, bars, holes, frame)) for i, symbol in enumerate(symbols)})


def warehouse(
    folder: Path, candles: Mapping[str, Candles], frame: str, gone: tuple[str, ...] = (), no_trade: str | None = None
) -> Warehouse:
    """A warehouse that has collected these candles, from their beginning."""
    store = Warehouse(folder / "mdms.duckdb", "sandbox", no_trade=no_trade)
    slots = timeframe(frame)
    last = slots.after(max(int(each.opened_at[-1]) for each in candles.values()))
    pages = [Page(symbol, frame, each, (int(each.opened_at[0]), last), begins=True) for symbol, each in candles.items()]
    markets = [Market(symbol, symbol, symbol, False, 1e9) for symbol in candles]
    with store.write() as connection:
        store_universe(connection, markets, list(candles), "top:9", last)
        store_pages(connection, pages, last, last, None)
        mark(connection, {(symbol, frame): (DELISTED, "404") for symbol in gone}, last, None)
    return store
