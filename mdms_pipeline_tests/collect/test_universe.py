"""Which markets are collected, and what becomes of those that no longer are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mdms_pipeline.collect.universe import UnknownSymbol, choose, update_universe
from mdms_pipeline.collect.wire import Transient
from mdms_pipeline.sandbox import Fault, Sandbox
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import ABSENT, BEHIND, DELISTED, FRESH, standings
from mdms_pipeline.store.journal import events_after
from mdms_pipeline.store.universe import Market, chosen_by, known_symbols, turnovers, universe
from mdms_pipeline_tests.support import HOUR, NOW, Clock, ask, collect, rows, settings, virtually


def update(warehouse: Warehouse, sandbox: Sandbox, wanted: Settings) -> list[str]:
    async def main(_: Callable[[], float]) -> list[str]:
        async with ask(sandbox) as exchange:
            return await update_universe(exchange, warehouse, wanted)

    return virtually(main)


def states(warehouse: Warehouse, at: int) -> dict[str, str]:
    with warehouse.read() as connection:
        return {symbol: standing.at(at) for (symbol, _), standing in standings(connection).items()}


MARKETS = [Market(f"KRW-{code}", code, code, False, worth) for code, worth in (("A", 5.0), ("B", 9.0), ("C", 9.0), ("D", 1.0))]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("top:1", ["KRW-B"]),
        ("top:3", ["KRW-B", "KRW-C", "KRW-A"]),
        ("top:99", ["KRW-B", "KRW-C", "KRW-A", "KRW-D"]),
        ("KRW-D,KRW-A", ["KRW-D", "KRW-A"]),
        ("KRW-D,KRW-OLD", ["KRW-D"]),  # held, but not listed any more
    ],
)
def test_what_the_settings_choose(tmp_path: Path, wanted: str, chosen: list[str]) -> None:
    assert choose(MARKETS, settings(tmp_path, symbols=wanted), {"KRW-OLD": ()}) == chosen


def test_an_unknown_symbol_is_named_with_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(UnknownSymbol, match=r"'KRW-ETT' \(MDMS_SYMBOLS\) is not a market of sandbox: did you mean .*KRW-ETH"):
        choose([replace(MARKETS[0], symbol="KRW-ETH"), *MARKETS], settings(tmp_path, symbols="KRW-A,KRW-ETT"), {})
    with pytest.raises(UnknownSymbol, match=r"is not a market of sandbox$"):
        choose(MARKETS, settings(tmp_path, symbols="KRW-ZZZZZZZZZZZZ"), {})


def test_the_universe_is_kept_with_names_and_turnover(warehouse: Warehouse, exchange: Sandbox, home: Path) -> None:
    assert len(update(warehouse, exchange, settings(home, symbols="top:5"))) == 5
    with warehouse.read() as connection:
        known, chosen, worth = known_symbols(connection), chosen_by(connection), turnovers(connection)
    assert known["KRW-BTC"] == ("비트코인", "Bitcoin", True)
    assert all(symbol.startswith("KRW-") for symbol in known)
    assert len(known) > 150
    assert chosen is not None
    assert (chosen.setting, chosen.seen_at) == ("top:5", NOW)
    assert chosen.symbols == sorted(worth, key=lambda symbol: -worth[symbol])
    assert min(worth.values()) >= max(value or 0 for (value,) in rows(warehouse, "SELECT turnover FROM symbols WHERE NOT in_universe"))


def test_who_leaves_the_universe_is_marked_and_comes_back(warehouse: Warehouse, exchange: Sandbox, now: Clock, home: Path) -> None:
    both, one = settings(home, symbols="KRW-BTC,KRW-ETH"), settings(home, symbols="KRW-BTC")
    update(warehouse, exchange, both)
    collect(warehouse, exchange, [("KRW-BTC", "1h"), ("KRW-ETH", "1h")])
    update(warehouse, exchange, one)
    assert states(warehouse, NOW) == {"KRW-BTC": FRESH, "KRW-ETH": ABSENT}
    update(warehouse, exchange, both)
    assert states(warehouse, NOW) == {"KRW-BTC": FRESH, "KRW-ETH": FRESH}  # within the same candle it lacks nothing
    update(warehouse, exchange, one)
    now.now += 5 * HOUR
    update(warehouse, exchange, both)
    collect(warehouse, exchange, [("KRW-BTC", "1h")])
    assert states(warehouse, int(now.now)) == {"KRW-BTC": FRESH, "KRW-ETH": BEHIND}
    collect(warehouse, exchange, [("KRW-ETH", "1h")])
    assert states(warehouse, int(now.now)) == {"KRW-BTC": FRESH, "KRW-ETH": FRESH}
    assert rows(warehouse, "SELECT count(*) FROM candles WHERE symbol = 'KRW-ETH'") == [(65,)]


def test_listings_and_delistings_are_told_once(warehouse: Warehouse, exchange: Sandbox, now: Clock, home: Path) -> None:
    wanted = settings(home, symbols="KRW-BTC,KRW-ETH")
    update(warehouse, exchange, wanted)
    collect(warehouse, exchange, [("KRW-ETH", "1h")])
    exchange.listing("KRW-NEW", price=1_000.0)
    exchange.delist("KRW-ETH", at=NOW + 60)
    now.now += 120
    for _ in range(2):
        assert update(warehouse, exchange, wanted) == ["KRW-BTC"]
    with warehouse.read() as connection:
        told = [(event.type, event.symbols) for event in events_after(connection, 0) if event.symbols and len(event.symbols) == 1]
        assert universe(connection) == ["KRW-BTC"]
    assert [one for one in told if one[0].startswith("market_") and one[0] != "market_data_collected"] == [
        ("market_listed", ("KRW-NEW",)),
        ("market_delisted", ("KRW-ETH",)),
    ]
    assert states(warehouse, int(now.now))["KRW-ETH"] == DELISTED
    assert rows(warehouse, "SELECT count(*) FROM candles WHERE symbol = 'KRW-ETH'") == [(60,)]


@pytest.mark.parametrize("body", ["[]", "{}", '[{"market":"BTC-ETH","korean_name":"","english_name":"","acc_trade_price_24h":1.0}]'])
@pytest.mark.parametrize("path", ["/v1/market/all", "/v1/ticker/all"])
def test_an_empty_list_of_markets_changes_nothing(warehouse: Warehouse, exchange: Sandbox, home: Path, path: str, body: str) -> None:
    """ "Could not know" is not "nothing": not every market is gone."""
    if path == "/v1/ticker/all" and "BTC-ETH" in body:
        body = "[{}]"
    wanted = settings(home, symbols="top:3")
    before = update(warehouse, exchange, wanted)
    exchange.faults = lambda asked, query: Fault.shape(body) if asked == path else None
    with pytest.raises(Transient):
        update(warehouse, exchange, wanted)
    with warehouse.read() as connection:
        assert sorted(universe(connection)) == before
