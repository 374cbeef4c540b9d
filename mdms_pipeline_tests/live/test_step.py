"""A bar of many symbols at once is the same, bit for bit, as `run` symbol by symbol."""

from __future__ import annotations

import numpy as np
import pytest

from mdms_pipeline.calculate.catalog import closure, defaults
from mdms_pipeline.calculate.indicator import Indicator, indicator
from mdms_pipeline.calculate.kernels import jit
from mdms_pipeline.calculate.run import carry
from mdms_pipeline.live.step import FEW, each, step
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Floats, instant
from mdms_pipeline_tests.support import candles

START, BARS = instant("2026-01-01"), 60
NEEDED = closure(defaults())


def bars(symbols: int) -> list[Candles]:
    """One walk per symbol, with an unknown close in the last."""
    found = [candles(START, BARS, seed=seed) for seed in range(symbols)]
    found[-1].close[40] = np.nan
    return found


@pytest.mark.parametrize("symbols", [1, FEW - 1, FEW, 40])
def test_step_is_run(symbols: int) -> None:
    walks = bars(symbols)
    memories = {i: np.tile(i.memory, (symbols, 1)).reshape(symbols, -1) for i in NEEDED}
    previous = np.full(symbols, np.nan)
    seen: list[dict[str, Floats]] = []
    for k in range(BARS):
        bar = {name: np.array([getattr(walk, name)[k] for walk in walks]) for name in PRICES_AND_AMOUNTS}
        memories, known = step(NEEDED, memories, bar, previous)
        previous = bar["close"]
        seen.append(known)
    for row, walk in enumerate(walks):
        after, columns = carry(NEEDED, {}, walk)
        for i in NEEDED:
            assert memories[i][row].tobytes() == after[i].tobytes(), i
            for name in i.columns:
                stepped = np.array([known[name][row] for known in seen])
                np.testing.assert_array_equal(stepped.view(np.int64), columns[name].view(np.int64), err_msg=name)


def test_memories_before_are_not_written_to() -> None:
    given = next(i for i in NEEDED if i.name == "ema_12")
    before = np.tile(given.memory, (FEW, 1))
    each(given, before, np.full((1, FEW), 5.0))
    np.testing.assert_array_equal(before, np.tile(given.memory, (FEW, 1)))


def test_a_kernel_that_is_not_compiled_goes_one_by_one() -> None:
    kind = indicator(reads=lambda n: ("close",), memory=lambda n: (0.0,))(total)
    made: Indicator = kind(2)
    after, out = each(made, np.zeros((FEW, 1)), np.arange(float(FEW)).reshape(1, -1))
    np.testing.assert_array_equal(out[0], 2 * np.arange(float(FEW)))
    np.testing.assert_array_equal(after[:, 0], out[0])


def total(memory: Floats, x: Floats, n: int = 2) -> tuple[Floats, Floats]:
    """`n` times the sum of all so far."""
    out = memory[0] + n * np.cumsum(x)
    return out[-1:], out.reshape(1, -1)


def test_a_compiled_kernel_of_another_form_goes_one_by_one() -> None:
    kind = indicator(reads=lambda: ("close",), memory=lambda: (0.0,))(strided)
    after, out = each(kind(), np.zeros((FEW, 1)), np.arange(float(FEW)).reshape(1, -1))
    np.testing.assert_array_equal(out[0], np.arange(float(FEW)))
    np.testing.assert_array_equal(after[:, 0], out[0])


@jit
def strided(memory: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Its input; its arrays are not contiguous ones."""
    wide = np.zeros((2, 2 * x.size))
    wide[0, ::2] = x
    return wide[0, ::2][-1:], wide[:1, ::2]
