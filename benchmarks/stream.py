"""How many candle messages a second our client of the exchange's WebSocket reads, and what the sandbox's side of it costs.

    python benchmarks/stream.py [--messages 200000]

1. "parse": from a frame's bytes to a candle that is news, in one loop without a network.
2. "one connection", "connections": from the socket to whoever listens, by `listen`, from a server in a process of its own that writes
   ready-made frames as fast as they are taken. Every message is news. Two timeframes fit on one connection, eight do not.
3. "sandbox": one look of the sandbox at 8 candles of each market after one second, and a minute, of its clock.

The real exchange tells of a candle at most once a second: 300 markets with 8 timeframes are at most 2,400 messages a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

MARKETS = (120, 300)
NOW = 1_795_166_420  # 2026-11-20T09:20:20Z
CHUNK = 500  # frames that are written at once
FULL = 1_000_000  # bytes that wait to be sent, above which the server waits too


def payload(kind: str, code: str, opened: str, at_ms: int) -> bytes:
    """A candle as the exchange writes it."""
    row = {
        "type": kind, "code": code, "candle_date_time_utc": opened, "candle_date_time_kst": opened, "opening_price": 109715000.0,
        "high_price": 109756000.0, "low_price": 109714000.0, "trade_price": 109756000.0, "candle_acc_trade_volume": 0.71326612,
        "candle_acc_trade_price": 78269528.64757, "timestamp": at_ms, "stream_type": "REALTIME",
    }  # fmt: skip
    return json.dumps(row, separators=(",", ":")).encode()


def payloads(kinds: list[str], codes: list[str], many: int) -> list[bytes]:
    """`many` messages, in turn about every series, each later than the one before."""
    series = [(kind, code) for code in codes for kind in kinds]
    return [payload(*series[n % len(series)], "2026-11-20T08:00:00", NOW * 1000 + n) for n in range(many)]


def serve(port: Any, many: int) -> None:
    """Send whoever subscribes `many` messages about what it subscribed."""
    from websockets.asyncio.server import ServerConnection
    from websockets.asyncio.server import serve as serving

    async def talk(connection: ServerConnection) -> None:
        asked = json.loads(await connection.recv())
        kinds = [part["type"] for part in asked if "type" in part]
        bodies = payloads(kinds, asked[1]["codes"], many)
        frames = [b"\x82\x7e" + len(body).to_bytes(2, "big") + body for body in bodies]  # binary, of 126 to 65535 bytes
        for start in range(0, many, CHUNK):
            connection.transport.write(b"".join(frames[start : start + CHUNK]))
            while connection.transport.get_write_buffer_size() > FULL:
                await asyncio.sleep(0.001)
        await connection.wait_closed()

    async def main() -> None:
        async with serving(talk, "127.0.0.1", 0, compression=None) as server:
            port.send(next(iter(server.sockets)).getsockname()[1])
            await asyncio.get_running_loop().create_future()

    asyncio.run(main())


@dataclass(frozen=True)
class Rate:
    """How fast so many messages were read, and what they cost whoever else wants the processor."""

    messages: int
    seconds: float
    cpu: float  # s of this process's own work
    connections: int = 0

    @property
    def cell(self) -> str:
        on = f" on {self.connections}" if self.connections else ""
        return f"{self.messages / self.seconds:,.0f}{on}; {1e6 * self.cpu / self.messages:.1f} us"


def parsed(markets: int, many: int) -> Rate:
    """Without a network."""
    from mdms_pipeline.collect.socket import Newest, News, parse

    bodies, newest = payloads(["candle.60m", "candle.240m"], [f"KRW-{n:04}" for n in range(markets)], many), Newest()
    began, worked = time.perf_counter(), time.process_time()
    for body in bodies:
        (heard,) = parse(body, float(NOW))
        assert newest.take(heard) is News.NEW
    return Rate(many, time.perf_counter() - began, time.process_time() - worked)


async def passed_on(url: str, markets: int, timeframes: list[str], many: int) -> Rate:
    """By `listen`, all connections together, from the first message to the last."""
    from mdms_pipeline.collect.client import unlimited
    from mdms_pipeline.collect.socket import Heard, listen, shares

    codes = [f"KRW-{n:04}" for n in range(markets)]
    wanted = dict.fromkeys(timeframes, codes)
    connections = len(shares(wanted))
    left, began, worked = many * connections, 0.0, 0.0
    async with aclosing(listen(url, wanted, budget=unlimited())) as events:
        async for event in events:
            if isinstance(event, Heard):
                began, worked = began or time.perf_counter(), worked or time.process_time()
                left -= 1
                if not left:
                    break
    return Rate(many * connections, time.perf_counter() - began, time.process_time() - worked, connections)


def looked(markets: int, seconds: float, looks: int = 21) -> tuple[float, int]:
    """ms and messages of one look of the sandbox, `seconds` after the one before; the middle one of `looks`."""
    from mdms_pipeline.sandbox import Sandbox
    from mdms_pipeline.sandbox.feed import CANDLES, Feed

    now = float(NOW)
    sandbox = Sandbox(clock=lambda: now)
    sandbox.warm()
    codes = [f"KRW-NEW{n}" for n in range(markets)]
    for n, code in enumerate(codes):
        sandbox.listing(code, price=100.0 + n, turnover=5e9, at=NOW // 60 * 60 - 30 * 86_400)
    feed, found = Feed(sandbox, dict.fromkeys(CANDLES, codes)), []
    for _ in range(looks):
        now += seconds
        began = time.perf_counter()
        told = sum(len(messages) for messages in feed.news())
        found.append((1000 * (time.perf_counter() - began), told))
    return sorted(found)[looks // 2]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    from mdms_pipeline.collect.socket import TYPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=200_000, help="of each connection")
    many = parser.parse_args().messages
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, many), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    title = f"{many:,} messages; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    table = Table(title=title, title_justify="left", width=140)
    table.add_column("what")
    for markets in MARKETS:
        table.add_column(f"{markets} markets", justify="right")
    table.add_row("parse: messages/s; CPU of each", *(parsed(markets, many).cell for markets in MARKETS))
    for timeframes in (["1h", "4h"], list(TYPES)):
        found = [asyncio.run(passed_on(url, markets, timeframes, many)) for markets in MARKETS]
        table.add_row(f"{len(timeframes)} timeframes: messages/s on so many connections; CPU of each", *(rate.cell for rate in found))
    for seconds in (1.0, 60.0):
        looks = [looked(markets, seconds) for markets in MARKETS]
        table.add_row(f"sandbox, a look after {seconds:g} s", *(f"{ms:.1f} ms, {told:,} messages" for ms, told in looks))
    Console(width=140).print(table)
    server.terminate()


if __name__ == "__main__":
    main()
