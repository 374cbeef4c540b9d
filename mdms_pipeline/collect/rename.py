"""Markets that came back under another code: the old code is gone, and the new one carries the same history (MATIC to POL).

When a market arrives or departs, the newest stored daily candles of those that departed are compared with what the exchange tells of
those that arrived: one request per arrival, none where nobody departed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.client import Exchange
from mdms_pipeline.collect.wire import MAX_CANDLES
from mdms_pipeline.market import DAY, TIMEFRAMES, Candles, Instant, timeframe
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import DELISTED, Standing, mark, standings
from mdms_pipeline.store.journal import emit
from mdms_pipeline.store.revisions import stored

RECENT = 30 * DAY  # s for which an arrival may be the other half of a later departure
LEAST_SAME = 5  # candles of the same close and volume that make two histories one
REASON = "renamed to"


@dataclass(frozen=True)
class Departed:
    """A market that is gone, and its newest stored candles."""

    symbol: str
    timeframe: str
    candles: Candles


async def find_renamed(exchange: Exchange, warehouse: Warehouse, listed: Collection[str]) -> dict[str, str]:
    """Old code -> new code, of the markets that have departed or arrived since the universe was last stored. `listed` are listed now."""
    now = int(exchange.clock())
    with warehouse.read() as connection:
        seen = _seen(connection)
        arrivals = sorted(set(listed) - seen.keys()) if seen else []
        gone = [symbol for symbol, (was_listed, _) in seen.items() if was_listed and symbol not in listed]
        if gone:
            first = min(at for _, at in seen.values())
            arrivals += sorted(symbol for symbol, (_, at) in seen.items() if symbol in listed and at > max(first, now - RECENT))
        departed = _departed(connection, {symbol for symbol in seen if symbol not in listed}, now) if arrivals else []
    found: dict[str, str] = {}
    for symbol in arrivals:
        for name in dict.fromkeys(one.timeframe for one in departed):
            told = await _told(exchange, symbol, name, now)
            found |= {one.symbol: symbol for one in departed if one.timeframe == name and same_history(one.candles, told)}
    return found


async def _told(exchange: Exchange, symbol: str, name: str, now: Instant) -> Candles:
    try:
        return await exchange.candles(symbol, name, timeframe(name).floor(now), MAX_CANDLES)
    except wire.NotFound:
        return Candles.empty()  # listed, but without candles yet


def same_history(old: Candles, new: Candles) -> bool:
    """Whether the candles that both have are the same, and enough to be no chance."""
    _, mine, theirs = np.intersect1d(old.opened_at, new.opened_at, return_indices=True)
    alike = (old.close[mine] == new.close[theirs]) & (old.volume[mine] == new.volume[theirs])
    return len(mine) >= LEAST_SAME and bool(alike.all())


def _seen(connection: duckdb.DuckDBPyConnection) -> dict[str, tuple[bool, Instant]]:
    """Symbol -> (listed when last seen, first seen at)."""
    rows = connection.execute("SELECT symbol, listed, epoch(first_seen_at)::BIGINT FROM symbols").fetchall()
    return {symbol: (listed, at) for symbol, listed, at in rows}


def _departed(connection: duckdb.DuckDBPyConnection, gone: Collection[str], now: Instant) -> list[Departed]:
    """Those that are gone, not told of yet, and whose candles are recent enough to be in one page of now."""
    rows: dict[str, Standing] = {}
    for (symbol, name), standing in standings(connection).items():
        recent = standing.newest is not None and timeframe(name).slots(standing.newest, timeframe(name).floor(now)) < MAX_CANDLES
        told = (standing.reason or "").startswith(REASON)
        if symbol in gone and recent and not told and (symbol not in rows or _preferred(name, rows[symbol].timeframe)):
            rows[symbol] = standing
    spans = [_newest_page(standing) for standing in rows.values()]
    found: Sequence[Candles] = stored(connection, spans) if spans else []
    return [Departed(row.symbol, row.timeframe, candles) for row, candles in zip(rows.values(), found, strict=True)]


def _preferred(name: str, other: str) -> bool:
    """Days before all others; else the coarser."""
    order = list(TIMEFRAMES)
    return other != "1d" and (name == "1d" or order.index(name) > order.index(other))


def _newest_page(standing: Standing) -> tuple[str, str, Instant, Instant]:
    frame = timeframe(standing.timeframe)
    assert standing.newest is not None
    end = frame.after(standing.newest)
    return (*standing.partition, frame.after(end, -MAX_CANDLES), end)


def tell_renamed(connection: duckdb.DuckDBPyConnection, renamed: Mapping[str, str], now: Instant, run_id: str | None) -> None:
    """Report each in an event `market_renamed` (symbols: old, new), and say it in the status of the old one, whose history stays."""
    for old, new in renamed.items():
        emit(connection, "market_renamed", now, run_id, [old, new], None, 1)
        mine = [partition for partition in standings(connection) if partition[0] == old]
        mark(connection, dict.fromkeys(mine, (DELISTED, f"{REASON} {new}, which has the same history")), now, run_id)
