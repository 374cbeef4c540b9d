"""Columns of any table as arrays, one partition after the other: what indicators, rules, screens and notebooks read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Floats, Instant, Instants, timeframe
from mdms_pipeline.store.candles import Standing, standings
from mdms_pipeline.store.frames import as_table, floats, instants
from mdms_pipeline.store.schema import SKIP, no_trade

EVER = (-(10**9), 10**11)  # instants before and after everything
LOOKBACK = 100  # slots in which the last trade before a span is looked for first


@dataclass(frozen=True)
class Series:
    """Columns of one partition, oldest bar first."""

    opened_at: Instants
    columns: Mapping[str, Floats]

    @property
    def candles(self) -> Candles:
        """The same as candles. KeyError where a column of theirs was not read."""
        return Candles(self.opened_at, *(self.columns[name] for name in PRICES_AND_AMOUNTS))

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
    since, until = (np.array([spans[symbol][end] for symbol in symbols], dtype=np.int64) for end in (0, 1))
    connection.register("spans", as_table({"place": np.arange(len(symbols)), "symbol": symbols, "since": since, "until": until}))
    listed = "".join(f', t."{column}"' for column in columns)
    found = connection.execute(
        f"""SELECT place, {instants("opened_at")} {listed} FROM {table} t JOIN spans ON t.symbol = spans.symbol
            WHERE timeframe = ? AND opened_at >= make_timestamp(?::BIGINT * 1000000) AND opened_at <= make_timestamp(?::BIGINT * 1000000)
              AND opened_at BETWEEN make_timestamp(since * 1000000) AND make_timestamp(until * 1000000)
            ORDER BY place, opened_at""",
        [frame, int(since.min()), int(until.max())],
    ).fetchnumpy()
    edges = np.searchsorted(found["place"], np.arange(len(symbols) + 1))
    opened_at = np.asarray(found["opened_at"], dtype=np.int64)
    arrays = {column: floats(found[column]) for column in columns}
    return {
        symbol: Series(opened_at[start:end], {name: array[start:end] for name, array in arrays.items()})
        for symbol, start, end in zip(symbols, edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    }


def nth_bar(connection: duckdb.DuckDBPyConnection, symbol: str, frame: str, since: Instant, bars: int) -> Instant:
    """The opening of the bar that is `bars` bars after `since` (exclusive), or of the last one if there are fewer."""
    if no_trade(connection) != SKIP:
        standing = standings(connection, [(symbol, frame)])[symbol, frame]
        assert standing.oldest is not None
        assert standing.last_bar is not None
        first = max(standing.oldest, since)
        return min(timeframe(frame).after(first, bars if first == since else bars - 1), standing.last_bar)
    row = connection.execute(
        f"""SELECT {instants("opened_at")} FROM (SELECT max(opened_at) AS opened_at FROM (
                SELECT opened_at FROM candles WHERE symbol = ? AND timeframe = ? AND opened_at > make_timestamp(?::BIGINT * 1000000)
                ORDER BY opened_at LIMIT ?))""",
        [symbol, frame, since, bars],
    ).fetchone()
    assert row is not None
    return int(row[0])


def read_bars(
    connection: duckdb.DuckDBPyConnection, columns: Sequence[str], frame: str, spans: Mapping[str, tuple[Instant, Instant]]
) -> dict[str, Series]:
    """What indicators see of each symbol of `spans`: its candles; under `flat` every covered slot from its first candle on."""
    if not spans or no_trade(connection) == SKIP:
        return read_spans(connection, "candles", columns, frame, spans) if spans else {}
    wanted = tuple(dict.fromkeys((*columns, "close", "volume")))
    known = standings(connection, [(symbol, frame) for symbol in spans])
    since = _last_trades(connection, frame, {symbol: span[0] for symbol, span in spans.items()})
    found = read_spans(connection, "candles", wanted, frame, {symbol: (since[symbol], until) for symbol, (_, until) in spans.items()})
    ends = {symbol: EVER[0] if standing.last_bar is None else standing.last_bar for (symbol, _), standing in known.items()}
    return {
        symbol: flattened(candles, frame, spans[symbol][0], min(spans[symbol][1], ends.get(symbol, EVER[0])))
        for symbol, candles in found.items()
    }


def flattened(candles: Series, frame: str, since: Instant, until: Instant) -> Series:
    """One bar per slot in [since, until], both included, from the first candle on: where there is none, the previous close, amounts 0."""
    if not len(candles.opened_at) or candles.opened_at[0] > until:
        return candles.last(0)
    slots, first = timeframe(frame), int(candles.opened_at[0])
    bars = slots.slots(first, slots.floor(until)) + 1
    grid = np.arange(bars) * slots.seconds + first if slots.seconds else np.array([slots.after(first, i) for i in range(bars)])
    grid = grid[grid >= since].astype(np.int64)
    at = np.searchsorted(candles.opened_at, grid, side="right") - 1
    traded, close = candles.opened_at[at] == grid, candles.columns["close"][at]
    columns = {
        name: np.where(traded, column[at], 0.0 if name in ("volume", "value") else close) for name, column in candles.columns.items()
    }
    return Series(grid, columns)


def _last_trades(connection: duckdb.DuckDBPyConnection, frame: str, since: Mapping[str, Instant]) -> dict[str, Instant]:
    """The newest candle of each symbol at or before an instant, or that instant where there is none."""
    near = {symbol: at for symbol, at in since.items() if at > EVER[0]}
    found = _newest_until(connection, frame, near, timeframe(frame).after(min(near.values()), -LOOKBACK)) if near else {}
    far = {symbol: at for symbol, at in near.items() if symbol not in found}
    return {**since, **found, **(_newest_until(connection, frame, far, EVER[0]) if far else {})}


def _newest_until(connection: duckdb.DuckDBPyConnection, frame: str, until: Mapping[str, Instant], after: Instant) -> dict[str, Instant]:
    connection.register("untils", as_table({"symbol": list(until), "until": np.array(list(until.values()), dtype=np.int64)}))
    rows = connection.execute(
        f"""SELECT symbol, {instants("newest")} FROM (
                SELECT c.symbol, max(opened_at) AS newest FROM candles c JOIN untils w ON c.symbol = w.symbol
                WHERE timeframe = ? AND opened_at >= make_timestamp(?::BIGINT * 1000000)
                  AND opened_at <= make_timestamp(?::BIGINT * 1000000) AND opened_at <= make_timestamp(until * 1000000)
                GROUP BY c.symbol)""",
        [frame, after, max(until.values())],
    ).fetchall()
    return dict(rows)


def closes_before(connection: duckdb.DuckDBPyConnection, frame: str, symbols: Sequence[str], end: Instant, reach: int) -> dict[str, float]:
    """The close of each symbol's newest candle that opened before `end`, at most `reach` s before it; nothing where there is none."""
    rows = connection.execute(
        """SELECT symbol, arg_max(close, opened_at) FROM candles WHERE timeframe = ? AND symbol IN (SELECT unnest(?::VARCHAR[]))
           AND opened_at >= make_timestamp(?::BIGINT * 1000000) AND opened_at < make_timestamp(?::BIGINT * 1000000) GROUP BY symbol""",
        [frame, list(symbols), end - reach, end],
    ).fetchall()
    return dict(rows)


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
    ends = {symbol: standing.last_bar for symbol, standing in standings.items()}
    spans = {symbol: (slots.after(last, -3 * bars - 50), last) for symbol, last in ends.items() if last is not None}
    series = _joined(connection, wanted, frame, spans) if spans else {}
    short = {
        symbol: (EVER[0], spans[symbol][1]) for symbol, found in series.items() if len(found.opened_at) < min(bars, standings[symbol].bars)
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
    joined = read_bars(connection, wanted.get("candles", ()), frame, spans)
    for table, columns in wanted.items():
        if table != "candles":
            found = read_spans(connection, table, columns, frame, spans)
            joined = {symbol: series.join(found[symbol]) for symbol, series in joined.items()}
    return joined
