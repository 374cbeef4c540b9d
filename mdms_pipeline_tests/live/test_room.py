"""What is held in RAM is counted as it is, and never more than was reckoned with before anything was made."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mdms_pipeline.collect.socket import Heard
from mdms_pipeline.live import run
from mdms_pipeline.live.coarse import BAR
from mdms_pipeline.live.deliver import Delivery
from mdms_pipeline.live.engine import Engine
from mdms_pipeline.live.journal import SHORTEST, Journal, lines_of
from mdms_pipeline.live.lane import MARKET, Bar, Lane, shape_of
from mdms_pipeline.live.news import News
from mdms_pipeline.live.room import OverMemory, check_room, room_of
from mdms_pipeline.live.run import EVENT, FIXED, Live
from mdms_pipeline.live.signal import SIGNAL
from mdms_pipeline.live.watch import Watch, grouped
from mdms_pipeline.rules import Rule, parse
from mdms_pipeline.store import Warehouse
from mdms_pipeline.vocabulary import vocabulary
from mdms_pipeline_tests.live.made import signal
from mdms_pipeline_tests.live.stream import Trouble
from mdms_pipeline_tests.live.test_parity import simulation
from mdms_pipeline_tests.live.test_universe import choose, plan
from mdms_pipeline_tests.support import Clock

MARKETS = [f"KRW-S{i}" for i in range(30)]


def watch_of(text: str, name: str = "mine", frame: str = "1h") -> Watch:
    rule = parse(text, vocabulary())
    assert isinstance(rule, Rule)
    return Watch("screen", name, "where", frame, (rule,))


def some() -> list[Watch]:
    texts = {"mine": "close > sma(200) and rsi(14)[7] < 30", "other": "stoch(14, 3, 3).k > 80"}
    return [*(watch_of(text, name) for name, text in texts.items()), watch_of("volume > 1", "daily", "1d")]


@pytest.mark.parametrize("flat", [False, True])
def test_what_is_reckoned_is_what_is_made(flat: bool) -> None:
    for mine in grouped(some()).values():
        lane, shape = Lane(mine, MARKETS, flat, lambda: 0.0), shape_of(mine, flat)
        assert lane.nbytes == len(MARKETS) * shape.held
        arrays = [*lane.tape.memory.values(), *lane.tape.undo_memory.values(), lane.tape.bars.values, lane.said, lane.tape.traded_at]
        assert lane.nbytes > sum(array.nbytes for array in arrays)
        assert shape.working * len(MARKETS) == sum(memory.nbytes for memory in lane.tape.memory.values())


def traced(make: object) -> float:
    """Bytes that are left when it has been called."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        held = make()  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[0] - before if held is not None else 0
    finally:
        tracemalloc.stop()


def test_one_of_each_takes_no_more_than_it_is_reckoned() -> None:
    values = {f"sma({i})[1]": i * 1.5 for i in range(8)}

    def signals() -> News:
        return News(signal(i, values={**values, "close": i / 3}) for i in range(3_000))

    def bar(i: int) -> Bar:
        return Bar(1_700_000_000 + i, tuple(i / 7 + k for k in range(6)), i / 3, i / 9)

    def heard(i: int) -> Heard:
        return Heard(f"KRW-S{i}", "1h", 1_700_000_000 + i, i / 3, i / 5, i / 7, i / 9, i / 11, i / 13, i / 15, i / 17)

    assert traced(signals) / 3_000 < SIGNAL
    assert traced(lambda: {1_700_000_000 + i: bar(i) for i in range(3_000)}) / 3_000 < BAR
    assert traced(lambda: ([bar(i) for i in range(3_000)], [bar(i) for i in range(3_000)], [{} for _ in range(3_000)])) / 3_000 < MARKET
    assert traced(lambda: [heard(i) for i in range(3_000)]) / 3_000 < EVENT
    assert len(lines_of([signal(values={}, name="x", symbol="KRW-A")], [], {})[0][0]) > SHORTEST


def test_of_what_was_told_the_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdms_pipeline.live.news.REMEMBERED", 3)
    news = News()
    assert news.fresh([signal(i) for i in range(3)]) == [signal(i) for i in range(3)]
    again = signal(0, answer=None)  # told anew: the bar was told otherwise
    assert news.fresh([again]) == [replace(again, revision=1)]
    news.fresh([signal(3)])
    assert sorted(held.opened_at for held in news.told.values()) == [signal(i).opened_at for i in (0, 2, 3)]
    assert news.nbytes == 3 * SIGNAL
    assert news.fresh([again, signal(2), signal(3)]) == []


def test_what_is_recalled_takes_nothing_later_back() -> None:
    news = News([replace(signal(0), revision=2)])
    news.recall([signal(0, answer=None)])
    assert news.fresh([signal(0)]) == []
    assert news.fresh([signal(0, answer=None)]) == [replace(signal(0, answer=None), revision=3)]


def test_too_much_is_refused_with_the_arithmetic_and_the_remedy() -> None:
    room = room_of(some(), MARKETS, False, FIXED, 500)
    assert check_room(room) is room
    assert [(part.timeframe, part.markets, part.rules) for part in room.parts] == [("1h", 30, 2), ("1d", 30, 1)]
    assert room.needed == FIXED + sum(30 * part.each for part in room.parts)
    many = [watch_of(f"close > sma({n})", f"rule_{n}") for n in range(2, 400)]
    with pytest.raises(OverMemory) as error:
        check_room(room_of(many, MARKETS * 10, False, FIXED, 200))
    said = str(error.value)
    assert "more than 40% of MDMS_MEMORY_MB=200: 300 markets x 398 rules on 1h (" in said
    assert "watch fewer markets (MDMS_SYMBOLS) or fewer rules (--strategy, --screen), or allow more: MDMS_MEMORY_MB=" in said
    enough = int(said.rsplit("=", 1)[1])
    check_room(room_of(many, MARKETS * 10, False, FIXED, enough))
    with pytest.raises(OverMemory):
        check_room(room_of(many, MARKETS * 10, False, FIXED, enough - 100))


def test_a_rule_counts_the_markets_that_it_takes() -> None:
    named = replace(watch_of("close > 1"), symbols=frozenset(MARKETS[:3]))
    assert room_of([named], MARKETS, False, 0, 500).parts[0].markets == 3


@pytest.mark.parametrize("no_trade", ["skip", "flat"])
def test_what_is_held_stays_below_what_was_reckoned(tmp_path: Path, no_trade: str) -> None:
    found = simulation(tmp_path, "1h,4h", 21, MDMS_NO_TRADE=no_trade)
    found.collect()
    held = []

    def look() -> None:
        assert found.live is not None
        held.append((found.live.nbytes, found.live.health.held, found.live.room.needed))

    found.look = look
    found.listen(int(found.clock()) + 12 * 3_600)
    assert all(now <= needed and seen <= needed for now, seen, needed in held)
    assert held[-1][1] > held[0][1] > 0  # signals that were told


def test_whoever_does_not_fit_does_not_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FOLLOW", 3.0)
    found = simulation(tmp_path, "1h", 22)
    found.trouble = Trouble(cut=0.0)
    everybody = found.settings.symbols
    found.settings = replace(found.settings, symbols=everybody[:3])
    found.collect()

    def grow() -> None:
        assert found.live is not None
        needed = found.live.room.needed
        monkeypatch.setattr(run, "check_room", lambda room: check_room(replace(room, memory_mb=needed / 0.4 / 2**20)))
        choose(found, everybody[1:])

    def seen() -> None:
        assert found.live is not None
        assert set(found.live.symbols) == set(everybody[1:3])
        assert set(found.live.health.dropped) == set(everybody[3:])
        assert "mdms live would need more than 40%" in found.live.health.dropped[everybody[3]]

    def fewer() -> None:
        seen()
        choose(found, [*everybody[1:3], everybody[3]])

    def exchanged() -> None:
        assert found.live is not None
        assert set(found.live.health.dropped) == {everybody[3]}  # the others are not wanted any more
        choose(found, everybody[2:4])

    plan(found, {2: grow, 5: fewer, 8: exchanged})
    found.listen(int(found.clock()) + 11 * 3_600)
    assert found.live is not None
    assert set(found.live.symbols) == set(everybody[2:4])  # one left, so the other has room now
    assert not found.live.health.dropped


def test_what_comes_while_a_gap_is_closed_waits_at_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue has its bound too, however long REST does not answer."""
    monkeypatch.setattr(run, "WAITING", 50)
    warehouse = Warehouse(tmp_path / "mdms.duckdb", "sandbox", 500)
    told = 0

    async def events() -> AsyncIterator[Heard]:
        nonlocal told
        while True:
            told += 1
            yield Heard("KRW-S1", "1h", told, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)

    async def main(live: Live) -> None:
        listening = asyncio.create_task(live._listen(events()))
        await asyncio.sleep(0.1)
        assert live._queue.qsize() == 50 == told - 1
        assert live.nbytes >= 50 * EVENT
        for _ in range(10):
            live._queue.get_nowait()
        await asyncio.sleep(2 * run.LOOK)
        assert live._queue.qsize() == 50
        listening.cancel()

    with closing(Delivery(Journal(tmp_path / "signals"))) as delivery:
        live = Live([watch_of("close > 1")], warehouse, ["KRW-S1"], lambda *_: None, Clock(), delivery)  # type: ignore[arg-type]
        asyncio.run(main(live))


def test_a_process_without_room_does_not_begin(tmp_path: Path) -> None:
    many = [watch_of(f"close > sma({n})", f"rule_{n}") for n in range(2, 400)]
    warehouse = Warehouse(tmp_path / "mdms.duckdb", "sandbox", 200)
    with closing(Delivery(Journal(tmp_path / "signals"))) as delivery, pytest.raises(OverMemory):
        Live(many, warehouse, MARKETS * 10, lambda *_: None, Clock(), delivery)  # type: ignore[arg-type]


def test_parts_of_longer_bars_are_counted() -> None:
    engine = Engine([watch_of("close > 1", frame="1w")], ["KRW-S1"], False, lambda: 0.0)
    before = engine.nbytes
    for i in range(42):
        engine.put_part("KRW-S1", Bar(4 * 86_400 + i * 14_400, (1.0,) * 6))
    assert engine.nbytes - before == 42 * BAR
    assert engine.nbytes <= room_of(engine.watches, ["KRW-S1"], False, 0, 500).needed
