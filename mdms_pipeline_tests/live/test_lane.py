"""Whatever way the candles arrive, the signals are those of the bars as they ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mdms_pipeline.calculate.run import calculate, carry
from mdms_pipeline.live.lane import Bar, Lane
from mdms_pipeline.live.load import indicators_of
from mdms_pipeline.live.parity import differences
from mdms_pipeline.live.signal import Signal
from mdms_pipeline.live.tape import Loaded
from mdms_pipeline.live.watch import Bars, Watch, columns_of, signals
from mdms_pipeline.market import HOUR, PRICES_AND_AMOUNTS, SETTLE, Candles
from mdms_pipeline.rules import UNKNOWN
from mdms_pipeline.store.series import Series, flattened
from mdms_pipeline_tests.live.rules import bars_of, hour, settings, walk, watches

SYMBOLS = ("KRW-AAA", "KRW-BBB", "KRW-CCC")
BARS, HEAD = 120, 40
WALKS = {symbol: walk(BARS, seed) for seed, symbol in enumerate(SYMBOLS)}


def bar_of(candles: Candles, i: int, at: float | None = None) -> Bar:
    opened_at = int(candles.opened_at[i])
    return Bar(opened_at, tuple(float(getattr(candles, name)[i]) for name in PRICES_AND_AMOUNTS), opened_at + 3_599.0 if at is None else at)


def formed(bar: Bar, share: float) -> Bar:
    """The bar when a share of it was traded."""
    opening, _, _, close, volume, value = bar.candle
    now = opening + share * (close - opening)
    return Bar(
        bar.opened_at, (opening, max(opening, now), min(opening, now), now, share * volume, share * value), bar.opened_at + 3_500 * share
    )


def lane_of(watched: Sequence[Watch], walks: dict[str, Candles], head: int, flat: bool = False) -> Lane:
    """A lane that knows the first bars of every symbol, those before the slot `head`."""
    lane = Lane(watched, SYMBOLS, flat, clock=lambda: 0.0)
    needed = indicators_of(watched)
    found = []
    for symbol, candles in walks.items():
        known = candles[candles.opened_at < hour(head)]
        trades = len(known)
        if flat:
            series = Series(known.opened_at, {name: getattr(known, name) for name in PRICES_AND_AMOUNTS})
            seen = flattened(series, "1h", hour(0), hour(head - 1))
            bars = Candles(seen.opened_at, *(seen.columns[name] for name in PRICES_AND_AMOUNTS))
        else:
            bars = known
        after, fresh = carry(needed, {}, bars)
        columns = {name: fresh[name] for name in (*columns_of(watched), *PRICES_AND_AMOUNTS) if name in fresh} | {
            name: getattr(bars, name) for name in PRICES_AND_AMOUNTS
        }
        found.append(Loaded(symbol, bars.opened_at, columns, after, len(bars), int(known.opened_at[-1]), trades))
    lane.load(found)
    return lane


def wanted(watched: Sequence[Watch], walks: dict[str, Candles]) -> list[Signal]:
    return [
        signal
        for symbol, candles in walks.items()
        for watch in watched
        if watch.takes(symbol)
        for signal in signals(watch, bars_of(symbol, candles, watched))
        if signal.opened_at >= hour(HEAD)
    ]


def play(lane: Lane, walks: dict[str, Candles], seed: int) -> list[Signal]:
    """Candles as they form, some repeated, some out of order, some told late; closed by a newer one or by the clock."""
    random = np.random.default_rng(seed)
    told: list[Signal] = []
    lagging: list[tuple[str, Bar]] = []
    for slot in range(HEAD, BARS):
        heard = []
        for symbol, candles in walks.items():
            at = np.flatnonzero(candles.opened_at == hour(slot))
            if len(at):
                whole = bar_of(candles, int(at[0]))
                shares = sorted(random.random(int(random.integers(0, 4))))
                pieces = [formed(whole, share) for share in shares]
                if pieces and random.random() < 0.2:
                    lagging.append((symbol, whole))  # the last message comes when the bar is thought closed
                else:
                    pieces.append(whole)
                pieces += [pieces[i] for i in random.integers(0, len(pieces), 2)] if pieces else []  # repeated, out of order
                heard += [(symbol, piece) for piece in pieces]
        order = random.permutation(len(heard)) if random.random() < 0.3 else range(len(heard))
        for chunk in np.array_split(np.array(list(order), dtype=int), int(random.integers(1, 4))):
            told += lane.hear([heard[i] for i in chunk])
            assert all(signal.provisional for signal in lane.peek())
        if lagging and random.random() < 0.7:
            told += lane.tick(hour(slot + 1) + SETTLE)
            told += lane.hear(lagging)
            lagging = []
        elif lagging:
            told += lane.hear(lagging)
            lagging = []
        elif random.random() < 0.5:
            told += lane.tick(hour(slot + 1) + SETTLE)
    return [*told, *lane.tick(hour(BARS) + SETTLE)]


@pytest.mark.parametrize("seed", range(6))
def test_signals_are_those_of_the_bars_as_they_ended(tmp_path: Path, seed: int) -> None:
    watched = watches(settings(tmp_path))
    lane = lane_of(watched, WALKS, HEAD)
    told = play(lane, WALKS, seed)
    expected = wanted(watched, WALKS)
    assert len(expected) > 100
    assert differences(expected, told) == []
    assert not lane.doubted
    assert any(signal.revision for signal in told)
    after = {symbol: carry(lane.tape.needed, {}, candles)[0] for symbol, candles in WALKS.items()}
    for indicator, memory in lane.tape.memory.items():
        for row, symbol in enumerate(SYMBOLS):
            assert memory[row].tobytes() == after[symbol][indicator].tobytes(), indicator


def test_slots_without_a_trade_are_bars_under_flat(tmp_path: Path) -> None:
    """Screens judge them, up to max_age; strategies decide on candles alone, whose indicators have seen them."""
    watched = watches(settings(tmp_path))
    walks = {symbol: walk(BARS, seed, missing=0.35) for seed, symbol in enumerate(SYMBOLS)}
    lane = lane_of(watched, walks, HEAD, flat=True)
    told = play(lane, walks, 1)
    expected = []
    for symbol, candles in walks.items():
        seen = flattened(Series(candles.opened_at, {n: getattr(candles, n) for n in PRICES_AND_AMOUNTS}), "1h", hour(0), hour(BARS - 1))
        bars = Candles(seen.opened_at, *(seen.columns[name] for name in PRICES_AND_AMOUNTS))
        traded = seen.columns["volume"] > 0
        last = np.maximum.accumulate(np.where(traded, np.arange(len(bars)), 0))
        columns = {**seen.columns, **calculate(indicators_of(watched), bars)}
        every = Bars(symbol, bars.opened_at, columns, np.arange(len(bars)) - last)
        candles_only = Bars(symbol, bars.opened_at[traded], {name: column[traded] for name, column in columns.items()})
        for watch in watched:
            if watch.takes(symbol):
                found = signals(watch, candles_only if watch.trades else every)
                expected += [signal for signal in found if signal.opened_at >= hour(HEAD)]
    assert differences(expected, told) == []
    assert any(signal.answer is None for signal in expected)  # a market without a trade for longer than max_age is not known


def test_a_bar_that_closes_keeps_its_last_trade_and_is_received_with_what_closed_it(tmp_path: Path) -> None:
    """The first says from when on REST is asked, the second how late a signal is. Every other bar is closed by the clock."""
    lane = lane_of(watches(settings(tmp_path)), WALKS, HEAD)
    candles = WALKS["KRW-AAA"][WALKS["KRW-AAA"].opened_at >= hour(HEAD)]
    bars = [bar_of(candles, i, at=int(candles.opened_at[i]) + 1_800.0) for i in range(len(candles))]
    signals_by = {"message": 0, "clock": 0}
    for i, (bar, later) in enumerate(pairwise(bars)):
        closed_by = ("message", "clock")[i % 2]
        lane.hear([("KRW-AAA", replace(bar, received_at=bar.at))])
        closed_at = later.at if closed_by == "message" else bar.opened_at + HOUR + SETTLE
        told = lane.hear([("KRW-AAA", replace(later, received_at=closed_at))]) if closed_by == "message" else lane.tick(closed_at)
        assert (lane.last[0], lane.complete_to(0)) == (replace(bar, received_at=closed_at), bar.at)
        assert [signal.received_at for signal in told] == [closed_at] * len(told)
        signals_by[closed_by] += len(told)
    assert min(signals_by.values()) > 0


def test_the_first_bar_that_is_answered_may_be_the_one_that_forms_or_the_last(tmp_path: Path) -> None:
    watched = [watch for watch in watches(settings(tmp_path)) if watch.takes("KRW-AAA")]
    only, known = {"KRW-AAA": WALKS["KRW-AAA"]}, int((WALKS["KRW-AAA"].opened_at < hour(HEAD)).sum())
    forming = lane_of([replace(watch, stable=known) for watch in watched], only, HEAD)
    assert (forming.said == UNKNOWN).all()
    forming.hear([("KRW-AAA", bar_of(WALKS["KRW-AAA"], known))])
    assert {signal.answer for signal in forming.peek()} == {True, False}
    last = lane_of([replace(watch, stable=known - 1) for watch in watched], only, HEAD)
    assert (last.before == UNKNOWN).all()
    assert (last.said != UNKNOWN).any()


def test_a_message_of_an_older_bar_casts_doubt(tmp_path: Path) -> None:
    watched = watches(settings(tmp_path))
    lane = lane_of(watched, WALKS, HEAD)
    candles = WALKS["KRW-AAA"]
    first = int(np.searchsorted(candles.opened_at, hour(HEAD)))
    for i in range(first, first + 4):
        lane.hear([("KRW-AAA", bar_of(candles, i))])
    older = bar_of(candles, first + 1)
    lane.hear([("KRW-AAA", older)])
    assert not lane.doubted
    more = (*older.candle[:3], older.candle[3] * 1.001, older.candle[4] * 2, older.candle[5] * 2)
    lane.hear([("KRW-AAA", replace(older, candle=more, at=older.at + 1))])
    assert lane.doubted == {"KRW-AAA"}
