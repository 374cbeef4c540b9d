"""What the tests of the joined layers share: clocks, an exchange to ask, candles made up, processes, and tables to compare bit for bit."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import selectors
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np

from mdms_pipeline.calculate.advance import Done, advance
from mdms_pipeline.calculate.catalog import KINDS, closure, defaults
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.collect.client import Exchange
from mdms_pipeline.collect.fill import Filled, fill
from mdms_pipeline.market import Candles, Instant, instant, iso, timeframe
from mdms_pipeline.sandbox import Sandbox, create_app
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import Page, store_pages
from mdms_pipeline.store.schema import indicator_tables

T = TypeVar("T")

NOW = instant("2026-11-20T09:30:20")  # within a minute, an hour, four hours and a day: nothing has just closed
HOUR = 3_600
EXCHANGE = "http://sandbox"


# ---- clocks


@dataclass
class Clock:
    """Tells `now` until it is set anew; in a VirtualLoop, and what has passed in it."""

    now: float = NOW

    def __call__(self) -> float:
        loop = asyncio._get_running_loop()
        return self.now + (loop.time() if isinstance(loop, VirtualLoop) else 0.0)


class _Jumping(selectors.DefaultSelector):
    """Where the loop would wait for a timer, time jumps there."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.passed += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which an hour of sleep takes no time; `time()` counts it."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed


def virtually(main: Callable[[Callable[[], float]], Awaitable[T]]) -> T:
    """What `main(time)` returns, run in a VirtualLoop; `time()` is the seconds that have passed in it."""

    async def started() -> T:
        return await main(asyncio.get_running_loop().time)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(started())


# ---- an exchange


def ask(sandbox: Sandbox) -> Exchange:
    """Our client of the sandbox, by the sandbox's clock; what it waits for takes no time in a VirtualLoop."""
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(sandbox)), base_url=EXCHANGE)
    return Exchange(http, clock=sandbox.clock, timer=sandbox.clock)


def collect(warehouse: Warehouse, sandbox: Sandbox, partitions: Sequence[tuple[str, str]], history: int = 60) -> Filled:
    """Fill these partitions from the sandbox, without any waiting."""

    async def main(_: Callable[[], float]) -> Filled:
        async with ask(sandbox) as exchange:
            return await fill(exchange, warehouse, partitions, history)

    return virtually(main)


def settings(home: Path, symbols: str = "KRW-BTC,KRW-ETH,KRW-XRP", timeframes: str = "1h", history: int = 60, **more: str) -> Settings:
    """A small universe from the embedded exchange."""
    given = {"MDMS_HOME": str(home), "MDMS_EXCHANGE_URL": "sandbox", "MDMS_SYMBOLS": symbols, "MDMS_TIMEFRAMES": timeframes}
    return Settings.load({**given, "MDMS_HISTORY": str(history), **more})


# ---- candles and indicators


def candles(start: Instant, bars: int, seed: int = 1, frame: str = "1h", level: float = 50_000.0) -> Candles:
    """A walk of 1 % a bar, one candle in each of `bars` slots from `start` on. The same slot has the same candle whatever the start."""
    slots = timeframe(frame)
    first = slots.slots(0, start) if slots.seconds else 0
    opened_at = np.array([slots.after(start, i) for i in range(bars)], dtype=np.int64)
    noise = np.array([np.random.default_rng([seed, first + i]).random(5) for i in range(bars)]).reshape(bars, 5)
    middle = level * (1 + 0.2 * np.sin(opened_at / 9e4))
    opening, close = middle * (1 + 0.01 * noise[:, 0]), middle * (1 + 0.01 * noise[:, 1])
    high, low = np.maximum(opening, close) * (1 + 0.01 * noise[:, 2]), np.minimum(opening, close) * (1 - 0.01 * noise[:, 3])
    volume = 10 * noise[:, 4]
    return Candles(opened_at, opening, high, low, close, volume, volume * close)


def page(symbol: str, found: Candles, frame: str = "1h", **changes: Any) -> Page:
    """`found` as an answer that covers exactly their slots."""
    covered = (int(found.opened_at[0]), timeframe(frame).after(int(found.opened_at[-1])))
    return Page(**{"symbol": symbol, "timeframe": frame, "candles": found, "covered": covered, **changes})


def put(warehouse: Warehouse, *pages: Page, at: Instant = NOW) -> None:
    """Store pages in one transaction."""
    with warehouse.write() as connection:
        store_pages(connection, pages, at, at, None)


def calculate(
    warehouse: Warehouse, symbols: Sequence[str], frames: Sequence[str] = ("1h",), indicators: Iterable[Indicator] | None = None
) -> dict[tuple[str, str], Done]:
    """Bring indicators (the defaults) up to the stored candles, kind by kind as a run does: (kind, timeframe) -> what was done."""
    wanted = closure(defaults() if indicators is None else indicators)
    done = {}
    for kind in KINDS.values():
        mine = [indicator for indicator in wanted if indicator.kind is kind]
        steps = advance(warehouse, mine, dict.fromkeys(frames, symbols), now=lambda: NOW) if mine else []
        done.update({(step.kind, step.timeframe): step for step in steps})
    return done


# ---- tables


def bits(warehouse: Warehouse, tables: Iterable[str] | None = None) -> dict[str, dict[str, bytes]]:
    """Table -> column -> every value as raw bytes, rows in order: equal only where each double is, bit for bit, and each NULL.

    Without `tables`: candles, every indicator table, and the memories.
    """
    with warehouse.read() as connection:
        names = ["candles", *indicator_tables(connection)] if tables is None else list(tables)
        found = {
            name: _bytes(connection.execute(f"SELECT * FROM {name} ORDER BY symbol, timeframe, opened_at").fetchnumpy()) for name in names
        }
        if tables is None:
            rows = connection.execute(
                "SELECT symbol, timeframe, indicator, fingerprint, watermark, bars, memory FROM memory ORDER BY ALL"
            ).fetchall()
            found["memory"] = {"rows": repr([(*row[:-1], _plain(row[-1])) for row in rows]).encode()}
    return found


def _bytes(columns: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: _column(column) for name, column in sorted(columns.items())}


def _column(column: np.ndarray) -> bytes:
    if isinstance(column, np.ma.MaskedArray):
        return np.ma.getmaskarray(column).tobytes() + _column(column.filled(0 if column.dtype.kind in "fi" else ""))
    return column.tobytes() if column.dtype.kind != "O" else "\n".join(map(str, column)).encode()


def _plain(memory: bytes) -> bytes:
    """A memory whose unknown values are all the same NaN: the sign of a NaN is nobody's."""
    values = np.frombuffer(memory).copy()
    values[np.isnan(values)] = np.nan
    return values.tobytes()


def rows(warehouse: Warehouse, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """What a query answers."""
    with warehouse.read() as connection:
        return connection.execute(query, list(arguments)).fetchall()


def broken(warehouse: Warehouse) -> list[str]:
    """Every law of the candle table that does not hold, and the partitions that break it."""
    from mdms_pipeline.store.checks import BROKEN, broken_candles

    with warehouse.read() as connection:
        return [f"{law}: {partition}" for law in BROKEN for partition in broken_candles(connection, law)]


# ---- processes


PROCESSES = multiprocessing.get_context("forkserver")  # a child starts in milliseconds: what it needs was imported once
PROCESSES.set_forkserver_preload(
    ["mdms_pipeline_tests.support", "mdms_pipeline.cli", "mdms_pipeline.defs.run", "mdms_pipeline.definitions"]
)


def elsewhere(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a process of its own; an exception is raised here."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_tell, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        done, answer = ours.recv()
    finally:
        process.join()
    if not done:
        raise answer
    return answer


def _tell(pipe: Any, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        answer = True, work(*arguments)
    except Exception as error:
        answer = False, error
    pipe.send(answer)


@contextmanager
def beside(work: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """A process that does `work(ready, *arguments)` meanwhile; the block begins once it has set `ready`, and ends when it has ended."""
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=work, args=(ready, *arguments))
    process.start()
    try:
        while not ready.wait(0.05):
            assert process.is_alive(), f"{work.__name__} ended early, status {process.exitcode}"
        yield process
    finally:
        process.join()


# ---- the command


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def environment(home: Path, at: Instant = NOW, **more: str) -> dict[str, str]:
    """Three markets of the embedded exchange, whose clock stands (nearly) still at `at` in every process."""
    return {
        "MDMS_HOME": str(home),
        "MDMS_EXCHANGE_URL": "sandbox",
        "MDMS_SYMBOLS": "KRW-BTC,KRW-ETH,KRW-XRP",
        "MDMS_TIMEFRAMES": "1h",
        "MDMS_HISTORY": "60",
        "MDMS_CLOCK": f"0.0001x@{iso(at).rstrip('Z')}@{time.time():.0f}",
        **more,
    }


class Mdms:
    """`mdms` in a process of its own, begun; in milliseconds, because its imports are there already."""

    def __init__(self, arguments: Sequence[str], given: dict[str, str], said: Path, user: int | None = None) -> None:
        self._files = [said.with_suffix(".out"), said.with_suffix(".err")]
        self.process = PROCESSES.Process(target=_mdms, args=(list(arguments), given, *self._files, user))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self) -> Said:
        self.process.join()
        assert self.process.exitcode is not None
        out, err = (file.read_text() if file.exists() else "" for file in self._files)
        return Said(self.process.exitcode, out, err)


def mdms(*arguments: str, given: dict[str, str], user: int | None = None) -> Said:
    """`mdms ARGUMENTS` with these settings and no others; as another user if root runs the tests."""
    with tempfile.TemporaryDirectory() as folder:
        return Mdms(arguments, given, Path(folder) / "said", user).wait()


def _mdms(arguments: list[str], given: dict[str, str], out: Path, err: Path, user: int | None) -> None:
    for name in [name for name in os.environ if name.startswith(("MDMS_", "DAGSTER_"))]:
        del os.environ[name]
    os.environ.update(given)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    if user is not None and os.geteuid() == 0:
        os.setuid(user)
    from mdms_pipeline.cli import main

    main(arguments, prog_name="mdms")
