"""Text to rule: what is understood, what is refused, and that every refusal helps."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdms_pipeline.rules import Call, RuleError, Signature, Vocabulary, parse, parse_value
from mdms_pipeline.rules.nodes import Comparison, Number, Series, Shift

from .strategies import rules
from .words import VOCABULARY

NORMAL = {
    "close > open": "close > open",
    "close>sma( close , 20 )": "close > sma(20)",
    "sma(volume, 20.0) < volume": "sma(volume, 20) < volume",
    "tr() > atr(14)": "tr() > atr(14)",
    "macd(12,26,9).signal[1] >= 0": "macd(12, 26, 9).signal[1] >= 0",
    "bollinger(20, 2.5).upper < close": "bollinger(20, 2.5).upper < close",
    "stoch(14,3,3).k<20": "stoch(14, 3, 3).k < 20",
    "close[0] > close[1][2]": "close > close[3]",
    "(close - open)[1] > 0": "(close - open)[1] > 0",
    "((close)) > (((open)))": "close > open",
    "close - (open - high) > close - open - high": "close - (open - high) > close - open - high",
    "close * (open + 1) / -2 > --5 - -close": "close * (open + 1) / -2 > 5 - -close",
    "+close > -0": "close > 0",
    "30 < rsi(14) <= 70.50": "30 < rsi(14) <= 70.5",
    "close != 5_000_000_000 and close == 1e-8": "close != 5000000000 and close == 1e-08",
    "close > 1 and (open > 1 and high > 1)": "close > 1 and open > 1 and high > 1",
    "(close > 1 or open > 1) and not (high > 1 and low > 1)": "(close > 1 or open > 1) and not (high > 1 and low > 1)",
    "close > 1 or open > 1 and high > 1": "close > 1 or open > 1 and high > 1",
    "not not close > 1": "not not close > 1",
    "crosses_above(close, 100) or crosses_below(ema(12), ema(26))": "crosses_above(close, 100) or crosses_below(ema(12), ema(26))",
    "abs(close - open) > max(1, open, min(low, 2))": "abs(close - open) > max(1, open, min(low, 2))",
    "close < entry_price * 0.95 or bars_held >= 10": "close < entry_price * 0.95 or bars_held >= 10",
    "\n  close > 1  # a remark, 한글도\n  and open > 1\n": "close > 1 and open > 1",
}

# text -> (what the caret stands under, words of the message)
REFUSED = {
    "": ("", "is empty"),
    " # nothing": (" ", "is empty"),
    "close": ("close", "a number where a condition"),
    "close + (open > 1) > 2": ("open > 1", "a condition where a number"),
    "not close": ("close", "compare it, as in close > 0"),
    "close and open > 1": ("close", "a number where a condition"),
    "(close < 1) < 2": ("close < 1", "a condition where a number"),
    "1 < 2": ("1 < 2", "reads no series"),
    "rsj(14) < 30": ("rsj", "did you mean rsi?"),
    "RSI(14) < 30": ("RSI", "did you mean rsi?"),
    "clsoe > 1": ("clsoe", "did you mean close?"),
    "zzz > 1": ("zzz", "known here: abs, atr"),
    "rsi_14 < 30": ("rsi_14", "did you mean rsi(14)?"),
    "rsi < 30": ("rsi", "write it like rsi(14)"),
    "rsi[1] < 30": ("rsi", "write it like rsi(14)"),
    "macd > 0": ("macd", "write it like macd(12, 26, 9).line"),
    "rsi() < 30": ("rsi()", "n: 1 in number, got 0"),
    "rsi(14, 3) < 30": ("rsi(14, 3)", "got 2"),
    "rsi(close, 14) < 30": ("close", "always reads the same series"),
    "rsi(0) < 30": ("0", "above 0"),
    "rsi(-14) < 30": ("-14", "above 0"),
    "rsi(14.5) < 30": ("14.5", "count of bars"),
    "rsi(7 + 7) < 30": ("7 + 7", "plain number"),
    "rsi(n=14) < 30": ("=", "plain numbers in order"),
    "sma(clos, 20) > 1": ("clos", "did you mean close?"),
    "sma(rsi(14), 20) > 1": ("rsi(14)", "candle columns only"),
    "sma(close[1], 20) > 1": ("close[1]", "candle columns only"),
    "macd(26, 12, 9).line > 0": ("macd(26, 12, 9)", "fast must be below slow, got 26 and 12"),
    "macd(12, 26, 9) > 0": ("macd(12, 26, 9)", "several values: line, signal, histogram"),
    "macd(12, 26, 9).histo > 0": ("histo", "did you mean histogram?"),
    "macd(12, 26, 9)[1].line > 0": ("line", "before any [k]"),
    "rsi(14).rsi > 0": ("rsi", "only one value"),
    "close.real > 0": ("real", "only an indicator's output"),
    "rsi(14).__class__ > 0": ("__class__", "only one value"),
    "().__class__.__mro__ > 0": ("__mro__", "nothing here has"),
    "abs(close).x > 0": ("x", "abs has no outputs"),
    "close(1) > 0": ("close(1)", "takes no arguments"),
    "close()() > 0": ("close()", "cannot be called"),
    "abs > 0": ("abs", "something to work on"),
    "abs(close, open) > 0": ("abs(close, open)", "takes 1 values, got 2"),
    "min(close) > 0": ("min(close)", "takes 2 or more"),
    "crosses_above(close)": ("crosses_above(close)", "takes 2 values, got 1"),
    "min(*close, open) > 0": ("*close", "not part of the rule language"),
    "close[-1] > 0": ("-1", "the future"),
    "close[1.5] > 0": ("1.5", "whole number of bars"),
    "close[open] > 0": ("open", "whole number of bars"),
    "close[1:2] > 0": (":", "not part of the rule language"),
    "close[1, 2] > 0": ("1, 2", "whole number of bars"),
    "5[1] > close": ("5[1]", "same at every bar"),
    "close[1001] > 0": ("close[1001]", "more than 1000 bars"),
    "(close[600] + 1)[600] > 0": ("(close[600] + 1)[600]", "more than 1000 bars"),
    "close[99999999999999999999] > 0": ("close[99999999999999999999]", "more than 1000 bars"),
    "close ** 9 > 0": ("**", "powers"),
    "close // 2 > 0": ("//", "write /"),
    "close % 2 > 0": ("%", "write /"),
    "close << 2 > 0": ("close << 2", "not part of the rule language"),
    "close = 2": ("=", "write =="),
    "close => 2": ("=>", "write >="),
    "close =< 2": ("=<", "write <="),
    "close <> 2": ("<>", "write !="),
    "close ≥ 2": ("≥", "write >="),
    "close > 1 && open > 1": ("&&", "write `and`"),
    "close > 1 | open > 1": ("|", "write `or`"),
    "!(close > 1)": ("!", "write `not`"),
    "close > 1 AND open > 1": ("AND", "small letters"),
    "close > '1'": ("'", "no quoted text"),
    "종가 > 1": ("종", "letters, digits"),
    "close > 1; open > 1": (";", "letters, digits"),
    "close > 5m": ("5m", "not a number"),
    "close > 0x10": ("0x10", "not a number"),
    "close > 1or open > 1": ("1or", "not a number"),
    "close > 1j": ("1j", "not a number"),
    "close > 1e999": ("1e999", "too large"),
    "close > True": ("True", "not a number"),
    "close > ...": ("...", "not a number"),
    "close > open if high > low else low": ("close > open if high > low else low", "not part of the rule language"),
    "close in open": ("open", "`in` and `is`"),
    "close is not open": ("open", "`in` and `is`"),
    "(close, open) > 1": ("(close, open)", "not part of the rule language"),
    "[close for close in open] > 1": ("[close for close in open]", "not part of the rule language"),
    "(close > 1": ("(", "check the parentheses"),
    "close) > (open": (")", "check the parentheses"),
    "close >": ("", "cannot be read"),
    "close open": ("open", "cannot be read"),
    "close > )": (")", "check the parentheses"),
    "  close > (open + ": ("(", "check the parentheses"),
    "close > open high": ("high", "cannot be read"),
    "lambda": ("", "cannot be read"),
    "-" * 60 + "close > 1": ("-" * 11 + "close", "nested more than 50 deep"),
    "(" * 300 + "close > 1": (None, "cannot be read"),
    "not " * 450 + "close > 1": (None, "deep"),
    "close > 1 and " * 200 + "open > 1": (None, "too long"),
}


@pytest.mark.parametrize("text", NORMAL)
def test_reads(text):
    rule = parse(text, VOCABULARY)
    assert str(rule) == NORMAL[text]
    assert parse(str(rule), VOCABULARY) == rule


@pytest.mark.parametrize("text", REFUSED)
def test_refuses_and_helps(text):
    place, words = REFUSED[text]
    with pytest.raises(RuleError) as caught:
        parse(text, VOCABULARY)
    assert words in str(caught.value)
    assert "^" in str(caught.value)
    if place is not None:
        assert caught.value.text[caught.value.start : caught.value.end] == place
    assert caught.value.__cause__ is None


def test_message_of_a_rule_of_several_lines():
    with pytest.raises(RuleError) as caught:
        parse("close > sma(200)\n\tand rsj(14) < 30  # 과매도\n  and volume > 0", VOCABULARY)
    assert str(caught.value).splitlines() == [
        "unknown indicator 'rsj'",
        "  close > sma(200)",
        "   and rsj(14) < 30  # 과매도",
        "       ^^^",
        "    and volume > 0",
        "did you mean rsi?",
    ]
    assert caught.value.line == 2


def test_error_survives_pickling():
    with pytest.raises(RuleError) as caught:
        parse("rsj(14) < 30", VOCABULARY)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.start == caught.value.start


def test_what_a_rule_reads():
    rule = parse(
        "crosses_above(close, sma(20)[2]) and (volume > sma(volume, 20)[1] or close > entry_price) and sma(close, 20) > 0", VOCABULARY
    )
    assert rule.calls == (Call("sma", None, (20.0,), None), Call("sma", "volume", (20.0,), None))
    assert rule.columns == ("close", "volume")
    assert rule.given == ("entry_price",)
    assert rule.lookback == 3
    assert list(rule.reads.values()) == [1, 3, 0, 1, 0]
    assert parse("close > 1", VOCABULARY).lookback == 0
    assert parse("(close[2] + 1)[3] > 1", VOCABULARY).lookback == 5


def test_a_rule_is_frozen_data():
    assert parse("close[1] > 2", VOCABULARY).root == Comparison((">",), (Shift(Series("close"), 1), Number(2.0)))
    assert hash(parse("close > 2", VOCABULARY)) == hash(parse("close>2.0", VOCABULARY))


def test_parameters_are_filled_in():
    rule = parse("sma(n) > sma(volume, n) * factor - close[n]", VOCABULARY, {"n": 20, "factor": -1.5})
    assert str(rule) == "sma(20) > sma(volume, 20) * -1.5 - close[20]"
    with pytest.raises(RuleError, match=r"count of bars, got 2\.5"):
        parse("sma(n) > 1", VOCABULARY, {"n": 2.5})
    with pytest.raises(RuleError, match="too large"):
        parse("close > n", VOCABULARY, {"n": float("nan")})
    with pytest.raises(RuleError, match=r"did you mean factor\?"):
        parse("close > facto", VOCABULARY, {"factor": 1})
    with pytest.raises(ValueError, match="parameter 'close'"):
        parse("close > 1", VOCABULARY, {"close": 1})


def test_values():
    assert str(parse_value("close / sma(20) - 1", VOCABULARY)) == "close / sma(20) - 1"
    for text, words in {"close > 1": "a condition where a number", "7": "reads no series", "rsi": "must be called"}.items():
        with pytest.raises(RuleError, match=words):
            parse_value(text, VOCABULARY)


def test_a_name_that_is_not_in_the_vocabulary_is_unknown():
    with pytest.raises(RuleError, match="unknown name 'entry_price'"):
        parse("close > entry_price", Vocabulary(VOCABULARY.indicators))


@pytest.mark.parametrize("given_names", [("close",), ("rsi",), ("abs",), ("and",), ("a b",)])
def test_a_vocabulary_refuses_clashes(given_names):
    with pytest.raises(ValueError, match=given_names[0]):
        Vocabulary((Signature("rsi", None, (("n", 14),), ("rsi",)),), given=given_names)


@given(st.text(max_size=60))
def test_any_text_is_a_rule_or_a_rule_error(text):
    _parse_or_refuse(text)


PIECES = """close open rsi sma macd signal __class__ abs min crosses_above and or not if else lambda for in is None True 14 20 1.5 1e5 0x1
    ( ) [ ] . , + - * / ** < <= > >= == != = : ' \\ # & | ~ @ { } ; é"""
WORDS = st.sampled_from((*PIECES.split(), "\n", "\t", "\0", "\ud800", '"'))


@settings(max_examples=400)
@given(st.lists(WORDS, max_size=25), st.sampled_from(("", " ")))
def test_any_heap_of_words_is_a_rule_or_a_rule_error(words, between):
    _parse_or_refuse(between.join(words))


@pytest.mark.parametrize("piece", ["(", "[", "-", "not ", "abs(", "close+", "close[1", "1e", "9", ".", "close > 1 and ", "((((close))))\n"])
def test_repetition_without_end_is_refused(piece):
    for times in (49, 51, 199, 201, 499, 10_000):
        _parse_or_refuse(piece * times)
        _parse_or_refuse(piece * times + "close > 1")


def _parse_or_refuse(text):
    found = _parsed(text)
    if isinstance(found, RuleError):
        assert 0 <= found.start <= found.end
        assert "^" in str(found)
    else:
        assert parse(str(found), VOCABULARY) == found


def _parsed(text):
    try:
        return parse(text, VOCABULARY)
    except RuleError as error:
        return error


@settings(max_examples=300, deadline=None)
@given(rules)
def test_a_rule_reads_back_from_its_own_text(rule):
    assert parse(str(rule), VOCABULARY) == rule
