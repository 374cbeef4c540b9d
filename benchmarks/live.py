"""From the frames' arrival to the signals' emission, all markets closing at the same instant; talipp and TA-Lib's streaming beside it.

    python benchmarks/live.py [--symbols 120] [--closings 300] [--rules 50] [--no-peers]

One closing: one frame for each market arrives, each of a new bar, which closes the bar before; every default indicator is advanced by one
bar, every rule judged, every answer that changed is written to the journal and handed out. The time is of the whole, the last signal's;
that of each signal is below it. The least, p50, p99 and the greatest over all closings, after WARM_UP of them.

The peers do a part of it: they advance the same indicators by the same bars, without messages, rules, values and journal. talipp is fed
bar by bar; TA-Lib's streaming functions see the last WINDOW bars, which is as much as an EMA of 200 needs, and make only the last value.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import talib.stream as talib
from talipp import indicators as talipp
from talipp.ohlcv import OHLCV

from mdms_pipeline.calculate.catalog import DEFAULTS, closure
from mdms_pipeline.calculate.run import carry
from mdms_pipeline.collect.socket import TYPES, parse
from mdms_pipeline.live.deliver import Delivery
from mdms_pipeline.live.engine import Engine
from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.load import indicators_of
from mdms_pipeline.live.news import News
from mdms_pipeline.live.run import message_of
from mdms_pipeline.live.signal import STRATEGY, WHERE
from mdms_pipeline.live.tape import Loaded
from mdms_pipeline.live.tidy import MOST
from mdms_pipeline.live.watch import Watch, columns_of
from mdms_pipeline.market import HOUR, PRICES_AND_AMOUNTS, Candles, instant, iso
from mdms_pipeline.rules import parse as rule_of
from mdms_pipeline.vocabulary import vocabulary

START = instant("2026-01-01")
HISTORY = 1_000  # bars known before
WARM_UP = 20  # closings that do not count
WINDOW = 1_400  # bars: seven times 200

RULES = (
    "close > sma({a})", "crosses_above(ema(12), ema(26)) and close > ema({e})", "rsi(14) < {r} and close > sma(200)",
    "close > highest({h})[1]", "close < lowest({h})[1]", "macd(12, 26, 9).histogram > 0 and macd(12, 26, 9).histogram[1] <= 0",
    "bollinger(20, 2).percent_b > 1 or bollinger(20, 2).bandwidth < 0.{r}", "stoch(14, 3, 3).d < stoch(14, 3, 3).k < {r}",
    "volume > 2 * sma(volume, 20) and close > open", "tr() > {k} * atr(14) or stddev(20) / close > 0.0{r}",
)  # fmt: skip


def watches_of(count: int) -> list[Watch]:
    """So many different rules over all default indicators."""
    words, found = vocabulary(), []
    for i in range(count):
        turn = i // len(RULES)
        given = {
            "a": (5, 10, 20, 60, 120)[turn % 5],
            "e": (50, 200)[turn % 2],
            "h": (14, 20, 55)[turn % 3],
            "r": 20 + 5 * turn,
            "k": 1 + turn,
        }
        text = RULES[i % len(RULES)].format(**given)
        found.append(Watch(STRATEGY, f"rule_{i}", WHERE, "1h", (rule_of(text, words),)))
    return found


def walk(symbols: int, bars: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Candles, each column of shape (bars, symbols)."""
    drawn = np.random.default_rng(seed)
    close = 50_000 * np.exp(np.cumsum(drawn.normal(0, 0.01, (bars, symbols)), axis=0))
    opening = np.vstack([close[:1], close[:-1]])
    high = np.maximum(opening, close) * (1 + 0.003 * drawn.random((bars, symbols)))
    low = np.minimum(opening, close) * (1 - 0.003 * drawn.random((bars, symbols)))
    volume = 10 * drawn.random((bars, symbols))
    return {"open": opening, "high": high, "low": low, "close": close, "volume": volume, "value": volume * close}


def engine_of(watches: Sequence[Watch], candles: dict[str, np.ndarray], symbols: Sequence[str]) -> Engine:
    """An engine that knows HISTORY bars of every symbol."""
    engine = Engine(watches, symbols, False, time.perf_counter)
    lane, needed = engine.lanes["1h"], indicators_of(watches)
    opened_at = START + HOUR * np.arange(HISTORY, dtype=np.int64)
    found = []
    for i, symbol in enumerate(symbols):
        past = Candles(opened_at, *(np.ascontiguousarray(candles[name][:HISTORY, i]) for name in PRICES_AND_AMOUNTS))
        after, fresh = carry(needed, {}, past)
        columns = {name: getattr(past, name) if name in PRICES_AND_AMOUNTS else fresh[name] for name in (*columns_of(watches), "close")}
        found.append(Loaded(symbol, opened_at, columns, after, HISTORY, int(opened_at[-1]), HISTORY))
    lane.load(found)
    return engine


def frames(candles: dict[str, np.ndarray], symbols: Sequence[str], bar: int) -> list[bytes]:
    """What arrives: one frame for each market, as the exchange writes it."""
    names = ("opening_price", "high_price", "low_price", "trade_price", "candle_acc_trade_volume", "candle_acc_trade_price")
    opened = START + HOUR * bar
    said = {
        "type": TYPES["1h"],
        "candle_date_time_utc": iso(opened).rstrip("Z"),
        "candle_date_time_kst": iso(opened + 9 * HOUR).rstrip("Z"),
    }
    return [
        json.dumps({
            **said, "code": symbol, "timestamp": 1_000 * (opened + 3_599), "stream_type": "REALTIME",
            **{name: float(candles[column][bar, i]) for name, column in zip(names, PRICES_AND_AMOUNTS, strict=True)},
        }).encode()
        for i, symbol in enumerate(symbols)
    ]  # fmt: skip


def ours(candles: dict[str, np.ndarray], symbols: Sequence[str], rules: int, closings: int) -> dict[str, list[float]]:
    """Seconds of each closing, with those of its parts."""
    watches = watches_of(rules)
    engine, news = engine_of(watches, candles, symbols), News()
    times: dict[str, list[float]] = {"all": [], "parse": [], "judge": [], "journal": [], "signal": []}
    gc.collect()
    gc.freeze()
    gc.set_threshold(MOST)
    with tempfile.TemporaryDirectory() as folder:
        delivery = Delivery(Journal(Path(folder)))
        told = 0
        for bar in range(HISTORY, HISTORY + closings + 1):
            gc.collect()  # as `mdms live` does while nothing waits
            arrived = frames(candles, symbols, bar)
            began = time.perf_counter()
            heard = [message_of(each) for frame in arrived for each in parse(frame, began)]
            parsed = time.perf_counter()
            found = news.fresh(engine.hear(heard))
            judged = time.perf_counter()
            delivery.emit(found)
            ended = time.perf_counter()
            told += len(found)
            if bar > HISTORY + WARM_UP:
                for name, seconds in zip(times, (ended - began, parsed - began, judged - parsed, ended - judged), strict=False):
                    times[name].append(seconds)
                times["signal"] += [signal.emitted_at - began for signal in found]
        delivery.close()
    print(f"{len(symbols)} symbols, {len(closure(DEFAULTS))} default indicators ({len(indicators_of(watches))} are read), {rules} rules: "
          f"{told / (closings + 1):.0f} signals a closing")  # fmt: skip
    return times


TALIPP: dict[str, Callable[..., Any]] = {
    "sma": lambda n: talipp.SMA(n), "ema": lambda n: talipp.EMA(n), "stddev": lambda n: talipp.StdDev(n),
    "rsi": lambda n: talipp.RSI(n), "atr": lambda n: talipp.ATR(n), "macd": lambda f, s, g: talipp.MACD(f, s, g),
    "bollinger": lambda n, k: talipp.BB(n, k), "stoch": lambda n, a, b: talipp.Stoch(n, b),
    "highest": lambda n: talipp.DonchianChannels(n), "tr": lambda: talipp.TR() if hasattr(talipp, "TR") else talipp.ATR(1),
}  # fmt: skip
OF_BARS = ("atr", "stoch", "highest", "tr")


def with_talipp(candles: dict[str, np.ndarray], symbols: int, closings: int) -> list[float]:
    """Seconds of each closing: every default indicator that talipp has (lowest comes with highest; rise and fall are left out)."""
    wanted = [i for i in DEFAULTS if i.kind.name in TALIPP and i.source not in ("rise", "fall")]
    held = [[(i, TALIPP[i.kind.name](*i.params)) for i in wanted] for _ in range(symbols)]
    times = []
    for bar in range(HISTORY - 300, HISTORY + closings + 1):
        row = {name: candles[name][bar].tolist() for name in candles}
        began = time.perf_counter()
        for s in range(symbols):
            one = OHLCV(row["open"][s], row["high"][s], row["low"][s], row["close"][s], row["volume"][s], None)
            for i, indicator in held[s]:
                indicator.add(one if i.kind.name in OF_BARS else row[str(i.source or "close")][s])
        if bar > HISTORY + WARM_UP:
            times.append(time.perf_counter() - began)
    return times


def with_talib(candles: dict[str, np.ndarray], symbols: int, closings: int) -> list[float]:
    """Seconds of each closing: TA-Lib's streaming functions over the last WINDOW bars (of what there are) of every symbol."""
    columns = {name: np.ascontiguousarray(column.T) for name, column in candles.items()}
    make: dict[str, Callable[[dict[str, Any], Any], Any]] = {
        "tr": lambda c, i: talib.TRANGE(c["high"], c["low"], c["close"]), "sma": lambda c, i: talib.SMA(c[i.source], i.params[0]),
        "ema": lambda c, i: talib.EMA(c[i.source], i.params[0]), "stddev": lambda c, i: talib.STDDEV(c[i.source], i.params[0]),
        "highest": lambda c, i: talib.MAX(c[i.source], i.params[0]), "lowest": lambda c, i: talib.MIN(c[i.source], i.params[0]),
        "rsi": lambda c, i: talib.RSI(c["close"], i.params[0]), "atr": lambda c, i: talib.ATR(c["high"], c["low"], c["close"], i.params[0]),
        "macd": lambda c, i: talib.MACD(c["close"], *i.params), "bollinger": lambda c, i: talib.BBANDS(c["close"], i.params[0], 2.0, 2.0),
        "stoch": lambda c, i: talib.STOCH(c["high"], c["low"], c["close"], i.params[0], i.params[1], 0, i.params[2], 0),
    }  # fmt: skip
    wanted = [i for i in DEFAULTS if i.source not in ("rise", "fall")]
    times = []
    for bar in range(HISTORY, HISTORY + closings + 1):
        began = time.perf_counter()
        for s in range(symbols):
            window = {name: column[s, max(0, bar + 1 - WINDOW) : bar + 1] for name, column in columns.items()}
            for i in wanted:
                make[i.kind.name](window, i)
        if bar > HISTORY + WARM_UP:
            times.append(time.perf_counter() - began)
    return times


def show(name: str, seconds: Sequence[float]) -> None:
    ms = 1_000 * np.array(seconds)
    figures = {"least": ms.min(), "p50": np.percentile(ms, 50), "p99": np.percentile(ms, 99), "max": ms.max()}
    print(f"{name:<28}" + "".join(f"{what:>7} {value:7.2f}" for what, value in figures.items()) + f" ms   ({len(ms)})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--symbols", type=int, default=120)
    parser.add_argument("--closings", type=int, default=300)
    parser.add_argument("--rules", type=int, default=50)
    parser.add_argument("--no-peers", action="store_true")
    given = parser.parse_args()
    symbols = [f"KRW-S{i}" for i in range(given.symbols)]
    candles = walk(given.symbols, HISTORY + given.closings + 1)
    names = {"all": "frames to signals told", "parse": "  frames read", "judge": "  bars closed, rules judged", "journal": "  journal",
             "signal": "one signal, to its making"}  # fmt: skip
    for name, seconds in ours(candles, symbols, given.rules, given.closings).items():
        show(names[name], seconds)
    if not given.no_peers:
        closings = min(given.closings, 60)
        show("talipp, indicators alone", with_talipp(candles, given.symbols, closings))
        show("TA-Lib stream, the same", with_talib(candles, given.symbols, closings))


if __name__ == "__main__":
    main()
