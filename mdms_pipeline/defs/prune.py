"""Dagster's log kept small: old runs are forgotten, and no partition loses its newest materialization.

Deleting a run as Dagster does takes its materializations with it, and its partitions are missing then. So rows are chosen:

1. the logs of runs (a file each, and what they printed): the newest stay as far as they fit, and those that failed as far as those fit
2. the index, which asset pages read: of a run whose log is gone, only what is newest of its kind stays, for each asset and partition
3. rows of runs, after three days, that hold nothing newest; ticks that did nothing, after six hours

Runs that are not finished are never touched. Safe while the webserver and the daemon work: short transactions, and a run's page that
is opened after its file is gone shows the run without its log (`BatchingSqliteEventLogStorage.run_connection`).
Rests on the tables and files of Dagster's SQLite storage, which tests hold.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RUN_SHARES = (0.2, 0.1, 0.05, 0.0)  # of what is allowed, for the logs of runs; their events in the index take as much again
ENOUGH = 0.6  # of what is allowed: where a prune leaves more than that filled, the next share is tried
FILES = 0.8  # and where the files, with the free pages that the next runs fill, take more than that
FAILED_SHARE = 0.05  # besides, for the logs of runs that failed
RESTING = 60.0  # s since a run ended until its log may go
RUN_DAYS, FAILED_DAYS = 3, 30  # that the row of a run stays
SKIPPED_TICK_HOURS = 6
RUNLESS_KEPT = 5_000  # events of no run: what sensors report
CHUNK = 500  # rows deleted in one transaction
PAUSE = 1.0  # of the time that a transaction took, for those who wait to write: they ask again and again, and must find it free
VACUUM_FROM = 64 * 2**20  # bytes of free pages, and half of the file, from which the file itself is made smaller
FINISHED = ("SUCCESS", "FAILURE", "CANCELED")
BUSY_SECONDS = 30
CHECKPOINT_WAITS = 50  # ms, for a page that is being read; else the log stays as long as it is until the next prune
# Of the connections here. Some builds of SQLite (Debian's) fill what is deleted with zeros, which doubles the time; what a power cut may
# undo, the next prune does again.
SETTINGS = ("secure_delete = OFF", "synchronous = NORMAL")


@dataclass(frozen=True)
class Pruned:
    """What a prune did."""

    bytes_before: int
    bytes_after: int
    run_logs: int  # forgotten
    events: int  # deleted from the index
    runs: int  # rows of runs deleted
    ticks: int
    seconds: float


@dataclass(frozen=True)
class _Run:
    run_id: str
    failed: bool
    finished: bool
    ended_at: float
    bytes: int  # of its log


def log_bytes(home: Path) -> int:
    """What Dagster's home takes on disk."""
    return sum(_size(Path(folder) / name) for folder, _, names in os.walk(home) for name in names)


def prune(home: Path, allowed: int, now: float | None = None) -> Pruned:
    """Bring Dagster's log in `home` within `allowed` bytes, as far as the newest of everything lets it. Nothing there: nothing done."""
    clock, at = time.perf_counter(), time.time() if now is None else now
    before, run_logs, events = log_bytes(home), 0, 0
    for share in RUN_SHARES if (home / "history" / "runs" / "index.db").exists() else ():
        gone = _prune_logs(home, allowed, share, at)
        run_logs, events = run_logs + gone[0], events + gone[1]
        if _is_enough(home, allowed):
            break
    runs, ticks = _prune_runs(home, at), _prune_ticks(home, at)
    return Pruned(before, log_bytes(home), run_logs, events, runs, ticks, time.perf_counter() - clock)


def _is_enough(home: Path, allowed: int) -> bool:
    """Free pages of the index are as good as free where they are few enough: making the file smaller would lock all writers out."""
    with _open(home / "history" / "runs" / "index.db") as index:
        _, free, size = _pages(index)
    taken = log_bytes(home)
    return taken - free * size <= ENOUGH * allowed and taken <= FILES * allowed


def _prune_logs(home: Path, allowed: int, share: float, now: float) -> tuple[int, int]:
    """(logs forgotten, events deleted)"""
    index = home / "history" / "runs" / "index.db"
    last, logs = _last_event(index), _logs(home)  # before the runs are read: what is written meanwhile is not touched
    kept = _kept(_runs(home, logs), share * allowed, FAILED_SHARE * allowed, now)
    gone = [run_id for run_id in logs if run_id not in kept and run_id]
    for run_id in gone:
        _forget(home, run_id)
    _trim(home / "history" / "runs" / ".db")
    return len(gone), _prune_index(index, kept, last)


def _kept(runs: Sequence[_Run], budget: float, failed_budget: float, now: float) -> set[str]:
    """The runs whose logs stay. `runs` newest first."""
    kept: set[str] = set()
    for run in runs:
        if not run.finished or now - run.ended_at < RESTING:
            kept.add(run.run_id)
        elif not run.bytes:
            continue  # its log went before: what is newest of it stays as long as it is
        elif budget >= run.bytes:
            budget -= run.bytes
            kept.add(run.run_id)
        else:
            budget = 0  # what is older than one that does not fit goes too
            if run.failed and failed_budget >= run.bytes:
                failed_budget -= run.bytes
                kept.add(run.run_id)
    return kept


def _runs(home: Path, sizes: Mapping[str, int]) -> list[_Run]:
    with _open(home / "history" / "runs.db") as connection:
        rows = connection.execute(
            "SELECT run_id, status, coalesce(end_time, strftime('%s', update_timestamp), 0) FROM runs ORDER BY id DESC"
        ).fetchall()
    return [_Run(run_id, status != "SUCCESS", status in FINISHED, float(at), sizes.get(run_id, 0)) for run_id, status, at in rows]


def _logs(home: Path) -> dict[str, int]:
    """Run id -> bytes of its log. The empty id stands for events of no run."""
    sizes: dict[str, int] = {}
    for file in (home / "history" / "runs").glob("*.db*"):
        run_id = file.name.partition(".db")[0]
        if run_id != "index":
            sizes[run_id] = sizes.get(run_id, 0) + _size(file)
    for folder in (home / "storage").glob("*-*-*-*-*"):
        if folder.name in sizes:
            sizes[folder.name] += log_bytes(folder)
    return sizes


def _forget(home: Path, run_id: str) -> None:
    for ending in (".db", ".db-wal", ".db-shm"):
        (home / "history" / "runs" / f"{run_id}{ending}").unlink(missing_ok=True)
    shutil.rmtree(home / "storage" / run_id, ignore_errors=True)


def _prune_index(file: Path, kept: set[str], last: int) -> int:
    """Delete the events up to `last` of runs that are not kept, but for the newest of each kind; how many."""
    with _open(file) as connection:
        newest = _newest(connection)
        events = connection.execute("SELECT id, run_id FROM event_logs WHERE +id <= ?", [last]).fetchall()  # +: from an index alone
        doomed = [event for event, run_id in events if run_id not in kept and event not in newest]
        checks = connection.execute("SELECT max(id) FROM asset_check_executions GROUP BY asset_key, check_name, partition").fetchall()
        old_checks = connection.execute("SELECT id, run_id FROM asset_check_executions").fetchall()
        latest = {check for (check,) in checks}
        old = [check for check, run_id in old_checks if run_id not in kept and check not in latest]
        _delete(connection, "asset_check_executions", "id", old)
        _delete(connection, "asset_event_tags", "event_id", doomed)
        _delete(connection, "event_logs", "id", doomed)
        _shrink(connection)
    return len(doomed)


def _trim(file: Path) -> None:
    """Of the events that belong to no run, the newest stay."""
    if file.exists():
        with _open(file) as connection:
            connection.execute("DELETE FROM event_logs WHERE id <= (SELECT max(id) FROM event_logs) - ?", [RUNLESS_KEPT])


def _last_event(file: Path) -> int:
    with _open(file) as connection:
        row = connection.execute("SELECT coalesce(max(id), 0) FROM event_logs").fetchone()
    return int(row[0])


def _newest(connection: sqlite3.Connection) -> set[int]:
    """Ids of the newest event of each kind of each asset and partition, of what the newest checks stand on, and of the last event.

    SQLite gives the id of a last row that was deleted to the next one, and sensors that follow by id would miss that: it stays.
    """
    queries = (
        "SELECT max(id) FROM event_logs WHERE asset_key IS NOT NULL GROUP BY asset_key, dagster_event_type, partition",
        """SELECT evaluation_event_storage_id FROM asset_check_executions
           WHERE id IN (SELECT max(id) FROM asset_check_executions GROUP BY asset_key, check_name, partition)""",
        "SELECT max(id) FROM event_logs",
    )
    return {event for query in queries for (event,) in connection.execute(query) if event is not None}


def _prune_runs(home: Path, now: float) -> int:
    """Delete the rows of old runs that hold nothing newest; how many."""
    if not (home / "history" / "runs" / "index.db").exists():
        return 0
    with _open(home / "history" / "runs" / "index.db") as index:
        needed = {run_id for (run_id,) in index.execute("SELECT DISTINCT run_id FROM event_logs")}
    latest = now - RUN_DAYS * 86_400
    old = [
        run.run_id
        for run in _runs(home, {})
        if run.finished and run.run_id not in needed and run.ended_at < (now - FAILED_DAYS * 86_400 if run.failed else latest)
    ]
    with _open(home / "history" / "runs.db") as connection:
        for table in ("run_tags", "runs"):
            _delete(connection, table, "run_id", old)
        _shrink(connection)
    return len(old)


def _prune_ticks(home: Path, now: float) -> int:
    """Delete ticks that did nothing; how many. Dagster itself keeps those for a day."""
    file = home / "schedules" / "schedules.db"
    if not file.exists():
        return 0
    with _open(file) as connection:
        before = "datetime(?, 'unixepoch')"
        rows = connection.execute(
            f"SELECT id FROM job_ticks WHERE status = 'SKIPPED' AND timestamp < {before}", [now - SKIPPED_TICK_HOURS * 3600]
        ).fetchall()
        _delete(connection, "job_ticks", "id", [tick for (tick,) in rows])
        _shrink(connection)
    return len(rows)


def _delete(connection: sqlite3.Connection, table: str, column: str, values: Sequence[object]) -> None:
    """Delete the rows of these values, in short transactions with pauses, so that nobody waits for long."""
    for part in _chunks(values):
        connection.execute("BEGIN IMMEDIATE")
        begun = time.perf_counter()
        connection.execute(f"DELETE FROM {table} WHERE {column} IN ({', '.join('?' * len(part))})", list(part))
        connection.execute("COMMIT")
        time.sleep(PAUSE * (time.perf_counter() - begun))


def _chunks(values: Sequence[object]) -> Iterator[Sequence[object]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


def _shrink(connection: sqlite3.Connection) -> None:
    """Give pages back to the disk where half of the file is free; else they are used again. Not where somebody is at work."""
    pages, free, size = _pages(connection)
    try:
        if free * size > VACUUM_FROM and free > pages / 2:
            connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # others write meanwhile
        connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_WAITS}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # which waits for readers while nobody may write
    except sqlite3.OperationalError:
        return  # the next prune comes soon


def _pages(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """(pages of the file, those of them that are free, bytes of one)"""
    pages, free, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return pages, free, size


@contextmanager
def _open(file: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)
    for setting in SETTINGS:
        connection.execute(f"PRAGMA {setting}")
    try:
        yield connection
    finally:
        connection.close()


def _size(file: Path) -> int:
    """Bytes of a file, 0 where it is gone meanwhile."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
