"""Why a rule says what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdms_pipeline.rules import evaluate, explain, known, parse, parse_value

from .strategies import rules, tables
from .words import VOCABULARY

SERIES = {"close": np.array([1.0, 2.0, 3.0, 2.5]), "open": np.array([1.0, 2.0, 0.0, np.nan]), "value": np.full(4, 123_456_789_012.0)}


def test_tree_of_a_rule():
    rule = parse("crosses_below(close, 2.75) and not (close - open)[1] > 4 or value / 1e9 < open", VOCABULARY)
    assert str(explain(rule, SERIES)).splitlines() == [
        "crosses_below(close, 2.75) and not (close - open)[1] > 4 or value / 1000000000 < open: true",
        "  crosses_below(close, 2.75) and not (close - open)[1] > 4: true",
        "    crosses_below(close, 2.75): true",
        "      close[1] >= 2.75: true",
        "        close[1]: 3",
        "      close < 2.75: true",
        "        close: 2.5",
        "    not (close - open)[1] > 4: true",
        "      (close - open)[1] > 4: false",
        "        (close - open)[1]: 3",
        "          close[1]: 3",
        "          open[1]: 0",
        "  value / 1000000000 < open: unknown",
        "    value / 1000000000: 123.456789",
        "      value: 123456789012",
        "    open: unknown",
    ]


def test_tree_of_a_value():
    assert str(explain(parse_value("close / open", VOCABULARY), SERIES, 2)).splitlines() == [
        "close / open: unknown",
        "  close: 3",
        "  open: 0",
    ]


def test_as_json():
    told = explain(parse("close > open", VOCABULARY), SERIES).as_dict()
    assert json.loads(json.dumps(told)) == {
        "text": "close > open",
        "answer": None,
        "children": [{"text": "close", "answer": 2.5, "children": []}, {"text": "open", "answer": None, "children": []}],
    }


def test_a_bar_that_is_not_there():
    for at in (4, -5):
        with pytest.raises(IndexError, match=f"bar {at} is outside of 4 bars"):
            explain(parse("close > 1", VOCABULARY), SERIES, at)


@settings(max_examples=60, deadline=None)
@given(rules, tables(), st.data())
def test_says_what_evaluate_says_at_every_bar(rule, series, data):
    bars = len(next(iter(series.values())))
    at = data.draw(st.integers(-bars, bars - 1))
    told = explain(rule, series, at)
    assert told.answer is known(int(evaluate(rule, series)[at]))
    assert told.text == str(rule)
    _check_children(told, series, at)


def _check_children(told, series, at):
    """Every sub-expression stands on its own: read from its text and evaluated, it gives the value shown."""
    for child in told.children:
        reader = parse if isinstance(child.answer, bool) else parse_value
        if child.answer is not None and any(str(name) in child.text for name in series):
            answer = evaluate(reader(child.text, VOCABULARY), series)[at]
            assert (known(int(answer)) if reader is parse else float(answer)) == child.answer
        _check_children(child, series, at)
