"""`collect --since`: back to a date or the listing, in any number of interrupted calls, and nothing asked for twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mdms_pipeline.collect import fill as filling
from mdms_pipeline.collect.pages import next_ask, pages_left
from mdms_pipeline.market import TIMEFRAMES, Instant, instant
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import FRESH, Standing, standings
from mdms_pipeline_tests.support import Clock, ask, broken, rows, virtually
from mdms_pipeline_tests.truth.world import World

BTC, QUIET = ("KRW-BTC", "1h"), ("KRW-META", "1m")


class Stopped(Exception):
    """The collection ends here."""


def extend(warehouse: Warehouse, sandbox: Sandbox, since: Instant, stop_after: int | None = None) -> filling.Filled:
    """Collect back to `since`; after so many candle requests the exchange is gone."""

    async def main(_: Callable[[], float]) -> filling.Filled:
        async with ask(sandbox) as exchange:
            asked, candles = 0, exchange.candles

            async def counted(*arguments: object) -> object:
                nonlocal asked
                asked += 1
                if stop_after is not None and asked > stop_after:
                    raise Stopped
                return await candles(*arguments)  # type: ignore[arg-type]

            exchange.candles = counted  # type: ignore[assignment, method-assign]
            return await filling.fill(exchange, warehouse, [BTC, QUIET], 1, since=since)

    return virtually(main)


def asked(sandbox: Sandbox) -> list[tuple[str, str]]:
    return [(entry.query["market"], entry.query["to"]) for entry in sandbox.log if "/candles/" in entry.path]


def test_interrupted_at_random_it_asks_for_nothing_twice(warehouse: Warehouse, exchange: Sandbox) -> None:
    since = instant("2026-09-01")
    extend(warehouse, exchange, instant("2026-11-10"))
    covered: dict[tuple[str, str], tuple[Instant, Instant]] = {}
    seen = 0
    for stop in (1, 2, 5, 3, 40, 7, None):
        with warehouse.read() as connection:
            covered = {key: row.covered for key, row in standings(connection).items() if row.covered}
        seen = len(asked(exchange))
        try:
            extend(warehouse, exchange, since if stop is None else instant("2026-10-01"), stop)
        except Stopped:
            assert stop is not None
        for market, to in asked(exchange)[seen:]:
            span = covered[next(key for key in covered if key[0] == market)]
            assert instant(to) <= span[0], (market, to)  # the clock stands still: only what is older may be asked for
    with warehouse.read() as connection:
        found = standings(connection)
    for key in (BTC, QUIET):
        span = found[key].covered
        assert span is not None
        assert span[0] <= since
        truth = exchange.candles(key[0], TIMEFRAMES[key[1]], span[1], found[key].candles)
        stored = rows(warehouse, "SELECT epoch(opened_at)::BIGINT, close FROM candles WHERE symbol = ? ORDER BY 1", key[0])
        assert stored == list(zip(truth.opened_at.tolist(), truth.close.tolist(), strict=True))
    before = len(asked(exchange))
    assert extend(warehouse, exchange, since).requests == 0
    assert len(asked(exchange)) == before
    assert broken(warehouse) == []


def test_it_ends_at_the_listing(home: Path, exchange: Sandbox) -> None:
    world = World(home, exchange, "KRW-KAS", "1h")  # listed 2026-11-17T05:00
    world.collect(instant("2017-09-25"))
    standing = world.standings()["KRW-KAS", "1h"]
    assert standing.begins
    assert standing.oldest == instant("2026-11-17T05:00")
    asked_for = len(world.asked())
    world.collect(instant("2017-09-25"))
    assert len(world.asked()) == asked_for


@pytest.mark.parametrize("name", ["1m", "1h", "1w", "1M"])
def test_pages_left_is_what_it_takes_where_every_slot_has_a_trade(name: str) -> None:
    frame, end = TIMEFRAMES[name], TIMEFRAMES[name].floor(instant("2026-11-20"))
    for covered, candles in ((None, 0), ((frame.after(end, -450), frame.after(end, -50)), 400)):
        standing = Standing("KRW-BTC", name, FRESH, covered=covered, candles=candles)
        for history, since in ((1, None), (1_000, None), (1, frame.after(end, -777)), (500, frame.after(end, -20))):
            foreseen, row, pages = pages_left(standing, end, history, since), standing, 0
            while (wanted := next_ask(row, end, history, since)) is not None:
                pages += 1
                start = wanted.since if wanted.since is not None else frame.after(wanted.to, -wanted.count)
                span = row.covered or (start, wanted.to)
                span = (min(span[0], start), max(span[1], wanted.to))
                row = Standing("KRW-BTC", name, FRESH, covered=span, candles=frame.slots(*span))
            assert pages == foreseen


def test_markets_that_a_ticker_shows_to_be_quiet_need_no_page(warehouse: Warehouse, now: Clock) -> None:
    exchange = Sandbox(clock=now)
    symbols = [market.code for market in exchange.markets() if market.quote == "KRW"][-40:]

    async def main(_: Callable[[], float]) -> filling.Filled:
        async with ask(exchange) as client:
            return await filling.fill(client, warehouse, [(symbol, "1m") for symbol in symbols], 30)

    virtually(main)
    now.now += 60
    before = len(asked(exchange))
    filled = virtually(main)
    assert filled.quiet > 0
    assert len(asked(exchange)) - before == len(symbols) - filled.quiet
    told = rows(warehouse, "SELECT len(symbols), count FROM events WHERE type = 'market_quiet_by_ticker'")
    assert told == [(filled.quiet, filled.quiet)]
    with warehouse.read() as connection:
        ends = {row.covered and row.covered[1] for row in standings(connection).values()}
    assert ends == {TIMEFRAMES["1m"].floor(int(now.now) - 2)}
    for symbol in symbols:  # and nothing was missed
        truth = exchange.candles(symbol, TIMEFRAMES["1m"], max(end for end in ends if end), 30)
        newest = rows(warehouse, "SELECT epoch(max(opened_at))::BIGINT FROM candles WHERE symbol = ?", symbol)
        assert newest == [(truth.opened_at[-1],)]
