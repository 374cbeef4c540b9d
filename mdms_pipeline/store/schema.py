"""The tables of the warehouse. All instants are plain TIMESTAMP in UTC.

There is no PRIMARY KEY (four times the time and nine times the memory on 6 million rows): the writes keep rows unique, a check proves it.
Indicator tables are made, and widened, by `indicators.py` as the catalog asks for columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import duckdb

VERSION = 1
KEY = "symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, opened_at TIMESTAMP NOT NULL"

TABLES: dict[str, str] = {
    # what was chosen once: exchange, no_trade, version
    "meta": "key VARCHAR NOT NULL, value VARCHAR NOT NULL",
    # the universe as last seen; a market that is gone stays, marked
    "symbols": """symbol VARCHAR NOT NULL, korean_name VARCHAR, english_name VARCHAR, warning BOOLEAN, turnover DOUBLE,
        listed BOOLEAN NOT NULL, in_universe BOOLEAN NOT NULL, first_seen_at TIMESTAMP NOT NULL, seen_at TIMESTAMP NOT NULL""",
    # closed candles only; volume in the base asset, value in KRW
    "candles": f"{KEY}, open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE, volume DOUBLE, value DOUBLE",
    # candles that cannot be, refused before they were stored
    "quarantine": f"""{KEY}, open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE, volume DOUBLE, value DOUBLE, reason VARCHAR,
        refused_at TIMESTAMP""",
    # the half-open span that was really asked for: inside, a missing candle means no trade; outside, not known
    "coverage": "symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, covered_from TIMESTAMP, covered_to TIMESTAMP",
    # freshness lives here and nowhere else; `begins` is set when the exchange has nothing older; `revision` grows when history changes
    "status": """symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, state VARCHAR NOT NULL, reason VARCHAR, newest TIMESTAMP,
        begins BOOLEAN NOT NULL, revision INTEGER NOT NULL, candles BIGINT NOT NULL, checked_at TIMESTAMP, run_id VARCHAR""",
    # the event bus: written with the data it tells of, read by cursor
    "events": """id BIGINT NOT NULL, type VARCHAR NOT NULL, symbols VARCHAR[], timeframe VARCHAR, count BIGINT, revision INTEGER,
        happened_at TIMESTAMP NOT NULL, run_id VARCHAR""",
    # what an indicator remembers after the bar at `watermark`, and what it was calculated from
    "memory": """symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, kind VARCHAR NOT NULL, indicator VARCHAR NOT NULL,
        fingerprint VARCHAR NOT NULL, reads VARCHAR NOT NULL, revision INTEGER NOT NULL, watermark TIMESTAMP, bars BIGINT NOT NULL,
        calculated BIGINT NOT NULL, memory BLOB NOT NULL""",
    # what each step did and how long it took
    "work": """run_id VARCHAR, step VARCHAR NOT NULL, timeframe VARCHAR, started_at TIMESTAMP, seconds DOUBLE,
        partitions BIGINT, hit BIGINT, incremental BIGINT, from_start BIGINT, skipped BIGINT, failed BIGINT, rows BIGINT,
        requests BIGINT""",
    "screen_results": """screen VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, instant TIMESTAMP NOT NULL, symbol VARCHAR NOT NULL,
        verdict VARCHAR NOT NULL, reason VARCHAR, age INTEGER, unstable VARCHAR, place INTEGER, rank_value DOUBLE, turnover DOUBLE,
        details VARCHAR, fingerprint VARCHAR, run_id VARCHAR""",
}
SEQUENCES = ("event_id", "revision_id")
VIEW = "indicators"  # candles and all indicator tables joined


@dataclass(frozen=True)
class Held:
    """What a warehouse says of itself."""

    version: int
    exchange: str


def held(connection: duckdb.DuckDBPyConnection) -> Held | None:
    """What the warehouse says it holds, None where nothing was made yet."""
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'meta'").fetchone():
        return None
    rows = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    return Held(int(rows["version"]), rows["exchange"]) if rows else None


def make(connection: duckdb.DuckDBPyConnection, exchange: str) -> Held:
    """Make what is missing; an existing warehouse keeps its exchange."""
    for sequence in SEQUENCES:
        connection.execute(f"CREATE SEQUENCE IF NOT EXISTS {sequence}")
    for table, columns in TABLES.items():
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
    before = held(connection)
    if before is not None:
        return before
    connection.executemany("INSERT INTO meta VALUES (?, ?)", [("version", str(VERSION)), ("exchange", exchange), ("no_trade", "skip")])
    make_view(connection, [])
    return Held(VERSION, exchange)


def adopt(connection: duckdb.DuckDBPyConnection, exchange: str) -> bool:
    """Give a warehouse that never knew a market to another exchange; False where it knows any."""
    if connection.execute("SELECT 1 FROM symbols LIMIT 1").fetchone():
        return False
    connection.execute("UPDATE meta SET value = ? WHERE key = 'exchange'", [exchange])
    return True


def indicator_tables(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Table -> its indicator columns, for every indicator table there is."""
    rows = connection.execute(
        """SELECT table_name, column_name FROM duckdb_columns() WHERE comment = 'indicator' AND NOT internal
           ORDER BY table_name, column_index"""
    ).fetchall()
    tables: dict[str, list[str]] = {}
    for table, column in rows:
        tables.setdefault(table, []).append(column)
    return tables


def widen(connection: duckdb.DuckDBPyConnection, table: str, columns: Iterable[str]) -> None:
    """Give `table` these columns where it lacks them, and show them in the view."""
    have = indicator_tables(connection)
    missing = [column for column in columns if column not in have.get(table, [])]
    if not missing:
        return
    connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({KEY})")
    for column in missing:
        connection.execute(f'ALTER TABLE {table} ADD COLUMN "{column}" DOUBLE')
        connection.execute(f"COMMENT ON COLUMN {table}.\"{column}\" IS 'indicator'")
    make_view(connection, list(indicator_tables(connection)))


def make_view(connection: duckdb.DuckDBPyConnection, tables: list[str]) -> None:
    """`select * from indicators`: every candle with everything that was calculated from it."""
    joins = " ".join(f"LEFT JOIN {table} USING (symbol, timeframe, opened_at)" for table in tables)
    connection.execute(f"CREATE OR REPLACE VIEW {VIEW} AS SELECT * FROM candles {joins}")
