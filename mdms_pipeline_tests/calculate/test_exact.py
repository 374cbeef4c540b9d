"""Exactness that can be checked: constants, prices of 1e8, and long histories."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from mdms_pipeline.calculate.kernels import ema, highest, lowest, sma, stddev
from mdms_pipeline.calculate.run import run
from mdms_pipeline_tests.tolerances import DEVIATION_AT_1E8, ORACLE

WINDOWS = (1, 2, 3, 5, 7, 10, 14, 20, 60, 120, 200, 1_000)


def values(indicator, x):
    return run(indicator, indicator.memory, [x])[1][0]


@pytest.mark.parametrize("n", WINDOWS)
@pytest.mark.parametrize("price", [0.1, 1e8 / 3, 1e-5 / 7, 0.0])
def test_a_constant_window_after_a_wild_one(n: int, price: float) -> None:
    x = np.concatenate((np.random.default_rng(n).lognormal(10, 5, 1_500), np.full(2 * n + 40, price)))
    constant = slice(1_500 + n - 1, None)
    assert (values(sma(n), x)[constant] == price).all()
    assert (values(stddev(n), x)[constant] == 0.0).all()
    assert (values(highest(n), x)[constant] == price).all()
    assert (values(lowest(n), x)[constant] == price).all()


@pytest.mark.parametrize("n", [2, 3, 14, 20, 200])
def test_deviation_at_prices_of_1e8_with_unit_steps(n: int) -> None:
    x = 1e8 + np.random.default_rng(n).integers(-3, 4, 3_000).cumsum().astype(float)
    ours = values(stddev(n), x)
    for i in range(n - 1, x.size, 37):
        window = [Fraction(value) for value in x[i - n + 1 : i + 1]]
        mean = sum(window) / n
        exact = math.sqrt(sum((value - mean) ** 2 for value in window) / n)
        assert ours[i] == pytest.approx(exact, rel=DEVIATION_AT_1E8, abs=0.0)


@pytest.mark.parametrize("n", [5, 20, 200])
def test_deviation_at_prices_of_1e8_with_steps_of_a_hundredth(n: int) -> None:
    """Not only whole numbers: 0.01 at 1e8 is in the 10th digit."""
    x = 1e8 + np.random.default_rng(n).normal(0, 0.01, 2_000)
    ours = values(stddev(n), x)
    for i in range(n - 1, x.size, 41):
        window = [Fraction(value) for value in x[i - n + 1 : i + 1]]
        mean = sum(window) / n
        assert ours[i] == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in window) / n), rel=1e-10, abs=0.0)


@pytest.mark.parametrize("n", [20, 200])
def test_a_mean_does_not_drift(n: int) -> None:
    """After 300,000 wild bars the mean of the last n is as good as at the start."""
    x = np.random.default_rng(1).lognormal(0, 8, 300_000)
    ours = values(sma(n), x)
    for i in range(n, x.size, 9_973):
        assert ours[i] == pytest.approx(math.fsum(x[i - n + 1 : i + 1]) / n, rel=ORACLE)


def test_an_ema_stays_at_a_constant() -> None:
    x = np.full(100_000, 0.1)
    np.testing.assert_allclose(values(ema(200), x)[199:], 0.1, rtol=1e-14)
