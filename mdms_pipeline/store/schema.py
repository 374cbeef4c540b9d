"""The tables of the warehouse. All instants are plain TIMESTAMP in UTC.

There is no PRIMARY KEY (four times the time and nine times the memory on 6 million rows): the writes keep rows unique, a check proves it.
Indicator tables are made, and widened, by `indicators.py` as the catalog asks for columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import duckdb

from mdms_pipeline.market import PRICES_AND_AMOUNTS, TIMEFRAMES

VERSION = 3
KEY = "symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, opened_at TIMESTAMP NOT NULL"

# backtests: `run` names the record that makes a run again; `trades` and `equity` hang on it
BACKTEST_TABLES: dict[str, str] = {
    "backtest_runs": """run VARCHAR NOT NULL, strategy VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, params VARCHAR NOT NULL,
        starts_at TIMESTAMP, ends_at TIMESTAMP, total_return DOUBLE, annual_return DOUBLE, sharpe DOUBLE, max_drawdown DOUBLE,
        trades BIGINT, win_rate DOUBLE, reference_return DOUBLE, metrics VARCHAR, orders VARCHAR, record VARCHAR NOT NULL,
        made_at TIMESTAMP, run_id VARCHAR""",
    "trades": """run VARCHAR NOT NULL, symbol VARCHAR NOT NULL, decided_at TIMESTAMP, entered_at TIMESTAMP, exited_at TIMESTAMP,
        entry_price DOUBLE, exit_price DOUBLE, units DOUBLE, fees DOUBLE, profit DOUBLE, profit_rate DOUBLE, bars BIGINT,
        opened VARCHAR, closed VARCHAR""",
    "equity": """run VARCHAR NOT NULL, opened_at TIMESTAMP NOT NULL, equity DOUBLE, cash DOUBLE, positions BIGINT, reference DOUBLE""",
}
TABLES: dict[str, str] = {
    **BACKTEST_TABLES,
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
    # freshness lives here and nowhere else; `begins` is set when the exchange has nothing older; `revision` grows when history changes;
    # `refill_from` is set while a history that was rescaled is collected again: it reached back to there before
    "status": """symbol VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, state VARCHAR NOT NULL, reason VARCHAR, newest TIMESTAMP,
        begins BOOLEAN NOT NULL, revision INTEGER NOT NULL, candles BIGINT NOT NULL, checked_at TIMESTAMP, run_id VARCHAR,
        oldest TIMESTAMP, refill_from TIMESTAMP""",
    # candles that the exchange tells otherwise than before: the row as it was and as it is; all-NULL is "no candle". `revision` is the
    # partition's once the new row was stored
    "revisions": f"""{KEY}, {", ".join(f"{when}_{name} DOUBLE" for when in ("old", "new") for name in PRICES_AND_AMOUNTS)},
        reason VARCHAR, revision INTEGER, revised_at TIMESTAMP, run_id VARCHAR""",
    # the event bus: written with the data it tells of, read by cursor
    "events": """id BIGINT NOT NULL, type VARCHAR NOT NULL, symbols VARCHAR[], timeframe VARCHAR, count BIGINT, revision INTEGER,
        happened_at TIMESTAMP NOT NULL, run_id VARCHAR""",
    # how far each follower of `events` has come, and what holds it up; `attempts` counts the failures in a row
    "cursors": "subscriber VARCHAR NOT NULL, id BIGINT NOT NULL, attempts INTEGER NOT NULL, error VARCHAR, tried_at TIMESTAMP NOT NULL",
    # what a person should know; open while `resolved_at` is NULL. The events alert_raised and alert_resolved tell of it (count = its id)
    "alerts": """id BIGINT NOT NULL, kind VARCHAR NOT NULL, subject VARCHAR NOT NULL, message VARCHAR NOT NULL,
        raised_at TIMESTAMP NOT NULL, resolved_at TIMESTAMP""",
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
    # live answers that changed, each `id` once; `number` grows in the order of arrival. `received_at` and `emitted_at` are of the live
    # process, to the microsecond; "values" is JSON of what decided
    "signals": f"""number BIGINT NOT NULL, id VARCHAR NOT NULL, source VARCHAR NOT NULL, name VARCHAR NOT NULL, rule VARCHAR NOT NULL,
        {KEY}, answer BOOLEAN, before BOOLEAN, "values" VARCHAR NOT NULL, received_at TIMESTAMP NOT NULL, emitted_at TIMESTAMP NOT NULL,
        delivered_at TIMESTAMP NOT NULL, revision INTEGER NOT NULL""",
    # what was watched live: these symbols were judged by one rule at each bar from `since` to `until` (NULL: at none yet), and all signals
    # of that stretch are in `signals`
    "watched": """watch VARCHAR NOT NULL, source VARCHAR NOT NULL, name VARCHAR NOT NULL, rule VARCHAR NOT NULL,
        fingerprint VARCHAR NOT NULL, timeframe VARCHAR NOT NULL, symbols VARCHAR[] NOT NULL, since TIMESTAMP NOT NULL, until TIMESTAMP""",
}
SEQUENCES = ("event_id", "revision_id", "alert_id", "signal_number")
ADDED = ("status ADD COLUMN oldest TIMESTAMP", "status ADD COLUMN refill_from TIMESTAMP")  # since version 1; 3 added tables only
VIEW = "indicators"  # bars and all indicator tables joined
BARS = "bars"  # what indicators see: the candles, and under `flat` a row for each covered slot without a trade
SKIP, FLAT = "skip", "flat"


@dataclass(frozen=True)
class Held:
    """What a warehouse says of itself."""

    version: int
    exchange: str
    no_trade: str  # SKIP or FLAT


def held(connection: duckdb.DuckDBPyConnection) -> Held | None:
    """What the warehouse says it holds, None where nothing was made yet."""
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'meta'").fetchone():
        return None
    rows = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    return Held(int(rows["version"]), rows["exchange"], rows["no_trade"]) if rows else None


def make(connection: duckdb.DuckDBPyConnection, exchange: str, no_trade: str = SKIP) -> Held:
    """Make what is missing; an existing warehouse keeps its exchange and what it does with slots without a trade."""
    before = held(connection)
    for sequence in SEQUENCES:
        connection.execute(f"CREATE SEQUENCE IF NOT EXISTS {sequence}")
    for table, columns in TABLES.items():
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
    if before is not None:
        _upgrade(connection, before)
        return Held(VERSION, before.exchange, before.no_trade)
    connection.executemany("INSERT INTO meta VALUES (?, ?)", [("version", str(VERSION)), ("exchange", exchange), ("no_trade", no_trade)])
    make_view(connection, [])
    return Held(VERSION, exchange, no_trade)


def _upgrade(connection: duckdb.DuckDBPyConnection, before: Held) -> None:
    """Bring a warehouse of an earlier version to this one."""
    if before.version >= VERSION:
        return
    for column in ADDED:
        connection.execute(f"ALTER TABLE {column.replace('ADD COLUMN', 'ADD COLUMN IF NOT EXISTS')}")
    connection.execute(
        """UPDATE status SET oldest = first FROM (SELECT symbol AS s, timeframe AS t, min(opened_at) AS first FROM candles GROUP BY ALL)
           WHERE symbol = s AND timeframe = t"""
    )
    connection.execute("UPDATE meta SET value = ? WHERE key = 'version'", [str(VERSION)])
    make_view(connection, list(indicator_tables(connection)))


def no_trade(connection: duckdb.DuckDBPyConnection) -> str:
    """What this warehouse makes of slots without a trade: SKIP or FLAT."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'no_trade'").fetchone()
    return SKIP if row is None else str(row[0])


def adopt(connection: duckdb.DuckDBPyConnection, exchange: str, no_trade: str) -> bool:
    """Give a warehouse that never knew a market to other settings; False where it knows any, or holds anything of one."""
    if connection.execute("SELECT symbol FROM symbols UNION ALL SELECT symbol FROM status LIMIT 1").fetchone():
        return False
    connection.executemany("UPDATE meta SET value = ? WHERE key = ?", [(exchange, "exchange"), (no_trade, "no_trade")])
    make_view(connection, list(indicator_tables(connection)))
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
    """`select * from indicators`: every bar with everything that was calculated from it."""
    bars = f"SELECT * FROM candles UNION ALL BY NAME ({_flat_rows()})" if no_trade(connection) == FLAT else "SELECT * FROM candles"
    connection.execute(f"CREATE OR REPLACE VIEW {BARS} AS {bars}")
    joins = " ".join(f"LEFT JOIN {table} USING (symbol, timeframe, opened_at)" for table in tables)
    connection.execute(f"CREATE OR REPLACE VIEW {VIEW} AS SELECT * FROM {BARS} {joins}")


def _flat_rows() -> str:
    """SQL of one row per covered slot without a trade, from a partition's first candle on: the previous close, volume and value 0.

    For people and the shell; `series.py` makes the same rows of the bars that it reads.
    """
    close = ", ".join(f"c.close AS {name}" for name in ("open", "high", "low", "close"))
    return f"""
        SELECT slots.symbol, slots.timeframe, slots.opened_at, {close}, 0.0 AS volume, 0.0 AS value
        FROM (SELECT symbol, timeframe, unnest(generate_series(oldest, covered_to - INTERVAL 1 SECOND, {_length()})) AS opened_at
              FROM status JOIN coverage USING (symbol, timeframe) WHERE oldest IS NOT NULL) AS slots
        ASOF JOIN candles c ON c.symbol = slots.symbol AND c.timeframe = slots.timeframe AND c.opened_at <= slots.opened_at
        WHERE c.opened_at < slots.opened_at"""


def _length() -> str:
    """SQL of a slot's length by the name of its timeframe, as an INTERVAL."""
    cases = " ".join(
        f"WHEN '{frame.name}' THEN {'INTERVAL 1 MONTH' if frame.seconds is None else f'INTERVAL {frame.seconds} SECOND'}"
        for frame in TIMEFRAMES.values()
    )
    return f"CASE timeframe {cases} END"
