"""Kill the collector at random, again and again, against an exchange that fails at random; then hold the store to the exchange's truth.

    .venv/bin/python scripts/kill_collect.py --kills 200

1. a sandbox serves on a port of its own process, its clock frozen; 5 % of its answers are a 429, a 500, a timeout, a cut connection,
   an HTML page or JSON of the wrong shape; its log (time, path, query, status) is read over a private path
2. a worker process collects 30 symbols x 3 timeframes with the same frozen clock, and is killed (SIGKILL) at a random moment
3. after each kill the store says what is covered; no page inside of that may be asked for again, the newest candle aside
4. after the last kill a worker runs to the end: candles and coverage must equal what the exchange holds, to the bit

With a frozen clock every page that follows must lie strictly before what was covered: so "asked again" needs no tolerance.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from mdms_pipeline.market import PRICES_AND_AMOUNTS, TIMEFRAMES, instant, iso, timeframe
from mdms_pipeline.sandbox import Fault, Sandbox, create_app

NOW = float(instant("2026-11-20T09:30:20"))
SEED = 7
FRAMES = ("1m", "5m", "1h")
RATE = 30  # requests/s that the exchange allows by its header
LONGEST_LIFE = 2.0  # s from the first request to the kill, at most
PATIENCE = 1.0  # s: a request that takes longer is a timeout for the worker
FAULTY = 0.05


# ---- the exchange


class Faults:
    """One answer in twenty goes wrong, in one of six ways; the dice are the exchange's own."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.given: Counter[str] = Counter()

    def __call__(self, path: str, query: dict[str, str]) -> Fault | None:
        if self.dice.random() >= FAULTY:
            return None
        name, fault = self.dice.choice(
            [
                ("429", Fault(429, "Too many API requests.", "text/plain")),
                ("500", Fault(500, '{"error":{"name":500,"message":"Internal error"}}')),
                ("timeout", Fault.timeout(PATIENCE + 0.5)),
                ("cut", Fault.cut()),
                ("html", Fault.page(200)),
                ("shape", Fault.shape()),
            ]
        )
        self.given[name] += 1
        return fault


def serve(port: int, seed: int) -> None:
    """The sandbox on a port, and its log at /private/log?after=N."""
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    faults = Faults(seed)
    sandbox = Sandbox(SEED, clock=lambda: NOW, faults=faults)

    sandbox.header = lambda group, left: f"group={group}; min=600; sec={RATE - 1}"

    async def log(request: Request) -> Response:
        return JSONResponse([list(entry) for entry in sandbox.log[int(request.query_params["after"]) :]])

    async def given(request: Request) -> Response:
        return JSONResponse(dict(faults.given))

    app = create_app(sandbox)
    app.router.routes[:0] = [Route("/private/log", log), Route("/private/given", given)]
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")


# ---- the collector


def work(home: Path, url: str, symbols: list[str], history: int) -> None:
    """One collection with the frozen clock: what is killed."""
    from mdms_pipeline.collect.client import Exchange
    from mdms_pipeline.collect.fill import fill
    from mdms_pipeline.store import Warehouse

    warehouse = Warehouse(home / "mdms.duckdb", url)
    partitions = [(symbol, name) for name in FRAMES for symbol in symbols]
    told = []

    async def tell(_: httpx.Request) -> None:
        if not told:
            told.append(print("asking", flush=True))

    async def main() -> int:
        http = httpx.AsyncClient(base_url=url, timeout=PATIENCE, event_hooks={"request": [tell]})
        async with Exchange(http, clock=lambda: NOW) as exchange:
            filled = await fill(exchange, warehouse, partitions, history)
        return len(filled.failed())

    sys.exit(asyncio.run(main()))


# ---- the judge


class Judge:
    """Reads the exchange's log and the store after each kill."""

    def __init__(self, home: Path, url: str) -> None:
        self.home, self.url = home, url
        self.read = 0  # entries of the log seen so far
        self.covered: dict[tuple[str, str], tuple[int, int]] = {}  # as stored at the last look
        self.requests = 0
        self.again: list[str] = []

    def look(self) -> None:
        """Requests since the last look may not lie inside of what was covered then."""
        entries = httpx.get(f"{self.url}/private/log", params={"after": self.read}, timeout=30).json()
        self.read += len(entries)
        for _, path, query, _ in entries:
            if "/candles/" not in path:
                continue
            self.requests += 1
            name, to = frame_of(path), instant(query["to"])
            span = self.covered.get((query["market"], name))
            if span and span[0] < to:
                self.again.append(
                    f"{query['market']} {name} to={query['to']} count={query['count']}, covered {iso(span[0])} to {iso(span[1])}"
                )
        self.covered = self.stored()

    def stored(self) -> dict[tuple[str, str], tuple[int, int]]:
        from mdms_pipeline.store import Warehouse
        from mdms_pipeline.store.candles import standings

        with Warehouse(self.home / "mdms.duckdb", self.url).read() as connection:
            return {key: row.covered for key, row in standings(connection).items() if row.covered}


def frame_of(path: str) -> str:
    unit = path.rsplit("/", 1)[-1]
    return {"days": "1d", "weeks": "1w", "months": "1M"}.get(unit) or next(n for n, f in TIMEFRAMES.items() if f.seconds == int(unit) * 60)


def against_truth(home: Path, url: str, symbols: list[str], history: int) -> list[str]:
    """What differs between the store and an exchange that never fails."""
    from mdms_pipeline.store import Warehouse
    from mdms_pipeline.store.candles import standings
    from mdms_pipeline.store.checks import BROKEN, broken_candles

    truth, wrong = Sandbox(SEED, clock=lambda: NOW), []
    with Warehouse(home / "mdms.duckdb", url).read() as connection:
        wrong += [f"law {law}: {partition}" for law in BROKEN for partition in broken_candles(connection, law)]
        known = standings(connection)
        for symbol in symbols:
            for name in FRAMES:
                frame = timeframe(name)
                end = frame.floor(int(NOW) - 2)
                expected = truth.candles(symbol, frame, end, history)
                found = connection.execute(
                    f"SELECT epoch(opened_at)::BIGINT AS opened_at, {', '.join(PRICES_AND_AMOUNTS)} FROM candles "
                    "WHERE symbol = ? AND timeframe = ? ORDER BY opened_at",
                    [symbol, name],
                ).fetchnumpy()
                same = all(
                    np.array_equal(np.asarray(found[column]), getattr(expected, column)) for column in ("opened_at", *PRICES_AND_AMOUNTS)
                )
                covered = (int(expected.opened_at[0]), end)
                if not same or known[symbol, name].covered != covered:
                    wrong.append(
                        f"{symbol} {name}: {len(found['opened_at'])} candles of {len(expected)}, covered {known[symbol, name].covered}"
                    )
    return wrong


def symbols_of(count: int) -> list[str]:
    """The oldest KRW markets that are listed at NOW: all have the whole history."""
    markets = [market for market in Sandbox(SEED, clock=lambda: NOW).markets() if market.quote == "KRW"]
    return sorted(market.code for market in sorted(markets, key=lambda market: market.listed_at)[:count])


def spawn(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE)


def start(url: str, home: Path, symbols: list[str], history: int) -> subprocess.Popen[bytes]:
    """A collector that is about to send its first request."""
    worker = spawn("work", home, url, ",".join(symbols), history)
    assert worker.stdout is not None
    worker.stdout.readline()
    return worker


def run(kills: int, count: int, history: int, seed: int) -> dict[str, Any]:
    dice, began = random.Random(seed), time.time()
    home = Path(tempfile.mkdtemp(prefix="kill_collect."))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, symbols = f"http://127.0.0.1:{port}", symbols_of(count)
    server = spawn("serve", port, seed)
    try:
        for _ in range(200):
            try:
                httpx.get(f"{url}/private/log", params={"after": 0}, timeout=30)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        judge = Judge(home, url)
        done, early = 0, 0
        while done < kills:
            worker = start(url, home, symbols, history)
            before = judge.requests
            time.sleep(dice.uniform(0.0, LONGEST_LIFE))
            if worker.poll() is None:
                os.kill(worker.pid, signal.SIGKILL)
                worker.wait()
                done += 1
                judge.look()
                early += judge.requests == before  # killed before its first request
            else:
                judge.look()
                if worker.returncode == 0:
                    break
            if done % 20 == 0 and done:
                held = sum(timeframe(name).slots(*span) for (_, name), span in judge.covered.items())
                print(f"{done} kills, {judge.requests} requests, {held:,} slots covered, {len(judge.again)} asked again", file=sys.stderr)
        for _ in range(20):  # to the end; a partition that failed too often is asked for again
            if start(url, home, symbols, history).wait() == 0:
                break
        judge.look()
        wrong = against_truth(home, url, symbols, history)
        given = httpx.get(f"{url}/private/given", timeout=30).json()
    finally:
        server.kill()
        server.wait()
    pages = count * len(FRAMES) * -(-history // 200)
    return {
        "kills": done, "killed_before_a_request": early, "symbols": count, "timeframes": list(FRAMES), "candles_each": history,
        "pages_needed": pages,
         "requests": judge.requests, "faults": given, "asked_again": judge.again[:10],
        "asked_again_count": len(judge.again), "differs_from_truth": wrong[:10],
        "seconds": round(time.time() - began, 1), "home": home.name,
    }  # fmt: skip


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "serve":
        serve(int(sys.argv[2]), int(sys.argv[3]))
    elif len(sys.argv) > 1 and sys.argv[1] == "work":
        work(Path(sys.argv[2]), sys.argv[3], sys.argv[4].split(","), int(sys.argv[5]))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--kills", type=int, default=200)
        parser.add_argument("--symbols", type=int, default=30)
        parser.add_argument("--history", type=int, default=6_000, help="candles per symbol and timeframe")
        parser.add_argument("--seed", type=int, default=1)
        chosen = parser.parse_args()
        report = run(chosen.kills, chosen.symbols, chosen.history, chosen.seed)
        print(json.dumps(report, indent=2))
        sys.exit(1 if report["asked_again_count"] or report["differs_from_truth"] else 0)


if __name__ == "__main__":
    main()
