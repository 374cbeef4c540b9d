"""Which markets there are, and which of them are collected: all that the settings name, or the top by turnover."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from mdms_pipeline.collect.client import Exchange
from mdms_pipeline.collect.rename import find_renamed, tell_renamed
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import ABSENT, DELISTED, FRESH, mark, standings
from mdms_pipeline.store.journal import emit
from mdms_pipeline.store.universe import Market, known_symbols, store_universe


class UnknownSymbol(ValueError):
    """A symbol that neither the exchange nor the warehouse knows."""


async def update_universe(exchange: Exchange, warehouse: Warehouse, settings: Settings, run_id: str | None = None) -> list[str]:
    """Ask the exchange which markets there are, choose, and store both; the symbols that are collected, by name."""
    listings = await exchange.markets()
    turnovers = await exchange.turnovers()
    markets = [Market(row.symbol, row.korean_name, row.english_name, row.warning, turnovers.get(row.symbol, 0.0)) for row in listings]
    now = int(exchange.clock())
    renamed = await find_renamed(exchange, warehouse, {market.symbol for market in markets})
    with warehouse.write() as connection:
        held = known_symbols(connection)
        chosen = choose(markets, settings, held)
        gone = sorted(symbol for symbol, (_, _, listed) in held.items() if listed and symbol not in {m.symbol for m in markets})
        new = sorted({market.symbol for market in markets} - set(held))
        store_universe(connection, markets, chosen, settings.universe, now)
        _mark_partitions(connection, set(chosen), {market.symbol for market in markets}, now, run_id)
        for event, symbols in (("market_listed", new), ("market_delisted", gone)):
            if symbols:
                emit(connection, event, now, run_id, symbols, None, len(symbols))
        tell_renamed(connection, renamed, now, run_id)
    return sorted(chosen)


def choose(markets: Sequence[Market], settings: Settings, held: Mapping[str, object]) -> list[str]:
    """The symbols that the settings ask for. Raises UnknownSymbol, naming the nearest known ones."""
    listed = {market.symbol for market in markets}
    for symbol in settings.symbols:
        if symbol not in listed and symbol not in held:
            near = difflib.get_close_matches(symbol, sorted(listed), n=3, cutoff=0.5)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise UnknownSymbol(f"symbol {symbol!r} (MDMS_SYMBOLS) is not a market of {settings.exchange_url}{hint}")
    if settings.symbols:
        return [symbol for symbol in settings.symbols if symbol in listed]
    return [market.symbol for market in sorted(markets, key=lambda market: (-market.turnover, market.symbol))[: settings.top]]


def _mark_partitions(connection, chosen: set[str], listed: set[str], now: int, run_id: str | None) -> None:  # type: ignore[no-untyped-def]
    """A partition that nobody collects any more says so; one that is collected again is as fresh as what it covers."""
    changes: dict[tuple[str, str], tuple[str, str | None]] = {}
    for (symbol, frame), standing in standings(connection).items():
        if symbol not in listed and standing.state != DELISTED:
            changes[symbol, frame] = (DELISTED, "no longer among the exchange's markets")
        elif symbol in listed and symbol not in chosen and standing.state != ABSENT:
            changes[symbol, frame] = (ABSENT, "not among the symbols that the settings ask for")
        elif symbol in chosen and standing.state in (DELISTED, ABSENT):
            changes[symbol, frame] = (FRESH, None)
    if changes:
        mark(connection, changes, now, run_id)
