"""The split law: run(whole) equals run(head) then run(tail), bit for bit, for every split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdms_pipeline.calculate.indicator import SOURCES
from mdms_pipeline.calculate.kernels import CHUNK
from mdms_pipeline.calculate.run import columns, inputs, run
from mdms_pipeline.market import Candles
from mdms_pipeline_tests.laws.markets import CATALOG, in_pieces, known, market, markets, same_bits, still, with_values


@settings(max_examples=60, deadline=None)
@given(candles=markets(), data=st.data())
def test_any_split_gives_the_same_bits(candles: Candles, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(candles)), max_size=6))
    values = known(candles)
    for indicator in CATALOG:
        given_columns = inputs(indicator, values)
        memory, outputs = run(indicator, indicator.memory, given_columns)
        memory_of_pieces, pieces = in_pieces(indicator, given_columns, cuts)
        assert same_bits(outputs, pieces), (indicator, cuts)
        assert same_bits(memory, memory_of_pieces), (indicator, cuts)


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_bar_by_bar_gives_the_same_bits(indicator) -> None:
    candles = with_values(still(market(7, 320, 1e8), 120, 190), [0, 41, 42, 230], np.nan)
    given_columns = inputs(indicator, known(candles, (indicator,)))
    memory, outputs = run(indicator, indicator.memory, given_columns)
    memory_of_bars, bars = in_pieces(indicator, given_columns, list(range(1, len(candles))))
    assert same_bits(outputs, bars)
    assert same_bits(memory, memory_of_bars)


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_splits_of_a_long_history_give_the_same_bits(indicator) -> None:
    """Longer than the kernels' own chunks, cut at, before and after their joints."""
    candles = with_values(market(3, 4 * CHUNK + 77, 137.0), [CHUNK - 1, 2 * CHUNK + 5], np.nan)
    given_columns = inputs(indicator, known(candles, (indicator,)))
    memory, outputs = run(indicator, indicator.memory, given_columns)
    for cuts in ([CHUNK], [CHUNK - 1, CHUNK + 1], [5, 5, 3 * CHUNK - 3], [1, 2 * CHUNK + 6]):
        memory_of_pieces, pieces = in_pieces(indicator, given_columns, cuts)
        assert same_bits(outputs, pieces), cuts
        assert same_bits(memory, memory_of_pieces), cuts


@settings(max_examples=50, deadline=None)
@given(candles=markets(), data=st.data())
def test_sources_split_too(candles: Candles, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(candles)))
    whole = columns(candles, SOURCES)
    head, tail = columns(candles[:cut], SOURCES), columns(candles[cut:], SOURCES, candles.close[cut - 1] if cut else np.nan)
    for name in SOURCES:
        assert same_bits(whole[name], np.concatenate((head[name], tail[name]))), name
