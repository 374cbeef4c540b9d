"""Markets join and leave while `mdms live` runs: no signal is lost or doubled, and what is told is what the stored candles give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from mdms_pipeline.live import run
from mdms_pipeline.live.deliver import Table
from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.load import expected
from mdms_pipeline.live.parity import differences
from mdms_pipeline.live.ran import compare
from mdms_pipeline.live.run import _next, told_since
from mdms_pipeline.live.signal import Signal
from mdms_pipeline.live.watch import Name
from mdms_pipeline.market import DAY, HOUR, Instant, instant, timeframe
from mdms_pipeline.store.signals import Watched
from mdms_pipeline.store.signals import watches as stretches_of
from mdms_pipeline_tests.live import rules
from mdms_pipeline_tests.live.stream import Simulation, Steady, Trouble
from mdms_pipeline_tests.live.test_parity import simulation

ALWAYS = ("KRW-BTC", "KRW-ETH")
NEW = "KRW-NEW"


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FOLLOW", 5.0)  # steps of the stream


def choose(found: Simulation, symbols: Sequence[str]) -> None:
    """What `mdms run` does beside, with these markets."""
    found.settings = replace(found.settings, symbols=tuple(symbols))
    with ThreadPoolExecutor(1) as beside:  # an event loop of its own
        beside.submit(found.collect).result()


def plan(found: Simulation, changes: dict[int, Callable[[], None]]) -> None:
    """Do each once, so many hours from now."""
    began, left = int(found.clock()), dict(changes)

    def look() -> None:
        for hours in [hours for hours in left if found.clock() >= began + hours * HOUR]:
            left.pop(hours)()

    found.look = look


def stretches(found: Simulation, everybody: Sequence[str]) -> list[Watched]:
    """What was watched, once everything is in the table and all candles are stored."""
    choose(found, everybody)
    table = Table(Journal(found.folder), found.warehouse, found.clock)
    table.ending.set()
    table.turn()
    with found.warehouse.read() as connection:
        compared = compare(connection, found.watches, int(found.clock()))
        held = stretches_of(connection)
    assert compared.differences == []
    assert compared.signals > 30
    return held


def given_by(found: Simulation, held: Sequence[Watched]) -> list[Signal]:
    """What the stored candles say within these stretches."""
    rules = {watch.key: watch for watch in found.watches}
    with found.warehouse.read() as connection:
        return [
            signal
            for one in held
            if one.until is not None
            for signal in expected(connection, [rules[one.watch]], one.symbols, one.since)
            if signal.opened_at <= one.until
        ]


def check(found: Simulation, everybody: Sequence[str], since: Instant) -> dict[str, list[Watched]]:
    """One for one and to the bit, no bar between two stretches, and none in both; what was watched, by watch."""
    held = stretches(found, everybody)
    wanted, told = given_by(found, held), told_since(Journal(found.folder), 0)
    assert [str(each) for each in differences(wanted, told)[:5]] == []
    assert len({(signal.source, signal.name, signal.rule, signal.symbol, signal.opened_at) for signal in wanted}) == len(wanted)
    assert len({signal.id for signal in told}) == len(told)
    journal, by_watch = Journal(found.folder), dict[str, list[Watched]]()
    said = [each for entry in journal.after(journal.start, 10**9) for each in entry.watched]
    for one in held:
        by_watch.setdefault(one.watch, []).append(one)
    for mine in by_watch.values():
        frame = timeframe(mine[0].timeframe)
        assert mine[0].since == frame.after(frame.newest_closed(since, 2))
        assert mine[-1].until == frame.newest_closed(int(found.clock()), 2)
        for one, following in pairwise(mine):
            assert one.until is not None
            assert frame.after(one.until) == following.since
            began = [each for each in said if (each.watch, each.since) == (one.watch, following.since)]
            assert any(each.symbols != one.symbols for each in began)  # also one that ended before a bar had closed, which the table lacks
    return by_watch


@pytest.mark.parametrize(("seed", "no_trade"), [(1, "skip"), (2, "flat")])
def test_markets_join_and_leave_while_bars_close(tmp_path: Path, seed: int, no_trade: str) -> None:
    """Through cuts, repeats, messages that come late, and a restart."""
    found = simulation(tmp_path, "1h,4h", seed, MDMS_NO_TRADE=no_trade)
    found.settings, everybody = replace(found.settings, symbols=ALWAYS), (*ALWAYS, "KRW-XRP", "KRW-DOGE", "KRW-ADA")
    found.collect()
    began = int(found.clock())
    for hours, turns in ((14, {3: everybody[:3], 8: everybody[1:4]}), (18, {2: everybody, 6: everybody[2:], 11: everybody})):
        plan(found, {at: lambda symbols=symbols: choose(found, symbols) for at, symbols in turns.items()})  # type: ignore[misc]
        found.listen(int(found.clock()) + hours * HOUR)
    found.look = lambda: None
    by_watch = check(found, everybody, began)
    seen = {tuple(one.symbols) for held in by_watch.values() for one in held}
    assert {tuple(sorted(symbols)) for symbols in (ALWAYS, everybody[:3], everybody)} <= seen
    signals = told_since(Journal(found.folder), 0)
    assert {signal.symbol for signal in signals} == set(everybody)


def test_a_new_listing_is_heard_from_its_first_candles_on(tmp_path: Path) -> None:
    """It is in the universe before it has a candle, and has one of an hour before it has one of four."""
    found = simulation(tmp_path, "1h,4h", 3)
    found.trouble, notices = Trouble(cut=0.0, late=0.0), list[str]()
    found.collect()
    began, everybody = int(found.clock()), (*found.settings.symbols, NEW)
    listed = began - began % DAY + 5 * HOUR
    found.sandbox.listing(NEW, 1_000.0, at=listed)

    def noticed() -> None:
        assert found.live is not None
        found.live.notice = notices.append
        choose(found, everybody)

    plan(found, dict.fromkeys((5, 6, 8), noticed))
    found.listen(began + 20 * HOUR)
    by_watch = check(found, everybody, began)
    theirs = [held for held in by_watch.values() if NEW in held[-1].symbols]
    first = {held[0].timeframe: min(one.since for one in held if NEW in one.symbols) for held in theirs}
    assert first["1h"] < first["4h"]
    assert notices == [f"{NEW} joined: watched from the next bar to close on"]
    assert not found.lives[-1].dropped
    assert any(signal.symbol == NEW for signal in told_since(Journal(found.folder), 0))


def test_one_that_is_delisted_is_let_go(tmp_path: Path) -> None:
    found = simulation(tmp_path, "1h", 4, MDMS_NO_TRADE="flat")
    found.trouble = Trouble(cut=0.0)
    found.collect()
    everybody, gone_at = found.settings.symbols, int(found.clock()) + 5 * HOUR

    def delist() -> None:
        found.sandbox.delist("KRW-ADA", int(found.clock()) - 60)
        choose(found, everybody)

    plan(found, {5: delist})
    found.listen(gone_at + 8 * HOUR)
    assert found.live is not None
    assert "KRW-ADA" not in found.live.symbols
    assert "KRW-ADA" not in found.live.wanted.of["1h"]
    assert not any("KRW-ADA" in what for what in found.live.health.dropped)
    told = told_since(Journal(found.folder), gone_at + 2 * HOUR)
    assert {signal.symbol for signal in told} == set(everybody) - {"KRW-ADA"}


def test_all_may_leave_and_come_back(tmp_path: Path) -> None:
    found = simulation(tmp_path, "1h", 5)
    found.trouble = Trouble(cut=0.0)
    everybody = found.settings.symbols
    found.settings = replace(found.settings, symbols=everybody[:2])
    found.collect()
    began = int(found.clock())
    plan(found, {3: lambda: choose(found, everybody[2:]), 9: lambda: choose(found, everybody[:2])})
    found.listen(began + 16 * HOUR)
    check(found, everybody, began)


def test_what_a_process_beside_took_in_is_told_where_that_one_dies_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had written down that a market is watched; the one that lives on looks 40 hours later only, and tells what it has missed."""
    monkeypatch.setattr(run, "FOLLOW", 10.0**9)
    found = simulation(tmp_path, "1h,4h", 6)
    found.trouble, everybody = Trouble(cut=0.0), (*ALWAYS, "KRW-XRP")
    found.settings = replace(found.settings, symbols=ALWAYS)
    found.collect()
    began = int(found.clock())

    def beside() -> None:
        choose(found, everybody)
        journal = Journal(found.folder)
        held = [one for watch in found.watches if watch.takes("KRW-XRP") and (one := journal.stretch(watch.key)) is not None]
        assert all(one.until is not None for one in held)
        theirs = [replace(one, symbols=(*one.symbols, "KRW-XRP"), since=_next(one), until=None) for one in held]
        journal.append((), watched=theirs)

    def look() -> None:
        assert found.live is not None
        found.live._follow_at = -1.0
        since.update(found.live.news._since)

    since: dict[tuple[Name, str], Instant] = {}
    plan(found, {5: beside, 44: lambda: choose(found, everybody), 45: look})
    found.listen(began + 52 * HOUR)
    assert found.live is not None
    assert since.items() <= found.live.news._since.items()  # of the others it tells as before
    by_watch = check(found, everybody, began)
    assert {tuple(one.symbols) for held in by_watch.values() for one in held} >= {ALWAYS, everybody}
    assert {len(held) for held in by_watch.values()} == {1, 2}
    told = [signal for signal in told_since(Journal(found.folder), 0) if signal.symbol == "KRW-XRP"]
    assert any(signal.opened_at < began + 8 * HOUR for signal in told)


@pytest.mark.parametrize("seed", range(3))
def test_the_last_bar_before_a_change_is_judged_again_by_who_begins_before_the_next_has_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """It may have closed by the clock before its last message: here it is told otherwise while nobody listens."""
    monkeypatch.setattr(run, "FOLLOW", 10.0**9)
    found = simulation(tmp_path, "1h", seed)
    found.trouble, everybody = Trouble(cut=0.0, late=0.0, step=(300, 600)), (*ALWAYS, "KRW-XRP")
    found.settings = replace(found.settings, symbols=ALWAYS)
    found.collect()
    began = int(found.clock())
    start = began - began % HOUR
    found.listen(start + 4 * HOUR + 600)  # from here on everything is at ten past

    def look() -> None:
        assert found.live is not None
        found.live._follow_at = -1.0

    plan(found, {1: lambda: choose(found, everybody), 2: look})
    found.listen(start + 6 * HOUR + 3_000)
    last, held = start + 5 * HOUR, [Journal(found.folder).stretch(watch.key) for watch in found.watches]
    assert {(one.since, one.until) for one in held if one is not None and "KRW-XRP" in one.symbols} == {(last + HOUR, None)}
    frame = timeframe("1h")
    for symbol in ALWAYS:
        candles, _ = found.sandbox.bars(symbol, frame, last + 1, 1)
        found.sandbox.correct(symbol, frame, last, close=float(candles.low[0]), volume=1.1 * float(candles.volume[0]))
    found.listen(start + 16 * HOUR)
    check(found, everybody, began)
    assert any(signal.opened_at == last and signal.revision for signal in told_since(Journal(found.folder), 0))


def test_only_of_a_stretch_that_nothing_was_judged_of_the_one_before_counts(tmp_path: Path) -> None:
    found = simulation(tmp_path, "1h", 7)
    found.collect()
    found.listen(int(found.clock()) + 2 * HOUR)
    live, held = found.live, Journal(found.folder).stretch(found.watches[0].key)
    assert live is not None
    assert held is not None
    assert held.until is not None
    assert live._just_ended(held) is None
    newest = replace(held, symbols=ALWAYS, since=held.until + HOUR, until=None)
    live.delivery.journal.append((), watched=[newest])
    assert live._just_ended(newest) == held
    assert live._just_ended(replace(newest, until=newest.since)) is None


def test_days_too(tmp_path: Path) -> None:
    """The socket tells four hours only; a day that has closed is asked of REST."""
    given = rules.settings(tmp_path, "1d")
    for file in (tmp_path / "own").rglob("*.yaml"):
        file.write_text(file.read_text().replace("KRW-AAA", "KRW-BTC").replace("KRW-BBB", "KRW-ETH").replace("KRW-CCC", "KRW-XRP"))
    everybody = (*ALWAYS, "KRW-XRP", "KRW-DOGE")
    given = replace(given, history=120, symbols=ALWAYS)
    found = Simulation(given, rules.watches(given), Steady(instant("2026-10-20T03:00:00")), 5, Trouble(cut=0.03, step=(2_000, 6_000)))
    found.collect()
    began = int(found.clock())
    plan(found, {at * 24: lambda symbols=symbols: choose(found, symbols) for at, symbols in {4: everybody, 9: everybody[1:]}.items()})  # type: ignore[misc]
    found.listen(began + 14 * DAY)
    check(found, everybody, began)
