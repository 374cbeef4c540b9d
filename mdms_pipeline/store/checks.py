"""Laws that the whole store obeys, as queries; an empty answer is a good one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from mdms_pipeline.market import SETTLE, TIMEFRAMES, Instant, Timeframe
from mdms_pipeline.store.candles import DELISTED, FRESH, standings
from mdms_pipeline.store.frames import instants
from mdms_pipeline.store.universe import universe

# Volumes and values are multiples of 1e-8, so two sums of them that differ, differ by a whole unit: half a unit tells them apart.
# To that comes what floats lose: each of n candles is rounded once and each of n additions once, by 2 ** -53 of what is summed so far.
UNIT = 1e-8
ROUNDING = 2.0**-52
SYMBOLS_AT_ONCE = 40  # of which one query holds all coarse slots
SHOWN = 1_000  # differences that are listed


@dataclass(frozen=True)
class Law:
    description: str
    broken: str  # SQL: rows of `symbol, timeframe` that break it


BROKEN: dict[str, Law] = {
    "unique": Law(
        "No candle is stored twice.",
        "SELECT symbol, timeframe FROM candles GROUP BY symbol, timeframe, opened_at HAVING count(*) > 1",
    ),
    "ordered": Law(
        "No candle is newer than what its partition says is its newest, or lies outside of what is covered.",
        """SELECT symbol, timeframe FROM (SELECT symbol, timeframe, min(opened_at) AS first, max(opened_at) AS last, count(*) AS counted
               FROM candles GROUP BY ALL) LEFT JOIN status USING (symbol, timeframe) LEFT JOIN coverage USING (symbol, timeframe)
           WHERE last IS DISTINCT FROM newest OR first < covered_from OR last >= covered_to OR counted <> candles OR covered_to IS NULL""",
    ),
    "high_is_highest": Law("high >= open, low and close.", "SELECT symbol, timeframe FROM candles WHERE high < greatest(open, low, close)"),
    "low_is_lowest": Law("low <= open, high and close.", "SELECT symbol, timeframe FROM candles WHERE low > least(open, high, close)"),
    "positive": Law(
        "Prices are above zero, amounts not below.",
        "SELECT symbol, timeframe FROM candles WHERE NOT coalesce(least(open, high, low, close) > 0 AND least(volume, value) >= 0, false)",
    ),
}


def broken_candles(connection: duckdb.DuckDBPyConnection, law: str) -> list[str]:
    """The partitions that break a law: "KRW-BTC 1h"."""
    rows = connection.execute(f"SELECT DISTINCT symbol, timeframe FROM ({BROKEN[law].broken}) ORDER BY ALL").fetchall()
    return [f"{symbol} {name}" for symbol, name in rows]


def stale(connection: duckdb.DuckDBPyConnection, timeframes: Sequence[str], now: Instant) -> list[tuple[str, str, str]]:
    """(symbol, timeframe, why) of what is collected but not up to its newest settled slot; a delisted market can't be."""
    known = standings(connection)
    found = []
    for symbol in sorted(universe(connection)):
        for name in timeframes:
            standing = known.get((symbol, name))
            if standing is None:
                found.append((symbol, name, "never collected"))
            elif (state := standing.at(now - SETTLE)) not in (FRESH, DELISTED):
                found.append((symbol, name, standing.reason or state))
    return found


@dataclass(frozen=True)
class Mismatch:
    """A coarse candle that its finer ones do not add up to."""

    symbol: str
    timeframe: str  # the coarse one
    finer: str
    opened_at: Instant
    columns: tuple[str, ...]  # those that differ; empty where only one of the two has trades
    said: str


def pairs(timeframes: Sequence[str]) -> list[tuple[str, str]]:
    """(finer, coarser): each timeframe with the coarsest finer one that fits into it a whole number of times."""
    known = [TIMEFRAMES[name] for name in TIMEFRAMES if name in timeframes]
    found = [(next((fine for fine in reversed(known[:i]) if _fits(fine, coarse)), None), coarse) for i, coarse in enumerate(known)]
    return [(fine.name, coarse.name) for fine, coarse in found if fine is not None]


def _fits(fine: Timeframe, coarse: Timeframe) -> bool:
    if fine.seconds is None:
        return False
    length = 86_400 if coarse.seconds is None else coarse.seconds
    return length % fine.seconds == 0 and (coarse.anchor - fine.anchor) % fine.seconds == 0


def unreconciled(connection: duckdb.DuckDBPyConnection, since: Instant | None = None) -> list[Mismatch]:
    """The coarse candles, from `since` on, that differ from their finer ones where both are covered; at most SHOWN.

    Prices must be equal: they are the same numbers. Volume and value agree to half a smallest unit plus what floats lose.
    """
    known = standings(connection)
    found: list[Mismatch] = []
    for fine, coarse in pairs(sorted({name for _, name in known})):
        symbols = sorted({symbol for symbol, name in known if name == fine} & {symbol for symbol, name in known if name == coarse})
        for i in range(0, len(symbols), SYMBOLS_AT_ONCE):
            if len(found) < SHOWN:
                found += _unreconciled(connection, TIMEFRAMES[fine], TIMEFRAMES[coarse], symbols[i : i + SYMBOLS_AT_ONCE], since)
    return found[:SHOWN]


def _unreconciled(
    connection: duckdb.DuckDBPyConnection, fine: Timeframe, coarse: Timeframe, symbols: Sequence[str], since: Instant | None
) -> list[Mismatch]:
    rows = connection.execute(
        f"""
        WITH spans AS (  -- where both are covered
            SELECT symbol, greatest(f.covered_from, c.covered_from) AS since, least(f.covered_to, c.covered_to) AS until
            FROM coverage f JOIN coverage c USING (symbol)
            WHERE f.timeframe = $fine AND c.timeframe = $coarse AND symbol IN (SELECT unnest($symbols::VARCHAR[]))),
        fine AS (
            SELECT symbol, {_slot("opened_at", coarse)} AS slot, arg_min(open, opened_at) AS open, max(high) AS high, min(low) AS low,
                   arg_max(close, opened_at) AS close, sum(volume) AS volume, sum(value) AS value, count(*) AS n
            FROM candles JOIN spans USING (symbol)
            WHERE timeframe = $fine AND opened_at >= spans.since AND opened_at < spans.until
              AND opened_at >= make_timestamp($since::BIGINT * 1000000) GROUP BY ALL),
        coarse AS (SELECT symbol, opened_at AS slot, open, high, low, close, volume, value FROM candles JOIN spans USING (symbol)
                   WHERE timeframe = $coarse AND opened_at >= make_timestamp($since::BIGINT * 1000000)),
        both_of_them AS (
            SELECT symbol, slot, n, f.* EXCLUDE (symbol, slot, n), c.open AS open_, c.high AS high_, c.low AS low_, c.close AS close_,
                   c.volume AS volume_, c.value AS value_, c.symbol IS NULL AS extra
            FROM fine f FULL JOIN coarse c USING (symbol, slot))
        SELECT symbol, {instants("slot")}, n, extra, {", ".join(f"{name}, {name}_" for name in _COMPARED)} FROM both_of_them
        JOIN spans USING (symbol)
        WHERE slot >= spans.since AND {_after("slot", coarse)} <= spans.until AND slot >= make_timestamp($since::BIGINT * 1000000)
          AND (n IS NULL OR extra OR {" OR ".join(map(_differ, _COMPARED))})
        ORDER BY symbol, slot LIMIT $shown""",
        {
            "fine": fine.name, "coarse": coarse.name, "symbols": list(symbols), "shown": SHOWN,
            "since": -(10**9) if since is None else coarse.floor(since),
        },
    ).fetchall()  # fmt: skip
    return [_mismatch(fine.name, coarse.name, *row) for row in rows]


_COMPARED = ("open", "high", "low", "close", "volume", "value")


def _differ(name: str) -> str:
    if name not in ("volume", "value"):
        return f"{name} <> {name}_"
    return f"abs({name} - {name}_) > {UNIT / 2!r} + n * {ROUNDING!r} * greatest({name}, {name}_)"


def _slot(column: str, frame: Timeframe) -> str:
    """SQL for the slot of `frame` that holds an instant."""
    if frame.seconds is None:
        return f"date_trunc('month', {column})::TIMESTAMP"
    at = f"(epoch_us({column}) // 1000000 - {frame.anchor})"
    return f"make_timestamp(({at} // {frame.seconds} * {frame.seconds} + {frame.anchor}) * 1000000)"


def _after(column: str, frame: Timeframe) -> str:
    return f"{column} + INTERVAL 1 MONTH" if frame.seconds is None else f"{column} + INTERVAL {frame.seconds} SECOND"


def _mismatch(fine: str, coarse: str, symbol: str, slot: Instant, n: int | None, extra: bool, *values: float) -> Mismatch:
    if n is None or extra:
        said = f"{coarse} has a candle, {fine} has none" if n is None else f"{fine} has {n} candle(s), {coarse} has none"
        return Mismatch(symbol, coarse, fine, slot, (), said)
    sums = dict(zip(_COMPARED, zip(values[::2], values[1::2], strict=True), strict=True))
    odd = {name: pair for name, pair in sums.items() if _apart(name, pair, n)}
    said = ", ".join(f"{name} {theirs:.17g} but {fine} makes {ours:.17g}" for name, (ours, theirs) in odd.items())
    return Mismatch(symbol, coarse, fine, slot, tuple(odd), said)


def _apart(name: str, pair: tuple[float, float], n: int) -> bool:
    if name not in ("volume", "value"):
        return pair[0] != pair[1]
    return abs(pair[0] - pair[1]) > UNIT / 2 + n * ROUNDING * max(pair)
