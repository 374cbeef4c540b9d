"""The exchange at the clock's instant: listing, delisting and the knobs for tests."""

from __future__ import annotations

import numpy as np
import pytest

from mdms_pipeline.market import DAY, HOUR, MINUTE, TIMEFRAMES, instant
from mdms_pipeline.sandbox import Sandbox, UnknownMarket
from mdms_pipeline.sandbox.limits import BLOCK, MERCY, PATIENCE, REFUSALS, Limits
from mdms_pipeline.sandbox.model import VALUE, VOLUME

from .conftest import NOW, Clock

MINUTES, DAYS, MONTHS = TIMEFRAMES["1m"], TIMEFRAMES["1d"], TIMEFRAMES["1M"]


def codes(sandbox: Sandbox) -> list[str]:
    return [market.code for market in sandbox.markets()]


def test_the_world_holds_enough_krw_markets_and_a_few_others(sandbox: Sandbox) -> None:
    quotes = [market.quote for market in sandbox.markets()]
    assert quotes.count("KRW") >= 150
    assert 1 <= len(quotes) - quotes.count("KRW") <= 10
    assert codes(sandbox)[:3] == ["KRW-BTC", "KRW-ETH", "KRW-XRP"]
    names = [(market.korean_name, market.english_name) for market in sandbox.markets() if market.quote == "KRW"]
    assert len(set(names)) == len(names)


def test_the_first_minute_tells_the_listing(sandbox: Sandbox) -> None:
    for market in sandbox.markets():
        opened = sandbox.candles(market.code, MINUTES, market.listed_at + 3 * HOUR, 1_000).opened_at
        assert opened[0] == market.listed_at
        assert len(sandbox.candles(market.code, MINUTES, market.listed_at, 5)) == 0


def test_bitcoin_reaches_back_to_2017(sandbox: Sandbox) -> None:
    first = sandbox.candles("KRW-BTC", DAYS, int(NOW), 10_000)
    assert first.opened_at[0] == instant("2017-09-25")
    assert len(sandbox.candles("KRW-BTC", MONTHS, int(NOW) + 1, 1_000)) == 9 * 12 + 3  # 2017-09 to 2026-11


def test_the_world_goes_on_living() -> None:
    now, later = Sandbox(clock=Clock(NOW)), Sandbox(clock=Clock(NOW + 400 * DAY))
    assert {"KRW-KAS", "KRW-TAO"} <= set(codes(now))  # listed this month
    assert set(codes(later)) - set(codes(now)) >= {"KRW-FET", "KRW-JUP"}
    assert set(codes(now)) - set(codes(later)) >= {"KRW-ICX", "KRW-FCT2"}


def test_an_unlisted_market_is_unknown(sandbox: Sandbox) -> None:
    for code in ("KRW-NOPE", "KRW-FET", "KRW-WAVES", "krw-btc"):  # never, not yet, no more, misspelled
        with pytest.raises(UnknownMarket, match=code):
            sandbox.candles(code, DAYS, int(NOW), 1)


def test_delisting_comes_at_its_instant_and_is_warned_of(sandbox: Sandbox, clock: Clock) -> None:
    sandbox.delist("KRW-ETH", int(NOW) + 40 * DAY)
    warnings = []
    for days in (0, 20, 39):
        clock.now = NOW + days * DAY
        warnings.append(next(m.warning for m in sandbox.markets() if m.code == "KRW-ETH"))
    assert warnings == [False, True, True]
    assert len(sandbox.candles("KRW-ETH", DAYS, int(clock.now), 5)) == 5
    clock.now = NOW + 40 * DAY
    assert "KRW-ETH" not in codes(sandbox)
    with pytest.raises(UnknownMarket):
        sandbox.candles("KRW-ETH", DAYS, int(NOW), 5)
    with pytest.raises(UnknownMarket):
        sandbox.ticker("KRW-ETH")


def test_listing_begins_at_the_next_minute_or_at_its_instant(sandbox: Sandbox, clock: Clock) -> None:
    sandbox.listing("KRW-NEW", price=250.0)
    sandbox.listing("KRW-LATER", price=250.0, at=int(NOW) // MINUTE * MINUTE + 2 * DAY)
    assert {"KRW-NEW", "KRW-LATER"}.isdisjoint(codes(sandbox))
    clock.now = NOW + MINUTE
    assert "KRW-NEW" in codes(sandbox)
    assert sandbox.ticker("KRW-NEW") is not None
    assert len(sandbox.candles("KRW-NEW", MINUTES, int(clock.now) + 1, 200)) == 1
    clock.now = NOW + 3 * DAY
    assert "KRW-LATER" in codes(sandbox)
    with pytest.raises(ValueError, match="KRW-NEW"):
        sandbox.listing("KRW-NEW", price=1.0)


def test_a_rename_carries_the_whole_history(sandbox: Sandbox) -> None:
    before = sandbox.candles("KRW-POL", DAYS, int(NOW), 50)
    place = codes(sandbox).index("KRW-POL")
    sandbox.rename("KRW-POL", "KRW-MATIC")
    after = sandbox.candles("KRW-MATIC", DAYS, int(NOW), 50)
    assert codes(sandbox)[place] == "KRW-MATIC"
    assert all(np.array_equal(getattr(before, name), getattr(after, name)) for name in ("opened_at", "open", "volume", "value"))
    with pytest.raises(UnknownMarket):
        sandbox.candles("KRW-POL", DAYS, int(NOW), 1)


@pytest.mark.parametrize("code", ["KRW-BTC", "KRW-BTT", "KRW-DOGE"])
def test_a_redenomination_scales_the_whole_history(code: str, sandbox: Sandbox) -> None:
    before, ticker = sandbox.candles(code, DAYS, int(NOW), 50), sandbox.ticker(code)
    sandbox.redenominate(code, 1_000)
    after, scaled = sandbox.candles(code, DAYS, int(NOW), 50), sandbox.ticker(code)
    np.testing.assert_allclose(after.close, before.close * 1_000, rtol=1e-15)
    np.testing.assert_allclose(after.volume * 1_000, before.volume, rtol=1e-15)
    assert after.value.tolist() == before.value.tolist()
    assert ticker is not None
    assert scaled is not None
    assert scaled.high_52w == pytest.approx(ticker.high_52w * 1_000, rel=1e-15)
    assert scaled.value_24h == ticker.value_24h


def test_a_late_correction_changes_one_candle_only(sandbox: Sandbox) -> None:
    before = sandbox.candles("KRW-BTC", MINUTES, int(NOW), 5)
    at = int(before.opened_at[2])
    sandbox.correct("KRW-BTC", MINUTES, at, close=123.0, volume=4.0)
    after = sandbox.candles("KRW-BTC", MINUTES, int(NOW), 5)
    assert (after.close[2], after.volume[2], after.open[2]) == (123.0, 4.0, before.open[2])
    assert np.delete(after.close, 2).tolist() == np.delete(before.close, 2).tolist()
    assert sandbox.candles("KRW-BTC", TIMEFRAMES["3m"], int(NOW), 1).close[0] != 123.0
    with pytest.raises(ValueError, match="color"):
        sandbox.correct("KRW-BTC", MINUTES, at, color=1.0)


def test_a_ticker_agrees_with_the_candles(sandbox: Sandbox, clock: Clock) -> None:
    clock.now = float(int(NOW) // MINUTE * MINUTE) - 0.001  # a whole number of minutes has passed
    for code in ("KRW-BTC", "KRW-XRP", "KRW-FCT2", "KRW-KAS", "USDT-BTC"):
        ticker = sandbox.ticker(code)
        minutes = sandbox.rows(code, MINUTES, int(clock.now) + 1, 2_000)
        recent = minutes[minutes[:, 0] >= int(clock.now) + 1 - DAY]
        days = sandbox.candles(code, DAYS, int(clock.now) + 1, 365)
        assert ticker is not None
        units = {"KRW": 1e4, "USDT": 1e6}[code.split("-")[0]]
        assert ticker.value_24h == int(recent[:, VALUE].sum()) / units
        assert ticker.volume_24h > 0
        assert (ticker.open, ticker.high, ticker.low, ticker.close) == (days.open[-1], days.high[-1], days.low[-1], days.close[-1])
        assert ticker.previous_close == days.close[-2]
        assert (ticker.high_52w, ticker.low_52w) == (days.high.max(), days.low.min())
        assert ticker.high_52w_day == days.opened_at[days.high.argmax()]
        assert ticker.low_52w_day == days.opened_at[days.low.argmin()]
        last = sandbox.rows(code, MINUTES, int(clock.now) + 1, 1)[0]
        lots = recent[:, VOLUME].sum() / ticker.volume_24h
        assert round(ticker.last_volume * lots) in (last[VOLUME], last[VOLUME] // 4)  # a lone tick, or one of four


def test_a_ticker_without_a_trade_today_stands_at_yesterdays_close() -> None:
    sandbox = Sandbox(clock=Clock(float(instant("2026-11-22T00:00:00"))))
    ticker = sandbox.ticker("KRW-FCT2")
    yesterday = sandbox.candles("KRW-FCT2", DAYS, instant("2026-11-22"), 1)
    assert ticker is not None
    assert {ticker.open, ticker.high, ticker.low, ticker.close, ticker.previous_close} == {yesterday.close[0]}
    assert (ticker.value, ticker.volume) == (0.0, 0.0)
    assert ticker.value_24h > 0


def limits(per_second: int | None = 10) -> Limits:
    return Limits({"candles": per_second, "ticker": 10})


def test_limits_count_by_group_and_second() -> None:
    counted = limits()
    assert [counted.ask("candles", 100.5).left for _ in range(10)] == list(range(9, -1, -1))
    assert counted.ask("candles", 100.9).status == 429
    assert counted.ask("ticker", 100.9).left == 9
    assert counted.ask("candles", 101.0).left == 9


def test_a_browser_gets_one_request_in_ten_seconds() -> None:
    counted = limits()
    assert [counted.ask("candles", at, browser=True).status for at in (100.0, 101.0, 109.9, 110.0)] == [200, 429, 429, 200]
    assert counted.ask("candles", 101.0).status == 200


def hammered(counted: Limits, now: float) -> float:
    """Ask until blocked; the block's length (s)."""
    for _ in range(1_000):
        verdict = counted.ask("candles", now)
        if verdict.status == 418:
            return verdict.wait
    raise AssertionError("never blocked")


def test_refusals_lead_to_blocks_that_grow_and_are_forgiven() -> None:
    counted = limits()
    assert hammered(counted, 100.0) == BLOCK
    assert counted.ask("ticker", 105.0).wait == BLOCK - 5  # blocks everything
    assert counted.ask("ticker", 100.0 + BLOCK).status == 200
    assert hammered(counted, 200.0) == 2 * BLOCK
    assert hammered(counted, 300.0) == 4 * BLOCK
    assert hammered(counted, 300.0 + 4 * BLOCK + MERCY) == BLOCK


def test_few_refusals_are_no_reason_to_block() -> None:
    counted = limits(per_second=1)
    statuses = [counted.ask("candles", at + part / 2).status for at in range(100 * PATIENCE) for part in (0, 1)]
    assert PATIENCE < REFUSALS
    assert set(statuses) == {200, 429}
