"""The forming bar from the ticker, against the candle that the exchange tells at the same instant."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.collect import wire
from mdms_pipeline.live.forming import Forming, forming
from mdms_pipeline.live_screen import look_live
from mdms_pipeline.live_watch import screen_named
from mdms_pipeline.market import DAY, PRICES_AND_AMOUNTS, TIMEFRAMES, Candles, Instant, instant
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.screen.judge import Outcome
from mdms_pipeline.vocabulary import indicator_of
from mdms_pipeline_tests.live import rules
from mdms_pipeline_tests.live.stream import Simulation, Steady

NOW = instant("2026-11-19T17:23:45")
SYMBOLS = ("KRW-BTC", "KRW-XRP", "KRW-DOGE", "KRW-SHIB", "KRW-ETC")


def today(sandbox: Sandbox, symbol: str) -> wire.Today:
    found = sandbox.ticker(symbol)
    assert found is not None
    numbers = (found.open, found.high, found.low, found.close, found.volume, found.value, found.value_24h)
    return wire.Today(symbol, found.traded_ms / 1000, *numbers)


def formed(sandbox: Sandbox, symbol: str, name: str, now: Instant, finer: str | None = None) -> Forming | None:
    """The bar as it is put together where everything before is stored, and the finer candles of the slot but the forming one."""
    frame, midnight = TIMEFRAMES[name], now - now % DAY
    slot = frame.floor(now)
    rest, since, until = (frame, midnight, slot) if frame.seconds and frame.seconds < DAY else (TIMEFRAMES["1d"], slot, midnight)
    before = sandbox.candles(symbol, rest, until, 1_440)
    within = None
    if finer:
        within = sandbox.candles(symbol, TIMEFRAMES[finer], TIMEFRAMES[finer].floor(now), 200)
        within = within[within.opened_at >= slot]
    return forming(frame, now, today(sandbox, symbol), before[before.opened_at >= since], within)


@pytest.mark.parametrize("name", ["1m", "15m", "1h", "4h", "1d", "1w", "1M"])
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_what_is_sure_is_the_candle_to_the_bit(name: str, symbol: str) -> None:
    sandbox = Sandbox(clock=lambda: NOW + 0.5)
    told = sandbox.candles(symbol, TIMEFRAMES[name], NOW + 1, 1)
    made = formed(sandbox, symbol, name, NOW)
    slot = TIMEFRAMES[name].floor(NOW)
    assert (made is None) == (told.opened_at.tolist() != [slot])
    if made is not None:
        assert made.bar.opened_at == slot
        for column, value in zip(PRICES_AND_AMOUNTS, made.bar.candle, strict=True):
            if column not in made.guessed:
                assert value == float(getattr(told, column)[0]), column
        assert not made.guessed or name in ("1m", "15m", "1h", "4h")
        assert set(made.guessed) <= {"open", "high", "low"}


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_finer_candles_tell_the_open_and_bound_the_rest(symbol: str) -> None:
    sandbox = Sandbox(clock=lambda: NOW + 0.5)
    told = sandbox.candles(symbol, TIMEFRAMES["1h"], NOW + 1, 1)
    made = formed(sandbox, symbol, "1h", NOW, finer="1m")
    assert made is not None
    opening, high, low, close, volume, value = made.bar.candle
    assert "open" not in made.guessed
    assert opening == float(told.open[0])
    assert (close, volume, value) == (float(told.close[0]), float(told.volume[0]), float(told.value[0]))
    assert float(told.low[0]) <= low <= min(opening, close)
    assert max(opening, close) <= high <= float(told.high[0])


def test_the_first_slot_of_a_day_is_the_day() -> None:
    at = instant("2026-11-19T00:40:00")
    sandbox = Sandbox(clock=lambda: at + 0.5)
    made = formed(sandbox, "KRW-BTC", "1h", at)
    told = sandbox.candles("KRW-BTC", TIMEFRAMES["1h"], at + 1, 1)
    assert made is not None
    assert made.guessed == ()
    assert list(made.bar.candle) == [float(getattr(told, name)[0]) for name in PRICES_AND_AMOUNTS]


def test_without_a_trade_nothing_forms() -> None:
    day = wire.Today("KRW-X", NOW - 7_200.0, 1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0)
    assert forming(TIMEFRAMES["1h"], NOW, day, Candles.empty(), None) is None
    yesterday = wire.Today("KRW-X", NOW - 2.0 * DAY, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    assert forming(TIMEFRAMES["1d"], NOW, yesterday, Candles.empty(), None) is None


def test_a_screen_over_forming_days_is_the_screen_over_those_candles(tmp_path: Path) -> None:
    """Day bars that form are known to the bit: the provisional result is what the screen would say if they closed now."""
    given = rules.settings(tmp_path, "1d")
    for file in (tmp_path / "own").rglob("*.yaml"):
        file.write_text(file.read_text().replace("KRW-AAA", "KRW-BTC").replace("KRW-BBB", "KRW-ETH").replace("KRW-CCC", "KRW-XRP"))
    found = Simulation(given, [], Steady(NOW + 0.5))
    found.collect()
    screen = screen_named(given, "rising")
    days = {symbol: today(found.sandbox, symbol) for symbol in given.symbols}
    with found.warehouse.read() as connection:
        looked = look_live(connection, screen, days, NOW + 0.5)
    assert looked.formed == len(given.symbols)
    assert looked.guessed == {}
    assert looked.behind == 0
    row = next(row for row in looked.result.rows if row.symbol == "KRW-BTC")
    shown = dict(value for clause in row.clauses for value in clause.values)
    candles = found.sandbox.candles("KRW-BTC", TIMEFRAMES["1d"], NOW + 1, given.history + 1)
    known = calculate([indicator_of(call) for call in screen.calls], candles)
    assert shown["ema(5)"] == known["ema_5"][-1]
    assert shown["close"] == candles.close[-1]
    at = TIMEFRAMES["1d"].floor(NOW)
    found.clock.now = at + DAY + 10  # the same day, closed
    with found.warehouse.read() as connection:
        behind = look_live(connection, screen, days, found.clock())
    assert behind.behind == len(given.symbols)
    assert {row.outcome for row in behind.result.rows} == {Outcome.NOT_KNOWN}
