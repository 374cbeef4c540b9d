"""The warehouse file: who may open it, when, and what happens when it goes wrong.

DuckDB lets one process write a file, and shuts everybody else out while it does. So transactions, not runs, are serialised: one
operating-system lock beside the file, shared by readers, exclusive for a writer, held for milliseconds. A notebook or the DuckDB shell
takes no such lock; a short retry with jitter gets past those.

    StoreError
    ├── WarehouseBusy      the lock, or the file, was not free within the deadline
    └── WrongWarehouse     the warehouse was made with other settings
        ├── WrongExchange  it holds the candles of another exchange
        └── WrongNoTrade   it makes something else of slots without a trade
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb

from mdms_pipeline.store import schema

# Of the memory allowed, but at least so many MB; the rest is for arrays and for the interpreter with its imports. More is cache, and makes
# nothing faster; with less the view `indicators`, a join of all tables, does not find room for one symbol.
DUCKDB_SHARE, DUCKDB_LEAST = 0.2, 60
THREADS = 1  # of DuckDB; a second gets in the way of the first: 3.96 million rows calculated took 12.2 and 15.3 s of CPU, now 9.5 and 11.3
OPENINGS = 50  # of the file by one engine
DEADLINE = 120.0  # seconds that a transaction waits for its turn
FULL = ("No space left", "File too large", "Disk quota exceeded")  # how the operating system says that a file cannot grow
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.1  # seconds between two tries; each is drawn at random up to a bound that doubles


class StoreError(Exception):
    """The warehouse could not be used; the message says what to do."""


class WarehouseBusy(StoreError):
    """Another process kept the warehouse longer than the deadline."""


class WrongWarehouse(StoreError):
    """What was chosen once for a warehouse is not what the settings say."""


class WrongExchange(WrongWarehouse):
    """Candles of two exchanges never mix in one warehouse."""


class WrongNoTrade(WrongWarehouse):
    """Indicators that skip slots without a trade never mix with those that see them."""


class Warehouse:
    """One DuckDB file. Connections live for one `with` block; nothing of the file stays open, or is remembered, between two."""

    def __init__(self, path: Path, exchange: str, memory_mb: int = 500, deadline: float = DEADLINE, no_trade: str | None = None) -> None:
        """`no_trade` is what the settings ask for (None: whatever the warehouse was made with, `skip` for a new one)."""
        self.path = path
        self.exchange = exchange
        self.deadline = deadline
        self.memory_mb = memory_mb
        self.no_trade = no_trade
        self._engine = _Engine(
            path,
            {
                "memory_limit": f"{max(DUCKDB_LEAST, int(memory_mb * DUCKDB_SHARE))}MB",
                "threads": THREADS,
                "temp_directory": str(path.parent / "tmp"),
            },
        )
        self._make()

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection; what it sees does not change while it is open."""
        with self._turn(fcntl.LOCK_SH), self._connection(read_only=True) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction: all of the block is stored when it ends, none of it when it raises."""
        with self._turn(fcntl.LOCK_EX), self._connection(read_only=False) as connection:
            connection.begin()
            try:
                yield connection
                connection.commit()
            except BaseException as error:
                _roll_back(connection)
                if isinstance(error, duckdb.Error) and any(word in str(error) for word in FULL):
                    raise StoreError(f"no space left on the disk of {self.path}: nothing was stored; free some and run again") from error
                raise

    def _make(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._turn(fcntl.LOCK_SH):
                exists = self.path.exists() and self.path.stat().st_size > 0
        except OSError as error:
            raise StoreError(f"MDMS_HOME {self.path.parent} cannot be written: {error.strerror}; name a folder that can") from None
        if exists:
            with self.read() as connection:
                held = schema.held(connection)
        else:
            held = None
        if held is None or held.version != schema.VERSION:
            with self.write() as connection:
                held = schema.make(connection, self.exchange, self.no_trade or schema.SKIP)
        wanted = self.no_trade or held.no_trade
        if (held.exchange != self.exchange or held.no_trade != wanted) and not self._adopted(wanted):
            self._refuse(held)

    def _adopted(self, no_trade: str) -> bool:
        """Take over a warehouse that holds nothing yet: asking for its status must not bind it to anything."""
        with self.write() as connection:
            return schema.adopt(connection, self.exchange, no_trade)

    def _refuse(self, held: schema.Held) -> None:
        if held.exchange != self.exchange:
            raise WrongExchange(
                f"warehouse {self.path} holds candles of {held.exchange}, not of {self.exchange}: "
                f"set MDMS_EXCHANGE_URL={held.exchange}, or MDMS_HOME to another folder"
            )
        raise WrongNoTrade(
            f"warehouse {self.path} was made with MDMS_NO_TRADE={held.no_trade}, not {self.no_trade}, and all its indicators stand on "
            f"that: set MDMS_NO_TRADE={held.no_trade}, or MDMS_HOME to another folder"
        )

    @contextmanager
    def _turn(self, kind: int) -> Iterator[None]:
        """Hold the lock file, shared or exclusive. The operating system frees it when a process dies."""
        handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            for _ in _tries(self.deadline):
                try:
                    fcntl.flock(handle, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    continue
            else:
                raise WarehouseBusy(f"warehouse {self.path} was busy for {self.deadline:.0f} s: another process holds it; try again later")
            yield
        finally:
            os.close(handle)

    @contextmanager
    def _connection(self, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = self._connect(read_only)
        try:
            yield connection
        finally:
            self._engine.leave(connection)

    def _connect(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        last: Exception | None = None
        for _ in _tries(self.deadline):
            try:
                return self._engine.enter(read_only)
            except duckdb.IOException as error:  # a reader outside of our lock has it open
                last = error
                if "Could not set lock" not in str(error):
                    raise StoreError(f"warehouse {self.path} cannot be opened: {error}") from error
            except duckdb.BinderException as error:  # this process has it open otherwise
                last = error
        raise WarehouseBusy(f"warehouse {self.path} was busy for {self.deadline:.0f} s: close what has it open ({last})") from last


class _Engine:
    """DuckDB without a file, which opens ours for who comes and closes it once all have left.

    Starting an engine takes 14 ms, opening the file 6 (50 MB; a refresh opens it some 40 times). One that failed is not used again:
    DuckDB refuses everything after a fatal error. One that has opened the file OPENINGS times is not either: each time it keeps some 5 kB,
    and sensors open it for months.
    """

    def __init__(self, path: Path, config: Mapping[str, str | bool | int | float | list[str]]) -> None:
        self._path = path
        self._config = dict(config)
        self._name = '"' + path.stem.replace('"', '""') + '"'  # as DuckDB names it where it opens the file itself: views keep it
        self._gate = threading.Lock()
        self._running: duckdb.DuckDBPyConnection | None = None
        self._inside = 0  # connections that use the file
        self._opened = 0  # times, by this engine

    def enter(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        """A connection to the file. `read_only` is that of all who are inside: our lock sees to it. Raises duckdb.Error."""
        with self._gate:
            if self._running is None:
                self._running, self._opened = duckdb.connect(":memory:", config=self._config), 0
            if not self._inside:
                file = str(self._path).replace("'", "''")
                self._running.execute(f"ATTACH '{file}' AS {self._name} {'(READ_ONLY)' if read_only else ''}")
                self._opened += 1
            self._inside += 1
            connection = self._running.cursor()
        try:
            connection.execute(f"USE {self._name}")
        except BaseException:
            self.leave(connection)
            raise
        return connection

    def leave(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Close a connection; the last one closes the file, which stores what was committed in its place."""
        connection.close()
        with self._gate:
            self._inside -= 1
            if self._inside or self._running is None:
                return
            try:
                self._running.execute(f"DETACH {self._name}")
                used_up = self._opened >= OPENINGS
            except duckdb.Error:  # what was committed is in the file beside it, and the next one to open it finds it there
                used_up = True
            if used_up:
                self._running.close()
                self._running = None


def _tries(deadline: float) -> Iterator[int]:
    """Count tries until `deadline` seconds have passed, pausing at random between two so that waiters do not march in step."""
    start, pause, count = time.monotonic(), FIRST_PAUSE, 0
    while True:
        yield count
        if time.monotonic() - start > deadline:
            return
        time.sleep(random.uniform(0, pause))
        pause = min(2 * pause, LONGEST_PAUSE)
        count += 1


def _roll_back(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        connection.rollback()
    except duckdb.Error:
        return  # a failed commit has rolled back already; the first error is the one to tell
