"""Which page next, and what an answer covers: pure, so that the laws can be tried on thousands of histories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdms_pipeline.collect.pages import Ask, impossible, next_ask, page_of
from mdms_pipeline.collect.wire import MAX_CANDLES
from mdms_pipeline.market import TIMEFRAMES, Candles, timeframe
from mdms_pipeline.store.candles import FRESH, QUARANTINED, Page, Standing, extended, outside
from mdms_pipeline_tests.support import HOUR, NOW, candles

START = NOW // HOUR * HOUR - 1_000 * HOUR
NEW = Standing("KRW-BTC", "1h", FRESH)


def answered(market: Candles, ask: Ask) -> Candles:
    """What the exchange says: the newest `count` candles that opened before `to`."""
    return market[market.opened_at < ask.to][-ask.count :]


def step(market: Candles, standing: Standing, end: int, history: int, stored: list[int]) -> tuple[Standing, bool]:
    """Ask for one page and store it; whether there was anything to ask for."""
    ask = next_ask(standing, end, history)
    if ask is None:
        return standing, False
    assert 0 < ask.count <= MAX_CANDLES
    page = page_of(standing, ask, answered(market, ask))
    new = outside(page.candles, standing.covered)
    stored += new.opened_at.tolist()
    return extended(standing, page, new, NOW), True


def fill(market: Candles, standing: Standing, end: int, history: int, stored: list[int], most: int = 1_000) -> Standing:
    """Page after page until nothing is missing, or for `most` pages: then something interrupts."""
    more = True
    while more and most:
        standing, more = step(market, standing, end, history, stored)
        most -= 1
    return standing


@st.composite
def histories(draw: st.DrawFn) -> Candles:
    """A market of up to 1,000 slots that trades in a part of them, from often to hardly ever, with a stretch in which nobody trades."""
    bars = draw(st.integers(1, 1_000))
    share = draw(st.sampled_from((1.0, 0.9, 0.3, 0.02)))
    traded = np.random.default_rng(draw(st.integers(0, 99))).random(bars) < share
    hole = draw(st.integers(0, bars))
    traded[hole : hole + draw(st.sampled_from((0, 5, 250)))] = False
    opened_at = START + HOUR * np.flatnonzero(traded)
    flat = np.full(len(opened_at), 100.0)
    return Candles(opened_at.astype(np.int64), flat, flat, flat, flat, flat, flat)


@settings(max_examples=200, deadline=None)
@given(histories(), st.integers(1, 700), st.lists(st.tuples(st.integers(1, 400), st.integers(0, 3)), max_size=6))
def test_refreshes_and_interruptions_leave_no_gap(market: Candles, history: int, refreshes: list[tuple[int, int]]) -> None:
    """Whatever is asked when, and wherever it breaks off: in the end every candle of the covered span is there, once."""
    standing, stored = NEW, []
    end = START + 300 * HOUR
    for slots, pages in refreshes:
        standing = fill(market, standing, end, history, stored, most=pages)
        if standing.covered:
            covered_from, covered_to = standing.covered
            inside = (market.opened_at >= covered_from) & (market.opened_at < covered_to)
            assert sorted(stored) == market.opened_at[inside].tolist()  # no gap, nothing twice, at any moment
        end = min(end + slots * HOUR, START + 1_000 * HOUR)
    standing = fill(market, standing, end, history, stored)
    assert next_ask(standing, end, history) is None
    assert standing.covered is not None
    assert standing.covered[1] == end
    assert sorted(stored) == market.opened_at[(market.opened_at >= standing.covered[0]) & (market.opened_at < end)].tolist()
    exist = int((market.opened_at < end).sum())
    assert standing.candles == len(stored) >= min(history, exist)
    if len(stored) < history:
        assert (standing.begins, len(stored)) == (True, exist)


def test_a_history_takes_as_few_requests_as_can_be() -> None:
    market, asked = candles(START, 700), 0
    standing = NEW
    while (ask := next_ask(standing, START + 700 * HOUR, 450)) is not None:
        page = page_of(standing, ask, answered(market, ask))
        standing = extended(standing, page, outside(page.candles, standing.covered), NOW)
        asked += 1
    assert (asked, standing.candles, standing.begins) == (3, 450, False)


def test_what_is_old_is_caught_up_oldest_first() -> None:
    standing = replace(NEW, covered=(START, START + 100 * HOUR), newest=START + 99 * HOUR, candles=100)
    end, ends = START + 600 * HOUR, []
    while (ask := next_ask(standing, end, 100)) is not None:
        page = page_of(standing, ask, answered(candles(START, 700), ask))
        assert page.covered[0] == standing.covered[1]
        standing = extended(standing, page, outside(page.candles, standing.covered), NOW)
        ends.append(standing.covered[1])
    assert ends == sorted(set(ends))
    assert (len(ends), ends[-1], standing.candles) == (3, end, 600)


@pytest.mark.parametrize("name", TIMEFRAMES)
def test_every_timeframe_pages_alike(name: str) -> None:
    frame = timeframe(name)
    first = frame.after(frame.floor(NOW), -310)
    market = candles(first, 310, frame=name)
    standing = Standing("KRW-BTC", name, FRESH)
    for end in (frame.after(first, 20), frame.after(first, 290), frame.floor(NOW)):
        while (ask := next_ask(standing, end, 1_000)) is not None:
            page = page_of(standing, ask, answered(market, ask))
            assert page.refused is None
            standing = extended(standing, page, outside(page.candles, standing.covered), NOW)
    assert (standing.candles, standing.covered, standing.begins) == (310, (first, frame.floor(NOW)), True)


# ---- candles that cannot be


def spoiled(market: Candles, at: int, **columns: float | str) -> Candles:
    """The same with one candle that has these values, or those of another column."""
    changed = {name: getattr(market, name).copy() for name in ("opened_at", "open", "high", "low", "close", "volume", "value")}
    for name, value in columns.items():
        changed[name][at] = changed[value][at] if isinstance(value, str) else value
    return Candles(**changed)


BAD = {
    "high below": {"high": 1.0},
    "low above": {"low": "high"},
    "a price that is not a number above 0 (zero)": {"close": 0.0},
    "a price that is not a number above 0 (negative)": {"open": -5.0},
    "a price that is not a number above 0 (NaN)": {"high": np.nan},
    "a price that is not a number above 0 (inf)": {"high": np.inf},
    "an amount that is not a number (negative)": {"volume": -1.0},
    "an amount that is not a number (NaN)": {"value": np.nan},
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("at", [0, 5, 9])
def test_a_forward_page_ends_before_what_cannot_be(kind: str, at: int) -> None:
    market = spoiled(candles(START, 10), at, **BAD[kind])
    standing = replace(NEW, covered=(START - HOUR, START))
    page = page_of(standing, Ask(START + 10 * HOUR, 10, START), market)
    assert page.covered == (START, START + at * HOUR)
    assert page.candles.opened_at.tolist() == market.opened_at[:at].tolist()
    assert page.refused is not None
    assert page.refused.opened_at.tolist() == [START + at * HOUR]
    assert str(page.reason).startswith(kind.split(" (")[0])
    assert str(page.reason).endswith(f"at {np.datetime64(START + at * HOUR, 's')}Z")


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("at", [0, 5, 9])
def test_a_backward_page_begins_after_what_cannot_be(kind: str, at: int) -> None:
    market = spoiled(candles(START, 10), at, **BAD[kind])
    page = page_of(NEW, Ask(START + 10 * HOUR, 200, None), market)
    assert page.covered == (START + (at + 1) * HOUR, START + 10 * HOUR)
    assert page.candles.opened_at.tolist() == market.opened_at[at + 1 :].tolist()
    assert not page.begins


@pytest.mark.parametrize(
    ("opened_at", "reason"),
    [
        ([0, HOUR, HOUR, 2 * HOUR], "twice in one answer"),
        ([0, HOUR + 60, 2 * HOUR], "not at the opening of a slot"),
        ([0, HOUR, 3 * HOUR], "newer than asked for"),
    ],
)
def test_odd_times_are_refused(opened_at: list[int], reason: str) -> None:
    times = np.array(opened_at, dtype=np.int64) + START
    market = replace(candles(START, len(times)), opened_at=times)
    bad, said = impossible(market, "1h", START + 3 * HOUR)
    assert bad.any()
    assert str(said).startswith(reason)


def heals(bad: Candles, good: Candles, standing: Standing) -> Standing:
    """Ask while it is bad, again while it still is, and once it is good."""
    for market in (bad, bad, good):
        ask = next_ask(standing, START + 50 * HOUR, 50)
        while ask is not None:
            page: Page = page_of(standing, ask, answered(market, ask))
            standing = extended(standing, page, outside(page.candles, standing.covered), NOW)
            ask = None if page.refused is not None else next_ask(standing, START + 50 * HOUR, 50)
        assert standing.state == (FRESH if market is good else QUARANTINED)
    return standing


@pytest.mark.parametrize("at", [10, 20, 49])
@pytest.mark.parametrize("covered", [None, (START, START), (START, START + 10 * HOUR)])
def test_once_the_exchange_mends_it_nothing_is_missing(at: int, covered: tuple[int, int] | None) -> None:
    good = candles(START, 50)
    held = 0 if covered is None else (covered[1] - covered[0]) // HOUR
    newest = None if not held else START + (held - 1) * HOUR
    standing = heals(spoiled(good, at, close=0.0), good, replace(NEW, covered=covered, candles=held, newest=newest, begins=bool(covered)))
    assert (standing.covered, standing.candles) == ((START, START + 50 * HOUR), 50)
