"""The vocabulary of these tests: rules know no indicator by themselves."""

from __future__ import annotations

from mdms_pipeline.rules import Signature, Vocabulary


def _fast_below_slow(fast: float, slow: float, signal: float) -> str | None:
    return None if fast < slow else f"fast must be below slow, got {fast:g} and {slow:g}"


VOCABULARY = Vocabulary(
    (
        Signature("tr", None, (), ("tr",)),
        Signature("sma", "close", (("n", 20),), ("sma",)),
        Signature("ema", "close", (("n", 20),), ("ema",)),
        Signature("highest", "high", (("n", 20),), ("highest",)),
        Signature("rsi", None, (("n", 14),), ("rsi",)),
        Signature("atr", None, (("n", 14),), ("atr",)),
        Signature("macd", "close", (("fast", 12), ("slow", 26), ("signal", 9)), ("line", "signal", "histogram"), _fast_below_slow),
        Signature("bollinger", "close", (("n", 20), ("k", 2.0)), ("middle", "upper", "lower", "percent_b", "bandwidth")),
        Signature("stoch", None, (("n", 14), ("a", 3), ("b", 3)), ("raw", "k", "d")),
    ),
    given=("entry_price", "bars_held"),
)
