"""What happened: events for whoever follows, and the work done for whoever plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import duckdb

from mdms_pipeline.market import Instant
from mdms_pipeline.store.frames import instants


@dataclass(frozen=True)
class Event:
    """One row of the event bus. `id` grows; a reader keeps the last one it has seen."""

    id: int
    type: str
    symbols: tuple[str, ...]
    timeframe: str | None
    count: int
    revision: int
    at: Instant
    run_id: str | None


def emit(
    connection: duckdb.DuckDBPyConnection,
    type: str,
    at: Instant,
    run_id: str | None,
    symbols: Sequence[str],
    timeframe: str | None,
    count: int,
    revision: int = 0,
) -> None:
    """Add an event to the caller's transaction: it is seen when, and only when, the data it tells of is."""
    connection.execute(
        "INSERT INTO events VALUES (nextval('event_id'), ?, ?, ?, ?, ?, make_timestamp(?::BIGINT * 1000000), ?)",
        [type, list(symbols), timeframe, count, revision, at, run_id],
    )


def events_after(connection: duckdb.DuckDBPyConnection, cursor: int, limit: int = 1000, types: Sequence[str] | None = None) -> list[Event]:
    """Events with an id above `cursor`, of these types (None: all), oldest first."""
    rows = connection.execute(
        f"""SELECT id, type, symbols, timeframe, count, revision, {instants("happened_at")}, run_id FROM events
            WHERE id > ? AND (?::VARCHAR[] IS NULL OR list_contains(?::VARCHAR[], type)) ORDER BY id LIMIT ?""",
        [cursor, types and list(types), types and list(types), limit],
    ).fetchall()
    return [Event(number, kind, tuple(symbols or ()), *rest) for number, kind, symbols, *rest in rows]


@dataclass(frozen=True)
class Work:
    """What one step did for one timeframe."""

    run_id: str | None
    step: str
    timeframe: str | None
    started_at: Instant
    seconds: float
    partitions: int
    hit: int = 0
    incremental: int = 0
    from_start: int = 0
    skipped: int = 0
    failed: int = 0
    rows: int = 0
    requests: int = 0


def note_work(connection: duckdb.DuckDBPyConnection, work: Work) -> None:
    run_id, step, timeframe, started_at, *numbers = astuple(work)
    connection.execute(
        f"INSERT INTO work VALUES (?, ?, ?, make_timestamp(?::BIGINT * 1000000), {', '.join('?' * len(numbers))})",
        [run_id, step, timeframe, started_at, *numbers],
    )


def work_of(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[Work]:
    """The steps of a run in the order in which they ended."""
    rows = connection.execute(
        f"""SELECT run_id, step, timeframe, {instants("started_at")}, seconds, partitions, hit, incremental, from_start, skipped, failed,
                   rows, requests FROM work WHERE run_id = ? ORDER BY rowid""",
        [run_id],
    ).fetchall()
    return [Work(*row) for row in rows]


def writers_after(connection: duckdb.DuckDBPyConnection, timeframe: str, event: int) -> set[str | None]:
    """The runs that have written anything of a timeframe after that event; None stands for work outside of Dagster."""
    rows = connection.execute("SELECT DISTINCT run_id FROM events WHERE timeframe = ? AND id > ?", [timeframe, event]).fetchall()
    return {run_id for (run_id,) in rows}


def calculated_after(connection: duckdb.DuckDBPyConnection, event: int) -> set[str]:
    """The timeframes of which indicators were brought up to date after that event."""
    rows = connection.execute("SELECT DISTINCT timeframe FROM events WHERE id > ? AND type LIKE '%\\_calculated' ESCAPE '\\'", [event])
    return {timeframe for (timeframe,) in rows.fetchall()}


def newest_event(connection: duckdb.DuckDBPyConnection) -> dict[str, object] | None:
    """Id and type of the last event: where a new reader's cursor may begin."""
    row = connection.execute("SELECT id, type FROM events ORDER BY id DESC LIMIT 1").fetchone()
    return None if row is None else {"id": row[0], "type": row[1]}


def newest_id(connection: duckdb.DuckDBPyConnection) -> int:
    """The id of the last event, 0 before the first."""
    row = connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
    return int(row[0]) if row else 0
