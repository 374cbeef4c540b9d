"""Indicator rows with the memories that go with them: one transaction, so a crash at any point leaves both in step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import pandas as pd

from mdms_pipeline.market import Floats, Instant, Instants
from mdms_pipeline.store.candles import standings
from mdms_pipeline.store.frames import Rows, alike_rows, append, incoming, insert, instants, nulled, partitions_of, timestamps
from mdms_pipeline.store.schema import widen


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
    connection.register("wanted", partitions_of((symbol, timeframe) for symbol in symbols))
    rows = connection.execute(
        f"""SELECT symbol, timeframe, kind, indicator, fingerprint, reads, revision, {instants("watermark")}, bars, calculated, memory
            FROM memory SEMI JOIN wanted USING (symbol, timeframe) WHERE kind IN (SELECT unnest(?::VARCHAR[]))""",
        [list(kinds)],
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
    by_symbol: dict[str, list[Advance]] = {}
    for advance in advances:
        by_symbol.setdefault(advance.after.symbol, []).append(advance)
    newest = {symbol: memory.watermark for (symbol, _), memory in sorted(held.items(), key=lambda item: item[1].watermark)}
    reset = {
        memory.symbol for memory in held.values() if memory.symbol in by_symbol and _other_candles(memory, by_symbol[memory.symbol][0])
    }
    _forget(connection, table, advances, reset)
    for symbol in reset:
        del newest[symbol]
    insert(connection, table, [_appended(group, newest.get(symbol)) for symbol, group in by_symbol.items()])
    _fill(
        connection,
        table,
        [_filled(advance, newest[symbol]) for symbol, group in by_symbol.items() if symbol in newest for advance in group],
    )
    _remember(connection, [advance.after for advance in advances])


def _other_candles(memory: Memory, advance: Advance) -> bool:
    return memory.reads["candles"] != advance.after.reads["candles"]


def _forget(connection: duckdb.DuckDBPyConnection, table: str, advances: Sequence[Advance], reset: set[str]) -> None:
    """Drop the memories that are about to be replaced, and all that a partition has where its candles were revised."""
    if not advances:
        return
    frame = advances[0].after.timeframe
    replaced = pd.DataFrame([(a.after.symbol, a.after.indicator) for a in advances], columns=["symbol", "indicator"], dtype=object)
    connection.register("replaced", replaced)
    connection.execute(
        "DELETE FROM memory USING replaced r WHERE memory.symbol = r.symbol AND memory.indicator = r.indicator AND memory.timeframe = ?",
        [frame],
    )
    if reset:
        connection.register("reset", partitions_of((symbol, frame) for symbol in reset))
        for name, also in ((table, "true"), ("memory", f"kind = '{table}'")):
            connection.execute(
                f"DELETE FROM {name} USING reset r WHERE {name}.symbol = r.symbol AND {name}.timeframe = r.timeframe AND {also}"
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
    for alike in alike_rows(parts):
        values = ", ".join(f'"{name}" = {nulled(name)}' for name in alike[0].columns)
        with incoming(connection, alike):
            connection.execute(
                f"""UPDATE {table} SET {values} FROM incoming WHERE {table}.symbol = incoming.symbol::VARCHAR
                    AND {table}.timeframe = incoming.timeframe::VARCHAR AND {table}.opened_at = incoming.opened_at"""
            )


def _remember(connection: duckdb.DuckDBPyConnection, rows: Sequence[Memory]) -> None:
    plain = ("symbol", "timeframe", "kind", "indicator", "fingerprint", "revision", "bars", "calculated")
    columns: dict[str, Sequence[object] | np.ndarray] = {name: [getattr(row, name) for row in rows] for name in plain}
    columns["reads"] = [json.dumps(dict(row.reads)) for row in rows]
    columns["watermark"] = timestamps([row.watermark for row in rows])
    columns["memory"] = [row.memory.tobytes() for row in rows]
    append(connection, "memory", columns)
