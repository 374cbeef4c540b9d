"""How fast the kernels are, with TA-Lib beside them.

    python benchmarks/kernels.py [--bars 100000] [--symbols 120] [--rounds 5]

Each indicator, one thread: the median over symbols of nanoseconds per bar, both given the whole history at once, as `calculate` and
`advance` do. Ours is given what it reads, as the catalog shares it; what is read was read once before, so that neither fetches it for the
other, and what is made is let go at once. Then the whole catalog: every default with its sharing, rise and fall included, against TA-Lib
making each output on its own. It is not charged for what it does not make: percent_b, bandwidth, the raw stoch, rises and falls. Both
write into fresh arrays, which are kept until all are made. Both pay for their calls from Python. Then what two threads make of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import talib

from mdms_pipeline.calculate.catalog import DEFAULTS, closure
from mdms_pipeline.calculate.indicator import SOURCES, Indicator
from mdms_pipeline.calculate.run import carry, columns, inputs, run
from mdms_pipeline.market import Candles, Floats

MARKETS = 8  # different ones in RAM; more symbols take turns
NEEDED = closure(DEFAULTS)

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


def whole_catalog(candles: Candles) -> None:
    carry(NEEDED, {}, candles)


def whole_talib(known: dict[str, Floats]) -> None:
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
    """Seconds of ours and of TA-Lib, neither of which keeps what it makes."""
    known = columns(candles, SOURCES) | carry(NEEDED, {}, candles)[1]
    seconds = {}
    for indicator in NEEDED:
        given = inputs(indicator, known)
        for column in given:
            column.sum()
        ours = timed(lambda indicator=indicator, given=given: run(indicator, indicator.memory, given))
        seconds[indicator] = ours, timed(lambda indicator=indicator: PEERS[indicator.kind.name](known, indicator))
    return seconds


def in_turn(work: Callable[[Any], object], jobs: list[Any]) -> float:
    """Median seconds."""
    return statistics.median(timed(lambda job=job: work(job)) for job in jobs)


def gain(work: Callable[[Any], object], jobs: list[Any]) -> float:
    """How many times one thread's time is two threads'."""
    seconds = []
    for count in (1, 2):
        with ThreadPoolExecutor(count) as pool:
            seconds.append(timed(lambda pool=pool: list(pool.map(work, jobs))))
    return seconds[0] / seconds[1]


def tell(what: str, ours: float, theirs: float) -> None:
    print(f"{what:20}{ours:8.2f}{theirs:8.2f}{ours / theirs:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=100_000)
    parser.add_argument("--symbols", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    made = [market(seed, asked.bars) for seed in range(min(MARKETS, asked.symbols))]
    read = [columns(candles, SOURCES) for candles in made]
    candles, given = ([each[at % len(made)] for at in range(asked.symbols)] for each in (made, read))
    print(f"first run in this process, compiled or loaded: {timed(lambda: whole_catalog(made[0][:100])):.2f} s")

    ns = 1e9 / asked.bars
    print(f"\n{asked.symbols} symbols x {asked.bars} bars, one thread, median ns per bar\n{'':20}{'ours':>8}{'TA-Lib':>8}{'ratio':>8}")
    table = [each_indicator(symbol) for symbol in candles]
    medians = {one: tuple(statistics.median(row[one][at] for row in table) * ns for at in (0, 1)) for one in NEEDED}
    for indicator, (ours, theirs) in medians.items():
        tell(indicator.call, ours, theirs)
    tell("together", *(sum(found) for found in zip(*medians.values(), strict=True)))
    tell("whole catalog, kept", in_turn(whole_catalog, candles) * ns, in_turn(whole_talib, given) * ns)

    spin(made[0])
    turns = (("ours", whole_catalog, candles), ("TA-Lib", whole_talib, given), ("a loop", spin, made[:1] * 16))
    gains = {name: [gain(work, jobs) for _ in range(asked.rounds)] for name, work, jobs in turns}  # type: ignore[arg-type]
    told = ", ".join(f"{name} {statistics.median(found):.2f}" for name, found in gains.items())
    print(f"\ntwo threads, times one (median of {asked.rounds} rounds): {told} (no memory, no calls: what this machine has to give now)")


if __name__ == "__main__":
    main()
