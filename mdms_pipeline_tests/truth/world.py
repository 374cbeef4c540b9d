"""A small market from the exchange to its rankings, refreshed as often as a test likes, and a second one that starts from nothing.

Whatever happened on the way, the first must end where the second does: same candles, same indicators, same ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.collect.fill import Filled, fill
from mdms_pipeline.collect.universe import update_universe
from mdms_pipeline.collect.verify import Verified, verify
from mdms_pipeline.market import Instant, instant
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.screen.look import screen_all, screens_of
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import Standing, standings
from mdms_pipeline.store.schema import indicator_tables
from mdms_pipeline.store.universe import universe
from mdms_pipeline_tests.support import ask, bits, calculate, rows, settings, virtually

SINCE = instant("2026-11-12")  # after the last maintenance hole
INDICATORS = (KINDS["rsi"].usual, KINDS["macd"].usual)  # with what they read: windowed, recursive, and one upon the other
MARKETS = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-META", "KRW-KAS", "BTC-ETH")
SCREEN = """title: All that are known
timeframe: 1h
where:
  - close > 0
rank: {expression: rsi(14), direction: desc}
columns: [close]
limit: 50
max_age: 3
"""


def few(sandbox: Sandbox) -> Sandbox:
    """The same exchange with MARKETS only."""
    sandbox._markets = {code: market for code, market in sandbox._markets.items() if code in MARKETS}
    return sandbox


class World:
    """One warehouse, one exchange, and what a refresh does."""

    def __init__(
        self, home: Path, sandbox: Sandbox, symbols: str = "KRW-BTC,KRW-ETH,KRW-XRP", timeframes: str = "1h,1d", **more: str
    ) -> None:
        (home / "own" / "screens").mkdir(parents=True, exist_ok=True)
        (home / "own" / "screens" / "everyone.yaml").write_text(SCREEN)
        self.sandbox = sandbox
        self.settings: Settings = settings(home, symbols, timeframes, 1, MDMS_EXTENSIONS=str(home / "own"), **more)
        self.warehouse = Warehouse(self.settings.warehouse, "sandbox", memory_mb=600, no_trade=self.settings.no_trade)

    def refresh(self, since: Instant | None = SINCE) -> Filled:
        """Update the universe, collect, calculate and screen."""
        filled = self.collect(since)
        self.calculate()
        return filled

    def collect(self, since: Instant | None = SINCE) -> Filled:
        async def main(_: Callable[[], float]) -> Filled:
            async with ask(self.sandbox) as exchange:
                chosen = await update_universe(exchange, self.warehouse, self.settings)
                partitions = [(symbol, name) for name in self.settings.timeframes for symbol in chosen]
                return await fill(exchange, self.warehouse, partitions, self.settings.history, since=since)

        return virtually(main)

    def calculate(self) -> None:
        """Indicators of all collected markets, then the ranking."""
        with self.warehouse.read() as connection:
            chosen = sorted(universe(connection))
        calculate(self.warehouse, chosen, self.settings.timeframes, INDICATORS)
        loaded = screens_of(self.settings)
        assert loaded.errors == ()
        screen_all(self.warehouse, [loaded.screens["everyone"]], "1h")

    def verify(self, sample: int | None = None, repair: bool = False) -> Verified:
        async def main(_: Callable[[], float]) -> Verified:
            async with ask(self.sandbox) as exchange:
                return await verify(exchange, self.warehouse, self.standings().values(), sample, repair, seed=1)

        return virtually(main)

    def standings(self) -> dict[tuple[str, str], Standing]:
        with self.warehouse.read() as connection:
            return standings(connection)

    def ranking(self) -> dict[str, tuple[str, int | None, float | None]]:
        """Symbol -> (verdict, place, rank) of the newest screening."""
        found = self.rows(
            """SELECT symbol, verdict, place, rank_value FROM screen_results
               WHERE screen = 'everyone' AND instant = (SELECT max(instant) FROM screen_results WHERE screen = 'everyone')"""
        )
        return {symbol: (verdict, place, rank) for symbol, verdict, place, rank in found}

    def events(self, type: str) -> list[tuple[list[str], str | None, int]]:
        """(symbols, timeframe, count) of these events, in order."""
        return [tuple(row) for row in self.rows("SELECT symbols, timeframe, count FROM events WHERE type = ? ORDER BY id", type)]  # type: ignore[misc]

    def rows(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        return rows(self.warehouse, query, *arguments)

    def asked(self) -> list[tuple[str, str, str, str]]:
        """(path, market, to, count) of the candle requests so far."""
        candles = [entry for entry in self.sandbox.log if "/candles/" in entry.path]
        return [(entry.path, entry.query["market"], entry.query["to"], entry.query["count"]) for entry in candles]


def same_as_new(world: World, home: Path, symbols: Sequence[str], since: Instant = SINCE) -> None:
    """These symbols stand in `world` as in a warehouse that collects and calculates all from nothing now."""
    more = {"MDMS_NO_TRADE": world.settings.no_trade}
    other = World(home, world.sandbox, ",".join(symbols), ",".join(world.settings.timeframes), **more)
    other.refresh(since)
    only = f"(SELECT * FROM {{}} WHERE symbol IN ({', '.join(repr(symbol) for symbol in symbols)}))"
    with world.warehouse.read() as connection:
        names = ["candles", *indicator_tables(connection)]
    tables = [only.format(name) for name in names]
    assert bits(world.warehouse, tables) == bits(other.warehouse, tables)
    mine, theirs = world.ranking(), other.ranking()
    assert {symbol: mine[symbol][0::2] for symbol in symbols} == {symbol: theirs[symbol][0::2] for symbol in symbols}
