"""Figures made by others; goldens/README.md says by whom. Each is met to the digits it was given in."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.kernels import atr, bollinger, ema, highest, lowest, macd, rsi, sma, stddev, stoch, tr
from mdms_pipeline.calculate.run import calculate, run
from mdms_pipeline.market import Candles, Floats
from mdms_pipeline_tests.tolerances import SHEET, SIX_DECIMALS

GOLDENS = Path(__file__).parent / "goldens"


def table(name: str) -> dict[str, Floats]:
    """The columns of a golden; an empty cell is NaN."""
    with (GOLDENS / name).open() as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key] or "nan") for row in rows]) for key in rows[0] if key != "date"}


def candles(columns: dict[str, Floats]) -> Candles:
    """Candles of a golden; a column that it lacks is its close."""
    rows = len(columns["close"])
    names = ("open", "high", "low", "close", "volume", "value")
    return Candles(np.arange(rows) * 60, *(columns.get(name, columns["close"]) for name in names))


def assert_meets(ours: Floats, golden: Floats, relative: float = 0.0, absolute: float = 0.0) -> None:
    """Every figure of the golden, and there are some."""
    stated = ~np.isnan(golden)
    assert stated.any()
    np.testing.assert_allclose(ours[stated], golden[stated], rtol=relative, atol=absolute)


SKENDER = {
    "sma20": (sma(20), None),
    "ema20": (ema(20), None),
    "ema12": (ema(12), None),
    "ema26": (ema(26), None),
    "rsi14": (rsi(14), None),
    "stddev10_pop": (stddev(10), None),
    "bb_stdev20": (stddev(20), None),
    "bb_upper20_2": (bollinger(20, 2), "upper"),
    "bb_lower20_2": (bollinger(20, 2), "lower"),
    "macd": (macd(12, 26, 9), "line"),
    "macd_signal9": (macd(12, 26, 9), "signal"),
    "macd_hist": (macd(12, 26, 9), "histogram"),
    "stoch_ll14": (lowest(14), None),
    "stoch_hh14": (highest(14), None),
    "stoch_fastk14": (stoch(14, 3, 3), "raw"),
    "stoch_slowk3": (stoch(14, 3, 3), "k"),
    "stoch_d3": (stoch(14, 3, 3), "d"),
    "tr": (tr(), None),
}


@pytest.mark.parametrize("column", SKENDER)
def test_the_17_digit_sheet(column: str) -> None:
    indicator, output = SKENDER[column]
    sheet = table("skender.csv")
    ours = calculate((indicator,), candles(sheet))[indicator.column(output)]
    # a difference (macd) has the digits of what it is the difference of
    assert_meets(ours, sheet[column], SHEET, SHEET * np.nanmax(np.abs(sheet["close"])) if column.startswith("macd") else SHEET)
    if column != "tr":
        assert np.array_equal(np.isnan(ours), np.isnan(sheet[column])), "first value at another bar"


def test_the_17_digit_sheet_of_atr_starts_at_bar_1() -> None:
    """Its first bar has no true range; ours has high - low. From the same true ranges comes the same atr."""
    sheet = table("skender.csv")
    _, ours = run(atr(14), atr(14).memory, [sheet["tr"]])
    assert_meets(ours[0], sheet["atr14"], SHEET)
    stable = atr(14).stable_after
    from_candles = calculate((atr(14),), candles(sheet))["atr_14"]
    assert_meets(from_candles[stable:], sheet["atr14"][stable:], 1e-6)


CHARTSCHOOL = [
    ("rsi14.csv", "rsi14", rsi(14), None, 5e-9),
    ("ema10.csv", "ema10_2dp", ema(10), None, 5.1e-3),
    ("atr14.csv", "atr14", atr(14), None, 5.1e-10),
    ("atr14.csv", "tr", tr(), None, 5e-9),
    ("bbands20.csv", "mid", bollinger(20, 2), "middle", 5.1e-7),
    ("bbands20.csv", "stddev_pop", stddev(20), None, 5.1e-7),
    ("bbands20.csv", "upper", bollinger(20, 2), "upper", 5.1e-7),
    ("bbands20.csv", "lower", bollinger(20, 2), "lower", 5.1e-7),
    ("stoch14_3.csv", "hh14", highest(14), None, 5.1e-7),
    ("stoch14_3.csv", "ll14", lowest(14), None, 5.1e-7),
    ("stoch14_3.csv", "fastk14", stoch(14, 3, 3), "raw", 5.1e-7),
    ("stoch14_3.csv", "d3", stoch(14, 3, 3), "k", 1e-6),  # cut off, not rounded
    ("macd.csv", "macd_12_26", macd(12, 26, 9), "line", 5.1e-11),
    ("macd.csv", "signal9", macd(12, 26, 9), "signal", 5.1e-11),
    ("wilder_rsi14.csv", "rsi14_book", rsi(14), None, 0.53),  # he truncates every step to 2 decimals
]


@pytest.mark.parametrize(("file", "column", "indicator", "output", "digits"), CHARTSCHOOL, ids=[f"{c[0]}-{c[1]}" for c in CHARTSCHOOL])
def test_worked_examples(file: str, column: str, indicator: Indicator, output: str | None, digits: float) -> None:
    sheet = table(file)
    # stoch14_3.csv states closes from bar 13 on only, which is where they count
    assert_meets(calculate((indicator,), candles(sheet))[indicator.column(output)], sheet[column], absolute=digits)


TALIPP = [  # the last three of 50 bars
    (sma(20), None, (9.0755, 9.183, 9.3085)),
    (ema(20), None, (9.319374, 9.4061, 9.462662)),
    (stddev(20), None, (0.800377, 0.803828, 0.721424)),
    (rsi(20), None, (57.880437, 55.153392, 53.459494)),
    (atr(5), None, (0.676426, 0.665141, 0.686113)),
    (macd(12, 26, 9), "line", (0.293541, 0.326186, 0.329698)),
    (macd(12, 26, 9), "signal", (0.098639, 0.144149, 0.181259)),
    (macd(12, 26, 9), "histogram", (0.194901, 0.182037, 0.148439)),
    (bollinger(5, 2), "lower", (8.186646, 9.161539, 9.863185)),
    (bollinger(5, 2), "middle", (9.748, 10.096, 10.254)),
    (bollinger(5, 2), "upper", (11.309353, 11.03046, 10.644814)),
    (stoch(14, 3, 3), "raw", (88.934426, 74.180327, 64.754098)),
    (stoch(14, 3, 3), "k", (88.344442, 84.499789, 75.956284)),
]


@pytest.mark.parametrize(("indicator", "output", "expected"), TALIPP, ids=[f"{i}.{o}" for i, o, _ in TALIPP])
def test_talipp(indicator: Indicator, output: str | None, expected: tuple[float, ...]) -> None:
    ours = calculate((indicator,), candles(table("talipp_50.csv")))[indicator.column(output)]
    np.testing.assert_allclose(ours[-3:], expected, rtol=0, atol=SIX_DECIMALS)
