"""Could it be luck? How likely a sweep's winner is a fluke, and how far the same trades could have gone otherwise.

Sources
- Probability of backtest overfitting: Bailey, Borwein, Lopez de Prado, Zhu, "The Probability of Backtest Overfitting", Journal of
  Computational Finance 20(4), 2017: combinatorially symmetric cross-validation.
- Probabilistic and deflated Sharpe ratio: Bailey, Lopez de Prado, "The Sharpe Ratio Efficient Frontier", Journal of Risk 15(2), 2012, and
  "The Deflated Sharpe Ratio", Journal of Portfolio Management 40(5), 2014.
- Stationary bootstrap: Politis, Romano, "The Stationary Bootstrap", Journal of the American Statistical Association 89, 1994.

All Sharpe ratios here are per slot, not annualised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np

from mdms_pipeline.market import Floats

BLOCKS = 16  # of the cross-validation: 12,870 ways to halve them
EULER = 0.5772156649015329
NORMAL = NormalDist()
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def moments(returns: Floats) -> Floats:
    """Of each of BLOCKS equal stretches: count, sum and sum of squares of the returns; shape (BLOCKS, 3)."""
    return np.array([(len(block), block.sum(), (block * block).sum()) for block in np.array_split(returns, BLOCKS)])


def ratios(count: Floats, total: Floats, squares: Floats) -> Floats:
    """Sharpe ratios from sums; NaN without deviation."""
    with np.errstate(all="ignore"):
        variance = (squares - total * total / count) / (count - 1)
        # what is left of a constant series is rounding, not deviation
        return np.where(variance > 1e-14 * squares / count, total / count / np.sqrt(variance), np.nan)


def overfitting(blocks: Floats) -> float | None:
    """Probability of backtest overfitting: how often the best of one half of time is below the median in the other half.

    `blocks` are `moments` of each combination, (combinations, BLOCKS, 3). None for fewer than two that traded.
    """
    blocks = blocks[~np.isnan(ratios(*blocks.sum(axis=1).T))] if len(blocks) else blocks
    if len(blocks) < 2:
        return None
    halves = np.zeros((math.comb(BLOCKS, BLOCKS // 2), BLOCKS))
    for row, chosen in enumerate(combinations(range(BLOCKS), BLOCKS // 2)):
        halves[row, list(chosen)] = 1
    below, count = 0, len(blocks)
    for half in np.array_split(halves, max(1, len(halves) * count // 1_000_000)):
        inside = ratios(*(half @ blocks[:, :, i].T for i in range(3)))
        outside = ratios(*((1 - half) @ blocks[:, :, i].T for i in range(3)))
        best = np.argmax(np.where(np.isnan(inside), -np.inf, inside), axis=1)
        known = np.where(np.isnan(outside), 0.0, outside)  # no trade, no return: a ratio of 0
        own = known[np.arange(len(half)), best][:, None]
        rank = (known < own).sum(axis=1) + ((known == own).sum(axis=1) + 1) / 2  # ties share their ranks
        below += int((rank / (count + 1) <= 0.5).sum())
    return below / len(halves)


def sharpe_per_slot(returns: Floats) -> float | None:
    deviation = returns.std(ddof=1) if len(returns) > 1 else 0.0
    return float(returns.mean() / deviation) if deviation > 0 else None


def probabilistic(returns: Floats, benchmark: float = 0.0) -> float | None:
    """Probability that the true Sharpe ratio is above `benchmark` (per slot), given length, skew and tails; None without deviation."""
    ratio = sharpe_per_slot(returns)
    if ratio is None:
        return None
    centred = returns - returns.mean()
    spread = math.sqrt(float(np.mean(centred**2)))
    skew, kurtosis = float(np.mean(centred**3)) / spread**3, float(np.mean(centred**4)) / spread**4
    error = 1 - skew * ratio + (kurtosis - 1) / 4 * ratio * ratio
    if error <= 0:
        return None
    return NORMAL.cdf((ratio - benchmark) * math.sqrt(len(returns) - 1) / math.sqrt(error))


def expected_best(trials: Floats) -> float:
    """The Sharpe ratio that the best of so many trials without any skill is expected to have."""
    known = trials[~np.isnan(trials)]
    count = len(trials)
    if count < 2 or len(known) < 2:
        return 0.0
    return float(known.std(ddof=1)) * ((1 - EULER) * NORMAL.inv_cdf(1 - 1 / count) + EULER * NORMAL.inv_cdf(1 - 1 / (count * math.e)))


def deflated(best: Floats, trials: Floats) -> float | None:
    """Probability that the best trial's Sharpe ratio is real: above what the best of `trials` (ratios per slot) would be by luck."""
    return probabilistic(best, expected_best(trials))


@dataclass(frozen=True)
class MonteCarlo:
    """Quantiles (QUANTILES) of what else could have come of the same trades, and of the same slots."""

    runs: int
    order_drawdown: tuple[float, ...]  # deepest drawdown if the trades had come in another order
    block_return: tuple[float, ...]  # total return over resampled stretches
    block_drawdown: tuple[float, ...]
    block_loss: float  # how many of them lost money, fraction

    def rows(self) -> Mapping[str, tuple[float, ...]]:
        return {"drawdown, trades in another order": self.order_drawdown, "total return, stretches drawn again": self.block_return,
                "drawdown, stretches drawn again": self.block_drawdown}  # fmt: skip


def monte_carlo(returns: Floats, contributions: Floats, seed: int = 0, runs: int = 1_000) -> MonteCarlo | None:
    """Resample. `contributions`: of each trade in its order, profit as a fraction of the equity before it. None without a trade.

    Stretches have random lengths, the root of the number of slots on average (the stationary bootstrap, wrapping around).
    """
    if not len(contributions) or len(returns) < 2:
        return None
    random = np.random.default_rng(seed)
    orders = [_deepest(np.cumprod(1 + random.permutation(contributions))) for _ in range(runs)]
    ends, deepest = [], []
    for _ in range(runs):
        path = np.cumprod(1 + returns[_stretches(random, len(returns))])
        ends.append(float(path[-1] - 1))
        deepest.append(_deepest(path))
    return MonteCarlo(runs, _quantiles(orders), _quantiles(ends), _quantiles(deepest), float(np.mean(np.array(ends) < 0)))


def _stretches(random: np.random.Generator, slots: int) -> np.ndarray:
    """Indices of stretches drawn again, `slots` in all."""
    mean = max(1.0, math.sqrt(slots))
    fresh = random.random(slots) < 1 / mean
    fresh[0] = True
    starts = np.where(fresh, random.integers(0, slots, slots), 0)
    at = np.arange(slots)
    since = np.maximum.accumulate(np.where(fresh, at, 0))
    return (starts[since] + at - since) % slots


def _deepest(path: Floats) -> float:
    return abs(float((path / np.maximum.accumulate(np.maximum(path, 1.0)) - 1).min()))


def _quantiles(values: list[float]) -> tuple[float, ...]:
    return tuple(float(each) for each in np.quantile(values, QUANTILES))
