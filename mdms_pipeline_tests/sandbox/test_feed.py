"""What a subscription is told is what REST answers, to the bit, however the clock jumps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdms_pipeline.market import DAY, HOUR, MINUTE, TIMEFRAMES, Timeframe, iso
from mdms_pipeline.sandbox import SECOND, Sandbox
from mdms_pipeline.sandbox.feed import CANDLES, ONE_SECOND, STRIDE, TYPES, Feed, strides
from mdms_pipeline.sandbox.messages import Message
from mdms_pipeline.sandbox.model import LAST_MS, SLOT, VOLUME, regroup

from .conftest import NOW, Clock

BUSY, QUIET = "KRW-BTC", "KRW-CBK"  # the second is not traded every minute
NAMES = ("opening_price", "high_price", "low_price", "trade_price", "candle_acc_trade_volume", "candle_acc_trade_price")
Row = tuple[float, ...]

steps = st.lists(st.one_of(st.floats(0.001, 90), st.floats(90, 9 * HOUR)), min_size=1, max_size=6)


def world(now: float = NOW) -> tuple[Sandbox, Clock]:
    clock = Clock(now)
    return Sandbox(seed=7, clock=clock), clock


def news(feed: Feed) -> list[Message]:
    return [message for told in feed.news() for message in told]


def told_row(message: Message) -> Row:
    return (message.opened_at, *(message.row[name] for name in NAMES), message.row["timestamp"])


def rest(sandbox: Sandbox, code: str, frame: Timeframe, since: float) -> dict[int, Row]:
    """REST's candles that were open at `since` or opened later: opening instant -> row."""
    now = int(sandbox.clock())
    count = (now - int(since)) // (frame.seconds or DAY) + 2
    candles, last_ms = sandbox.bars(code, frame, now + 1, count)
    columns = (candles.opened_at, candles.open, candles.high, candles.low, candles.close, candles.volume, candles.value, last_ms)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {row[0]: row for row in rows if frame.after(row[0]) > since}


def last_told(messages: Sequence[Message]) -> dict[tuple[str, str], dict[int, Row]]:
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for message in messages:
        found.setdefault((message.code, message.type), {})[message.opened_at] = told_row(message)
    return found


# ---- the law


@settings(max_examples=25, deadline=None)
@given(steps)
def test_the_last_message_of_every_candle_is_what_rest_answers(jumps: list[float]) -> None:
    sandbox, clock = world()
    feed = Feed(sandbox, {kind: [BUSY, QUIET] for kind in CANDLES})
    told = feed.snapshot(CANDLES)
    for jump in jumps:
        clock.now += jump
        told += news(feed)
    found = last_told(told)
    for kind, frame in CANDLES.items():
        for code in (BUSY, QUIET):
            expected = rest(sandbox, code, frame, NOW)
            assert {at: row for at, row in found[code, kind].items() if frame.after(at) > NOW} == expected, (code, kind)


def test_the_law_would_notice_a_missing_final_state() -> None:
    """The same comparison, but with the messages of the candles that closed left out: it must fail."""
    sandbox, clock = world()
    feed = Feed(sandbox, {"candle.1m": [BUSY]})
    told = feed.snapshot(CANDLES)
    clock.now += 3 * MINUTE
    told += [message for message in news(feed) if not message.final]
    assert last_told(told)[BUSY, "candle.1m"] != rest(sandbox, BUSY, TIMEFRAMES["1m"], NOW)


@settings(max_examples=15, deadline=None)
@given(steps)
def test_candles_of_one_second_and_trades(jumps: list[float]) -> None:
    jumps = [min(jump, 900.0) for jump in jumps]
    sandbox, clock = world()
    feed = Feed(sandbox, {ONE_SECOND: [BUSY], "trade": [BUSY]})
    told = []
    for jump in jumps:
        clock.now += jump
        told += news(feed)
    expected = [row for row in rest(sandbox, BUSY, SECOND, NOW).values() if row[-1] > NOW * 1000]
    assert [told_row(message) for message in told if message.type == ONE_SECOND] == expected
    trades = [message.row for message in told if message.type == "trade"]
    assert [(row["trade_price"], row["trade_volume"], row["timestamp"]) for row in trades] == [
        (row[4], row[5], row[-1]) for row in expected
    ]
    assert len({row["sequential_id"] for row in trades}) == len(trades)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_strides_end_now_and_stop_where_candles_open(seen_ms: int, ahead_ms: int) -> None:
    ahead_ms %= 5 * STRIDE * 1000
    found = list(strides(seen_ms, seen_ms + ahead_ms))
    assert found == sorted(set(found))
    assert found[-1:] == ([seen_ms + ahead_ms] if ahead_ms else [])
    assert all((ms + 1) % (STRIDE * 1000) == 0 for ms in found[:-1])
    ends = [seen_ms, *found]
    assert all((late - early) <= STRIDE * 1000 for early, late in itertools.pairwise(ends))


@pytest.mark.parametrize("code", [BUSY, QUIET, "KRW-SATS", "USDT-BTC"])
def test_minutes_regrouped_are_what_the_kernel_adds_up(code: str) -> None:
    sandbox, _ = world()
    market, start, cut_ms = sandbox.market(code), int(NOW) // DAY * DAY, int(NOW * 1000)
    minutes = sandbox.trading(market, MINUTE, start, cut_ms)
    rows = regroup(minutes, np.array([frame.seconds for frame in CANDLES.values()]), 0)
    for k, frame in enumerate(CANDLES.values()):
        assert frame.seconds is not None
        expected = sandbox.trading(market, frame.seconds, start, cut_ms)
        assert (rows[rows[:, SLOT] == k][:, :SLOT] == expected[expected[:, VOLUME] > 0]).all()


# ---- when there is something to tell


def test_nothing_is_told_where_nothing_was_traded() -> None:
    sandbox, clock = world()
    feed = Feed(sandbox, {kind: [BUSY, QUIET] for kind in TYPES})
    assert news(feed) == []
    clock.now += 120
    assert {message.code for message in news(feed)} >= {BUSY}
    assert news(feed) == []
    clock.now -= 60  # set back
    assert news(feed) == []


def test_a_candle_is_told_once_a_look_and_its_final_state_even_if_a_newer_one_is_open() -> None:
    sandbox, clock = world()
    feed = Feed(sandbox, {"candle.1m": [BUSY], "candle.60m": [BUSY]})
    clock.now += 120
    found = news(feed)
    names = [(message.type, message.opened_at - int(NOW) // 60 * 60, message.final) for message in found]
    assert sorted(names) == [("candle.1m", 0, True), ("candle.1m", 60, True), ("candle.1m", 120, False), ("candle.60m", -1800, False)]
    assert [message.last_ms for message in found] == sorted(message.last_ms for message in found)


def test_the_snapshot_of_a_candle_without_a_trade_is_the_one_before() -> None:
    sandbox, clock = world(int(NOW) // 60 * 60)
    assert sandbox.bars(QUIET, TIMEFRAMES["1m"], int(clock.now) + 1, 1)[0].opened_at[0] < clock.now
    (message,) = Feed(sandbox, {"candle.1m": [QUIET]}).snapshot(["candle.1m"])
    assert message.final
    assert message.opened_at < clock.now


def test_codes_that_are_nobodys_are_passed_over_in_silence() -> None:
    sandbox, clock = world()
    feed = Feed(sandbox, {kind: ["KRW-NOPE", "krw-btc", "", BUSY] for kind in TYPES})
    told = feed.snapshot(TYPES)
    clock.now += 120
    assert {message.code for message in [*told, *news(feed)]} == {BUSY}


def test_a_code_named_twice_is_told_once() -> None:
    sandbox, _ = world()
    assert len(Feed(sandbox, {"candle.1m": [BUSY, BUSY]}).snapshot(["candle.1m"])) == 1


def test_a_market_that_is_delisted_is_told_to_its_end() -> None:
    sandbox, clock = world()
    feed = Feed(sandbox, {"candle.1m": [BUSY]})
    gone = int(NOW) // 60 * 60 + 2 * MINUTE
    expected = rest(*_ahead(gone - 1), TIMEFRAMES["1m"], NOW)  # of another sandbox, which knows of no delisting
    sandbox.delist(BUSY, gone)
    clock.now = gone + 600
    found = last_told(news(feed))[BUSY, "candle.1m"]
    assert max(found) == gone - MINUTE
    assert found.items() <= expected.items()
    clock.now += 600
    assert news(feed) == []
    assert Feed(sandbox, {kind: [BUSY] for kind in TYPES}).snapshot(TYPES) == []


def _ahead(now: float) -> tuple[Sandbox, str]:
    return world(now)[0], BUSY


def test_a_market_that_is_listed_later_is_told_from_its_first_trade() -> None:
    sandbox, clock = world()
    sandbox.listing("KRW-NEW", price=500.0, turnover=1e12)
    feed = Feed(sandbox, {"candle.1m": ["KRW-NEW"]})
    assert feed.snapshot(["candle.1m"]) == []
    clock.now += 300
    assert last_told(news(feed))["KRW-NEW", "candle.1m"] == rest(sandbox, "KRW-NEW", TIMEFRAMES["1m"], NOW)


def test_a_correction_is_told_again_and_rest_agrees() -> None:
    sandbox, clock = world()
    feed = Feed(sandbox, {"candle.1m": [BUSY, "KRW-ETH"], "candle.60m": [BUSY]})
    minute = int(NOW) // 60 * 60
    clock.now += 120
    news(feed)
    sandbox.correct(BUSY, TIMEFRAMES["1m"], minute, close=1.5)
    (message,) = news(feed)
    assert (message.type, message.code, message.opened_at, message.final) == ("candle.1m", BUSY, minute, True)
    assert message.row["trade_price"] == 1.5
    assert told_row(message) == rest(sandbox, BUSY, TIMEFRAMES["1m"], NOW)[minute]
    assert news(feed) == []


def test_a_correction_of_the_forming_candle_is_in_its_next_message() -> None:
    sandbox, clock = world()
    feed = Feed(sandbox, {"candle.60m": [BUSY]})
    hour = int(NOW) // HOUR * HOUR
    sandbox.correct(BUSY, TIMEFRAMES["1h"], hour, high=9e9)
    clock.now += 120
    assert [message.row["high_price"] for message in news(feed)] == [9e9, 9e9]  # by a trade, and as a correction


def test_a_redenomination_has_rests_bits() -> None:
    sandbox, clock = world()
    feed = Feed(sandbox, {"candle.1m": [QUIET]})
    sandbox.redenominate(QUIET, 10)
    clock.now += 3600
    assert last_told(news(feed))[QUIET, "candle.1m"].items() <= rest(sandbox, QUIET, TIMEFRAMES["1m"], NOW).items()


# ---- what is told of a ticker


def test_a_ticker_is_rests_ticker() -> None:
    sandbox, clock = world()
    feed = Feed(sandbox, {"ticker": [BUSY]})
    before = feed.snapshot(["ticker"])[0].row
    clock.now += 60
    (message,) = news(feed)
    ticker = sandbox.ticker(BUSY)
    assert ticker is not None
    names = {"trade_price": ticker.close, "acc_trade_price_24h": ticker.value_24h, "timestamp": ticker.traded_ms}
    assert {name: message.row[name] for name in names} == names
    assert before["timestamp"] < message.row["timestamp"]
    assert message.row["acc_ask_volume"] + message.row["acc_bid_volume"] == pytest.approx(message.row["acc_trade_volume"])


def test_a_ticker_says_when_its_market_will_be_delisted() -> None:
    sandbox, _ = world()

    def date(code: str) -> Any:
        return Feed(sandbox, {"ticker": [code]}).snapshot(["ticker"])[0].row["delisting_date"]

    assert date("KRW-ICX") == {"year": 2026, "month": 12, "day": 18}
    assert date(BUSY) is None


def test_times_are_spelled_in_utc_and_kst() -> None:
    sandbox, _ = world()
    row = Feed(sandbox, {"candle.240m": [BUSY]}).snapshot(["candle.240m"])[0].row
    opened_at = int(NOW) // (4 * HOUR) * 4 * HOUR
    assert row["candle_date_time_utc"] == iso(opened_at)[:-1]
    assert row["candle_date_time_kst"] == iso(opened_at + 9 * HOUR)[:-1]


def test_last_ms_is_of_the_present_row() -> None:
    """LAST_MS decides what is news, so it must be the newest trade's own."""
    sandbox, clock = world()
    clock.now += 33.25
    minutes = sandbox.trading(sandbox.market(BUSY), MINUTE, int(NOW) // 60 * 60, int(clock.now * 1000))
    assert minutes[:, LAST_MS].max() <= clock.now * 1000
