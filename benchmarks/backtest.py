"""Backtests: bar-sets per second, first call, memory, growth, beside backtesting.py and vectorbt.

    python benchmarks/backtest.py

The work: crossings of two SMAs over a random walk, long only, fee 0.0005, 100 combinations of the two lengths. A bar-set is one bar of
one combination.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

BARS, FASTS, SLOWS = 100_000, range(5, 25, 2), range(30, 130, 10)
SET_UP = f"""
import resource, sys, time, warnings
import numpy as np
warnings.simplefilter("ignore")
random = np.random.default_rng(0)
close = 1e6 * np.exp(np.cumsum(random.normal(0, 0.001, {BARS})))
"""
VECTORBT = (
    SET_UP
    + f"""
import pandas as pd
import vectorbt as vbt
def work():
    price = pd.Series(close, index=pd.date_range("2020", periods=len(close), freq="min"))
    pairs = [(f, s) for f in {list(FASTS)} for s in {list(SLOWS)}]
    fast = vbt.MA.run(price, [f for f, _ in pairs], short_name="fast")
    slow = vbt.MA.run(price, [s for _, s in pairs], short_name="slow")
    run = vbt.Portfolio.from_signals(price, fast.ma_crossed_above(slow), fast.ma_crossed_below(slow), fees=0.0005, freq="min")
    return run.sharpe_ratio()
start = time.perf_counter(); work(); print(time.perf_counter() - start)
start = time.perf_counter(); work(); print(time.perf_counter() - start)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
)
OURS = f"""
import resource, sys, tempfile, time
from pathlib import Path
sys.modules["scipy"] = None  # here for vectorbt; numba imports its linear algebra where it finds it, which a user of ours does not have
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from benchmarks.backtest import crossing, history, pairs
from mdms_pipeline.backtest.sweep import sweep
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
past, found = history(1, {BARS}), crossing()
for _ in range(2):
    start = time.perf_counter(); sweep(found, past, combinations=pairs()); print(time.perf_counter() - start)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before)
"""
CROSSING = """
title: Crossing means
timeframe: 1m
universe: all
entry: crosses_above(sma(fast), sma(slow))
exit: crosses_below(sma(fast), sma(slow))
size: {fraction: 0.1}
max_positions: 10
costs: {slippage: 0, participation: 1}
rank: {expression: close, direction: desc}
params: {fast: 10, slow: 50}
"""


def crossing():  # type: ignore[no-untyped-def]
    from mdms_pipeline.backtest.strategy import Recipe, load_strategy
    from mdms_pipeline.vocabulary import vocabulary

    file = Path(tempfile.mkdtemp()) / "crossing.yaml"
    file.write_text(CROSSING)
    found = load_strategy(file, vocabulary())
    assert isinstance(found, Recipe), found
    return found


def pairs() -> list[dict[str, float]]:
    return [{"fast": fast, "slow": slow} for fast in FASTS for slow in SLOWS]


def history(symbols: int, bars: int):  # type: ignore[no-untyped-def]
    from mdms_pipeline.backtest.history import History, Past
    from mdms_pipeline.market import Candles, timeframe

    random = np.random.default_rng(0)
    past = {}
    for i in range(symbols):
        close = 1e6 * np.exp(np.cumsum(random.normal(0, 0.001, bars)))
        opens = np.concatenate((close[:1], close[:-1]))
        at = 1_577_836_800 + 60 * np.arange(bars, dtype=np.int64)
        value = np.full(bars, 1e12)
        past[f"KRW-C{i}"] = Past(Candles(at, opens, np.maximum(opens, close), np.minimum(opens, close), close, value / close, value))
    return History.of(timeframe("1m"), past)


def took(work: Callable[[], object], times: int = 5) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def in_process(python: str, code: str, **variables: str) -> list[float]:
    done = subprocess.run([python, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def peers() -> None:
    sets = BARS * len(pairs())
    with tempfile.TemporaryDirectory() as cache:
        cold = in_process(sys.executable, OURS, NUMBA_CACHE_DIR=cache)
        fresh = in_process(sys.executable, OURS, NUMBA_CACHE_DIR=cache)
    with tempfile.TemporaryDirectory() as cache:
        theirs = in_process(sys.executable, VECTORBT, NUMBA_CACHE_DIR=cache)
    print(f"100 combinations x {BARS:,} bars           first call      again   bar-sets/s   peak MB (imports)")
    for name, (first, again, peak, imports) in (("nothing compiled before", cold), ("a new process", fresh)):
        print(f"{'ours, ' + name:36s} {first:10.2f} s {again:8.2f} s {sets / again / 1e6:10.1f} M {peak:9.0f} ({imports:.0f})")
    first, again, peak = theirs
    print(f"vectorbt, nothing compiled before    {first:10.2f} s {again:8.2f} s {sets / again / 1e6:10.1f} M {peak:9.0f}")
    seconds = backtesting_py()
    print(f"backtesting.py, one combination                       {seconds:8.2f} s {BARS / seconds / 1e6:10.2f} M")


def backtesting_py() -> float:
    import pandas as pd

    warnings.simplefilter("ignore")
    from backtesting import Backtest, Strategy
    from backtesting.lib import crossover

    class Crossing(Strategy):  # type: ignore[misc]
        def init(self) -> None:
            price = pd.Series(self.data.Close)
            self.fast, self.slow = (self.I(lambda n: price.rolling(n).mean(), n) for n in (10, 50))

        def next(self) -> None:
            if crossover(self.fast, self.slow):
                self.buy(size=0.1)
            elif crossover(self.slow, self.fast):
                self.position.close()

    candles = next(iter(history(1, BARS).past.values())).candles
    columns = {name: getattr(candles, name.lower()) for name in ("Open", "High", "Low", "Close", "Volume")}
    frame = pd.DataFrame(columns, index=pd.to_datetime(candles.opened_at, unit="s"))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # its progress bar
    seconds = took(lambda: Backtest(frame, Crossing, cash=1e9, commission=0.0005).run(), 1)
    sys.stderr = sys.__stderr__
    return seconds


def growth() -> None:
    from mdms_pipeline.backtest.decide import decide, terms_of
    from mdms_pipeline.backtest.engine import trade
    from mdms_pipeline.backtest.sweep import sweep

    found = crossing()
    print("\ngrowth (1.0 is linear)                    small       ten times   ratio / 10")
    for what, small, large in (("bars", (1, 30_000), (1, 300_000)), ("symbols", (12, 5_000), (120, 5_000))):
        seconds, engine = [], []
        for size in (small, large):
            past = history(*size)
            past.market  # noqa: B018  # laid out once
            seconds.append(took(lambda past=past: sweep(found, past, combinations=pairs()[:3]), 3))
            decided = decide(found.usual, past).decisions
            engine.append(
                took(lambda past=past, decided=decided: trade(past.market, decided, terms_of(found.usual), 0, past.slots, 1e7), 5)
            )
        for part, (one, ten) in (("sweep", seconds), ("engine alone", engine)):
            print(f"{what:10s} {part:16s} {one * 1e3:15.1f} ms {ten * 1e3:12.1f} ms {ten / one / 10:10.2f}")
    past = history(1, 30_000)
    one, ten = (took(lambda count=count: sweep(found, past, combinations=pairs()[:count]), 3) for count in (10, 100))
    print(f"{'combinations':27s} {one * 1e3:15.1f} ms {ten * 1e3:12.1f} ms {ten / one / 10:10.2f}")


def shared_cash() -> None:
    from mdms_pipeline.backtest.run import backtest

    bars = 5 * 365 * 6
    past, found = history(120, bars), crossing()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    result = backtest(found.usual, past)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n120 symbols x {bars:,} bars (4h, 5 years), one pot of cash: {seconds:.2f} s, {120 * bars / seconds / 1e6:.1f} M bars/s")
    print(f"{len(result.outcome.fills):,} fills; peak {peak:.0f} MB, {before:.0f} MB before it")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    peers()
    shared_cash()
    growth()
