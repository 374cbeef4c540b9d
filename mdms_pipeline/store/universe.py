"""Which markets there are, and which of them are collected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from mdms_pipeline.market import Instant
from mdms_pipeline.store.frames import instants


@dataclass(frozen=True)
class Market:
    """One KRW market as the exchange tells it now."""

    symbol: str
    korean_name: str
    english_name: str
    warning: bool
    turnover: float  # KRW over 24 h


def store_universe(
    connection: duckdb.DuckDBPyConnection, markets: Sequence[Market], chosen: Sequence[str], setting: str, now: Instant
) -> None:
    """Replace what is known of the universe. A market that is gone is marked not listed and stays."""
    connection.execute("UPDATE symbols SET listed = false, in_universe = false")
    connection.execute(
        "CREATE TEMP TABLE seen (symbol VARCHAR, korean_name VARCHAR, english_name VARCHAR, warning BOOLEAN, turnover DOUBLE)"
    )
    connection.executemany(
        "INSERT INTO seen VALUES (?, ?, ?, ?, ?)",
        [(m.symbol, m.korean_name, m.english_name, m.warning, m.turnover) for m in markets],
    )
    connection.execute(
        """INSERT INTO symbols BY NAME
           SELECT seen.*, false AS listed, false AS in_universe, make_timestamp(?::BIGINT * 1000000) AS first_seen_at,
                  make_timestamp(?::BIGINT * 1000000) AS seen_at
           FROM seen ANTI JOIN symbols USING (symbol) ORDER BY symbol""",
        [now, now],
    )
    connection.execute(
        """UPDATE symbols SET korean_name = seen.korean_name, english_name = seen.english_name, warning = seen.warning,
                  turnover = seen.turnover, listed = true, seen_at = make_timestamp(?::BIGINT * 1000000)
           FROM seen WHERE seen.symbol = symbols.symbol""",
        [now],
    )
    connection.execute("UPDATE symbols SET in_universe = true WHERE symbol IN (SELECT unnest(?::VARCHAR[]))", [list(chosen)])
    connection.execute("DROP TABLE seen")
    connection.execute("DELETE FROM meta WHERE key = 'universe'")
    connection.execute("INSERT INTO meta VALUES ('universe', ?)", [f"{setting} {now}"])


@dataclass(frozen=True)
class Chosen:
    """By which setting, and when, the collected symbols were last chosen."""

    setting: str
    seen_at: Instant
    symbols: list[str]


def chosen_by(connection: duckdb.DuckDBPyConnection) -> Chosen | None:
    """The last choice, None before the first."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'universe'").fetchone()
    if row is None:
        return None
    setting, _, seen_at = row[0].rpartition(" ")
    return Chosen(setting, int(seen_at), universe(connection))


def universe(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """The symbols that are collected, by falling turnover."""
    rows = connection.execute("SELECT symbol FROM symbols WHERE in_universe ORDER BY turnover DESC NULLS LAST, symbol").fetchall()
    return [symbol for (symbol,) in rows]


def listed(connection: duckdb.DuckDBPyConnection) -> int | None:
    """How many markets there were when the exchange was last asked; None where it never was."""
    row = connection.execute("SELECT count(*) FROM symbols WHERE listed").fetchone()
    return int(row[0]) if row and row[0] else None


def known_symbols(connection: duckdb.DuckDBPyConnection) -> dict[str, tuple[str, str, bool]]:
    """Every symbol ever seen -> (Korean name, English name, listed)."""
    rows = connection.execute("SELECT symbol, korean_name, english_name, listed FROM symbols").fetchall()
    return {symbol: (korean or "", english or "", listed) for symbol, korean, english, listed in rows}


def turnovers(connection: duckdb.DuckDBPyConnection) -> dict[str, float]:
    """Collected symbol -> KRW traded over the 24 h before the universe was last asked for."""
    rows = connection.execute("SELECT symbol, turnover FROM symbols WHERE in_universe").fetchall()
    return {symbol: float("nan") if turnover is None else turnover for symbol, turnover in rows}


def first_seen(connection: duckdb.DuckDBPyConnection) -> dict[str, Instant]:
    """Symbol -> when the exchange was first seen to list it."""
    return dict(connection.execute(f"SELECT symbol, {instants('first_seen_at')} FROM symbols").fetchall())
