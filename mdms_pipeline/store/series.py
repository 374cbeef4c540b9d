"""Columns of any table as arrays, one partition after the other: what indicators, rules, screens and notebooks read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pandas as pd

from mdms_pipeline.market import Floats, Instant, Instants, timeframe
from mdms_pipeline.store.candles import Standing
from mdms_pipeline.store.frames import floats, instants

EVER = (-(10**9), 10**11)  # instants before and after everything


@dataclass(frozen=True)
class Series:
    """Columns of one partition, oldest bar first."""

    opened_at: Instants
    columns: Mapping[str, Floats]

    def last(self, bars: int) -> Series:
        start = max(0, len(self.opened_at) - bars)
        return Series(self.opened_at[start:], {name: column[start:] for name, column in self.columns.items()})

    def until(self, at: Instant) -> Series:
        """The bars that opened at `at` or before."""
        end = int(np.searchsorted(self.opened_at, at, side="right"))
        return Series(self.opened_at[:end], {name: column[:end] for name, column in self.columns.items()})

    def join(self, other: Series) -> Series:
        """Both on the bars of this one; NaN where `other` lacks a bar."""
        if np.array_equal(self.opened_at, other.opened_at):
            return Series(self.opened_at, {**self.columns, **other.columns})
        at = np.searchsorted(other.opened_at, self.opened_at)
        found = np.isin(self.opened_at, other.opened_at)
        aligned = {name: np.full(len(self.opened_at), np.nan) for name in other.columns}
        for name, column in other.columns.items():
            aligned[name][found] = column[at[found]]
        return Series(self.opened_at, {**self.columns, **aligned})


def read_spans(
    connection: duckdb.DuckDBPyConnection, table: str, columns: Sequence[str], frame: str, spans: Mapping[str, tuple[Instant, Instant]]
) -> dict[str, Series]:
    """`columns` of `table` for each symbol of `spans`, from its first to its last instant, both included."""
    symbols = list(spans)
    wanted = pd.DataFrame(
        {
            "place": np.arange(len(symbols)),
            "symbol": pd.Series(symbols, dtype=object),
            "since": np.array([spans[symbol][0] for symbol in symbols], dtype=np.int64),
            "until": np.array([spans[symbol][1] for symbol in symbols], dtype=np.int64),
        }
    )
    least, most = wanted["since"].min(), wanted["until"].max()
    connection.register("spans", wanted)
    listed = "".join(f', t."{column}"' for column in columns)
    found = connection.execute(
        f"""SELECT place, {instants("opened_at")} {listed} FROM {table} t JOIN spans ON t.symbol = spans.symbol
            WHERE timeframe = ? AND opened_at >= make_timestamp(?::BIGINT * 1000000) AND opened_at <= make_timestamp(?::BIGINT * 1000000)
              AND opened_at BETWEEN make_timestamp(since * 1000000) AND make_timestamp(until * 1000000)
            ORDER BY place, opened_at""",
        [frame, int(least), int(most)],
    ).fetchnumpy()
    edges = np.searchsorted(found["place"], np.arange(len(symbols) + 1))
    opened_at = np.asarray(found["opened_at"], dtype=np.int64)
    arrays = {column: floats(found[column]) for column in columns}
    return {
        symbol: Series(opened_at[start:end], {name: array[start:end] for name, array in arrays.items()})
        for symbol, start, end in zip(symbols, edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    }


def read_last(
    connection: duckdb.DuckDBPyConnection,
    wanted: Mapping[str, Sequence[str]],
    frame: str,
    standings: Mapping[str, Standing],
    bars: int,
) -> dict[str, Series]:
    """The newest `bars` bars of each symbol with the columns of each table of `wanted`; bars that a table lacks are NaN.

    Looks a little further back than `bars` slots, and again without a bound for markets with many slots without a trade.
    """
    slots = timeframe(frame)
    spans = {
        symbol: (slots.after(standing.newest, -3 * bars - 50), standing.newest) for symbol, standing in standings.items() if standing.newest
    }
    series = _joined(connection, wanted, frame, spans) if spans else {}
    short = {
        symbol: (EVER[0], spans[symbol][1])
        for symbol, found in series.items()
        if len(found.opened_at) < min(bars, standings[symbol].candles)
    }
    if short:
        series |= _joined(connection, wanted, frame, short)
    return {symbol: found.last(bars) for symbol, found in series.items()}


def read_all(connection: duckdb.DuckDBPyConnection, wanted: Mapping[str, Sequence[str]], frame: str, symbol: str) -> Series:
    """Every bar of one partition with the columns of each table of `wanted`."""
    return _joined(connection, wanted, frame, {symbol: EVER})[symbol]


def _joined(
    connection: duckdb.DuckDBPyConnection, wanted: Mapping[str, Sequence[str]], frame: str, spans: Mapping[str, tuple[Instant, Instant]]
) -> dict[str, Series]:
    joined = read_spans(connection, "candles", wanted.get("candles", ()), frame, spans)
    for table, columns in wanted.items():
        if table != "candles":
            found = read_spans(connection, table, columns, frame, spans)
            joined = {symbol: series.join(found[symbol]) for symbol, series in joined.items()}
    return joined
