"""How much of the allowed rate a collection uses, and how often it is refused: the sandbox on a port, with its real limits, counts.

    python scripts/pace.py                       every scenario, 60 s each
    python scripts/pace.py --seconds 20 one two  some of them, shorter

The exchange, and each collection (`fill` into a warehouse of its own), are processes of their own. What is counted is what the exchange let
through in the whole seconds of its clock after the first, and all that it ever refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Scenario:
    """What is shown: so many collections at once, of an exchange that may drop its limit half-way or leave the header out."""

    title: str
    processes: int = 1
    drop: int | None = None  # requests/s from the middle on
    header: bool = True


SCENARIOS = {
    "one": Scenario("one process"),
    "two": Scenario("two processes at once", processes=2),
    "drop": Scenario("limit drops to 5/s in the middle", drop=5),
    "no-header": Scenario("header missing", header=False),
}
LIMIT = 10  # requests/s, Upbit's


# ---- the exchange


def serve(seconds: float, drop: int, header: bool) -> None:
    """The sandbox until it is interrupted; then what it let through and refused, by second of its clock, as JSON."""
    import uvicorn

    from mdms_pipeline.sandbox import Sandbox, create_app
    from mdms_pipeline.sandbox.limits import Limits, Verdict

    answered: list[tuple[float, int]] = []

    class Counting(Limits):
        def ask(self, group: str, now: float, browser: bool = False) -> Verdict:
            if group == "candles":
                if drop and answered and now >= answered[0][0] + seconds / 2:
                    self.per_second["candles"] = drop
                verdict = super().ask(group, now, browser)
                answered.append((now, verdict.status))
                return verdict
            return super().ask(group, now, browser)

    sandbox = Sandbox(limits=True)
    sandbox.limits = Counting(sandbox.limits.per_second)
    if not header:
        sandbox.header = lambda group, left: None

    async def run() -> None:
        server = uvicorn.Server(uvicorn.Config(create_app(sandbox), host="127.0.0.1", port=0, log_level="warning"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await task

    with suppress(KeyboardInterrupt):
        asyncio.run(run())
    print(json.dumps(answered), flush=True)


# ---- a collection


def collect(url: str, seconds: float, home: Path, budget: Path) -> None:
    """Fill a warehouse for so many seconds; how long it waited for the pace."""
    from mdms_pipeline.collect.client import connect
    from mdms_pipeline.collect.fill import fill
    from mdms_pipeline.store import Warehouse

    async def run() -> None:
        async with connect(url, budget_dir=budget) as exchange:
            warehouse = Warehouse(home / "mdms.duckdb", url)
            symbols = [listing.symbol for listing in await exchange.markets()][:40]
            try:
                async with asyncio.timeout(seconds):
                    await fill(exchange, warehouse, [(symbol, "1m") for symbol in symbols], 1_000_000)
            except TimeoutError:
                print(json.dumps({"requests": exchange.requests, "waited": exchange.waited}), flush=True)

    asyncio.run(run())


# ---- the demonstration


def demonstrate(scenario: Scenario, seconds: float) -> list[tuple[float, int]]:
    """What the exchange answered: (instant, status)."""
    me = [sys.executable, str(Path(__file__))]
    with tempfile.TemporaryDirectory() as folder:
        command = [*me, "--serve", str(seconds), str(scenario.drop or 0), str(int(scenario.header))]
        exchange = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert exchange.stdout is not None
        url = f"http://127.0.0.1:{int(exchange.stdout.readline())}"
        collections = []
        for number in range(scenario.processes):
            home = Path(folder, str(number))
            home.mkdir()
            collections.append(subprocess.Popen([*me, "--collect", url, str(seconds), str(home), folder], stdout=subprocess.DEVNULL))
        for collection in collections:
            collection.wait()
        exchange.send_signal(signal.SIGINT)
        answered = json.loads(exchange.stdout.read().strip().splitlines()[-1])
        exchange.wait()
    return [(at, status) for at, status in answered]


def share(answered: list[tuple[float, int]], since: float, until: float, limit: int) -> float:
    """What was let through in the whole seconds of [since, until), of what is allowed in them."""
    through = Counter(int(at) for at, status in answered if status == 200)
    seconds = range(int(since) + 1, int(until))
    return sum(through[second] for second in seconds) / (limit * len(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    table = Table(width=110, title=f"{given.seconds:g} s of collection each, limit {LIMIT} requests/s", title_justify="left")
    for name in ("scenario", "let through", "share of the rate", "429", "418", "machine load"):
        table.add_column(name, justify="left" if name == "scenario" else "right")
    for name in given.names or SCENARIOS:
        scenario = SCENARIOS[name]
        answered = demonstrate(scenario, given.seconds)
        first, last = answered[0][0], answered[-1][0]
        middle = first + given.seconds / 2
        shares = f"{share(answered, first, last, LIMIT):.1%}"
        if scenario.drop:
            before, after = share(answered, first, middle, LIMIT), share(answered, middle + 2, last, scenario.drop)
            shares = f"{before:.1%}, then {after:.1%} of {scenario.drop}"
        statuses = Counter(status for _, status in answered)
        load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        table.add_row(scenario.title, str(statuses[200]), shares, str(statuses[429]), str(statuses[418]), load)
        print(f"{time.strftime('%H:%M:%S')} {scenario.title}: {dict(statuses)}", file=sys.stderr)
    Console(width=110).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(float(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])))
    elif sys.argv[1:2] == ["--collect"]:
        collect(sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
