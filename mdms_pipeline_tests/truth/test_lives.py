"""What happens to markets, one test each, through to indicators and rankings."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdms_pipeline.market import DAY, TIMEFRAMES, instant
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline_tests.support import HOUR, Clock, broken, rows
from mdms_pipeline_tests.truth.world import World, same_as_new

BTC, ETH, XRP = "KRW-BTC", "KRW-ETH", "KRW-XRP"


@pytest.fixture
def world(home: Path, exchange: Sandbox) -> World:
    made = World(home, exchange)
    made.refresh()
    assert made.ranking().keys() == {BTC, ETH, XRP}
    return made


def test_a_delisted_market_keeps_its_history_and_leaves_the_ranking(world: World, now: Clock, tmp_path: Path) -> None:
    before = rows(world.warehouse, "SELECT * FROM indicators WHERE symbol = ? ORDER BY ALL", XRP)
    world.sandbox.delist(XRP, int(now.now) + HOUR)
    now.now += 3 * HOUR
    world.refresh()
    assert world.events("market_delisted") == [([XRP], None, 1)]
    assert {row.state for (symbol, _), row in world.standings().items() if symbol == XRP} == {"delisted"}
    assert rows(world.warehouse, "SELECT * FROM indicators WHERE symbol = ? ORDER BY ALL", XRP) == before
    assert world.ranking().keys() == {BTC, ETH}
    same_as_new(world, tmp_path / "new", [BTC, ETH])


def test_a_404_between_two_looks_at_the_universe_marks_the_market_as_delisted(world: World, now: Clock) -> None:
    from mdms_pipeline_tests.support import collect

    world.sandbox.delist(XRP)
    now.now += 2 * HOUR
    filled = collect(world.warehouse, world.sandbox, [(XRP, "1h"), (BTC, "1h")], 1)
    assert filled.states == {(XRP, "1h"): "delisted", (BTC, "1h"): "fresh"}
    assert world.standings()[XRP, "1h"].candles > 190
    world.calculate()
    assert world.ranking()[XRP][0] == "not known"


def test_a_renamed_market_is_reported_with_both_codes(world: World, now: Clock, tmp_path: Path) -> None:
    world.sandbox.rename(XRP, "KRW-NEW")
    now.now += 2 * HOUR
    renamed = World(world.settings.home, world.sandbox, f"{BTC},{ETH},KRW-NEW")
    renamed.refresh()
    assert world.events("market_renamed") == [([XRP, "KRW-NEW"], None, 1)]
    assert "renamed to KRW-NEW" in str(world.standings()[XRP, "1d"].reason)
    assert world.ranking().keys() == {BTC, ETH, "KRW-NEW"}
    same_as_new(renamed, tmp_path / "new", [BTC, ETH, "KRW-NEW"])
    told = (
        "SELECT opened_at, close, volume FROM candles WHERE symbol = ? AND timeframe = '1h' AND opened_at < '2026-11-20 09:00' ORDER BY 1"
    )
    assert rows(world.warehouse, told, XRP) == rows(world.warehouse, told, "KRW-NEW")


def test_a_new_listing_that_is_no_rename_is_none(world: World, now: Clock, tmp_path: Path) -> None:
    world.sandbox.listing("KRW-NEW", price=120.0, at=int(now.now) // 60 * 60 + 300)
    world.sandbox.delist(XRP)
    now.now += 30 * HOUR
    listed = World(world.settings.home, world.sandbox, f"{BTC},{ETH},KRW-NEW")
    listed.refresh()
    assert world.events("market_listed")[-1] == (["KRW-NEW"], None, 1)
    assert world.events("market_renamed") == []
    assert world.standings()["KRW-NEW", "1h"].begins
    verdicts = listed.ranking()
    assert verdicts["KRW-NEW"][0] == "passed"
    assert verdicts["KRW-NEW"][2] is not None
    same_as_new(listed, tmp_path / "new", [BTC, ETH, "KRW-NEW"])


def test_a_redenominated_market_is_collected_again_and_calculated_from_the_start(world: World, now: Clock, tmp_path: Path) -> None:
    old = rows(world.warehouse, "SELECT opened_at, close FROM candles WHERE symbol = ? AND timeframe = '1h' ORDER BY 1", XRP)
    world.sandbox.redenominate(XRP, 10)
    now.now += DAY
    world.refresh(since=None)  # nobody asks for the history; it is collected again as far back as it was
    assert sorted(world.events("market_redenominated")) == [([XRP], "1d", 8), ([XRP], "1h", len(old))]
    kept = "SELECT opened_at, old_close FROM revisions WHERE symbol = ? AND timeframe = '1h' ORDER BY 1"
    assert rows(world.warehouse, kept, XRP) == old
    standing = world.standings()[XRP, "1h"]
    assert (standing.state, standing.refill_from) == ("fresh", None)
    assert broken(world.warehouse) == []
    same_as_new(world, tmp_path / "new", [BTC, ETH, XRP])


def test_one_corrected_candle_without_movement_is_no_redenomination(world: World, now: Clock, tmp_path: Path) -> None:
    newest = world.standings()[XRP, "1h"].newest
    assert newest is not None
    row = rows(world.warehouse, "SELECT open, high, low, close FROM candles WHERE symbol = ? AND timeframe = '1h' ORDER BY opened_at", XRP)[
        -1
    ]
    opening, high, low, close = (3 * price for price in row)
    world.sandbox.correct(XRP, TIMEFRAMES["1h"], newest, open=opening, high=high, low=low, close=close)
    now.now += HOUR
    world.refresh()
    assert world.events("market_redenominated") == []
    assert world.events("market_data_corrected") == [([XRP], "1h", 1)]
    same_as_new(world, tmp_path / "new", [BTC, ETH, XRP])


def test_a_late_correction_is_found_kept_and_calculated_from_the_start(world: World, now: Clock, tmp_path: Path) -> None:
    standing = world.standings()[ETH, "1h"]
    assert standing.newest is not None
    close = rows(world.warehouse, "SELECT close FROM candles WHERE symbol = ? AND timeframe = '1h' ORDER BY opened_at", ETH)[-1][0]
    world.sandbox.correct(ETH, TIMEFRAMES["1h"], standing.newest, high=close * 1.02, close=close * 1.01, volume=1.5)
    now.now += HOUR
    requests = len(world.asked())
    world.refresh()
    assert len(world.asked()) - requests == 3  # one for each market's new hour: no request of its own for what was read again
    after = world.standings()[ETH, "1h"]
    assert after.revision > standing.revision
    kept = rows(world.warehouse, "SELECT symbol, timeframe, old_close, new_close, new_volume, revision FROM revisions")
    assert kept == [(ETH, "1h", close, close * 1.01, 1.5, after.revision)]
    assert world.events("market_data_corrected") == [([ETH], "1h", 1)]
    assert broken(world.warehouse) == []
    same_as_new(world, tmp_path / "new", [BTC, ETH, XRP])
    work = rows(world.warehouse, "SELECT incremental, from_start FROM work WHERE step = 'rsi' AND timeframe = '1h' ORDER BY rowid")
    assert work[-1] == (2, 1)  # the corrected market only


def test_a_maintenance_hole_is_one_in_every_market(home: Path, exchange: Sandbox, now: Clock, tmp_path: Path) -> None:
    from mdms_pipeline.store.slots import survey

    world = World(home, exchange)
    for at in ("11-11T15:30", "11-11T17:30", "11-11T19:30", "11-12T06:30"):  # before, twice in the middle of, and after 16:00 to 20:00
        now.now = instant(f"2026-{at}:00")
        assert world.refresh(instant("2026-11-08")).failed() == []
    with world.warehouse.read() as connection:
        found = survey(connection, "1h", world.standings().values(), now.now)
    assert found is not None
    assert found.holes == ((instant("2026-11-11T16:00:00"), instant("2026-11-11T20:00:00")),)
    assert found.maintenance.sum(axis=1).tolist() == [4, 4, 4]
    assert found.no_trade.sum() == found.unknown.sum() == 0
    assert {verdict for verdict, _, _ in world.ranking().values()} == {"passed"}
    # a page counts candles, not slots: over the four slots of the hole it reaches four further back
    same_as_new(world, tmp_path / "new", [BTC, ETH, XRP], instant("2026-11-08T04:00:00"))
