"""What a rule says at every bar: Kleene's tables, unknowns, shifts, and a naive oracle over random rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdms_pipeline.rules import FALSE, TRUE, UNKNOWN, Call, Formula, MissingSeriesError, evaluate, known, parse, parse_value, passes
from mdms_pipeline.rules.nodes import reach

from . import oracle
from .strategies import LEAVES, rules, tables, values
from .words import VOCABULARY

NAN, INF = math.nan, math.inf
WORD = {True: TRUE, False: FALSE, None: UNKNOWN}
# A series whose comparison with 0 is true, false, unknown in turn: close by thirds, open within each third.
THREE = {"close": np.repeat([1.0, -1.0, NAN], 3), "open": np.tile([1.0, -1.0, NAN], 3)}


def said(text, **series):
    return evaluate(parse(text, VOCABULARY), {name: np.array(array, float) for name, array in series.items()}).tolist()


def number(text, **series):
    return evaluate(parse_value(text, VOCABULARY), {name: np.array(array, float) for name, array in series.items()})


def test_kleene_tables():
    assert said("close > 0 and open > 0", **THREE) == [1, -1, 0, -1, -1, -1, 0, -1, 0]
    assert said("close > 0 or open > 0", **THREE) == [1, 1, 1, 1, -1, 0, 1, 0, 0]
    assert said("not close > 0", **THREE) == [-1, -1, -1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "!="])
def test_a_comparison_with_unknown_is_unknown_and_so_is_its_negation(sign):
    for rule in (f"close {sign} 70", f"not close {sign} 70", f"70 {sign} close", f"close {sign} close"):
        verdicts = evaluate(parse(rule, VOCABULARY), {"close": np.array([NAN, INF, -INF])})
        assert verdicts.tolist() == [UNKNOWN] * 3
        assert not passes(verdicts).any()


def test_comparisons():
    close = [1.0, 2.0, 3.0]
    assert said("close < 2", close=close) == [1, -1, -1]
    assert said("close <= 2", close=close) == [1, 1, -1]
    assert said("close > 2", close=close) == [-1, -1, 1]
    assert said("close >= 2", close=close) == [-1, 1, 1]
    assert said("close == 2", close=close) == [-1, 1, -1]
    assert said("close != 2", close=close) == [1, -1, 1]
    assert said("1 < close < 3", close=close) == [-1, 1, -1]
    assert said("1 < close < open", close=[1.0, 2.0, 2.0], open=[NAN, NAN, 3.0]) == [-1, 0, 1]


def test_arithmetic_without_a_finite_answer_is_unknown():
    np.testing.assert_array_equal(number("close / open", close=[1, 0, 4, 1e300], open=[0, 0, 2, 1e-300]), [NAN, NAN, 2, NAN])
    np.testing.assert_array_equal(number("close * close", close=[1e200, 3]), [NAN, 9])
    np.testing.assert_array_equal(number("close - open", close=[INF, 3, NAN], open=[INF, 1, 1]), [NAN, 2, NAN])
    assert said("close / 0 > 1 or close > 0", close=[1.0, -1.0]) == [1, 0]


def test_functions():
    np.testing.assert_array_equal(number("abs(close)", close=[-1, 2, NAN]), [1, 2, NAN])
    np.testing.assert_array_equal(number("min(close, open, 2)", close=[-1, 5, NAN], open=[0, 6, 1]), [-1, 2, NAN])
    np.testing.assert_array_equal(number("max(close, open, 2)", close=[-1, 5, NAN], open=[0, 6, 1]), [2, 6, NAN])


def test_one_bar_earlier():
    np.testing.assert_array_equal(number("close[1]", close=[1, 2, 3]), [NAN, 1, 2])
    np.testing.assert_array_equal(number("close[3]", close=[1, 2, 3]), [NAN] * 3)
    np.testing.assert_array_equal(number("close[5]", close=[1, 2, 3]), [NAN] * 3)
    np.testing.assert_array_equal(number("(close - open)[1] + close", close=[1, 2, 3], open=[1, 1, 1]), [NAN, 2, 4])
    assert number("close[1]", close=[]).shape == (0,)


def test_crosses():
    close = [1, 3, 3, 1, 2, 3, NAN, 3]
    assert said("crosses_above(close, 2)", close=close) == [-1, 1, -1, -1, -1, 1, -1, 0]
    assert said("crosses_below(close, 2)", close=close) == [0, -1, -1, 1, -1, -1, 0, -1]
    rule = "crosses_above(close, open) and crosses_below(open, close)"
    assert said(rule, close=[1, 2], open=[1, 1]) == [-1, 1], "touching, then above, is a cross"


def test_calls_are_asked_for_by_their_call():
    rule = parse("macd(12, 26, 9).signal > sma(close, 20)", VOCABULARY)
    series = {Call("macd", None, (12, 26, 9), "signal"): [1.0, 2.0], Call("sma", None, (20,), None): [2.0, 1.0]}
    assert evaluate(rule, series).tolist() == [FALSE, TRUE]


def test_plain_numbers_hold_at_every_bar():
    rule = parse("crosses_above(close, entry_price) and bars_held < 3", VOCABULARY)
    series = {"close": np.array([1.0, 3.0]), "entry_price": 2.0, "bars_held": np.array([1.0, 2.0])}
    assert evaluate(rule, series).tolist() == [FALSE, TRUE]


def test_the_types_of_answers():
    assert evaluate(parse("close > 1", VOCABULARY), {"close": np.arange(3)}).dtype == np.int8
    assert evaluate(parse_value("close", VOCABULARY), {"close": np.arange(3)}).dtype == np.float64
    assert [known(verdict) for verdict in (TRUE, UNKNOWN, FALSE)] == [True, None, False]


def test_what_was_not_handed_in_is_named():
    with pytest.raises(MissingSeriesError, match=r"reads sma\(20\), which was not handed in"):
        evaluate(parse("close > sma(20)", VOCABULARY), {"close": np.zeros(3)})
    with pytest.raises(ValueError, match=r"shapes \[\(2,\), \(3,\)\]"):
        evaluate(parse("close > open", VOCABULARY), {"close": np.zeros(3), "open": np.zeros(2)})


def test_inputs_are_not_written_to():
    close = np.array([1.0, INF, NAN])
    close.setflags(write=False)
    evaluate(parse("crosses_above(-close, 2) or abs(close) > close[1]", VOCABULARY), {"close": close})


@settings(max_examples=500, deadline=None)
@given(rules, tables())
def test_equals_the_oracle(rule, series):
    bars = len(next(iter(series.values())))
    expected = [WORD[oracle.condition(rule.root, series, bar)] for bar in range(bars)]
    assert evaluate(rule, series).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(values.filter(reach), tables())
def test_values_equal_the_oracle(root, series):
    bars = len(next(iter(series.values())))
    expected = [oracle.number(root, series, bar) for bar in range(bars)]
    answers = evaluate(Formula(root), series).tolist()
    assert [None if math.isnan(answer) else answer for answer in answers] == expected


@settings(max_examples=100, deadline=None)
@given(rules, st.lists(tables(st.just(5)), min_size=1, max_size=3))
def test_symbols_side_by_side_answer_as_each_alone(rule, symbols):
    stacked = {name: np.stack([series[name] for series in symbols], axis=1) for name in symbols[0]}
    together = evaluate(rule, stacked)
    for column, series in enumerate(symbols):
        assert together[:, column].tolist() == evaluate(rule, series).tolist()


@settings(max_examples=100, deadline=None)
@given(rules, tables(st.just(8)))
def test_lookback_bars_before_are_enough(rule, series):
    """Cut to `lookback + 1` bars, the last answer stays."""
    tail = {name: array[-rule.lookback - 1 :] for name, array in series.items()}
    assert evaluate(rule, tail)[-1] == evaluate(rule, series)[-1]
    assert set(rule.reads) <= set(LEAVES)
