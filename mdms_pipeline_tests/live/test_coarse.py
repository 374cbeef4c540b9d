"""Days, weeks and months: what is put together while they form, and what is decided on once they have closed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mdms_pipeline.live.coarse import PART, Parts, total
from mdms_pipeline.live.engine import bars_of
from mdms_pipeline.live.lane import Bar
from mdms_pipeline.market import DAY, HOUR, PRICES_AND_AMOUNTS, TIMEFRAMES, instant
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline_tests.live import rules
from mdms_pipeline_tests.live.stream import Simulation, Steady, Trouble

NOW = instant("2026-11-19T17:23:45")  # a Thursday
SYMBOLS = ("KRW-BTC", "KRW-XRP", "KRW-DOGE", "KRW-SHIB", "KRW-ETC")


def test_put_together_they_are_the_candles_of_the_sandbox_to_the_bit() -> None:
    sandbox = Sandbox(clock=lambda: NOW + 0.5)
    frames = [TIMEFRAMES[name] for name in ("1d", "1w", "1M")]
    parts = Parts(frames)
    for symbol in SYMBOLS:
        for bar in bars_of(sandbox.candles(symbol, PART, NOW + 1, 200), NOW):
            parts.put(symbol, bar)
        for frame in frames:
            at = frame.floor(NOW)
            told = sandbox.candles(symbol, frame, NOW + 1, 1)
            made = parts.bar(symbol, frame, at)
            assert made is not None
            assert told.opened_at.tolist() == [made.opened_at]
            np.testing.assert_array_equal(made.candle, [getattr(told, name)[0] for name in PRICES_AND_AMOUNTS])


def test_amounts_are_added_as_they_are_written() -> None:
    assert total([0.1] * 3) == 0.3
    assert sum([0.1] * 3) != 0.3
    assert total([]) == 0.0


def test_an_older_telling_is_passed_over_and_slots_that_are_over_are_forgotten() -> None:
    day = TIMEFRAMES["1d"]
    parts, at = Parts([day]), instant("2026-11-19")
    newer = Bar(at, (1.0, 2.0, 1.0, 2.0, 10.0, 15.0), at + 100.0)
    parts.put("KRW-BTC", newer)
    parts.put("KRW-BTC", replace(newer, candle=(1.0, 1.0, 1.0, 1.0, 5.0, 5.0), at=at + 50.0))
    assert parts.bar("KRW-BTC", day, at) == newer
    parts.put("KRW-BTC", Bar(at + DAY, (3.0, 3.0, 3.0, 3.0, 1.0, 3.0), at + DAY + 1.0))
    assert parts.bar("KRW-BTC", day, at) is None
    assert parts.bar("KRW-ETH", day, at) is None


def test_signals_of_days_are_those_of_the_stored_candles(tmp_path: Path) -> None:
    """The socket tells candles of four hours only; a day that has closed is asked of REST."""
    given = rules.settings(tmp_path, "1d")
    for file in (tmp_path / "own").rglob("*.yaml"):
        file.write_text(file.read_text().replace("KRW-AAA", "KRW-BTC").replace("KRW-BBB", "KRW-ETH").replace("KRW-CCC", "KRW-XRP"))
    given = replace(given, history=120, symbols=("KRW-BTC", "KRW-ETH", "KRW-XRP"))
    trouble = Trouble(cut=0.03, step=(2_000, 6_000))
    found = Simulation(given, rules.watches(given), Steady(instant("2026-10-28T03:00:00")), 5, trouble)
    found.collect()
    for days in (9, 7):
        found.listen(int(found.clock()) + days * DAY)
        found.clock.now += 40 * HOUR
    found.listen(int(found.clock()) + 2 * DAY)
    found.collect()
    wanted, differ = found.compared()
    assert [str(each) for each in differ[:5]] == []
    assert wanted > 60
    assert sum(life.provisional for life in found.lives) > 20
