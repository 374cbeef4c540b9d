"""The vocabulary of these tests, and files in a hurry."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from mdms_pipeline.rules import Signature, Vocabulary

VOCABULARY = Vocabulary(
    (
        Signature("sma", "close", (("n", 20),), ("sma",)),
        Signature("ema", "close", (("n", 20),), ("ema",)),
        Signature("stddev", "close", (("n", 20),), ("stddev",)),
        Signature("highest", "high", (("n", 20),), ("highest",)),
        Signature("lowest", "low", (("n", 20),), ("lowest",)),
        Signature("rsi", None, (("n", 14),), ("rsi",)),
        Signature("atr", None, (("n", 14),), ("atr",)),
        Signature("macd", "close", (("fast", 12), ("slow", 26), ("signal", 9)), ("line", "signal", "histogram")),
        Signature("bollinger", "close", (("n", 20), ("k", 2.0)), ("middle", "upper", "lower", "percent_b", "bandwidth")),
        Signature("stoch", None, (("n", 14), ("a", 3), ("b", 3)), ("raw", "k", "d")),
    )
)

GOOD = """
    title: A title
    timeframe: 4h
    where: close > sma(20)
    rank: {expression: rsi(14), direction: asc}
"""


def write(file: Path, text: str = GOOD) -> Path:
    file.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return file
