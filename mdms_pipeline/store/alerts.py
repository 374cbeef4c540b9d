"""What a person should know: raised once, resolved when it ends. Each change is an event, so alerts go out as all else does: by cursor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from mdms_pipeline.market import Instant
from mdms_pipeline.store.frames import instants
from mdms_pipeline.store.journal import emit

RAISED, RESOLVED = "alert_raised", "alert_resolved"


@dataclass(frozen=True)
class Alert:
    """One row of `alerts`. What only happened, and does not last, is resolved as it is raised."""

    id: int
    kind: str  # "stale data", "run failed", "delisted", "blocked"
    subject: str  # what it is about: a timeframe, a job, a market
    message: str
    raised_at: Instant
    resolved_at: Instant | None


def alerts(connection: duckdb.DuckDBPyConnection, only_open: bool = False) -> list[Alert]:
    """All alerts, or those that last, oldest first."""
    rows = connection.execute(
        f"""SELECT id, kind, subject, message, {instants("raised_at", "resolved_at")} FROM alerts
            WHERE resolved_at IS NULL OR NOT ? ORDER BY id""",
        [only_open],
    ).fetchall()
    return [Alert(*row) for row in rows]


def alert_of(connection: duckdb.DuckDBPyConnection, id: int) -> Alert:
    """The alert of that id. KeyError where there is none."""
    found = [alert for alert in alerts(connection) if alert.id == id]
    if not found:
        raise KeyError(f"there is no alert {id}")
    return found[0]


def raise_alert(
    connection: duckdb.DuckDBPyConnection,
    kind: str,
    subject: str,
    message: str,
    now: Instant,
    symbols: Sequence[str] = (),
    lasting: bool = True,
    run_id: str | None = None,
) -> bool:
    """Raise an alert in the caller's transaction, unless one of this kind and subject is open; whether it was raised."""
    if lasting and any((alert.kind, alert.subject) == (kind, subject) for alert in alerts(connection, only_open=True)):
        return False
    row = connection.execute(
        """INSERT INTO alerts VALUES (nextval('alert_id'), ?, ?, ?, make_timestamp(?::BIGINT * 1000000),
               CASE WHEN ? THEN NULL ELSE make_timestamp(?::BIGINT * 1000000) END) RETURNING id""",
        [kind, subject, message, now, lasting, now],
    ).fetchone()
    assert row is not None
    emit(connection, RAISED, now, run_id, symbols, None, int(row[0]))
    return True


def resolve_alert(connection: duckdb.DuckDBPyConnection, kind: str, subject: str, now: Instant) -> bool:
    """End the open alert of this kind and subject in the caller's transaction; whether there was one."""
    for alert in alerts(connection, only_open=True):
        if (alert.kind, alert.subject) == (kind, subject):
            connection.execute("UPDATE alerts SET resolved_at = make_timestamp(?::BIGINT * 1000000) WHERE id = ?", [now, alert.id])
            emit(connection, RESOLVED, now, None, (), None, alert.id)
            return True
    return False
