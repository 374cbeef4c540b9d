"""What it costs to collect a long history: peak memory, rows a second, and that the second call does nothing.

    python benchmarks/collection.py [--symbols 120 --candles 100000 --timeframe 1m]

From the sandbox in the same process, without limits, into a new warehouse; the clock stands still. A tenth of the history is collected
before, in a process of its own: if memory grew with history, the two peaks would show it. Both contain the exchange (whose log is not
kept) and the imports; "before" is what is there before the first request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOW = 1_795_166_420.0  # 2026-11-20T09:20:20Z, within a minute, an hour and a day
MB = 1_000_000


def memory_mb(field: str) -> float:
    """VmRSS or VmHWM (its peak) of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / MB


def measure(symbols: int, candles: int, timeframe: str, memory_limit_mb: int) -> dict[str, Any]:
    """Collect into a new warehouse, twice."""
    import httpx

    from mdms_pipeline.collect.client import Exchange, unlimited
    from mdms_pipeline.collect.fill import Filled, fill
    from mdms_pipeline.sandbox import Sandbox, create_app
    from mdms_pipeline.store import Warehouse

    sandbox = Sandbox(clock=lambda: NOW)
    sandbox.note = lambda path, query, status: None  # type: ignore[method-assign]

    async def once(warehouse: Warehouse) -> Filled:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(sandbox)), base_url="http://sandbox")
        async with Exchange(http, clock=lambda: NOW, budget=unlimited()) as exchange:
            listed = sorted(await exchange.markets(), key=lambda row: row.symbol)[:symbols]
            return await fill(exchange, warehouse, [(row.symbol, timeframe) for row in listed], candles)

    with tempfile.TemporaryDirectory() as folder:
        warehouse = Warehouse(Path(folder, "mdms.duckdb"), "sandbox", memory_limit_mb)
        before = memory_mb("VmRSS")
        first = asyncio.run(once(warehouse))
        peak = memory_mb("VmHWM")
        started = time.perf_counter()
        second = asyncio.run(once(warehouse))
        rows = sum(first.candles.values())
        return {
            "partitions": len(first.states), "failed": len(first.failed()), "rows": rows, "requests": first.requests,
            "seconds": first.seconds, "before": before, "peak": peak, "file": warehouse.path.stat().st_size / MB,
            "second": second.requests, "second_rows": sum(second.candles.values()), "second_seconds": time.perf_counter() - started,
        }  # fmt: skip


def apart(*case: int | str) -> dict[str, Any]:
    """`measure` in a process of its own: a peak is never given back."""
    command = [sys.executable, str(Path(__file__)), "--measure", *map(str, case)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=120)
    parser.add_argument("--candles", type=int, default=100_000)
    parser.add_argument("--timeframe", default="1m")
    parser.add_argument("--memory-mb", type=int, default=500, help="what MDMS_MEMORY_MB would be")
    given = parser.parse_args()
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    title = f"{given.symbols} symbols, {given.timeframe}, MDMS_MEMORY_MB={given.memory_mb}; {load}"
    table = Table(title=title, title_justify="left", width=140)
    for name in ("candles each", "rows", "requests", "seconds", "rows/s", "MB before", "MB peak", "MB file"):
        table.add_column(name, justify="right")
    for name in ("second call: requests", "rows", "seconds"):
        table.add_column(name, justify="right")
    for candles in (given.candles // 10, given.candles):
        found = apart(given.symbols, candles, given.timeframe, given.memory_mb)
        rate = found["rows"] / found["seconds"]
        table.add_row(
            f"{candles:,}", f"{found['rows']:,}", f"{found['requests']:,}", f"{found['seconds']:.1f}", f"{rate:,.0f}",
            f"{found['before']:.0f}", f"{found['peak']:.0f}", f"{found['file']:.0f}",
            str(found["second"]), str(found["second_rows"]), f"{found['second_seconds']:.2f}",
        )  # fmt: skip
        if found["failed"]:
            print(f"{found['failed']} of {found['partitions']} partitions failed", file=sys.stderr)
    Console(width=140).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))))
    else:
        main()
