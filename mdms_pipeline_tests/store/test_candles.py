"""Pages in any order, any number of times: candles once, coverage without gaps, a revision for every growth backward."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdms_pipeline.market import Candles
from mdms_pipeline.store import schema
from mdms_pipeline.store.candles import (
    ABSENT,
    BEHIND,
    DELISTED,
    FAILED,
    FRESH,
    QUARANTINED,
    Page,
    Standing,
    last_checked,
    mark,
    standings,
    store_pages,
)
from mdms_pipeline.store.checks import BROKEN, broken_candles, stale
from mdms_pipeline.store.journal import events_after
from mdms_pipeline.store.universe import Market, store_universe
from mdms_pipeline_tests.support import HOUR, NOW, candles, page

BTC = ("KRW-BTC", "1h")
START = NOW // HOUR * HOUR - 100 * HOUR
BARS = 40


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with made() as found:
        yield found


def made() -> duckdb.DuckDBPyConnection:
    """The tables, in memory."""
    connection = duckdb.connect()
    schema.make(connection, "sandbox")
    return connection


def span(market: Candles, start: int, end: int) -> Page:
    """What an answer for the slots [start, end) of the market holds."""
    inside = (market.opened_at >= START + start * HOUR) & (market.opened_at < START + end * HOUR)
    return Page(*BTC, market[inside], (START + start * HOUR, START + end * HOUR))


@st.composite
def markets(draw: st.DrawFn) -> Candles:
    """Forty slots, some of them without a trade."""
    traded = np.array(draw(st.lists(st.booleans(), min_size=BARS, max_size=BARS)))
    return candles(START, BARS)[traded]


@st.composite
def growths(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Spans each of which adjoins or overlaps what those before it cover, some of them told again."""
    low = draw(st.integers(0, BARS - 1))
    high = draw(st.integers(low, BARS))
    spans = [(low, high)]
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, high))
        end = draw(st.integers(max(start, low), BARS))
        low, high = min(low, start), max(high, end)
        spans += [(start, end)] * draw(st.integers(1, 2))
    return spans


@settings(max_examples=30, deadline=None)
@given(markets(), growths(), st.data())
def test_any_growth_covers_and_stores_each_slot_once(market: Candles, spans: list[tuple[int, int]], data: st.DataObject) -> None:
    with made() as connection:
        backward, newest, low = 0, None, spans[0][0]
        cut = data.draw(st.integers(0, len(spans)))
        for batch in (spans[:cut], spans[cut:]):  # in two transactions
            store_pages(connection, [span(market, *ends) for ends in batch], NOW, NOW, None)
        for start, end in spans:
            new = span(market, start, min(low, end)).candles if start < low else market[:0]
            backward += bool(len(new)) and newest is not None
            low = min(low, start)
            newest = max([newest or 0, *span(market, start, end).candles.opened_at.tolist()]) or None
        high = max(end for _, end in spans)
        expected = span(market, low, high).candles
        found = connection.execute("SELECT epoch(opened_at)::BIGINT, close FROM candles ORDER BY ALL").fetchall()
        assert found == list(zip(expected.opened_at.tolist(), expected.close.tolist(), strict=True))
        covered = (START + low * HOUR, START + high * HOUR)
        oldest = min(expected.opened_at.tolist(), default=None)
        assert standings(connection)[BTC] == Standing(
            *BTC, FRESH, newest=newest, oldest=oldest, covered=covered, revision=backward, candles=len(expected), checked_at=NOW
        )
        assert [law for law in BROKEN if broken_candles(connection, law)] == []


def test_a_page_told_twice_changes_and_tells_nothing(connection: duckdb.DuckDBPyConnection) -> None:
    whole = page("KRW-BTC", candles(START, 10))
    assert store_pages(connection, [whole, whole], NOW, NOW, None) == {BTC: 10}
    assert store_pages(connection, [whole], NOW, NOW, None) == {BTC: 0}
    assert [(event.type, event.symbols, event.count) for event in events_after(connection, 0)] == [
        ("market_data_collected", ("KRW-BTC",), 10)
    ]


def test_a_page_that_does_not_adjoin_is_left_out(connection: duckdb.DuckDBPyConnection) -> None:
    """Two processes began at different instants: whoever comes second must not tear a gap, nor break."""
    market = candles(START, 40)
    store_pages(connection, [span(market, 10, 20)], NOW, NOW, None)
    assert store_pages(connection, [span(market, 30, 40), span(market, 0, 5), span(market, 20, 25)], NOW, NOW, None) == {BTC: 5}
    assert standings(connection)[BTC].covered == (START + 10 * HOUR, START + 25 * HOUR)
    assert [law for law in BROKEN if broken_candles(connection, law)] == []


def test_an_empty_first_answer_is_known_to_be_empty(connection: duckdb.DuckDBPyConnection) -> None:
    store_pages(connection, [Page(*BTC, Candles.empty(), (START, START), begins=True)], NOW, NOW, None)
    assert standings(connection)[BTC] == Standing(*BTC, FRESH, covered=(START, START), begins=True, checked_at=NOW)


def test_refused_candles_are_kept_apart_once(connection: duckdb.DuckDBPyConnection) -> None:
    market = candles(START, 3)
    market.close[2] = np.nan
    bad = Page(*BTC, market[:2], (START, START + 2 * HOUR), refused=market[2:], reason="a price that is not a number")
    store_pages(connection, [bad], NOW, NOW, None)
    store_pages(connection, [bad], NOW, NOW + HOUR, None)
    assert connection.execute("SELECT count(*), count(close), min(reason), epoch(max(refused_at))::BIGINT FROM quarantine").fetchall() == [
        (1, 0, "a price that is not a number", NOW + HOUR)
    ]
    standing = standings(connection)[BTC]
    assert (standing.state, standing.reason, standing.candles) == (QUARANTINED, "a price that is not a number", 2)


# ---- freshness


@pytest.mark.parametrize("state", [FAILED, QUARANTINED, DELISTED, ABSENT])
def test_only_what_is_fresh_falls_behind_by_itself(state: str) -> None:
    covered = (START, NOW // HOUR * HOUR)
    assert Standing(*BTC, FRESH, covered=covered).at(NOW) == FRESH
    assert Standing(*BTC, FRESH, covered=covered).at(covered[1] + HOUR - 1) == FRESH
    assert Standing(*BTC, FRESH, covered=covered).at(covered[1] + HOUR) == BEHIND
    assert Standing(*BTC, FRESH).at(NOW) == BEHIND  # nothing was ever covered
    assert Standing(*BTC, state, covered=covered).at(covered[1] + HOUR) == state


def test_stale_names_every_symbol_that_is_not_up_to_date(connection: duckdb.DuckDBPyConnection) -> None:
    symbols = ["KRW-A", "KRW-B", "KRW-C", "KRW-D", "KRW-E"]
    markets = [Market(symbol, symbol, symbol, False, 1.0) for symbol in symbols]
    store_universe(connection, markets, symbols[:4], "test", NOW)
    end = NOW // HOUR * HOUR
    bars = candles(end - 5 * HOUR, 5)
    store_pages(connection, [page("KRW-A", bars), page("KRW-B", bars[:4]), page("KRW-C", bars), page("KRW-D", bars)], NOW, NOW, None)
    mark(connection, {("KRW-C", "1h"): (FAILED, "answered 500"), ("KRW-D", "1h"): (DELISTED, "gone")}, NOW, None)
    assert stale(connection, ["1h"], NOW) == [("KRW-B", "1h", "behind"), ("KRW-C", "1h", "answered 500")]
    assert stale(connection, ["4h"], NOW)[0] == ("KRW-A", "4h", "never collected")
    assert stale(connection, ["1h"], end + HOUR + 1)[0][0] == "KRW-B"  # the slot is over, but has not settled
    assert stale(connection, ["1h"], end + HOUR + 2)[0] == ("KRW-A", "1h", "behind")


def test_a_mark_keeps_what_is_known(connection: duckdb.DuckDBPyConnection) -> None:
    store_pages(connection, [page("KRW-BTC", candles(START, 5))], NOW, NOW, None)
    mark(connection, {BTC: (FAILED, "answered 500"), ("KRW-NEW", "1h"): (FAILED, "answered 500")}, NOW + 1, None)
    known = standings(connection)
    assert (known[BTC].candles, known[BTC].newest, known[BTC].state) == (5, START + 4 * HOUR, FAILED)
    assert known["KRW-NEW", "1h"] == Standing("KRW-NEW", "1h", FAILED, "answered 500", checked_at=NOW + 1)
    assert last_checked(connection, "1h") == NOW + 1
    assert last_checked(connection, "4h") is None
    mark(connection, {}, NOW, None)
    assert standings(connection, []) == {}


def test_months_are_slots_like_any_other(connection: duckdb.DuckDBPyConnection) -> None:
    market = candles(1_577_836_800, 30, frame="1M")  # from 2020-01-01
    store_pages(connection, [page("KRW-BTC", market[12:], "1M"), page("KRW-BTC", market[:12], "1M")], NOW, NOW, None)
    standing = standings(connection)["KRW-BTC", "1M"]
    assert (standing.candles, standing.revision, standing.covered) == (30, 1, (1_577_836_800, 1_656_633_600))  # to 2022-07-01
    assert (standing.at(1_659_312_000 - 1), standing.at(1_659_312_000)) == (FRESH, BEHIND)  # all of July
