"""Differences that were planted are found, named and repaired; finer candles add up to coarser ones; the arithmetic of capacity."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdms_pipeline.collect.capacity import OverCapacity, capacity, check_capacity
from mdms_pipeline.market import TIMEFRAMES, iso
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.store.checks import pairs, unreconciled
from mdms_pipeline_tests.support import Clock, broken, rows, settings
from mdms_pipeline_tests.truth.world import World, same_as_new

BTC, ETH, XRP = "KRW-BTC", "KRW-ETH", "KRW-XRP"


@pytest.fixture
def world(home: Path, exchange: Sandbox) -> World:
    made = World(home, exchange)
    made.refresh()
    return made


def test_nothing_differs_where_nothing_was_changed(world: World) -> None:
    found = world.verify()
    assert (found.asked, found.differing, found.unread) == (found.pages, 0, {})
    assert found.candles == rows(world.warehouse, "SELECT count(*) FROM candles")[0][0]
    assert world.verify(sample=2).asked == 2


def test_planted_differences_are_found_and_repaired(world: World, exchange: Sandbox, tmp_path: Path) -> None:
    opened_at = [
        at
        for (at,) in rows(
            world.warehouse, "SELECT epoch(opened_at)::BIGINT FROM candles WHERE symbol = ? AND timeframe = '1h' ORDER BY 1", ETH
        )
    ]
    exchange.correct(ETH, TIMEFRAMES["1h"], opened_at[20], volume=3.25)  # another value
    with world.warehouse.write() as connection:  # one less and one more than the exchange has
        connection.execute(
            "DELETE FROM candles WHERE symbol = ? AND timeframe = '1h' AND opened_at = make_timestamp(?::BIGINT * 1000000)",
            [ETH, opened_at[50]],
        )
    found = world.verify()
    named = sorted((change.opened_at, change.symbol, change.timeframe) for change in found.changes)
    assert named == [(opened_at[20], ETH, "1h"), (opened_at[50], ETH, "1h")]
    assert next(change for change in found.changes if change.opened_at == opened_at[50]).old is None
    before = world.standings()[ETH, "1h"].revision
    assert world.verify(repair=True).repaired == 2
    assert world.standings()[ETH, "1h"].revision == before + 1
    assert world.verify().differing == 0
    assert broken(world.warehouse) == []
    world.refresh()
    same_as_new(world, tmp_path / "new", [BTC, ETH, XRP])


def test_a_redenomination_is_named_as_one_and_repaired_by_collecting_again(world: World, exchange: Sandbox, tmp_path: Path) -> None:
    exchange.redenominate(XRP, 100)
    found = world.verify()
    assert found.rescaled == {(XRP, "1h"): pytest.approx(100), (XRP, "1d"): pytest.approx(100)}
    world.verify(repair=True)
    world.refresh(since=None)
    assert world.verify().differing == 0
    same_as_new(world, tmp_path / "new", [BTC, ETH, XRP])


def test_a_delisted_market_is_said_not_to_be_read(world: World, exchange: Sandbox, now: Clock) -> None:
    exchange.delist(XRP)
    now.now += 7_200
    world.refresh()
    found = world.verify()
    assert set(found.unread) == {(XRP, "1h"), (XRP, "1d")}
    assert found.differing == 0


def test_finer_candles_add_up_and_a_planted_difference_is_named(home: Path, exchange: Sandbox) -> None:
    world = World(home, exchange, "KRW-BTC,KRW-META", "1m,5m,1h,4h,1d,1w")
    world.collect()
    with world.warehouse.read() as connection:
        assert unreconciled(connection) == []
    at = rows(world.warehouse, "SELECT epoch(opened_at)::BIGINT FROM candles WHERE symbol = 'KRW-BTC' AND timeframe = '5m' ORDER BY 1")[
        600
    ][0]
    where = f"symbol = 'KRW-BTC' AND opened_at = make_timestamp({at}::BIGINT * 1000000)"
    with world.warehouse.write() as connection:
        connection.execute(f"UPDATE candles SET volume = volume + 1e-8, high = high + 1000 WHERE {where} AND timeframe = '5m'")
    with world.warehouse.read() as connection:
        found = unreconciled(connection)
    assert (found[0].symbol, found[0].timeframe, found[0].finer, iso(found[0].opened_at)) == ("KRW-BTC", "5m", "1m", iso(at))
    assert found[0].columns == ("high", "volume")
    with world.warehouse.write() as connection:
        connection.execute(f"DELETE FROM candles WHERE {where} AND timeframe = '5m'")
    with world.warehouse.read() as connection:
        assert "1m has" in unreconciled(connection)[0].said


def test_each_timeframe_is_made_of_the_coarsest_that_fits() -> None:
    assert pairs(["1m", "3m", "5m", "10m", "1h"]) == [("1m", "3m"), ("1m", "5m"), ("5m", "10m"), ("10m", "1h")]
    assert pairs(["4h", "1d", "1w", "1M"]) == [("4h", "1d"), ("1d", "1w"), ("1d", "1M")]
    assert pairs(["1w", "1M"]) == []


def test_capacity_is_the_arithmetic_of_the_steady_state(tmp_path: Path) -> None:
    minutes = capacity(289, ["1m"])
    assert (round(minutes.per_second, 2), round(minutes.share, 2)) == (4.82, 0.48)
    assert minutes.arithmetic == "289 markets x 1m 1/60 s = 4.82 requests/s of 10/s = 48%"
    ten = capacity(289, list(TIMEFRAMES)[:10])
    assert (ten.peak, ten.peak_seconds) == (2_890, 289.0)
    names = ",".join(list(TIMEFRAMES)[:10])
    with pytest.raises(OverCapacity, match=r"289 markets x \(1m 1/60 s .* = 85%"):
        check_capacity(settings(tmp_path, "top:289", names))
    assert check_capacity(settings(tmp_path, "top:1000", "1m"), listed=289).markets == 289
    assert check_capacity(settings(tmp_path, "top:120", names)).share < 0.4


SCRIPT = """
import hashlib, sys, time
from pathlib import Path
time.tzset()
sys.path.insert(0, {root!r})
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline_tests.support import Clock
from mdms_pipeline_tests.truth.world import World, few
clock = Clock()
world = World(Path(sys.argv[1]), few(Sandbox(clock=clock)), "KRW-BTC,KRW-META", "1h,1M")
world.refresh()
clock.now += 86_400
world.refresh()
said = "(SELECT type, timeframe, happened_at, sum(count) AS count FROM events GROUP BY ALL)"  # how pages meet in a commit is chance
tables = ("candles", "coverage", "indicators", "rsi", "macd", "screen_results", said, "symbols")
with world.warehouse.read() as connection:
    for table in tables:
        rows = connection.execute(f"SELECT * FROM {{table}} ORDER BY ALL").fetchall()
        print(table, len(rows), hashlib.sha256(repr(rows).encode()).hexdigest()[:12])
"""


def test_the_host_s_time_zone_changes_nothing(tmp_path: Path) -> None:
    root, said = str(Path(__file__).parents[2]), {}
    for zone in ("Asia/Seoul", "UTC", "America/New_York"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(root=root), str(tmp_path / zone.replace("/", "_"))],
            env={**os.environ, "TZ": zone}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said[zone] = done.stdout
    assert said["UTC"].startswith("candles ")
    assert len(set(said.values())) == 1, said
