"""Alerts: what is wrong now, and telling a person of it.

1. `evaluate`  compares the store with the clock: data that is stale, a market that was delisted, an exchange that has blocked us
2. `store/alerts.py` keeps each alert once until it is resolved, and makes an event of both
3. `deliver`   a subscriber of these events: a line in the file `alerts.jsonl`, and a POST to MDMS_ALERT_URL. What fails comes again
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import httpx

from mdms_pipeline.collect.pace import Block
from mdms_pipeline.market import Instant, iso, utc
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.alerts import RAISED, RESOLVED, Alert, alert_of, alerts, raise_alert, resolve_alert
from mdms_pipeline.store.checks import stale
from mdms_pipeline.store.journal import Event
from mdms_pipeline.store.subscribe import Cursor, Subscriber, cursors, follow, follow_all
from mdms_pipeline.store.universe import first_seen

GRACE = 300  # s after a close until data that is missing is stale; 2,890 requests at Monday 00:00 UTC take 289 s
WEBHOOK_SECONDS = 3.0  # for one POST: alerts are sent from a sensor, which may not wait for long
AT_ONCE = 5  # POSTs in one turn
FILE, WEBHOOK, WATCH = "alerts-file", "alerts-webhook", "alerts"  # the names of our subscribers
STALE, DELISTED, BLOCKED = "stale data", "delisted", "blocked"


def evaluate(warehouse: Warehouse, settings: Settings, now: Instant, block: Block | None) -> None:
    """Raise what is wrong and was not raised yet, resolve what has ended. `block`: the one that is in force (`known_block`)."""
    with warehouse.read() as connection:
        wrong = {**_stale(connection, settings.timeframes, now), **_blocked(settings.exchange_url, block)}
        lasting = [alert for alert in alerts(connection, only_open=True) if alert.kind in (STALE, BLOCKED)]
    raised = [key for key in wrong if key not in {(alert.kind, alert.subject) for alert in lasting}]
    ended = [alert for alert in lasting if (alert.kind, alert.subject) not in wrong]
    if raised or ended:
        with warehouse.write() as connection:
            for kind, subject in raised:
                raise_alert(connection, kind, subject, wrong[kind, subject], now)
            for alert in ended:
                resolve_alert(connection, alert.kind, alert.subject, now)
    follow(warehouse, WATCH, lambda event: _delisted(warehouse, event), ["market_delisted"])


def _stale(connection: duckdb.DuckDBPyConnection, timeframes: Sequence[str], now: Instant) -> dict[tuple[str, str], str]:
    """(kind, timeframe) -> message of what should have been collected GRACE seconds ago."""
    found: dict[str, list[tuple[str, str]]] = {}
    begun = first_seen(connection)
    for symbol, name, why in stale(connection, timeframes, now - GRACE):
        if begun.get(symbol, 0) < now - GRACE:  # who has just been listed has some time
            found.setdefault(name, []).append((symbol, why))
    return {
        (STALE, name): f"{len(behind)} markets of {name} are stale: {', '.join(symbol for symbol, _ in behind[:5])}"
        + (" and others" if len(behind) > 5 else "")
        + f" ({behind[0][1]})"
        for name, behind in found.items()
    }


def _blocked(url: str, block: Block | None) -> dict[tuple[str, str], str]:
    if block is None:
        return {}
    return {(BLOCKED, url): f"the exchange has blocked this address until {utc(int(block.until))}, nothing is asked before: {block.said}"}


def _delisted(warehouse: Warehouse, event: Event) -> None:
    """One alert per market that the exchange no longer lists. The same event again raises none again."""
    with warehouse.write() as connection:
        told = {alert.subject for alert in alerts(connection) if (alert.kind, alert.raised_at) == (DELISTED, event.at)}
        for symbol in sorted({*event.symbols} - told):
            message = f"{symbol} is no longer listed; its history is kept"
            raise_alert(connection, DELISTED, symbol, message, event.at, [symbol], lasting=False, run_id=event.run_id)


# ---- telling


def subscribers(warehouse: Warehouse, settings: Settings, post: Callable[[str, Mapping[str, Any]], None] | None = None) -> list[Subscriber]:
    """Those who tell a person: the file always, the webhook where the settings name one."""
    types = [RAISED, RESOLVED]
    send = post or _post

    def told(event: Event) -> dict[str, Any]:
        with warehouse.read() as connection:
            return spoken(event, alert_of(connection, event.count))

    found = [Subscriber(FILE, lambda event: append_line(settings.alerts, told(event)), types)]
    if settings.alert_url:
        found.append(Subscriber(WEBHOOK, lambda event: send(settings.alert_url, told(event)), types))
    return found


def deliver(warehouse: Warehouse, settings: Settings, post: Callable[[str, Mapping[str, Any]], None] | None = None) -> dict[str, Cursor]:
    """Tell of all alerts that were not told of yet; where each subscriber stands. One that failed pauses, longer each time."""
    with warehouse.read() as connection:
        resting = {one.subscriber for one in cursors(connection) if one.attempts and time.time() < one.tried_at + _pause(one.attempts)}
    return follow_all(warehouse, [one for one in subscribers(warehouse, settings, post) if one.name not in resting], AT_ONCE)


def _pause(attempts: int) -> float:
    """Seconds until a webhook that failed so many times is tried again."""
    return min(600.0, 5.0 * 2.0**attempts)


def spoken(event: Event, alert: Alert) -> dict[str, Any]:
    """An alert as it is told, for machines and people. `id` is the event's: the same id twice is the same news."""
    state = "raised" if event.type == RAISED else "resolved"
    return {
        "id": event.id, "at": iso(event.at), "state": state, "kind": alert.kind, "subject": alert.subject,
        "text": alert.message if state == "raised" else f"over: {alert.message}",
    }  # fmt: skip


def append_line(file: Path, said: Mapping[str, Any]) -> None:
    """One line more, unless the file ends with it: killed between this and the cursor's move, it would come twice."""
    line = json.dumps(said, ensure_ascii=False) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as lines:
        lines.seek(max(0, lines.seek(0, os.SEEK_END) - 64 * 1024))
        written = lines.read().decode(errors="replace").splitlines(keepends=True)
        if line in written:
            return
        torn = bool(written) and not written[-1].endswith("\n")
        lines.write(("\n" * torn + line).encode())


def _post(url: str, said: Mapping[str, Any]) -> None:
    httpx.post(url, json=dict(said), timeout=WEBHOOK_SECONDS).raise_for_status()
