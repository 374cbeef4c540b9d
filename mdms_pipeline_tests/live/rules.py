"""Strategies, screens and candles of the tests of live signals: rules that turn often, and are answered early."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import numpy as np

from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.live.load import indicators_of
from mdms_pipeline.live.watch import Bars, Watch, columns_of
from mdms_pipeline.live_watch import watches_of
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Instant, instant
from mdms_pipeline.settings import Settings
from mdms_pipeline_tests import support

START = instant("2026-01-01")

STRATEGIES = {
    "crossing": """
        title: Crossing
        timeframe: {frame}
        universe: all
        entry: crosses_above(sma(3), sma(7)) or close > 1.01 * close[2]
        exit: sma(3) < sma(7) and not (rsi(3) < 20)
        size: {{fraction: 0.1}}
    """,
    "held": """
        title: Held
        timeframe: {frame}
        universe: [KRW-AAA, KRW-CCC]
        entry: bollinger(5, 1).percent_b > 0.9 and volume > sma(volume, 5)
        exit: close < entry_price and bars_held >= 3
        stop: 2 * atr(3)
        size: {{fraction: 0.1}}
    """,
    "screened": """
        title: Screened
        timeframe: {frame}
        universe: {{screen: rising}}
        entry: stoch(4, 2, 2).k > 60
        exit: macd(3, 6, 3).histogram < 0
        size: {{fraction: 0.1}}
    """,
}
SCREENS = {
    "rising": """
        title: Rising
        timeframe: {frame}
        where: [close > ema(5), "close >= highest(close, 4)[1]"]
        rank: {{expression: close, direction: desc}}
    """,
    "quiet": """
        title: Quiet
        timeframe: {frame}
        universe: [KRW-BBB, KRW-CCC]
        where: "volume < sma(volume, 5) or not close > close[1]"
        rank: {{expression: rsi(3), direction: asc}}
    """,
}


def settings(home: Path, frame: str = "1h", **more: str) -> Settings:
    """A home with these strategies and screens, besides the built-in ones."""
    for folder, files in (("strategies", STRATEGIES), ("screens", SCREENS)):
        (home / "own" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (home / "own" / folder / f"{name}.yaml").write_text(dedent(text.format(frame=frame)).lstrip("\n"))
    return support.settings(home, timeframes=frame, MDMS_EXTENSIONS=str(home / "own"), **more)


def watches(given: Settings) -> tuple[Watch, ...]:
    return watches_of(given, list(STRATEGIES), list(SCREENS))


def walk(bars: int, seed: int, missing: float = 0.1, frame: str = "1h") -> Candles:
    """A walk of which some slots have no trade; the first has one."""
    found = support.candles(START, bars, seed=seed, frame=frame)
    traded = np.random.default_rng(seed).random(bars) >= missing
    traded[0] = True
    return found[traded]


def bars_of(symbol: str, candles: Candles, watched: Sequence[Watch]) -> Bars:
    """All bars of a symbol with what the watches read, calculated from the first candle on."""
    found = {name: getattr(candles, name) for name in PRICES_AND_AMOUNTS} | calculate(indicators_of(watched), candles)
    return Bars(symbol, candles.opened_at, {name: found[name] for name in columns_of(watched)})


def hour(n: int) -> Instant:
    return START + n * 3_600
