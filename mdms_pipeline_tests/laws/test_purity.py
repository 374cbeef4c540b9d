"""Memory in, new memory out: a forming bar is calculated and thrown away without a trace."""

from __future__ import annotations

import numpy as np
import pytest

from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.run import inputs, run
from mdms_pipeline_tests.laws.markets import CATALOG, known, market, same_bits


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_nothing_given_is_written_to(indicator: Indicator) -> None:
    columns = inputs(indicator, known(market(1, 300), (indicator,)))
    memory, _ = run(indicator, indicator.memory, [column[:250] for column in columns])
    before = [array.copy() for array in (memory, *columns)]
    first = run(indicator, memory, [column[250:] for column in columns])
    second = run(indicator, memory, [column[250:] for column in columns])
    assert all(same_bits(a, b) for a, b in zip(before, (memory, *columns), strict=True))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    assert not any(np.shares_memory(given, made) for given in (memory, *columns) for made in first)


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_no_bars_change_nothing(indicator: Indicator) -> None:
    memory, outputs = run(indicator, indicator.memory, [np.empty(0)] * len(indicator.reads))
    assert same_bits(memory, indicator.memory)
    assert outputs.shape == (len(indicator.kind.writes), 0)
    kernel_memory, outputs = indicator.kind.kernel(indicator.memory, *[np.empty(0)] * len(indicator.reads), *indicator.params)
    assert same_bits(kernel_memory, indicator.memory)
    assert outputs.shape == (len(indicator.kind.writes), 0)


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_memory_keeps_its_length(indicator: Indicator) -> None:
    columns = inputs(indicator, known(market(1, 50), (indicator,)))
    memory, _ = run(indicator, indicator.memory, columns)
    assert memory.shape == indicator.memory.shape == indicator.memory_shape
    assert memory.dtype == np.float64


@pytest.mark.parametrize("indicator", CATALOG, ids=str)
def test_read_only_and_strided_columns_give_the_same_bits(indicator: Indicator) -> None:
    columns = inputs(indicator, known(market(1, 300), (indicator,)))
    strided = [np.repeat(column, 2)[::2] for column in columns]
    for column in strided:
        column.setflags(write=False)
    compiled = len(indicator.kind.kernel.signatures)
    assert same_bits(run(indicator, indicator.memory, columns)[1], run(indicator, indicator.memory, strided)[1])
    assert len(indicator.kind.kernel.signatures) == max(compiled, 1)
