"""Follow the `events` table: any callable, each on its own cursor, at least once.

    follow(warehouse, "my-bot", print)                                       # everything since the last time, oldest first
    follow(warehouse, "my-bot", trade, types=["market_data_collected"])      # only these

1. the events after the name's cursor are read; nothing stays open while they are handled, so a handler may take its time and
   use the warehouse itself
2. each is handed over; the cursor is moved once a batch is through, or as far as it came where the handler raises
3. what a handler raises ends only its own turn: the error and the attempts are kept in `cursors`, the same event comes next time

So after a kill at any moment an event may come again, and none is left out: a handler that must not act twice remembers `event.id`.
Two processes that follow under one name at once hand over the same events twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb

from mdms_pipeline.market import Instant
from mdms_pipeline.store.frames import instants
from mdms_pipeline.store.journal import Event, events_after, newest_id
from mdms_pipeline.store.warehouse import Warehouse

BATCH = 100  # events between two moves of the cursor


@dataclass(frozen=True)
class Cursor:
    """How far a follower has come."""

    subscriber: str
    id: int  # the last event that it has handled
    attempts: int = 0  # failures in a row at the event that follows
    error: str | None = None
    tried_at: Instant = 0


@dataclass(frozen=True)
class Subscriber:
    """Somebody who follows. A new one begins with the first event there is."""

    name: str
    handle: Callable[[Event], object]
    types: Sequence[str] | None = None  # None: every event


def follow(
    warehouse: Warehouse, name: str, handle: Callable[[Event], object], types: Sequence[str] | None = None, limit: int | None = None
) -> Cursor:
    """Hand every event that is new to `name` (at most `limit`) to `handle`, oldest first; where it stands then. What it raises is kept."""
    left = limit
    while True:
        with warehouse.read() as connection:
            cursor, newest = cursor_of(connection, name), newest_id(connection)
            size = BATCH if left is None else min(BATCH, left)
            batch = events_after(connection, cursor.id, size, types)
        after = _hand_over(cursor, batch, handle)
        whole = len(batch) < size and after.error is None
        if whole:
            after = Cursor(name, max(after.id, newest))  # events of other types are passed over
        if (after.id, after.attempts) != (cursor.id, cursor.attempts):
            with warehouse.write() as connection:
                _move(connection, after)
        left = None if left is None else left - len(batch)
        if whole or after.error is not None or left == 0:
            return after


def follow_all(warehouse: Warehouse, subscribers: Sequence[Subscriber], limit: int | None = None) -> dict[str, Cursor]:
    """A turn for each: one that fails holds back no other."""
    return {one.name: follow(warehouse, one.name, one.handle, one.types, limit) for one in subscribers}


def _hand_over(cursor: Cursor, batch: Sequence[Event], handle: Callable[[Event], object]) -> Cursor:
    """The cursor after as many events of the batch as `handle` took."""
    for event in batch:
        try:
            handle(event)
        except Exception as error:  # whatever it is, it is the handler's own
            said = f"event {event.id} {event.type}: {type(error).__name__} {error}"
            attempts = cursor.attempts + 1 if event is batch[0] else 1
            return Cursor(cursor.subscriber, cursor.id, attempts, said, int(time.time()))
        cursor = Cursor(cursor.subscriber, event.id)
    return cursor


def cursor_of(connection: duckdb.DuckDBPyConnection, name: str) -> Cursor:
    """Where a follower stands; before the first event where it is new."""
    return next((cursor for cursor in cursors(connection) if cursor.subscriber == name), Cursor(name, 0))


def cursors(connection: duckdb.DuckDBPyConnection) -> list[Cursor]:
    """Every follower, by name."""
    rows = connection.execute(f"SELECT subscriber, id, attempts, error, {instants('tried_at')} FROM cursors ORDER BY subscriber").fetchall()
    return [Cursor(*row) for row in rows]


def _move(connection: duckdb.DuckDBPyConnection, cursor: Cursor) -> None:
    """Keep a cursor. It never moves back: of two processes under one name the faster decides."""
    furthest = max(cursor.id, cursor_of(connection, cursor.subscriber).id)
    connection.execute("DELETE FROM cursors WHERE subscriber = ?", [cursor.subscriber])
    connection.execute(
        "INSERT INTO cursors VALUES (?, ?, ?, ?, make_timestamp(?::BIGINT * 1000000))",
        [cursor.subscriber, furthest, cursor.attempts, cursor.error, int(time.time())],
    )
