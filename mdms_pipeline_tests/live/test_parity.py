"""Through cuts, repeats and restarts the signals of `mdms live` are those of the stored candles: one for one, to the bit."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.parity import MISSING, OTHERWISE, TOO_MUCH, differences, standing
from mdms_pipeline.live.run import told_since
from mdms_pipeline.live_watch import watches_of
from mdms_pipeline.market import DAY, HOUR, instant, timeframe
from mdms_pipeline.sandbox import Fault
from mdms_pipeline.store.candles import standings
from mdms_pipeline_tests import support
from mdms_pipeline_tests.live import rules
from mdms_pipeline_tests.live.stream import Simulation, Steady, Trouble

BEGAN = instant("2026-11-02T00:10:20")  # before the maintenance hole of the 11th
SYMBOLS = "KRW-BTC,KRW-ETH,KRW-XRP,KRW-DOGE,KRW-ADA"


def simulation(home: Path, frames: str, seed: int, **more: str) -> Simulation:
    given = rules.settings(home, "1h", **more)
    rules.settings(home / "slow", "4h")
    for folder in ("strategies", "screens"):
        for file in (home / "slow" / "own" / folder).glob("*.yaml"):
            text = file.read_text().replace("{screen: rising}", "{screen: rising_slow}")
            (home / "own" / folder / f"{file.stem}_slow.yaml").write_text(text)
    for file in (home / "own").rglob("*.yaml"):
        text = file.read_text().replace("[KRW-AAA, KRW-CCC]", "[KRW-BTC, KRW-XRP]").replace("[KRW-BBB, KRW-CCC]", "[KRW-ETH, KRW-ADA]")
        file.write_text(text)
    given = replace(given, symbols=tuple(SYMBOLS.split(",")), timeframes=tuple(frames.split(",")), history=150)
    names = [f"{name}{slow}" for name in rules.STRATEGIES for slow in ("", "_slow")]
    screens = [f"{name}{slow}" for name in rules.SCREENS for slow in ("", "_slow")]
    watches = [watch for watch in watches_of(given, names, screens) if watch.timeframe in given.timeframes]
    return Simulation(given, watches, Steady(BEGAN), seed, Trouble(cut=0.04))


@pytest.mark.parametrize(("seed", "more"), [(1, {}), (2, {"MDMS_NO_TRADE": "flat"})])
def test_live_is_what_is_stored_afterwards(tmp_path: Path, seed: int, more: dict[str, str]) -> None:
    found = simulation(tmp_path, "1h,4h", seed, **more)
    found.collect()
    support.calculate(found.warehouse, found.settings.symbols, ("1h",))
    for hours in (20, 6, 28):  # the second is begun while the warehouse is behind, the third after it has caught up
        found.listen(int(found.clock()) + hours * HOUR)
        found.clock.now += found.random.randint(0, 9 * HOUR)  # nobody listens
        if hours == 6:
            found.collect()
    found.listen(int(found.clock()) + 4 * HOUR)
    found.collect()
    wanted, differ = found.compared()
    assert [str(each) for each in differ[:5]] == []
    assert wanted > 200
    assert sum(life.lost for life in found.lives) > 1
    assert sum(life.late for life in found.lives) > 20
    told = told_since(Journal(found.folder), 0)
    assert len({signal.id for signal in told}) == len(told)
    assert any(signal.revision for signal in told)
    assert found.clock() - BEGAN > 2 * DAY


def test_rest_that_goes_wrong_one_time_in_three_only_takes_longer(tmp_path: Path) -> None:
    """Too many requests, an error, a connection that is cut, a page of HTML, JSON of another shape: asked again until it is told."""
    found, given = simulation(tmp_path, "1h,4h", 5), Counter[str]()
    wrong = {
        "429": Fault(429, "Too many API requests.", "text/plain"), "500": Fault(500, "oops"), "cut": Fault.cut(), "html": Fault.page(200),
        "shape": Fault.shape(),
    }  # fmt: skip
    found.collect()

    def faults(path: str, query: dict[str, str]) -> Fault | None:
        if found.random.random() > 1 / 3:
            return None
        given[name := found.random.choice(list(wrong))] += 1
        return wrong[name]

    for hours in (20, 8):
        found.sandbox.faults = faults
        found.listen(int(found.clock()) + hours * HOUR)
        found.sandbox.faults = None
        found.clock.now += 3 * HOUR  # nobody listens
    found.listen(int(found.clock()) + 2 * HOUR)
    found.collect()
    wanted, differ = found.compared()
    assert [str(each) for each in differ[:5]] == []
    assert wanted > 200
    assert set(given) == set(wrong)
    assert [life.dropped for life in found.lives] == [{}, {}, {}]
    told = told_since(Journal(found.folder), 0)
    assert len({signal.id for signal in told}) == len(told)


@pytest.mark.parametrize("no_trade", ["skip", "flat"])
def test_candles_that_are_told_otherwise_after_they_closed(tmp_path: Path, no_trade: str) -> None:
    """The last bar is taken back and closed again; of an older one the market's bars are asked again, and all is calculated on those."""
    found = simulation(tmp_path, "1h", 4, MDMS_NO_TRADE=no_trade)
    found.trouble = replace(found.trouble, corrected=0.1, late=0.0)
    found.collect()
    found.listen(int(found.clock()) + 30 * HOUR)
    found.listen(int(found.clock()) + 6 * HOUR)
    found.collect()
    wanted, differ = found.compared()
    assert len(found.sandbox.corrected) > 5
    assert [str(each) for each in differ[:5]] == []
    assert wanted > 100
    told = told_since(Journal(found.folder), 0)
    assert any(signal.revision and signal.answer == signal.before for signal in told)  # taken back


def test_what_was_told_of_bars_that_turn_out_otherwise_is_taken_back_by_the_next_process(tmp_path: Path) -> None:
    """As after a kill before the last messages of some bars: the warehouse ends before them, and REST tells them."""
    found, frame = simulation(tmp_path, "1h", 8), timeframe("1h")
    found.trouble = Trouble()
    found.collect()
    found.listen(int(found.clock()) + 12 * HOUR)
    for symbol in found.settings.symbols:
        for back in (1, 2, 3, 5):
            at = frame.after(frame.floor(int(found.clock())), -back)
            found.sandbox.correct(symbol, frame, at, close=float(found.sandbox.candles(symbol, frame, at + 1, 1).low[0]))
    found.listen(int(found.clock()) + 4 * HOUR)
    found.collect()
    wanted, differ = found.compared()
    assert [str(each) for each in differ[:5]] == []
    assert wanted > 20
    told = told_since(Journal(found.folder), 0)
    assert any(signal.revision and signal.answer == signal.before for signal in told)  # taken back
    assert len({signal.id for signal in told}) == len(told)


def test_what_other_rules_have_said_stays_said(tmp_path: Path) -> None:
    """A process that watches fewer rules takes nothing back of the others, whatever becomes of the candles."""
    found, frame = simulation(tmp_path, "1h", 9), timeframe("1h")
    found.trouble = Trouble()
    found.collect()
    found.listen(int(found.clock()) + 12 * HOUR)
    before = [signal for signal in told_since(Journal(found.folder), 0) if signal.source == "strategy"]
    found.watches = [watch for watch in found.watches if watch.source == "screen"]
    for symbol in found.settings.symbols:
        at = frame.after(frame.floor(int(found.clock())), -2)
        found.sandbox.correct(symbol, frame, at, close=float(found.sandbox.candles(symbol, frame, at + 1, 1).low[0]))
    found.listen(int(found.clock()) + 2 * HOUR)
    assert [signal for signal in told_since(Journal(found.folder), 0) if signal.source == "strategy"] == before
    assert len(before) > 5


def test_candles_that_are_revised_in_the_warehouse_are_followed(tmp_path: Path) -> None:
    found = simulation(tmp_path, "1h", 6)
    found.collect()
    revised: list[float] = []

    def revise() -> None:
        if not revised and found.clock() > BEGAN + 5 * HOUR:
            with found.warehouse.read() as connection:
                newest = standings(connection, [("KRW-BTC", "1h")])["KRW-BTC", "1h"].newest
            assert newest is not None
            frame = timeframe("1h")
            revised.append(float(found.sandbox.candles("KRW-BTC", frame, newest + 1, 1).low[0]))
            found.sandbox.correct("KRW-BTC", frame, newest, close=revised[0])
            with ThreadPoolExecutor(1) as beside:  # an event loop of its own
                beside.submit(found.collect).result()

    found.look = revise
    found.listen(int(found.clock()) + 40 * HOUR)
    found.collect()
    wanted, differ = found.compared()
    assert revised
    assert [str(each) for each in differ[:5]] == []
    assert wanted > 20


def test_a_market_that_is_delisted_is_left_alone(tmp_path: Path) -> None:
    found = simulation(tmp_path, "1h", 7, MDMS_NO_TRADE="flat")
    found.trouble = replace(found.trouble, cut=0.0)
    found.collect()
    found.listen(int(found.clock()) + 8 * HOUR)
    found.collect()
    found.sandbox.delist("KRW-ADA", int(found.clock()) - 60)
    found.listen(int(found.clock()) + 8 * HOUR)
    assert "KRW-ADA 1h" in found.lives[-1].dropped
    assert found.live is not None
    assert not found.live.health.reason
    told = told_since(Journal(found.folder), int(found.clock()) - 6 * HOUR)
    assert {signal.symbol for signal in told} == {"KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-DOGE"}


def test_every_kind_of_difference_is_found(tmp_path: Path) -> None:
    found = simulation(tmp_path, "1h", 3)
    found.collect()
    found.listen(int(found.clock()) + 6 * HOUR)
    told = sorted(standing(told_since(Journal(found.folder), 0)).values(), key=lambda signal: signal.opened_at)
    assert differences(told, told) == []
    first = told[0]
    name = next(iter(first.values))
    bent = replace(first, values={**first.values, name: None if first.values[name] is None else first.values[name] * (1 + 2**-52)})
    assert [each.what for each in differences(told, told[1:])] == [MISSING]
    assert [each.what for each in differences(told[1:], told)] == [TOO_MUCH]
    assert [each.what for each in differences(told, [bent, *told[1:]])] == [OTHERWISE]
    back = replace(first, answer=first.before, revision=1)
    assert [each.what for each in differences(told, [*told, back])] == [MISSING]
