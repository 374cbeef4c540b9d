"""The whole pipeline against the bars: a cold run, a warm run, a run with nothing to do, and the memory that much history takes.

    python benchmarks/pipeline.py                     cold, warm and idle: 120 symbols, 1h 4h 1d, 400 candles; medians of 3
    python benchmarks/pipeline.py memory              120 symbols x 3 timeframes x 100,000 bars; --symbols 12 for a tenth of it
    python benchmarks/pipeline.py growth              the same with symbols x 10 and bars x 10: time by row should not grow

Every figure is of a fresh process on the embedded sandbox without a rate limit; process start is included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOW = 1_795_305_610  # 2026-11-22T00:00:10Z: an hour, a four-hour and a day candle have just closed
HOUR = 3_600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="runs", choices=["runs", "memory", "growth", "worker"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--symbols", type=int, default=120)
    parser.add_argument("--bars", type=int, default=100_000)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--now", type=int, default=NOW)
    parser.add_argument("--task", default="refresh")
    chosen = parser.parse_args()
    {"runs": runs, "memory": memory, "growth": growth, "worker": worker}[chosen.what](chosen)


# ---- cold, warm, idle


def runs(chosen: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": [], "idle": []}
    for _ in range(chosen.rounds):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            found["cold"].append(in_process(home, "refresh", NOW, symbols=f"top:{chosen.symbols}"))
            found["idle"].append(in_process(home, "refresh", NOW, symbols=f"top:{chosen.symbols}"))
            same = ",".join(symbols_of(home))  # by name: an hour later others would be among the first by turnover
            in_process(home, "refresh", NOW, symbols=same)
            found["warm"].append(in_process(home, "refresh", NOW + HOUR, symbols=same))  # one candle of 1h has closed, no other
    print(f"{chosen.symbols} symbols, medians of {chosen.rounds}, {os.cpu_count()} cores")
    print("| run | seconds with process start | of it collecting | calculating | rows written | requests | peak RSS MB |")
    print("|---|---|---|---|---|---|---|")
    for name, results in found.items():
        middle = {key: statistics.median(result[key] for result in results) for key in results[0]}
        numbers = f"{middle['seconds']:.1f} | {middle['collecting']:.1f} | {middle['calculating']:.2f} | {middle['rows']:,.0f}"
        print(f"| {name} | {numbers} | {middle['requests']:.0f} | {middle['rss_mb']:.0f} |")


def symbols_of(home: Path) -> list[str]:
    """The markets whose candles a warehouse holds."""
    import duckdb

    with duckdb.connect(home / "mdms.duckdb", read_only=True) as connection:
        return [symbol for (symbol,) in connection.execute("SELECT DISTINCT symbol FROM candles ORDER BY 1").fetchall()]


def in_process(home: Path, task: str, at: int, history: str = "400", symbols: str = "top:120", bars: int = 0) -> dict[str, Any]:
    """One task in a fresh process; what it reports, and the seconds from its start to its end."""
    settings = {"MDMS_HOME": str(home), "MDMS_EXCHANGE_URL": "sandbox", "MDMS_HISTORY": history, "MDMS_SYMBOLS": symbols}
    command = [sys.executable, "-W", "ignore", __file__, "worker", "--task", task, "--home", str(home), "--now", str(at)]
    command += ["--bars", str(bars)]
    if symbols.startswith("top:"):
        command += ["--symbols", symbols.removeprefix("top:")]
    started = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"seconds": time.perf_counter() - started, **json.loads(done.stdout.splitlines()[-1])}


def worker(chosen: argparse.Namespace) -> None:
    report = {"refresh": refresh, "fill": fill, "calculate": calculate, "imports": imports}[chosen.task](chosen)
    report["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(report))


def imports(chosen: argparse.Namespace) -> dict[str, Any]:
    """Nothing but what calculating imports."""
    import mdms_pipeline.calculate.advance
    import mdms_pipeline.calculate.catalog  # noqa: F401

    return {}


def refresh(chosen: argparse.Namespace) -> dict[str, Any]:
    """One `mdms run` at a fixed instant."""
    from mdms_pipeline.defs.resources import Mdms
    from mdms_pipeline.defs.run import refresh, use_home
    from mdms_pipeline.settings import Settings
    from mdms_pipeline.store import Warehouse
    from mdms_pipeline.store.journal import work_of

    settings = Settings.load()
    warehouse = Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb)
    with use_home(settings) as instance:
        done = refresh(instance, warehouse, Mdms(settings, clock=lambda: float(chosen.now)))
    if done.error:
        raise SystemExit(done.error)
    with warehouse.read() as connection:
        work = [entry for run_id in done.run_ids for entry in work_of(connection, run_id)]
    return {
        "collecting": max((entry.seconds for entry in work if entry.step == "candles"), default=0.0),
        "calculating": sum(entry.seconds for entry in work if entry.step not in ("candles", "screen_results")),
        "rows": sum(entry.rows for entry in work),
        "requests": max((entry.requests for entry in work), default=0),
    }


# ---- much history


def memory(chosen: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=chosen.home) as folder:
        print(f"{chosen.symbols} symbols x 3 timeframes x {chosen.bars:,} bars, MDMS_MEMORY_MB=500")
        for name, result in _history(Path(folder), chosen.symbols, chosen.bars).items():
            print(f"{name}: {result['seconds']:.0f} s, {result['rows']:,} rows, peak RSS {result['rss_mb']:.0f} MB")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(f"warehouse {size / 2**20:.0f} MB; the imports alone take {in_process(Path(folder), 'imports', NOW)['rss_mb']:.0f} MB")


def growth(chosen: argparse.Namespace) -> None:
    print("| symbols | bars | calculate s | us per row | of the first |")
    print("|---|---|---|---|---|")
    first = None
    for symbols, bars in ((4, 1_000), (40, 1_000), (4, 10_000)):
        with tempfile.TemporaryDirectory() as folder:
            result = _history(Path(folder), symbols, bars)["calculate"]
        each = result["inside"] / result["rows"] * 1e6
        first = first or each
        print(f"| {symbols} | {bars:,} | {result['inside']:.2f} | {each:.3f} | {each / first:.2f} |")


def _history(home: Path, symbols: int, bars: int) -> dict[str, dict[str, Any]]:
    return {task: in_process(home, task, NOW, symbols=f"top:{symbols}", bars=bars) for task in ("fill", "calculate")}


FRAMES = ("1m", "3m", "5m")


def fill(chosen: argparse.Namespace) -> dict[str, Any]:
    """Put random candles straight into the store: it is calculating that is measured here."""
    import numpy as np

    from mdms_pipeline.market import Candles, timeframe
    from mdms_pipeline.settings import Settings
    from mdms_pipeline.store import Warehouse
    from mdms_pipeline.store.candles import Page, store_pages

    settings = Settings.load()
    warehouse = Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb)
    random = np.random.default_rng(1)
    for name in FRAMES:
        frame = timeframe(name)
        end = frame.floor(chosen.now)
        opened_at = end - frame.after(0) * np.arange(chosen.bars, 0, -1)
        for i in range(chosen.symbols):
            close = 1e5 * np.exp(np.cumsum(random.normal(0, 1e-3, chosen.bars)))
            candles = Candles(opened_at, close, close * 1.001, close * 0.999, close, close, close)
            with warehouse.write() as connection:
                store_pages(connection, [Page(f"KRW-A{i}", name, candles, (int(opened_at[0]), end))], chosen.now, chosen.now, None)
    return {"rows": chosen.symbols * chosen.bars * len(FRAMES)}


def calculate(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every indicator that is kept, from the start."""
    from mdms_pipeline.calculate.advance import advance
    from mdms_pipeline.calculate.catalog import KINDS, defaults
    from mdms_pipeline.settings import Settings
    from mdms_pipeline.store import Warehouse

    settings = Settings.load()
    warehouse = Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb)
    symbols = [f"KRW-A{i}" for i in range(chosen.symbols)]
    started, rows = time.perf_counter(), 0
    for kind in KINDS.values():
        mine = [indicator for indicator in defaults() if indicator.kind is kind]
        rows += sum(sum(done.rows.values()) for done in advance(warehouse, mine, dict.fromkeys(FRAMES, symbols)))
    return {"rows": rows, "inside": time.perf_counter() - started}


if __name__ == "__main__":
    main()
