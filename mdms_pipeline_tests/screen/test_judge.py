"""A screen at one instant: who takes part, what each clause says, and the ranking."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from mdms_pipeline.market import HOUR, instant
from mdms_pipeline.rules import Call, MissingSeriesError, evaluate
from mdms_pipeline.screen import Candidate, Outcome, Screen, judge, load_screen, why

from .words import VOCABULARY, write

AT = instant("2026-11-22T08:00")  # opening of the 4h slot that is judged
SMA = Call("sma", None, (20.0,), None)
RSI = Call("rsi", None, (14.0,), None)


@pytest.fixture
def screen(tmp_path):
    return make(tmp_path)


def make(folder, where="[close > sma(20), 'crosses_above(rsi(14), 30)']", rank="{expression: rsi(14), direction: asc}", more=""):
    text = f"title: T\ntimeframe: 4h\nwhere: {where}\nrank: {rank}\n{more}\n"
    screen = load_screen(write(folder / "dips.yaml", text), VOCABULARY)
    assert isinstance(screen, Screen), screen
    return screen


def candidate(symbol="KRW-BTC", close=101.0, sma=100.0, rsi=(29.0, 31.0), **more):
    series = {"close": np.array([90.0, close]), SMA: np.array([95.0, sma]), RSI: np.array(rsi)}
    given = {"covered_to": AT + 4 * HOUR, "opened_at": AT, "turnover": 1e9, "bars": 400, "series": series, **more}
    return Candidate(symbol=symbol, **given)


def one(screen, *candidates, **more):
    (row,) = judge(screen, AT, candidates, **more).rows
    return row


def test_a_symbol_that_passes(screen):
    row = one(screen, candidate())
    assert (row.symbol, row.outcome, row.reason, row.place, row.age) == ("KRW-BTC", Outcome.PASSED, "", 1, 0)
    assert (row.rank, row.turnover, row.unstable) == (31.0, 1e9, ())
    assert [(clause.text, clause.verdict) for clause in row.clauses] == [("close > sma(20)", True), ("crosses_above(rsi(14), 30)", True)]
    assert row.clauses[0].values == (("close", 101.0), ("sma(20)", 100.0))
    assert row.clauses[1].values == (("rsi(14)[1]", 29.0), ("rsi(14)", 31.0))


def test_a_symbol_that_fails_says_which_clauses_did(screen):
    row = one(screen, candidate(close=99.0, rsi=(29.0, 29.5)))
    assert (row.outcome, row.place) == (Outcome.FAILED, None)
    assert row.reason == "close > sma(20); crosses_above(rsi(14), 30)"


def test_unknown_never_passes_and_false_outweighs_it(screen):
    unknown = one(screen, candidate(sma=math.nan))
    assert (unknown.outcome, unknown.reason, unknown.place) == (Outcome.UNKNOWN, "close > sma(20)", None)
    assert unknown.clauses[0].verdict is None
    assert unknown.clauses[0].values == (("close", 101.0), ("sma(20)", None))
    assert one(screen, candidate(sma=math.nan, rsi=(31.0, 29.0))).outcome is Outcome.FAILED


def test_a_history_shorter_than_the_lookback_is_unknown(screen):
    short = candidate(bars=1)
    short = replace(short, series={name: bars[-1:] for name, bars in short.series.items()})
    row = one(screen, short)
    assert (row.outcome, row.reason) == (Outcome.UNKNOWN, "crosses_above(rsi(14), 30)")
    assert row.clauses[1].values == (("rsi(14)[1]", None), ("rsi(14)", 31.0))


def test_more_bars_than_needed_do_not_matter(screen):
    more = candidate()
    more = replace(more, series={name: np.concatenate([np.full(7, 1e6), bars]) for name, bars in more.series.items()})
    assert judge(screen, AT, [more]) == judge(screen, AT, [candidate()])


def test_coverage_must_reach_the_slot(screen):
    row = one(screen, candidate(covered_to=AT + 4 * HOUR - 1))
    assert (row.outcome, row.clauses, row.place) == (Outcome.NOT_KNOWN, (), None)
    assert row.reason == "4h is collected up to 2026-11-22T11:59:59Z only"
    assert one(screen, candidate(covered_to=None)).reason == "4h was never collected"


def test_the_last_trade_may_not_be_older_than_max_age(tmp_path):
    one_slot = candidate(opened_at=AT - 4 * HOUR)
    two_slots = candidate(opened_at=AT - 8 * HOUR)
    screen = make(tmp_path)
    assert (one(screen, one_slot).outcome, one(screen, one_slot).age) == (Outcome.PASSED, 1)
    assert one(screen, two_slots).reason == "the last trade is 2 slots old, max_age is 1"
    assert one(screen, two_slots).outcome is Outcome.TOO_OLD
    assert one(screen, candidate(opened_at=None, series={})).reason == "no trade is stored"
    assert one(make(tmp_path, more="max_age: 0"), one_slot).outcome is Outcome.TOO_OLD
    assert one(make(tmp_path, more="max_age: 2"), two_slots).outcome is Outcome.PASSED


def test_not_covered_outweighs_too_old(screen):
    assert one(screen, candidate(covered_to=AT, opened_at=AT - 40 * HOUR)).outcome is Outcome.NOT_KNOWN


def test_instants_off_the_grid_are_refused(screen):
    with pytest.raises(ValueError, match="does not open a 4h slot: use 2026-11-22T08:00:00Z"):
        judge(screen, AT + HOUR, [])
    for opened_at in (AT + 4 * HOUR, AT - HOUR):
        with pytest.raises(ValueError, match="KRW-BTC: its last candle"):
            judge(screen, AT, [candidate(opened_at=opened_at)])


def test_a_missing_series_names_screen_and_symbol(screen):
    with pytest.raises(MissingSeriesError, match=r"dips reads sma\(20\), which KRW-BTC does not have"):
        judge(screen, AT, [candidate(series={"close": np.zeros(2), RSI: np.zeros(2)})])


def symbols(result):
    return [row.symbol for row in result.ranking]


def test_ranking_and_ties(tmp_path):
    field = [
        candidate("KRW-A", rsi=(29, 33)),
        candidate("KRW-D", rsi=(29, 31), turnover=5.0),
        candidate("KRW-C", rsi=(29, 31), turnover=5.0),
        candidate("KRW-B", rsi=(29, 31), turnover=math.nan),
        candidate("KRW-E", rsi=(29, 31), turnover=9.0),
        candidate("KRW-F", rsi=(29, 29)),
    ]
    ascending = judge(make(tmp_path), AT, field)
    assert symbols(ascending) == ["KRW-E", "KRW-C", "KRW-D", "KRW-B", "KRW-A"]
    assert [row.place for row in ascending.rows] == [1, 2, 3, 4, 5, None]
    descending = make(tmp_path, rank="{expression: rsi(14), direction: desc}")
    assert symbols(judge(descending, AT, field)) == ["KRW-A", "KRW-E", "KRW-C", "KRW-D", "KRW-B"]
    assert judge(descending, AT, field[::-1]) == judge(descending, AT, field)


@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_an_unknown_rank_is_last_either_way(tmp_path, direction):
    screen = make(tmp_path, rank=f"{{expression: 1 / (rsi(14) - 31), direction: {direction}}}")
    result = judge(screen, AT, [candidate("KRW-A", turnover=9e9), candidate("KRW-B", rsi=(29, 40))])
    assert symbols(result) == ["KRW-B", "KRW-A"]
    assert [row.rank for row in result.ranking] == [1 / 9, None]


def test_the_limit_comes_after_the_ranking(tmp_path):
    result = judge(make(tmp_path, more="limit: 2"), AT, [candidate(f"KRW-{i}", rsi=(29, 40 - i)) for i in range(5)])
    assert symbols(result) == ["KRW-4", "KRW-3"]
    assert result.counts == {"passed": 5, "failed": 0, "unknown": 0, "too old": 0, "not known": 0}
    assert result.rows[4].place == 5


def test_universes(tmp_path):
    field = [
        candidate("KRW-A", turnover=1.0),
        candidate("KRW-B", turnover=3.0),
        candidate("KRW-C", turnover=2.0),
        candidate("KRW-D", turnover=math.nan),
    ]
    assert {row.symbol for row in judge(make(tmp_path), AT, field).rows} == {"KRW-A", "KRW-B", "KRW-C", "KRW-D"}
    assert {row.symbol for row in judge(make(tmp_path, more="universe: {top: 2}"), AT, field).rows} == {"KRW-B", "KRW-C"}
    assert len(judge(make(tmp_path, more="universe: {top: 9}"), AT, field).rows) == 4
    named = judge(make(tmp_path, more="universe: [KRW-C, KRW-X]"), AT, field)
    assert [(row.symbol, row.outcome) for row in named.rows] == [("KRW-C", Outcome.PASSED), ("KRW-X", Outcome.NOT_KNOWN)]


def test_nobody_takes_part(screen):
    assert judge(screen, AT, []).rows == ()
    assert judge(screen, AT, [candidate(covered_to=None)]).ranking == ()


def test_columns(tmp_path):
    row = one(make(tmp_path, more="columns: [close, 'close[1] / 0']"), candidate())
    assert row.columns == (("close", 101.0), ("close[1] / 0", None))


def test_values_before_stable_after_are_flagged(screen):
    """rsi is read one bar back by the cross: with 200 bars that value is at index 198."""
    assert one(screen, candidate(bars=200), stable_after={RSI: 198, SMA: 19}).unstable == ()
    assert one(screen, candidate(bars=200), stable_after={RSI: 199, SMA: 19}).unstable == ("rsi(14)",)
    assert one(screen, candidate(bars=200), stable_after={SMA: 199}).unstable == ()
    assert one(screen, candidate(bars=200), stable_after={SMA: 200}).unstable == ("sma(20)",)
    assert one(screen, candidate(bars=200)).unstable == ()


def test_a_result_is_json(screen):
    result = judge(screen, AT, [candidate(), candidate("KRW-ETH", sma=math.nan), candidate("KRW-XRP", covered_to=None)], {RSI: 1000})
    again = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert [row["outcome"] for row in again["rows"]] == ["passed", "unknown", "not known"]


def test_why(screen):
    told = why(screen, candidate())
    assert [explanation.text for explanation in told] == ["close > sma(20)", "crosses_above(rsi(14), 30)", "rsi(14)"]
    assert str(told[1]).splitlines() == [
        "crosses_above(rsi(14), 30): true",
        "  rsi(14)[1] <= 30: true",
        "    rsi(14)[1]: 29",
        "  rsi(14) > 30: true",
        "    rsi(14): 31",
    ]


def test_300_symbols_and_10_clauses(tmp_path):
    """Each symbol gets what it would get alone; and quickly (about 0.02 s here, the bound leaves room for slow machines)."""
    clauses = [f"close > sma(20) * 0.{i} or crosses_above(rsi(14)[{i}], {i} * 10)" for i in range(10)]
    screen = make(tmp_path, where=json.dumps(clauses), more="limit: 300")
    chance = np.random.default_rng(5)

    def random_candidate(i):
        series = {name: chance.choice([10.0, 20.0, 50.0, 90.0, math.nan], 11) for name in ("close", SMA, RSI)}
        return candidate(f"KRW-{i}", series=series, turnover=float(i))

    field = [random_candidate(i) for i in range(300)]
    started = time.perf_counter()
    result = judge(screen, AT, field)
    seconds = time.perf_counter() - started
    by_symbol = {row.symbol: row for row in result.rows}
    for each in field:
        alone = [int(evaluate(rule, each.series)[-1]) for rule in screen.where]
        assert [{True: 1, None: 0, False: -1}[clause.verdict] for clause in by_symbol[each.symbol].clauses] == alone
        assert (by_symbol[each.symbol].outcome is Outcome.PASSED) == (min(alone) == 1)
    assert len({row.outcome for row in result.rows}) == 3
    assert seconds < 0.5
