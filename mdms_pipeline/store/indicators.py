"""Indicator rows with the memories that go with them: one transaction, so a crash at any point leaves both in step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb
import numpy as np

from mdms_pipeline.market import Floats, Instant, Instants
from mdms_pipeline.store.candles import standings
from mdms_pipeline.store.frames import (
    PARTITIONS,
    Rows,
    alike_rows,
    append,
    as_table,
    incoming,
    insert,
    instants,
    nulled,
    partitions_of,
    timestamps,
)
from mdms_pipeline.store.schema import widen
from mdms_pipeline.store.warehouse import StoreError


@dataclass(frozen=True)
class Memory:
    """What one indicator remembers of one partition, and what it was calculated from."""

    symbol: str
    timeframe: str
    kind: str
    indicator: str
    fingerprint: str
    reads: Mapping[str, int]  # revision of the candles, and of each indicator read
    revision: int  # a new number each time it is calculated from the start
    watermark: Instant  # opening instant of the last bar calculated
    bars: int  # rows calculated since the start
    calculated: int  # bars ever calculated, over all starts
    memory: Floats


@dataclass(frozen=True)
class Advance:
    """New rows of one indicator in one partition."""

    after: Memory
    before: Memory | None  # the memory that was held when they were calculated
    fresh: bool  # from the start: a new revision
    opened_at: Instants
    columns: Mapping[str, Floats]


def memories(
    connection: duckdb.DuckDBPyConnection, timeframe: str, symbols: Sequence[str], kinds: Iterable[str]
) -> dict[tuple[str, str], Memory]:
    """(symbol, indicator) -> its memory, for all indicators of these kinds."""
    rows = connection.execute(
        f"""SELECT symbol, timeframe, kind, indicator, fingerprint, reads, revision, {instants("watermark")}, bars, calculated, memory
            FROM memory WHERE (symbol, timeframe) IN {PARTITIONS} AND kind IN (SELECT unnest(?::VARCHAR[]))""",
        [*partitions_of((symbol, timeframe) for symbol in symbols), list(kinds)],
    ).fetchall()
    return {
        (symbol, indicator): Memory(
            symbol, frame, kind, indicator, mark, json.loads(reads), revision, watermark, bars, calculated, np.frombuffer(memory)
        )
        for symbol, frame, kind, indicator, mark, reads, revision, watermark, bars, calculated, memory in rows
    }


def next_revision(connection: duckdb.DuckDBPyConnection) -> int:
    """A number that no calculation from the start has had."""
    row = connection.execute("SELECT nextval('revision_id')").fetchone()
    assert row is not None
    return int(row[0])


def store_advances(connection: duckdb.DuckDBPyConnection, table: str, advances: Sequence[Advance], revision: int) -> set[str]:
    """Store rows and memories of one kind and one timeframe; the symbols that were left out.

    A symbol is left out where another process has advanced it, or its candles were revised, since its rows were calculated. What was
    calculated from the start gets `revision`.
    """
    frame = advances[0].after.timeframe
    symbols = sorted({advance.after.symbol for advance in advances})
    held = memories(connection, frame, symbols, [table])
    revisions = {symbol: standing.revision for (symbol, _), standing in standings(connection, [(s, frame) for s in symbols]).items()}
    stale = {advance.after.symbol for advance in advances if _overtaken(advance, held, revisions)}
    kept = [
        replace(advance, after=replace(advance.after, revision=revision)) if advance.fresh else advance
        for advance in advances
        if advance.after.symbol not in stale
    ]
    widen(connection, table, dict.fromkeys(column for advance in kept for column in advance.columns))
    _store(connection, table, kept, held)
    return stale


def _overtaken(advance: Advance, held: Mapping[tuple[str, str], Memory], revisions: Mapping[str, int]) -> bool:
    """Whether the store has moved on since these rows were calculated."""
    after, planned = advance.after, advance.before
    found = held.get((after.symbol, after.indicator))
    version = None if found is None else (found.revision, found.watermark)
    return after.reads["candles"] != revisions.get(after.symbol) or version != (planned and (planned.revision, planned.watermark))


def _store(connection: duckdb.DuckDBPyConnection, table: str, advances: Sequence[Advance], held: Mapping[tuple[str, str], Memory]) -> None:
    """Rows get in by three ways: appended after the newest, a column filled in beside the others, or all of a partition anew."""
    if not advances:
        return
    groups: dict[str, tuple[list[Advance], list[Memory]]] = {advance.after.symbol: ([], []) for advance in advances}
    for advance in advances:
        groups[advance.after.symbol][0].append(advance)
    for memory in held.values():
        if memory.symbol in groups:
            groups[memory.symbol][1].append(memory)
    frame = advances[0].after.timeframe
    newest = {symbol: _newest_that_stays(group, before) for symbol, (group, before) in groups.items()}
    ends = {symbol: max((memory.watermark for memory in before), default=None) for symbol, (_, before) in groups.items()}
    _forget(connection, advances, [memory for group, before in groups.values() for memory in before if _other_candles(memory, group[0])])
    _cut(connection, table, frame, {symbol: at for symbol, at in newest.items() if at is None or at != ends[symbol]})
    insert(connection, table, [_appended(group, newest[symbol]) for symbol, (group, _) in groups.items()])
    beside = [_filled(advance, at) for symbol, (group, _) in groups.items() if (at := newest[symbol]) is not None for advance in group]
    _fill(connection, table, beside)
    _remember(connection, [advance.after for advance in advances])


def _newest_that_stays(group: Sequence[Advance], before: Sequence[Memory]) -> Instant | None:
    """The newest row that still stands once `group` is stored: of the indicators that are not begun anew. None where every one is."""
    if any(_other_candles(memory, group[0]) for memory in before):
        return None
    anew = {advance.after.indicator for advance in group if advance.fresh}
    return max((memory.watermark for memory in before if memory.indicator not in anew), default=None)


def _other_candles(memory: Memory, advance: Advance) -> bool:
    return memory.reads["candles"] != advance.after.reads["candles"]


def _forget(connection: duckdb.DuckDBPyConnection, advances: Sequence[Advance], revised: Sequence[Memory]) -> None:
    """Drop the memories that are about to be replaced, and those of candles that were revised."""
    gone = [*(advance.after for advance in advances), *revised]
    key = ("symbol", "timeframe", "indicator")
    connection.register("gone", as_table({name: [getattr(memory, name) for memory in gone] for name in key}))
    connection.execute(
        """DELETE FROM memory USING gone g
           WHERE memory.symbol = g.symbol AND memory.timeframe = g.timeframe AND memory.indicator = g.indicator"""
    )


def _cut(connection: duckdb.DuckDBPyConnection, table: str, frame: str, after: Mapping[str, Instant | None]) -> None:
    """Drop the rows of each symbol after an instant, all where it is None: the table ends where the memories do."""
    if not after:
        return
    connection.register("cuts", as_table({"symbol": list(after), "after": timestamps(after.values())}))
    connection.execute(
        f"""DELETE FROM {table} USING cuts c
            WHERE {table}.symbol = c.symbol AND {table}.timeframe = ? AND (c.after IS NULL OR {table}.opened_at > c.after)""",
        [frame],
    )


def _appended(group: Sequence[Advance], newest: Instant | None) -> Rows:
    """One row for each bar after `newest`; a column that is not there yet is NaN."""
    starts = [0 if newest is None else int(np.searchsorted(advance.opened_at, newest, side="right")) for advance in group]
    opened_at = max((advance.opened_at[start:] for advance, start in zip(group, starts, strict=True)), key=len)
    columns = {
        name: _padded(column[start:], len(opened_at))
        for advance, start in zip(group, starts, strict=True)
        for name, column in advance.columns.items()
    }
    return Rows(group[0].after.symbol, group[0].after.timeframe, opened_at, columns)


def _padded(column: Floats, n: int) -> Floats:
    return column if len(column) == n else np.concatenate([column, np.full(n - len(column), np.nan)])


def _filled(advance: Advance, newest: Instant) -> Rows:
    """The rows of an indicator that go into bars which are there already."""
    end = int(np.searchsorted(advance.opened_at, newest, side="right"))
    columns = {name: column[:end] for name, column in advance.columns.items()}
    return Rows(advance.after.symbol, advance.after.timeframe, advance.opened_at[:end], columns)


def _fill(connection: duckdb.DuckDBPyConnection, table: str, parts: Iterable[Rows]) -> None:
    """Set columns in rows that are there. Raises StoreError where one is not: somebody else has changed the table."""
    for alike in alike_rows(parts):
        values = ", ".join(f'"{name}" = {nulled(name)}' for name in alike[0].columns)
        with incoming(connection, alike):
            changed = connection.execute(
                f"""UPDATE {table} SET {values} FROM incoming WHERE {table}.symbol = incoming.symbol
                    AND {table}.timeframe = incoming.timeframe AND {table}.opened_at = incoming.opened_at"""
            ).fetchone()
        wanted = sum(map(len, alike))
        if changed != (wanted,):
            where = f"symbol IN ({', '.join(sorted({repr(rows.symbol) for rows in alike}))}) AND timeframe = '{alike[0].timeframe}'"
            raise StoreError(
                f"{table} has {changed and changed[0]} rows for {wanted} bars of {alike[0].symbol} {alike[0].timeframe}: somebody else has "
                f"changed the tables; to have it calculated anew: DELETE FROM memory WHERE {where}"
            )


def _remember(connection: duckdb.DuckDBPyConnection, rows: Sequence[Memory]) -> None:
    plain = ("symbol", "timeframe", "kind", "indicator", "fingerprint", "revision", "bars", "calculated")
    columns: dict[str, Sequence[object] | np.ndarray] = {name: [getattr(row, name) for row in rows] for name in plain}
    columns["reads"] = [json.dumps(dict(row.reads)) for row in rows]
    columns["watermark"] = timestamps([row.watermark for row in rows])
    columns["memory"] = [row.memory.tobytes() for row in rows]
    append(connection, "memory", columns)
