"""Laws that the whole store obeys, as queries; an empty answer is a good one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from mdms_pipeline.market import SETTLE, Instant
from mdms_pipeline.store.candles import DELISTED, FRESH, standings
from mdms_pipeline.store.universe import universe


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
