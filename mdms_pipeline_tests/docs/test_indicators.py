"""The tables of docs/indicators.md, calculated."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mdms_pipeline.calculate.catalog import DEFAULTS, kind_edges
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.run import calculate
from mdms_pipeline_tests.calculate.test_talib import PEERS
from mdms_pipeline_tests.docs.pages import coded, prose, table_of
from mdms_pipeline_tests.laws.markets import market
from mdms_pipeline_tests.tolerances import TALIB

PAGE = "docs/indicators.md"
CANDLES = market(32, 2_000, 137.0)


def beside(indicator: Indicator) -> dict[str, tuple[int, int, float, float]]:
    """Column -> our first value, TA-Lib's, how far they are apart at the later one, and at most after `stable_after`."""
    found = {}
    ours = calculate((indicator,), CANDLES)
    for column, theirs in zip(indicator.columns, PEERS[indicator.kind.name](CANDLES, indicator), strict=False):
        first, their_first = (int(np.flatnonzero(~np.isnan(values))[0]) for values in (ours[column], theirs))
        apart = np.abs(ours[column] - theirs) / np.nanmax(np.abs(theirs))
        found[column] = (first, their_first, float(apart[max(first, their_first)]), float(np.nanmax(apart[indicator.stable_after :])))
    return found


def test_the_table_beside_talib() -> None:
    columns = {
        column: numbers
        for indicator in DEFAULTS
        if indicator.source not in ("rise", "fall")
        for column, numbers in beside(indicator).items()
    }
    apart = {column: numbers for column, numbers in columns.items() if numbers[2] >= TALIB}
    rows = {coded(row[0])[0]: row[1:] for row in table_of(PAGE, "`atr_14`")}
    assert rows == {column: [str(first), str(their), f"{there:.0e}", "< 1e-06"] for column, (first, their, there, _) in apart.items()}
    assert all(after < 1e-6 for *_, after in columns.values())


def test_every_kind_is_described_and_no_other() -> None:
    described = {call.split("(")[0] for row in table_of(PAGE, "`sma(x, n)`") for call in coded(row[0])}
    assert described == {indicator.kind.name for indicator in DEFAULTS}


@pytest.mark.parametrize("kind", sorted({indicator.kind.name for indicator in DEFAULTS}))
def test_what_reads_what(kind: str) -> None:
    said = re.search(r"asset lineage: (.*?)\. Each", prose(PAGE), re.DOTALL)
    assert said
    clauses = [re.split(r"\breads?\b", clause) for clause in said[1].replace("\n", " ").split(";")]
    reads = {name: words(after) for before, after in clauses for name in words(before)}
    assert reads[kind] == kind_edges()[kind]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text)) - {"and"}
