"""A running `mdms live` answers others: what a strategy says of a market it watches, and the bars that form in its RAM. `ask.py` asks.

A question is a line of JSON to a socket of this machine, `live/*.sock` in MDMS_HOME, that only its owner may open; the answer is a
line too, and the connection is closed. `{"no": reason}` is an answer: it is not watched, not heard at present, not closed yet.

1. `reply`    the answer to a question, from the lanes as they stand between two turns of the process; nothing in them changes (pure)
2. `serving`  the socket. Nobody holds the process up: a question must come, and an answer be taken, within SECONDS, at most MOST at a time;
              after an answer the next one waits SHARE times as long as it took
3. what a process that was killed has left behind is found by its refusing a connection, and removed by the next one that begins
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mdms_pipeline.live.desk import forming_of, said_of
from mdms_pipeline.live.engine import Engine
from mdms_pipeline.live.lane import Bar, Lane
from mdms_pipeline.live.run import Live
from mdms_pipeline.market import Instant

Words = Mapping[str, Any]  # a line as JSON holds it
SECONDS = 1.0  # for a question to come, and for an answer to be taken
PATIENCE = 0.5  # s that a question waits for the process to have done with what has come, and for what is over to be closed
LOOK = 0.01  # s between two looks at that
MOST = 8  # connections at a time; more are closed at once
SHARE = 20  # so many times as long as an answer took the next one waits: a twentieth of the process's time is the most that all get
LONGEST = 64 * 2**10  # bytes of a question
LONGEST_PATH = 100  # bytes: an address has room for 104 (macOS) or 108 (Linux), the closing zero among them


def folder_of(home: Path) -> Path:
    """Where the sockets of the processes of this home are."""
    return home / "live"


# ---- what is answered


def reply(engine: Engine, now: float, question: Words) -> Words | None:
    """The answer; None while a bar that is over at `now` is not closed yet. KeyError, TypeError and the like where it is no question."""
    kinds: dict[str, Callable[[Engine, float, Words], Words | None]] = {"signal": _signal, "bars": _bars}
    return kinds[question["ask"]](engine, now, question)


def _signal(engine: Engine, now: float, question: Words) -> Words | None:
    """{"ask": "signal", "symbol": "KRW-BTC", "timeframe": "1h", "watches": [[key, [symbol, ...] or null], ...]}"""
    lane, symbol = engine.lanes.get(question["timeframe"]), question["symbol"]
    wanted = [(key, None if symbols is None else frozenset(symbols)) for key, symbols in question["watches"]]
    held = {} if lane is None else {(watch.key, watch.symbols): i for i, watch in enumerate(lane.watches)}
    if lane is None or not set(wanted) <= held.keys():
        return _no("does not watch that strategy, as it is written now")
    if deaf := _unheard(lane, [symbol]):
        return _no(f"does not hear {deaf[0]} {lane.frame}")
    row, among = lane.tape.row[symbol], [held[each] for each in wanted]
    if _over(lane, row, lane.settled(now)):
        return None
    said, forming = (tuple(asdict(each) for each in found(lane, row, among)) for found in (said_of, forming_of))
    return {"opened_at": int(lane.tape.last[row]), "said": said, "forming": forming}


def _bars(engine: Engine, now: float, question: Words) -> Words | None:
    """{"ask": "bars", "timeframes": ["4h", "1h"], "symbols": ["KRW-BTC", ...]}: of the first timeframe in which all of them are heard."""
    symbols = question["symbols"]
    lane = next((lane for name in question["timeframes"] if (lane := engine.lanes.get(name)) and not _unheard(lane, symbols)), None)
    if lane is None:
        return _no(f"does not hear all {len(symbols)} markets in {' or '.join(question['timeframes'])}")
    rows, settled = [lane.tape.row[symbol] for symbol in symbols], lane.settled(now)
    if any(_over(lane, row, settled) for row in rows):
        return None
    names = ("forming", "last", "before_last", "last_opened")  # `last` where it was closed here, else the warehouse has it
    bars = ([_bar(one[row]) for row in rows] for one in (lane.forming, lane.last))
    found = zip(*bars, *lane.tape.bars.opened_at[-2:, rows].tolist(), strict=True)
    markets = {symbol: dict(zip(names, values, strict=True)) for symbol, values in zip(symbols, found, strict=True)}
    return {"timeframe": lane.frame.name, "at": now, "settled": settled, "markets": markets}


def _bar(bar: Bar | None) -> Sequence[Any] | None:
    return None if bar is None else (bar.opened_at, bar.traded, *bar.candle)


def _unheard(lane: Lane, symbols: Sequence[str]) -> list[str]:
    """Those of which nothing is known, that are not heard at present, or stand on candles that were told otherwise."""
    return [symbol for symbol in symbols if not lane.knows(symbol) or lane.away[lane.tape.row[symbol]] or symbol in lane.doubted]


def _over(lane: Lane, row: int, settled: Instant) -> bool:
    """Whether a bar of this market is over, `settled` being the newest slot that is, and not closed yet."""
    forming = lane.forming[row]
    if forming is not None:
        return forming.opened_at <= settled
    return lane.flat and int(lane.tape.last[row]) < settled


def _no(reason: str) -> Words:
    return {"no": reason}


# ---- the socket


@asynccontextmanager
async def serving(home: Path, live: Live, notice: Callable[[str], None]) -> AsyncIterator[None]:
    """Answer others meanwhile. Where no socket can be made, that is told, and nobody is answered."""
    try:
        path, listening = _begin(folder_of(home))
    except OSError as error:
        notice(f"others are not answered from RAM: {error}")
        yield
        return
    server = await asyncio.start_unix_server(_Counter(live).take, sock=listening, limit=LONGEST)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        server.close()


def _begin(folder: Path) -> tuple[Path, socket.socket]:
    """A socket that its owner alone may open; it has its name once it takes connections. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(folder)
    path = folder / f"{os.getpid()}-{secrets.token_hex(2)}.sock"
    fresh = path.with_suffix(".new")
    listening = socket.socket(socket.AF_UNIX)
    try:
        with reachable(fresh) as address:
            listening.bind(address)
        fresh.chmod(0o600)
        listening.listen()
        fresh.rename(path)
    except OSError:
        listening.close()
        raise
    return path, listening


def _sweep(folder: Path) -> None:
    """Remove what refuses connections: its process is no more."""
    for path in folder.glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as trial, reachable(path) as address:
            trial.settimeout(SECONDS)
            try:
                trial.connect(address)
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                continue


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """The path as a socket's address can hold it: one that is too long by way of a link that leads to its folder meanwhile."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    with TemporaryDirectory(prefix="mdms-") as short:
        link = Path(short) / "home"
        link.symlink_to(path.parent, target_is_directory=True)
        yield str(link / path.name)


class _Counter:
    """Where others come with their questions, one by one."""

    def __init__(self, live: Live) -> None:
        self._live, self._there = live, 0
        self._turn = asyncio.Lock()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a question, an answer, the end."""
        self._there += 1
        try:
            if self._there <= MOST:
                with suppress(OSError, TimeoutError, ValueError):  # ValueError: longer than a question can be
                    async with asyncio.timeout(SECONDS):
                        line = await reader.readline()
                    await self._answer(line, writer)
                    writer.close()
                    async with asyncio.timeout(SECONDS):
                        await writer.wait_closed()  # until all was taken
        finally:
            writer.transport.abort()
            self._there -= 1

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        async with self._turn:
            until, found = time.monotonic() + PATIENCE, None
            while found is None and time.monotonic() < until:
                began = time.perf_counter()
                if self._live.quiet and (found := self._now(line)) is not None:
                    writer.write(found)
                    await asyncio.sleep(SHARE * (time.perf_counter() - began))
                else:
                    await asyncio.sleep(LOOK)
        if found is None:
            writer.write(_line(_no("busy" if self._live.health.state == "live" else self._live.health.state)))

    def _now(self, line: bytes) -> bytes | None:
        """The answer as it is written; None where there is none yet."""
        try:
            found = reply(self._live.engine, self._live.clock(), json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            found = _no(f"that is no question: {type(error).__name__} {error}"[:200])
        return None if found is None else _line(found)


def _line(said: Words) -> bytes:
    return json.dumps(said).encode() + b"\n"
