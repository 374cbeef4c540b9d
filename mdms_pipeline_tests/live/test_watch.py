"""What a signal says is what the backtest decides and the screens judge, at every bar."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from mdms_pipeline.backtest.decide import decide
from mdms_pipeline.backtest.find import history_of, recipe_of
from mdms_pipeline.backtest.history import History, Past
from mdms_pipeline.live.load import judged_bars, load
from mdms_pipeline.live.signal import ENTRY, EXIT, SCREEN, STRATEGY, WHERE, Signal
from mdms_pipeline.live.watch import Watch, changes, signal, signals, values, verdicts
from mdms_pipeline.live_watch import screen_named, screen_watch, strategy_watches
from mdms_pipeline.market import timeframe
from mdms_pipeline.rules import TRUE, UNKNOWN, Rule, known, parse
from mdms_pipeline.screen.judge import Candidate, Outcome, judge
from mdms_pipeline.store.schema import FLAT
from mdms_pipeline.vocabulary import column_of, indicator_of, vocabulary
from mdms_pipeline_tests.backtest.markets import warehouse
from mdms_pipeline_tests.live.rules import SCREENS, STRATEGIES, bars_of, settings, walk, watches

WALKS = {f"KRW-{3 * letter}": walk(150, seed) for seed, letter in enumerate("ABC")}
HOURLY = timeframe("1h")


def test_entries_and_exits_are_those_that_the_backtest_decides(tmp_path: Path) -> None:
    given = settings(tmp_path)
    for name in STRATEGIES:
        strategy = recipe_of(given, name).usual
        history = History.of(HOURLY, {symbol: Past(candles) for symbol, candles in WALKS.items()})
        everywhere = np.ones((history.slots, len(WALKS)), np.bool_), ()
        decided = decide(strategy, history, universe=everywhere).decisions
        watched = strategy_watches(strategy)
        assert [watch.rule for watch in watched] == [ENTRY] if name == "held" else [ENTRY, EXIT]
        for watch in watched:
            wanted = decided.enter if watch.rule == ENTRY else decided.leave
            for i, (symbol, candles) in enumerate(WALKS.items()):
                bars = bars_of(symbol, candles, watched)
                said = verdicts(watch, bars.columns, np.arange(len(candles)))
                assert (said == TRUE).any(), (name, watch.rule)
                np.testing.assert_array_equal(said == TRUE, wanted[history.rows[symbol], i], err_msg=f"{name} {watch.rule} {symbol}")
                assert (said[: watch.stable] != TRUE).all()


def test_under_flat_they_are_those_of_the_backtest_on_the_same_warehouse(tmp_path: Path) -> None:
    """Indicators have seen the slots without a trade, rules decide on candles: here and there."""
    given = settings(tmp_path)
    store = warehouse(tmp_path, WALKS, "1h", no_trade=FLAT)
    for name in STRATEGIES:
        strategy = recipe_of(given, name).usual
        history = history_of(store, strategy)
        decided = decide(strategy, history, universe=(np.ones((history.slots, len(history.past)), np.bool_), ())).decisions
        watched = strategy_watches(strategy)
        with store.read() as connection:
            found = {each.loaded.symbol: each.loaded for each in load(connection, watched, history.symbols, since=0)}
        for watch in watched:
            wanted = decided.enter if watch.rule == ENTRY else decided.leave
            for i, symbol in enumerate(history.symbols):
                bars = judged_bars(found[symbol], watch, FLAT)
                said = verdicts(watch, bars.columns, bars.first + np.arange(len(bars.opened_at)), bars.age)
                np.testing.assert_array_equal(bars.opened_at, history.past[symbol].candles.opened_at)
                np.testing.assert_array_equal(said == TRUE, wanted[history.rows[symbol], i], err_msg=f"{name} {watch.rule} {symbol}")


def test_screens_are_what_they_judge(tmp_path: Path) -> None:
    given = settings(tmp_path)
    for name in SCREENS:
        screen = screen_named(given, name)
        watch = screen_watch(screen)
        stable = {call: indicator_of(call).stable_after for call in screen.calls}
        for symbol, candles in WALKS.items():
            if not watch.takes(symbol):
                continue
            bars = bars_of(symbol, candles, watches(given))
            said = verdicts(watch, bars.columns, np.arange(len(candles)))
            names = {**{c: c for c in screen.series}, **{call: column_of(call) for call in screen.calls}}
            for bar in range(len(candles)):
                at = int(candles.opened_at[bar])
                start = max(0, bar - screen.lookback)
                whole = {key: bars.columns[column] if column in bars.columns else getattr(candles, column) for key, column in names.items()}
                candidate = Candidate(
                    symbol, HOURLY.after(at), at, 1.0, bar + 1, {key: column[start : bar + 1] for key, column in whole.items()}
                )
                row = next(row for row in judge(screen, at, [candidate], stable).rows if row.symbol == symbol)
                outcome = {Outcome.PASSED: True, Outcome.FAILED: False, Outcome.UNKNOWN: None}[row.outcome]
                assert known(int(said[bar])) == outcome, (name, symbol, bar)


def test_signals_stand_where_the_answer_changes(tmp_path: Path) -> None:
    given = settings(tmp_path)
    watched = watches(given)
    for watch in watched:
        bars = bars_of("KRW-AAA", WALKS["KRW-AAA"], watched)
        found = list(signals(watch, bars))
        answers = [None, *(known(int(v)) for v in verdicts(watch, bars.columns, np.arange(len(bars.opened_at))))]
        moved = [i - 1 for i in range(1, len(answers)) if answers[i] != answers[i - 1]]
        assert [signal.opened_at for signal in found] == bars.opened_at[moved].tolist()
        assert all(signal.answer != signal.before for signal in found)
        tail = replace(bars, opened_at=bars.opened_at[60:], columns={n: c[60:] for n, c in bars.columns.items()}, first=60)
        late = int(bars.opened_at[60 + watch.lookback + 1])
        assert list(signals(watch, tail)) == [signal for signal in found if signal.opened_at >= late]
    assert {watch.source for watch in watched} == {STRATEGY, SCREEN}


def test_values_are_every_leaf_as_far_back_as_it_is_read(tmp_path: Path) -> None:
    watched = {(watch.name, watch.rule): watch for watch in watches(settings(tmp_path))}
    entry = watched["crossing", ENTRY]
    assert list(entry.readings) == ["sma(3)[1]", "sma(7)[1]", "sma(3)", "sma(7)", "close", "close[2]"]
    bars = bars_of("KRW-AAA", WALKS["KRW-AAA"], list(watched.values()))
    found = values(entry, bars.columns, 30)
    assert found["close[2]"] == bars.columns["close"][28]
    assert found["sma(7)[1]"] == bars.columns["sma_7"][29]
    assert values(entry, bars.columns, 0)["close[2]"] is None


def test_nothing_is_known_before_a_rule_is_stable_nor_too_long_after_a_trade() -> None:
    rule = parse("close > 1", vocabulary())
    assert isinstance(rule, Rule)
    watch, columns = Watch(SCREEN, "mine", WHERE, "1h", (rule,), stable=2, max_age=3), {"close": np.full(6, 2.0)}
    said = verdicts(watch, columns, np.arange(6), np.array([0, 0, 0, 2, 3, 4]))
    assert said.tolist() == [UNKNOWN, UNKNOWN, TRUE, TRUE, TRUE, UNKNOWN]
    assert verdicts(replace(watch, max_age=None), columns, np.arange(6), np.full(6, 10**6)).tolist() == [UNKNOWN, UNKNOWN, *[TRUE] * 4]


def test_changes_count_from_not_known() -> None:
    assert changes(np.array([0, 0, -1, -1, 1, 0], np.int8)).tolist() == [2, 4, 5]
    assert changes(np.array([1, 1], np.int8)).tolist() == [0]


def test_a_signal_is_made_as_its_class_would() -> None:
    """`signal` sets the fields by itself: none is left out, none is another."""
    made = signal(Watch(SCREEN, "mine", WHERE, "1h", ()), "KRW-BTC", 3_600, 1, -1, {"close": 2.0}, 3_601.0, 3_602.0, True, 2)
    same = Signal(SCREEN, "mine", WHERE, "KRW-BTC", "1h", 3_600, True, False, {"close": 2.0}, True, 3_601.0, 3_602.0, 2)
    assert made == same
    assert list(vars(made)) == [field.name for field in fields(Signal)]
