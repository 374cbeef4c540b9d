"""Ten hours of the stream at fast-forward: what the process takes of memory and file handles, and whether its indicators drift.

    python benchmarks/live_hours.py [--symbols 30] [--hours 10] [--rules 50]

The sandbox's 1m candles of so many markets, told every half minute of its clock, with cuts and repeats; default indicators and 50 rules.
After each hour: resident memory, open file handles. In the end every memory of every indicator is compared, bit for bit, with a fresh
calculation over the stored candles; and the signals with those that the stored candles give. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from live import watches_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mdms_pipeline.calculate.run import carry
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.market import HOUR, MINUTE, PRICES_AND_AMOUNTS, instant, iso
from mdms_pipeline.settings import Settings
from mdms_pipeline.store.series import EVER, read_bars
from mdms_pipeline.store.universe import universe
from mdms_pipeline_tests.live.stream import Simulation, Steady, Trouble

BEGAN = instant("2026-11-18T02:00:10")


def on_minutes(rules: int) -> list[Watch]:
    return [replace(watch, timeframe="1m") for watch in watches_of(rules)]


def resident() -> float:
    """MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def drift(found: Simulation) -> tuple[int, int]:
    """How many numbers of how many in memory are not, to the bit, those of a fresh calculation over the stored candles."""
    assert found.live is not None
    lane, wrong, compared = found.live.engine.lanes["1m"], 0, 0
    with found.warehouse.read() as connection:
        stored = read_bars(connection, PRICES_AND_AMOUNTS, "1m", dict.fromkeys(lane.symbols, EVER))
    for row, symbol in enumerate(lane.symbols):
        bars = stored[symbol].until(int(lane.tape.last[row]))
        after, _ = carry(lane.tape.needed, {}, bars.candles)
        for indicator in lane.tape.needed:
            ours, fresh = lane.tape.memory[indicator][row], after[indicator]
            wrong += int(np.sum(ours.view(np.int64) != fresh.view(np.int64)))
            compared += len(fresh)
    return wrong, compared


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--symbols", type=int, default=30)
    parser.add_argument("--hours", type=float, default=10)
    parser.add_argument("--rules", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.load({
            "MDMS_HOME": folder, "MDMS_EXCHANGE_URL": "sandbox", "MDMS_SYMBOLS": f"top:{given.symbols}", "MDMS_TIMEFRAMES": "1m",
            "MDMS_HISTORY": "400",
        })  # fmt: skip
        trouble = Trouble(cut=0.002, away=20, step=(20, 40))
        found = Simulation(settings, on_minutes(given.rules), Steady(BEGAN), trouble=trouble)
        found.collect()
        with found.warehouse.read() as connection:
            found.settings = replace(settings, symbols=tuple(sorted(universe(connection))))
        clock, hours, seen = time.perf_counter(), 0, []

        def look(now: bool = False) -> None:
            nonlocal hours
            if now or found.clock() - BEGAN >= hours * HOUR:
                gc.collect()
                seen.append((resident(), handles()))
                print(
                    f"{iso(int(found.clock()))}  {seen[-1][0]:7.1f} MB  {seen[-1][1]:4d} handles  {time.perf_counter() - clock:5.0f} s",
                    flush=True,
                )
                hours += 1

        found.look = look
        found.listen(int(BEGAN + given.hours * HOUR) // MINUTE * MINUTE)
        look(now=True)
        found.collect()
        wrong, compared = drift(found)
        wanted, differ = found.compared()
        life = found.lives[-1]
        settled = seen[1:] or seen
        print(f"{given.symbols} symbols, {given.hours:g} hours, {life.messages:,} messages, {life.signals:,} signals, {life.lost} cuts")
        print(f"memory after an hour {settled[0][0]:.1f} MB, at the end {seen[-1][0]:.1f} MB; handles {settled[0][1]} and {seen[-1][1]}")
        print(
            f"drift: {wrong} of {compared:,} numbers in memory differ from a fresh calculation; {len(differ)} of {wanted:,} signals differ"
        )
        return 1 if wrong or differ else 0


if __name__ == "__main__":
    sys.exit(main())
