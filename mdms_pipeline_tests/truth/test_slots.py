"""What every slot is, held to the exchange's own truth; the picture; what holes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mdms_pipeline.heatmap import colours, picture
from mdms_pipeline.market import SETTLE, TIMEFRAMES, instant
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.slots import FORMING, NO_TRADE, TRADED, UNKNOWN, Survey, classify, survey
from mdms_pipeline_tests.support import Clock, collect

QUIET = "KRW-META"  # a market that often has no trade in a minute
MARKETS = (QUIET, "KRW-BTC", "KRW-ETH")


@pytest.mark.parametrize("name", ["1m", "1h", "1M"])
def test_each_slot_is_what_the_exchange_says(warehouse: Warehouse, exchange: Sandbox, now: Clock, name: str) -> None:
    frame = TIMEFRAMES[name]
    collect(warehouse, exchange, [(QUIET, name)], 300)
    from mdms_pipeline.store.candles import standings

    now.now += 5 * (frame.seconds or 30 * 86_400)  # five slots pass unasked
    with warehouse.read() as connection:
        standing = standings(connection)[QUIET, name]
        opened_at = np.array([at for (at,) in connection.execute("SELECT epoch(opened_at)::BIGINT FROM candles ORDER BY 1").fetchall()])
        assert standing.covered is not None
        start = standing.covered[0]
        counted = survey(connection, name, [standing], now.now, start)
    kinds = classify(standing, opened_at, start, now.now)
    truth = set(exchange.candles(QUIET, frame, int(now.now) + 1, 1_000).opened_at.tolist())
    for at, kind in kinds.items():
        closed = frame.after(at) <= now.now - SETTLE
        asked = at < standing.covered[1]
        assert kind == (FORMING if not closed else UNKNOWN if not asked else TRADED if at in truth else NO_TRADE), at
    assert list(kinds) == [frame.after(start, i) for i in range(len(kinds))]
    assert len([kind for kind in kinds.values() if kind == UNKNOWN]) == pytest.approx(5, abs=1)
    assert counted is not None
    row = counted.rows()[0]
    assert {kind: row[kind.replace(" ", "_")] for kind in (TRADED, NO_TRADE, UNKNOWN, FORMING)} == {
        kind: list(kinds.values()).count(kind) for kind in (TRADED, NO_TRADE, UNKNOWN, FORMING)
    }
    if name == "1m":
        assert list(kinds.values()).count(NO_TRADE) > 0


def test_a_hole_needs_more_than_a_quiet_market(warehouse: Warehouse, exchange: Sandbox, now: Clock) -> None:
    from mdms_pipeline.store.candles import standings

    now.now = instant("2026-11-11T21:00:20")
    collect(warehouse, exchange, [(symbol, "1m") for symbol in MARKETS], 600)
    with warehouse.read() as connection:
        known = list(standings(connection).values())
        alone = survey(connection, "1m", [row for row in known if row.symbol == QUIET], now.now)
        together = survey(connection, "1m", known, now.now)
    assert alone is not None
    assert together is not None
    assert alone.holes == ()
    assert together.holes == ((instant("2026-11-11T16:00"), instant("2026-11-11T20:00")),)
    assert together.maintenance.sum(axis=1).tolist() == [240] * 3
    assert (together.no_trade >= 0).all()


def test_the_picture_shows_what_is_unknown_in_red(warehouse: Warehouse, exchange: Sandbox, now: Clock, tmp_path: Path) -> None:
    from mdms_pipeline.store.candles import standings

    collect(warehouse, exchange, [(symbol, "1h") for symbol in MARKETS], 60)
    collect(warehouse, exchange, [("KRW-BTC", "1h")], 120)
    with warehouse.read() as connection:
        found = survey(connection, "1h", standings(connection).values(), now.now)
    assert found is not None
    image = colours(found)
    rows = dict(zip(found.symbols, image, strict=True))
    assert rows["KRW-ETH"][0, 0] > 0.8 > rows["KRW-BTC"][0, 0]  # red, and blue
    assert rows["KRW-ETH"][-1, 2] > 0.5  # the newest slots are known of both
    assert picture([found]).startswith(b"\x89PNG")


def test_one_slot_that_is_missing_among_hundreds_is_seen() -> None:
    ones = np.ones((1, 3), dtype=np.int64)
    missing, hole = np.array([[0, 1, 0]]), np.array([[0, 0, 1]])
    found = Survey("1h", ("KRW-BTC",), np.arange(4), 500 * ones, 500 - missing, 500 - missing - hole, hole, np.zeros(1, np.int64), ())
    whole, unknown, maintenance = colours(found)[0]
    assert unknown[0] > 0.6 > whole[0]
    assert maintenance[0] > 0.6 > whole[0]
    assert maintenance[1] > unknown[1] + 0.2  # amber, not red
