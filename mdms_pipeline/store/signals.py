"""Live signals in the warehouse: each once, however often it is brought, and what was watched while they came.

`keep` is called in a transaction by whoever follows the journal of `mdms live`; `signals_after` is for those who follow the table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import duckdb
import numpy as np

from mdms_pipeline.market import Instant
from mdms_pipeline.store.frames import append, instants, timestamps
from mdms_pipeline.store.journal import emit

EMITTED = "signals_emitted"  # the event of one batch: `count` signals of `symbols`
PLACE = "signals"  # key in `meta`: up to which position of the journal all is in the table
MICRO = 1_000_000


class Answer(Protocol):
    """A signal as the live process has it: `mdms_pipeline.live.Signal`, which this layer does not know."""

    @property
    def id(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def symbol(self) -> str: ...
    @property
    def timeframe(self) -> str: ...
    @property
    def opened_at(self) -> Instant: ...
    @property
    def answer(self) -> bool | None: ...
    @property
    def before(self) -> bool | None: ...
    @property
    def values(self) -> Mapping[str, float | None]: ...
    @property
    def received_at(self) -> float: ...
    @property
    def emitted_at(self) -> float: ...
    @property
    def revision(self) -> int: ...


@dataclass(frozen=True)
class Kept:
    """One row of `signals`."""

    number: int  # grows in the order of arrival: a follower keeps the last one it has seen
    id: str
    source: str
    name: str
    rule: str
    symbol: str
    timeframe: str
    opened_at: Instant
    answer: bool | None
    before: bool | None
    values: Mapping[str, float | None]
    received_at: float  # s UTC, to the microsecond
    emitted_at: float
    delivered_at: Instant
    revision: int


@dataclass(frozen=True)
class Watched:
    """A stretch in which one rule was judged live: every bar of these symbols from `since` to `until`, both included."""

    watch: str  # its key: the same for the same rule with the same fingerprint
    source: str
    name: str
    rule: str
    fingerprint: str  # of what the rule says: another one is another watch
    timeframe: str
    symbols: tuple[str, ...]
    since: Instant
    until: Instant | None = None  # None: no bar was judged yet


def place(connection: duckdb.DuckDBPyConnection) -> int | None:
    """Up to which position of the journal all is here; None before the first."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", [PLACE]).fetchone()
    return None if row is None else int(row[0])


def keep(
    connection: duckdb.DuckDBPyConnection, signals: Iterable[Answer], watched: Sequence[Watched], until: int, now: Instant
) -> list[Answer]:
    """Store what the journal holds up to position `until` in the caller's transaction: signals that are not here yet, one event of them
    all, and how far each watch has come. The new ones."""
    brought = {signal.id: signal for signal in signals}  # one that comes twice within a batch counts once
    held = _held(connection, list(brought))
    new = [signal for signal in brought.values() if signal.id not in held]
    if new:
        _insert(connection, new, now)
        # of no timeframe: what was written of one outside of Dagster makes a refresh run, and signals change nothing that a run would make
        emit(connection, EMITTED, now, None, sorted({signal.symbol for signal in new}), None, len(new))
    _extend(connection, watched)
    furthest = max(until, place(connection) or 0)
    connection.execute("DELETE FROM meta WHERE key = ?", [PLACE])
    connection.execute("INSERT INTO meta VALUES (?, ?)", [PLACE, str(furthest)])
    return new


def _held(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> set[str]:
    rows = connection.execute("SELECT id FROM signals WHERE id IN (SELECT unnest(?::VARCHAR[]))", [list(ids)]).fetchall() if ids else []
    return {name for (name,) in rows}


def _insert(connection: duckdb.DuckDBPyConnection, signals: Sequence[Answer], now: Instant) -> None:
    numbers = connection.execute("SELECT nextval('signal_number') FROM range(?)", [len(signals)]).fetchall()
    plain = ("id", "source", "name", "rule", "symbol", "timeframe", "answer", "before", "revision")
    append(connection, "signals", {
        "number": np.array([number for (number,) in numbers], dtype=np.int64),
        **{name: [getattr(signal, name) for signal in signals] for name in plain},
        "opened_at": timestamps(signal.opened_at for signal in signals),
        "values": [json.dumps(dict(signal.values), ensure_ascii=False, allow_nan=False) for signal in signals],
        **{name: _micros(getattr(signal, name) for signal in signals) for name in ("received_at", "emitted_at")},
        "delivered_at": timestamps([now] * len(signals)),
    })  # fmt: skip


def _micros(times: Iterable[float]) -> np.ndarray:
    """Seconds with fractions as TIMESTAMP values."""
    return np.array([round(at * MICRO) for at in times], dtype=np.int64).view("datetime64[us]")


def _extend(connection: duckdb.DuckDBPyConnection, watched: Sequence[Watched]) -> None:
    """Write each stretch anew, by its watch and beginning. It never grows shorter."""
    for one in {(one.watch, one.since): one for one in watched}.values():
        key = [one.watch, one.since]
        same = "watch = ? AND since = make_timestamp(?::BIGINT * 1000000)"
        held = connection.execute(f"SELECT {instants('until')} FROM watched WHERE {same}", key).fetchall()
        ends = [at for at in (one.until, *(at for (at,) in held)) if at is not None]
        connection.execute(f"DELETE FROM watched WHERE {same}", key)
        append(connection, "watched", {
            **{name: [getattr(one, name)] for name in ("watch", "source", "name", "rule", "fingerprint", "timeframe")},
            "symbols": [list(one.symbols)], "since": timestamps([one.since]), "until": timestamps([max(ends, default=None)]),
        })  # fmt: skip


def signals_after(connection: duckdb.DuckDBPyConnection, number: int = 0, limit: int = 1000) -> list[Kept]:
    """Signals with a number above this one, oldest first."""
    return _read(connection, "number > ? ORDER BY number LIMIT ?", [number, limit])


def last_signals(connection: duckdb.DuckDBPyConnection, limit: int = 20) -> list[Kept]:
    """The signals that came last, newest first."""
    return _read(connection, "true ORDER BY number DESC LIMIT ?", [limit])


def signals_of(connection: duckdb.DuckDBPyConnection, watched: Watched) -> list[Kept]:
    """Those of a stretch that was watched, by bar and symbol."""
    if watched.until is None:
        return []
    return _read(
        connection,
        """source = ? AND name = ? AND rule = ? AND timeframe = ? AND list_contains(?::VARCHAR[], symbol)
           AND opened_at BETWEEN make_timestamp(?::BIGINT * 1000000) AND make_timestamp(?::BIGINT * 1000000)
           ORDER BY opened_at, symbol, revision""",
        [watched.source, watched.name, watched.rule, watched.timeframe, list(watched.symbols), watched.since, watched.until],
    )


def _read(connection: duckdb.DuckDBPyConnection, where: str, arguments: Sequence[Any]) -> list[Kept]:
    exact = ", ".join(f"epoch_us({name}) / 1e6 AS {name}" for name in ("received_at", "emitted_at"))
    rows = connection.execute(
        f"""SELECT number, id, source, name, rule, symbol, timeframe, {instants("opened_at")}, answer, before, "values", {exact},
                   {instants("delivered_at")}, revision FROM signals s WHERE {where.replace("opened_at", "s.opened_at")}""",
        list(arguments),
    ).fetchall()
    names = [field.name for field in fields(Kept)]
    return [Kept(**{**dict(zip(names, row, strict=True)), "values": json.loads(row[names.index("values")])}) for row in rows]


def watches(connection: duckdb.DuckDBPyConnection) -> list[Watched]:
    """Every stretch that was watched, oldest first."""
    rows = connection.execute(
        f"""SELECT watch, source, name, rule, fingerprint, timeframe, symbols, {instants("since", "until")} FROM watched w
            ORDER BY w.since, watch"""
    ).fetchall()
    return [
        Watched(watch, source, name, rule, fingerprint, timeframe, tuple(symbols), since, until)
        for watch, source, name, rule, fingerprint, timeframe, symbols, since, until in rows
    ]


@dataclass(frozen=True)
class Counted:
    """How many signals the table holds, by rule, and of when."""

    total: int
    by_rule: Mapping[str, int]  # "strategy breakout entry" -> how many
    newest: Instant | None  # the newest bar that decided


def counted(connection: duckdb.DuckDBPyConnection) -> Counted:
    rows = connection.execute(
        f"""SELECT source, name, rule, count, {instants("newest")} FROM
            (SELECT source, name, rule, count(*) AS count, max(opened_at) AS newest FROM signals GROUP BY ALL) ORDER BY ALL"""
    ).fetchall()
    by_rule = Counter({f"{source} {name} {rule}": count for source, name, rule, count, _ in rows})
    return Counted(by_rule.total(), by_rule, max((row[-1] for row in rows), default=None))
