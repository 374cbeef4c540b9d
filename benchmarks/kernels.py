"""How fast the kernels are, with TA-Lib beside them.

    python benchmarks/kernels.py [--bars 100000] [--symbols 120] [--rounds 5]

Each indicator, one thread: the median over symbols of nanoseconds per bar, both given the same pieces of PIECE bars (our memory is
carried over; TA-Lib starts anew at each joint, which costs it nothing). Ours is given what it reads, as the catalog shares it.
Then the whole catalog: every default with its sharing, rise and fall included, against TA-Lib making each output on its own. It is
not charged for what it does not make: percent_b, bandwidth, the raw stoch, rises and falls. Both write into fresh arrays, which are
kept until all are made, and both pay for their calls from Python.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import talib

from mdms_pipeline.calculate.catalog import DEFAULTS, closure
from mdms_pipeline.calculate.indicator import SOURCES, Indicator
from mdms_pipeline.calculate.run import columns, inputs, run
from mdms_pipeline.market import Candles, Floats

PIECE = 32_768  # bars: 0.25 MB a column. Much shorter ones make threads wait for the interpreter lock between calls
MARKETS = 8  # different ones in RAM; more symbols take turns

PEERS: dict[str, Callable[[dict[str, Floats], Any], object]] = {
    "tr": lambda c, i: talib.TRANGE(c["high"], c["low"], c["close"]),
    "sma": lambda c, i: talib.SMA(c[str(i.source)], i.params[0]),
    "ema": lambda c, i: talib.EMA(c[str(i.source)], i.params[0]),
    "stddev": lambda c, i: talib.STDDEV(c[str(i.source)], i.params[0]),
    "highest": lambda c, i: talib.MAX(c[str(i.source)], i.params[0]),
    "lowest": lambda c, i: talib.MIN(c[str(i.source)], i.params[0]),
    "rsi": lambda c, i: talib.RSI(c["close"], i.params[0]),
    "atr": lambda c, i: talib.ATR(c["high"], c["low"], c["close"], i.params[0]),
    "macd": lambda c, i: talib.MACD(c["close"], *i.params),
    "bollinger": lambda c, i: talib.BBANDS(c["close"], i.params[0], i.params[1], i.params[1]),
    "stoch": lambda c, i: talib.STOCH(
        c["high"], c["low"], c["close"], i.params[0], i.params[1], talib.MA_Type.SMA, i.params[2], talib.MA_Type.SMA
    ),
}


def market(seed: int, bars: int) -> Candles:
    rng = np.random.default_rng(seed)
    close = 50_000 * np.exp(np.cumsum(rng.normal(0, 0.001, bars)))
    opening = np.concatenate(([50_000.0], close[:-1]))
    high, low = np.maximum(opening, close) * (1 + rng.random(bars) / 1_000), np.minimum(opening, close) * (1 - rng.random(bars) / 1_000)
    volume = rng.lognormal(2, 1, bars)
    return Candles(np.arange(bars) * 60, opening, high, low, close, volume, volume * close)


def pieces(candles: Candles) -> Iterator[tuple[Candles, float]]:
    """Candles of each piece, and the close before it."""
    for start in range(0, len(candles), PIECE):
        yield candles[start : start + PIECE], candles.close[start - 1] if start else np.nan


def whole_catalog(candles: Candles) -> None:
    memories = {indicator: indicator.memory for indicator in closure(DEFAULTS)}
    for piece, previous_close in pieces(candles):
        known = columns(piece, SOURCES, previous_close)
        for indicator, memory in memories.items():
            memories[indicator], outputs = run(indicator, memory, inputs(indicator, known))
            known.update(zip(indicator.columns, outputs, strict=True))


def whole_talib(candles: Candles, changes: list[dict[str, Floats]]) -> None:
    for known in changes:
        kept = [PEERS[indicator.kind.name](known, indicator) for indicator in DEFAULTS]  # as ours are, until all are made
        del kept


@numba.njit(nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _spin(times: int) -> float:
    total = 0.0
    for i in range(times):
        total = 0.5 * total + i
    return total


def spin(candles: Candles) -> float:
    return float(_spin(200 * len(candles)))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def each_indicator(candles: Candles) -> dict[Indicator, tuple[float, float]]:
    """Seconds of ours and of TA-Lib, over all pieces."""
    memories = {indicator: indicator.memory for indicator in closure(DEFAULTS)}
    seconds = {indicator: [0.0, 0.0] for indicator in memories}
    for piece, previous_close in pieces(candles):
        known = columns(piece, SOURCES, previous_close)
        for indicator, memory in memories.items():
            given = inputs(indicator, known)
            start = time.perf_counter()
            memories[indicator], outputs = run(indicator, memory, given)
            middle = time.perf_counter()
            PEERS[indicator.kind.name](known, indicator)
            seconds[indicator][0] += middle - start
            seconds[indicator][1] += time.perf_counter() - middle
            known.update(zip(indicator.columns, outputs, strict=True))
    return {indicator: (ours, theirs) for indicator, (ours, theirs) in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=100_000)
    parser.add_argument("--symbols", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    made = [market(seed, asked.bars) for seed in range(min(MARKETS, asked.symbols))]
    symbols = [made[at % len(made)] for at in range(asked.symbols)]
    print(f"first run in this process, compiled or loaded: {timed(lambda: whole_catalog(made[0][:100])):.2f} s")

    ns = 1e9 / asked.bars
    table = [each_indicator(candles) for candles in symbols]
    print(f"\n{asked.symbols} symbols x {asked.bars} bars, one thread, median ns per bar\n{'':20}{'ours':>8}{'TA-Lib':>8}{'ratio':>8}")
    for indicator in table[0]:
        ours, theirs = (statistics.median(row[indicator][at] for row in table) * ns for at in (0, 1))
        print(f"{indicator.call:20}{ours:8.2f}{theirs:8.2f}{ours / theirs:8.2f}")

    in_pieces = [[columns(piece, SOURCES, before) for piece, before in pieces(candles)] for candles in made]
    whole = [[columns(candles, SOURCES)] for candles in made]
    ours, theirs, theirs_whole = (
        statistics.median(timed(lambda work=work, at=at: work(at % len(made))) for at in range(asked.symbols)) * ns
        for work in (
            lambda at: whole_catalog(made[at]),
            lambda at: whole_talib(made[at], in_pieces[at]),
            lambda at: whole_talib(made[at], whole[at]),
        )
    )
    print(f"\nwhole catalog       {ours:8.2f}{theirs:8.2f}{ours / theirs:8.2f}   TA-Lib given pieces of {PIECE} bars")
    print(f"                    {ours:8.2f}{theirs_whole:8.2f}{ours / theirs_whole:8.2f}   TA-Lib given the whole history at once")

    def threads(count: int, work: Callable[..., object], jobs: list[Candles]) -> float:
        with ThreadPoolExecutor(count) as pool:
            return timed(lambda: list(pool.map(work, jobs)))

    spin(made[0])
    rounds = [
        (threads(1, work, jobs) / threads(2, work, jobs))
        for _ in range(asked.rounds)
        for work, jobs in ((whole_catalog, symbols), (spin, made[:1] * 16))
    ]
    print(
        f"two threads: {statistics.median(rounds[::2]):.2f} x one (median of {asked.rounds} rounds); "
        f"of a loop without memory or calls, beside it: {statistics.median(rounds[1::2]):.2f} (what this machine has to give now)"
    )


if __name__ == "__main__":
    main()
