"""The three ways of an answer are one to the bit, whatever was asked before, dropped since, and stored meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mdms_pipeline.live.desk import IN_RAM, Answer, Desk, NothingStored
from mdms_pipeline.live.load import CALCULATED, STORED, expected, indicators_of
from mdms_pipeline.live.parity import bits_of
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Instant
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import Page
from mdms_pipeline_tests import support
from mdms_pipeline_tests.live.rules import START, hour, settings, walk, watches

SYMBOLS = ("KRW-AAA", "KRW-BBB", "KRW-CCC", "KRW-DDD")
BARS = 160
WALKS = {symbol: walk(BARS, seed, missing=0.15) for seed, symbol in enumerate(SYMBOLS)}


class Told:
    """A warehouse that grows, bar by bar."""

    def __init__(self, home: Path, no_trade: str) -> None:
        self.watches = watches(settings(home, MDMS_NO_TRADE=no_trade))
        self.warehouse = Warehouse(home / "mdms.duckdb", "sandbox", 600, no_trade=no_trade)
        self.known = dict.fromkeys(SYMBOLS, 0)

    @property
    def strategies(self) -> list[tuple[Watch, ...]]:
        names = dict.fromkeys((watch.source, watch.name) for watch in self.watches)
        return [tuple(watch for watch in self.watches if (watch.source, watch.name) == name) for name in names]

    def store(self, symbol: str, bars: int) -> None:
        start, end = self.known[symbol], min(BARS, self.known[symbol] + bars)
        candles = WALKS[symbol]
        new = candles[(candles.opened_at >= hour(start)) & (candles.opened_at < hour(end))]
        if end > start:
            support.put(self.warehouse, Page(symbol, "1h", new, (hour(start), hour(end))), at=hour(end) + 10)
            self.known[symbol] = end

    def calculate(self, symbols: Sequence[str]) -> None:
        support.calculate(self.warehouse, symbols, ("1h",), indicators_of(self.watches))


def bits(answer: Answer) -> tuple[object, ...]:
    return answer.opened_at, [(said.rule, said.answer, said.before, bits_of(said.values)) for said in answer.said]


@pytest.mark.parametrize(("seed", "no_trade"), [(1, "skip"), (2, "flat")])
def test_three_ways_one_answer(tmp_path: Path, seed: int, no_trade: str) -> None:
    drawn = random.Random(seed)
    told = Told(tmp_path, no_trade)
    for symbol in SYMBOLS:
        told.store(symbol, drawn.randint(20, 60))
    desk = Desk(told.warehouse, lambda: hour(BARS), room=150_000)  # of some four entries
    ways = Counter[str]()
    told.calculate(SYMBOLS[:2])
    for turn in range(14):
        symbol = drawn.choice(SYMBOLS)
        if drawn.random() < 0.3:
            told.store(symbol, drawn.randint(1, 4))
        if turn == 7:
            told.calculate(SYMBOLS[:2])
        mine = drawn.choice(told.strategies)
        answer = desk.ask(mine, symbol)
        ways[answer.way] += 1
        assert desk.held <= desk.room
        quick = Desk(told.warehouse, desk.clock).ask(mine, symbol)
        whole = Desk(told.warehouse, desk.clock).ask(mine, symbol, short=False)
        ways[quick.way] += 1
        assert whole.way == CALCULATED
        assert bits(answer) == bits(quick) == bits(whole)
    assert set(ways) == {IN_RAM, STORED, CALCULATED}
    assert min(ways.values()) >= 2


def test_an_answer_is_that_of_the_signals(tmp_path: Path) -> None:
    told = Told(tmp_path, "skip")
    told.store("KRW-AAA", 90)
    desk = Desk(told.warehouse, lambda: hour(91) + 10.0)
    for mine in told.strategies:
        answer = desk.ask(mine, "KRW-AAA")
        with told.warehouse.read() as connection:
            changed = expected(connection, mine, ["KRW-AAA"], START)
        for watch, said in zip(mine, answer.said, strict=True):
            if watch.takes("KRW-AAA"):
                assert said.answer == [signal for signal in changed if signal.rule == watch.rule][-1].answer
        assert answer.behind == 1


def test_the_exchange_is_asked_for_what_is_not_stored(tmp_path: Path) -> None:
    told = Told(tmp_path, "skip")
    told.store("KRW-AAA", 90)
    candles = WALKS["KRW-AAA"]
    at = int(candles.opened_at[-1])

    def more(symbol: str, frame: str, last: Instant) -> Candles:
        assert (symbol, frame) == ("KRW-AAA", "1h")
        return candles[candles.opened_at >= last]

    mine = told.strategies[0]
    answer = Desk(told.warehouse, lambda: at + 600.0).ask(mine, "KRW-AAA", more)
    assert answer.opened_at == int(candles.opened_at[-2])
    assert answer.behind == 0
    assert [said.rule for said in answer.forming] == ["entry", "exit"]
    told.store("KRW-AAA", BARS)
    later = Desk(told.warehouse, lambda: at + 3_700.0).ask(mine, "KRW-AAA")
    assert later.opened_at == at
    assert [said.answer for said in answer.forming] == [said.answer for said in later.said]
    assert [bits_of(said.values) for said in answer.forming] == [bits_of(said.values) for said in later.said]


def test_revised_candles_are_not_answered_from_ram(tmp_path: Path) -> None:
    told = Told(tmp_path, "skip")
    told.store("KRW-AAA", 90)
    desk = Desk(told.warehouse, lambda: hour(91))
    mine = told.strategies[0]
    desk.ask(mine, "KRW-AAA")
    assert desk.ask(mine, "KRW-AAA").way == IN_RAM
    candles = WALKS["KRW-AAA"]
    last = candles[candles.opened_at < hour(90)][-1:]
    reread = replace(last, **{name: getattr(last, name) * 1.5 for name in PRICES_AND_AMOUNTS})
    support.put(told.warehouse, Page("KRW-AAA", "1h", Candles.empty(), (hour(90), hour(91)), reread=reread))
    answer = desk.ask(mine, "KRW-AAA")
    assert answer.way == CALCULATED
    assert answer.said[0].values["close"] == float(reread.close[0])


def test_nothing_stored(tmp_path: Path) -> None:
    told = Told(tmp_path, "skip")
    with pytest.raises(NothingStored, match="no 1h candle of KRW-AAA is stored"):
        Desk(told.warehouse, lambda: 0.0).ask(told.strategies[0], "KRW-AAA")
