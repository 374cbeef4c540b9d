"""How long one answer takes by each way: memory in RAM, stored memory, full calculation.

    python benchmarks/signal_ways.py [--symbols 20] [--history 2000] [--rounds 5]

Sandbox markets, 1h and 4h, all indicators stored; every built-in strategy and one on 1h, each market in turn. Medians and the greatest, ms.
What the way itself takes is little beside opening the warehouse, which every way does: an empty reading is shown beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict

from mdms_pipeline.backtest.find import strategies_of
from mdms_pipeline.calculate.advance import advance
from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.collect.client import connect
from mdms_pipeline.collect.fill import fill
from mdms_pipeline.collect.universe import update_universe
from mdms_pipeline.kept import kept_indicators
from mdms_pipeline.live.desk import Desk
from mdms_pipeline.live_watch import strategy_watches
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.universe import universe


def filled(settings: Settings) -> tuple[Warehouse, list[str]]:
    """A warehouse with candles and every kept indicator."""
    warehouse = Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb)

    async def collect() -> None:
        async with connect(settings.exchange_url) as exchange:
            await update_universe(exchange, warehouse, settings)
            with warehouse.read() as connection:
                partitions = [(symbol, name) for name in settings.timeframes for symbol in universe(connection)]
            await fill(exchange, warehouse, partitions, settings.history)

    asyncio.run(collect())
    with warehouse.read() as connection:
        symbols = universe(connection)
    kept = kept_indicators(settings)
    for kind in KINDS.values():
        if mine := [indicator for indicator in kept if indicator.kind is kind]:
            advance(warehouse, mine, dict.fromkeys(settings.timeframes, symbols))
    return warehouse, symbols


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--symbols", type=int, default=20)
    parser.add_argument("--history", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.load({
            "MDMS_HOME": folder, "MDMS_EXCHANGE_URL": "sandbox", "MDMS_SYMBOLS": f"top:{given.symbols}", "MDMS_TIMEFRAMES": "1h,4h",
            "MDMS_HISTORY": str(given.history),
        })  # fmt: skip
        warehouse, symbols = filled(settings)
        recipes = strategies_of(settings).recipes.values()
        strategies = [watches for recipe in recipes if (watches := strategy_watches(recipe.usual))[0].timeframe in settings.timeframes]
        times: dict[str, list[float]] = defaultdict(list)
        desk = Desk(warehouse, time.time)
        for _ in range(given.rounds):
            for watches in strategies:
                for symbol in symbols:
                    began = time.perf_counter()
                    with warehouse.read() as connection:
                        connection.execute("SELECT 1").fetchall()
                    times["an empty reading"].append(time.perf_counter() - began)
                    for short in (True, False):
                        answer = Desk(warehouse, time.time).ask(watches, symbol, short=short)
                        times[answer.way].append(answer.seconds)
                    desk.ask(watches, symbol)
                    answer = desk.ask(watches, symbol)
                    times[answer.way].append(answer.seconds)
        print(f"{len(symbols)} symbols, {given.history} bars, {len(strategies)} strategies")
        for way, seconds in times.items():
            print(f"{way:<18} median {1e3 * statistics.median(seconds):7.1f}   max {1e3 * max(seconds):7.1f} ms   ({len(seconds)})")


if __name__ == "__main__":
    main()
