"""One file, many processes: transactions wait for each other, are stored whole or not at all, and say what is wrong."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mdms_pipeline.store import StoreError, Warehouse, WarehouseBusy
from mdms_pipeline.store.candles import standings
from mdms_pipeline.store.warehouse import OPENINGS, WrongExchange
from mdms_pipeline_tests.support import HOUR, NOW, beside, candles, elsewhere, page, put, rows

TRANSACTIONS = 40


def opened(path: Path, deadline: float = 60.0) -> Warehouse:
    return Warehouse(path, "sandbox", memory_mb=200, deadline=deadline)


# ---- two writers


def count_up(ready: Any, path: Path, writer: int) -> None:
    warehouse = opened(path)
    ready.set()
    for number in range(TRANSACTIONS):
        with warehouse.write() as connection:
            (seen,) = connection.execute("SELECT count(*) FROM tally").fetchone()
            connection.execute("INSERT INTO tally VALUES (?, ?, ?)", [writer, number, seen])


def test_two_writers_lose_and_double_nothing(warehouse: Warehouse) -> None:
    with warehouse.write() as connection:
        connection.execute("CREATE TABLE tally (writer INTEGER, number INTEGER, seen INTEGER)")
    with beside(count_up, warehouse.path, 1), beside(count_up, warehouse.path, 2):
        pass
    found = rows(warehouse, "SELECT writer, number, seen FROM tally ORDER BY seen")
    assert sorted(found[i][:2] for i in range(len(found))) == [(w, n) for w in (1, 2) for n in range(TRANSACTIONS)]
    assert [seen for *_, seen in found] == list(range(2 * TRANSACTIONS))  # each saw all that were before it: one after the other


def make_new(ready: Any, path: Path) -> None:
    ready.set()
    opened(path)


def test_two_processes_may_make_the_same_warehouse(home: Path) -> None:
    with beside(make_new, home / "mdms.duckdb"), beside(make_new, home / "mdms.duckdb"):
        pass
    assert rows(opened(home / "mdms.duckdb"), "SELECT count(*) FROM meta WHERE key = 'exchange'") == [(1,)]


# ---- waiting


def hold_lock(ready: Any, path: Path, seconds: float) -> None:
    handle = os.open(path.with_suffix(".lock"), os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    ready.set()
    time.sleep(seconds)
    note_release(path)


def hold_open(ready: Any, path: Path, seconds: float) -> None:
    """As a notebook does: read-only, without our lock."""
    connection = duckdb.connect(path, read_only=True)
    ready.set()
    time.sleep(seconds)
    note_release(path)
    connection.close()


def note_release(path: Path) -> None:
    path.with_suffix(".released").write_text(repr(time.monotonic()))


@pytest.mark.parametrize("hold", [hold_lock, hold_open])
def test_a_writer_waits_for_who_holds_the_file(warehouse: Warehouse, hold: Any) -> None:
    with beside(hold, warehouse.path, 1.0), warehouse.write() as connection:
        began = time.monotonic()
        connection.execute("CREATE TABLE mine AS SELECT 1 AS one")
    assert began >= float(warehouse.path.with_suffix(".released").read_text())
    assert rows(warehouse, "FROM mine") == [(1,)]


@pytest.mark.parametrize(("hold", "remedy"), [(hold_lock, "try again later"), (hold_open, "close what has it open")])
def test_who_waits_too_long_is_told_what_to_do(warehouse: Warehouse, hold: Any, remedy: str) -> None:
    impatient = opened(warehouse.path, deadline=0.2)
    with beside(hold, warehouse.path, 1.0):
        with pytest.raises(WarehouseBusy, match=remedy) as caught, impatient.write():
            pytest.fail("the file was held")
        assert str(warehouse.path) in str(caught.value)
    with impatient.write() as connection:  # and nothing of the attempt is left behind
        connection.execute("CREATE TABLE mine AS SELECT 1 AS one")


def test_readers_do_not_wait_for_each_other(warehouse: Warehouse) -> None:
    impatient = opened(warehouse.path, deadline=0.2)
    with beside(hold_open, warehouse.path, 1.0), warehouse.read(), impatient.read() as connection:
        assert connection.execute("SELECT count(*) FROM candles").fetchone() == (0,)


def test_threads_that_read_at_once_can_all_join_frames(warehouse: Warehouse) -> None:
    """Sensors are evaluated on threads of one process. Without turns at connecting, a quarter of these readers failed."""

    def read(_: int) -> int:
        with warehouse.read() as connection:
            return len(standings(connection, [("KRW-BTC", "1h")]))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(read, range(200))) == 0


def test_an_engine_is_replaced_before_it_has_grown_but_never_under_somebody(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB keeps a little of each file that it has opened; what opens it every few seconds must not grow for months."""
    started: list[Any] = []
    connect = duckdb.connect

    def counted(*given: Any, **named: Any) -> Any:
        started.append(given)
        return connect(*given, **named)

    monkeypatch.setattr("mdms_pipeline.store.warehouse.duckdb.connect", counted)
    for i in range(2 * OPENINGS + 1):
        with warehouse.write() as connection:
            connection.execute("INSERT INTO meta VALUES (?, 'kept')", [f"test {i}"])
    assert len(started) in (2, 3)  # the warehouse was opened before
    with warehouse.read() as reading:
        for _ in range(2 * OPENINGS):
            assert len(rows(warehouse, "SELECT key FROM meta WHERE value = 'kept'")) == 2 * OPENINGS + 1
        assert reading.execute("SELECT count(*) FROM meta WHERE value = 'kept'").fetchone() == (2 * OPENINGS + 1,)


def test_a_reader_cannot_write(warehouse: Warehouse) -> None:
    with warehouse.read() as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("CREATE TABLE mine AS SELECT 1 AS one")


# ---- whole or not at all


class Interrupted(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_an_exception_rolls_back_and_closes(warehouse: Warehouse, error: type[BaseException]) -> None:
    with suppress(error), warehouse.write() as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS one")
        raise error("in the middle")
    with pytest.raises(duckdb.ConnectionException, match="closed"):
        connection.execute("SELECT 1")
    assert elsewhere(tables, warehouse.path, "mine") == []  # another process gets in, and there is nothing
    with warehouse.write() as again:
        again.execute("CREATE TABLE mine AS SELECT 1 AS one")


def tables(path: Path, name: str) -> list[tuple[Any, ...]]:
    return rows(opened(path), "SELECT table_name FROM duckdb_tables() WHERE table_name = ?", name)


def write_pairs(ready: Any, path: Path) -> None:
    """Transaction after transaction, each of 2,000 rows in two tables."""
    warehouse = opened(path)
    ready.set()
    for number in range(10_000):
        with warehouse.write() as connection:
            connection.execute("INSERT INTO first SELECT ?, random() FROM range(2000)", [number])
            connection.execute("INSERT INTO second SELECT ?, random() FROM range(2000)", [number])


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_leaves_whole_transactions(warehouse: Warehouse, seed: int) -> None:
    with warehouse.write() as connection:
        for name in ("first", "second"):
            connection.execute(f"CREATE TABLE {name} (number INTEGER, value DOUBLE)")
    with beside(write_pairs, warehouse.path) as writer:
        time.sleep(random.Random(seed).uniform(0.05, 0.4))
        os.kill(writer.pid, signal.SIGKILL)
    counts = {name: rows(warehouse, f"SELECT number, count(*) FROM {name} GROUP BY ALL ORDER BY ALL") for name in ("first", "second")}
    assert counts["first"] == counts["second"] == [(number, 2000) for number in range(len(counts["first"]))]
    with warehouse.write() as connection:
        connection.execute("INSERT INTO first VALUES (-1, 0)")


def fill_the_disk(path: Path) -> tuple[str, list[tuple[Any, ...]]]:
    """Write more than may be written; what is said, and what can be read then."""
    warehouse = opened(path)
    size = path.stat().st_size + 300_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    said = ""
    try:
        with warehouse.write() as connection:
            connection.execute("INSERT INTO kept SELECT random() FROM range(3000000)")
    except StoreError as error:
        said = str(error)
    return said, rows(warehouse, "SELECT count(*) FROM kept")


def test_a_full_disk_loses_nothing(warehouse: Warehouse) -> None:
    with warehouse.write() as connection:
        connection.execute("CREATE TABLE kept AS SELECT random() AS value FROM range(1000)")
    said, counted = elsewhere(fill_the_disk, warehouse.path)
    assert "no space left" in said
    assert str(warehouse.path) in said
    assert counted == [(1000,)]
    with warehouse.write() as connection:  # once there is space again
        connection.execute("INSERT INTO kept VALUES (1)")
    assert rows(warehouse, "SELECT count(*) FROM kept") == [(1001,)]


# ---- what cannot be used


def test_candles_of_two_exchanges_never_mix(warehouse: Warehouse) -> None:
    put(warehouse, page("KRW-BTC", candles(NOW // HOUR * HOUR, 3)))
    before = warehouse.path.read_bytes()
    with pytest.raises(
        WrongExchange, match=r"holds candles of sandbox, not of https://api.upbit.com.*MDMS_EXCHANGE_URL=sandbox.*MDMS_HOME"
    ):
        Warehouse(warehouse.path, "https://api.upbit.com")
    assert warehouse.path.read_bytes() == before


def test_a_warehouse_that_holds_nothing_yet_takes_another_exchange(warehouse: Warehouse) -> None:
    Warehouse(warehouse.path, "https://api.upbit.com")
    assert rows(warehouse, "SELECT value FROM meta WHERE key = 'exchange'") == [("https://api.upbit.com",)]


@pytest.mark.parametrize("home", ["/proc/mdms", "/dev/null/mdms"])
def test_a_home_that_cannot_be_written_is_named(home: str) -> None:
    with pytest.raises(StoreError, match=f"MDMS_HOME {home} cannot be written: .*; name a folder that can"):
        opened(Path(home) / "mdms.duckdb")


def test_a_file_that_is_no_warehouse_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mdms.duckdb").write_text("these are my notes, not a database; do not overwrite them\n" * 1000)
    before = (tmp_path / "mdms.duckdb").read_bytes()
    with pytest.raises(StoreError, match=r"mdms\.duckdb cannot be opened"):
        opened(tmp_path / "mdms.duckdb")
    assert (tmp_path / "mdms.duckdb").read_bytes() == before
