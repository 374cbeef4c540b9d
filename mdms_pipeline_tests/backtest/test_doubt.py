"""Sweeps, walk-forward and the statistics of luck: against hand and textbook values, and against random strategies on random walks."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from statistics import NormalDist, mean, stdev

import numpy as np
import pytest

from mdms_pipeline.backtest.doubt import BLOCKS, deflated, expected_best, moments, monte_carlo, overfitting, probabilistic, ratios
from mdms_pipeline.backtest.history import HistoryError
from mdms_pipeline.backtest.run import backtest
from mdms_pipeline.backtest.strategy import ParamError
from mdms_pipeline.backtest.sweep import spans, sweep, walk_forward
from mdms_pipeline.market import Floats
from mdms_pipeline_tests.backtest.markets import GOOD, history, recipe


def slow_overfitting(trials: list[Floats]) -> float:
    """The paper's steps, one split after the other, from the returns themselves."""
    blocks = [np.array_split(trial, BLOCKS) for trial in trials]
    below = count = 0
    for chosen in combinations(range(BLOCKS), BLOCKS // 2):
        inside = [np.concatenate([block[i] for i in chosen]) for block in blocks]
        outside = [np.concatenate([block[i] for i in range(BLOCKS) if i not in chosen]) for block in blocks]
        scores = [mean(x) / stdev(x) for x in inside]
        best = scores.index(max(scores))
        unseen = [mean(x) / stdev(x) for x in outside]
        rank = sorted(unseen).index(unseen[best]) + 1
        below += rank / (len(trials) + 1) <= 0.5
        count += 1
    return below / count


def test_overfitting_against_the_papers_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mdms_pipeline.backtest.doubt", __name__):
        monkeypatch.setattr(f"{module}.BLOCKS", 8)
    random = np.random.default_rng(1)
    trials = [random.normal(0.01 * i, 1, 240) for i in range(6)]
    assert overfitting(np.array([moments(trial) for trial in trials])) == slow_overfitting(trials)


def test_overfitting_knows_skill_from_luck() -> None:
    random = np.random.default_rng(2)
    lucky = [random.normal(0, 1, 1600) for _ in range(30)]
    skilled = [*lucky[:-1], random.normal(0.3, 1, 1600)]
    by_luck, by_skill = (overfitting(np.array([moments(trial) for trial in trials])) for trials in (lucky, skilled))
    assert by_luck is not None
    assert by_skill is not None
    assert by_luck > 0.3
    assert by_skill < 0.01
    assert overfitting(np.array([moments(np.zeros(100))] * 3)) is None


def test_moments_give_the_ratio() -> None:
    returns = np.random.default_rng(3).normal(0.001, 0.02, 777)
    assert ratios(*moments(returns).sum(axis=0)) == pytest.approx(returns.mean() / returns.std(ddof=1), rel=1e-12)
    assert np.isnan(ratios(*moments(np.full(777, 0.001)).sum(axis=0)))


def test_deflated_sharpe_against_the_papers_example() -> None:
    """Bailey, Lopez de Prado 2014, numerical example: 100 trials, annual Sharpe variance 1/2, best 2.5 a year over 1250 days, skew -3,
    kurtosis 10: expected best 0.1132 a day, deflated Sharpe 0.9004."""
    normal = NormalDist()
    daily = math.sqrt(0.5 / 250)
    trials = np.random.default_rng(0).normal(0, 1, 100)
    trials = (trials - trials.mean()) / trials.std(ddof=1) * daily
    benchmark = expected_best(trials)
    assert benchmark == pytest.approx(0.1132, abs=5e-5)
    ratio = 2.5 / math.sqrt(250)
    error = 1 - (-3) * ratio + (10 - 1) / 4 * ratio**2
    assert normal.cdf((ratio - benchmark) * math.sqrt(1249) / math.sqrt(error)) == pytest.approx(0.9004, abs=5e-4)


def test_probabilistic_sharpe() -> None:
    returns = np.random.default_rng(4).normal(0.05, 1, 1000)
    ratio = returns.mean() / returns.std(ddof=1)
    assert probabilistic(returns) == pytest.approx(NormalDist().cdf(ratio * math.sqrt(999)), abs=0.01)  # a normal has no tails
    assert probabilistic(np.zeros(10)) is None
    assert deflated(returns, np.array([ratio])) == probabilistic(returns)  # one trial: nothing to deflate


def test_monte_carlo() -> None:
    random = np.random.default_rng(5)
    returns, trades = random.normal(0, 0.01, 500), random.normal(0, 0.02, 60)
    found = monte_carlo(returns, trades, seed=1)
    assert found is not None
    assert found == monte_carlo(returns, trades, seed=1)
    assert found != monte_carlo(returns, trades, seed=2)
    assert list(found.order_drawdown) == sorted(found.order_drawdown)
    assert found.block_return[0] < np.prod(1 + returns) - 1 < found.block_return[-1]
    assert monte_carlo(returns, np.empty(0)) is None
    always = monte_carlo(np.full(100, 0.01), np.full(5, 0.01))
    assert always is not None
    assert (always.block_loss, always.block_drawdown[-1]) == (0.0, 0.0)


def test_a_sweep_is_its_single_runs(tmp_path: Path) -> None:
    found, past = recipe(tmp_path), history(7, 2_000)
    swept = sweep(found, past)
    assert len(swept.trials) == 9
    start = int(past.opened_at[swept.first])
    for trial in swept.trials:
        single = backtest(found.bind(trial.params), past, start)
        assert (trial.sharpe, trial.total_return, trial.max_drawdown) == (
            single.metrics.sharpe,
            single.metrics.total_return,
            single.metrics.max_drawdown,
        )
    ratios = [trial.sharpe for trial in swept.trials if trial.sharpe is not None]
    assert ratios == sorted(ratios, reverse=True)


def test_spans() -> None:
    assert spans(10, 100, 40, 20, False) == [(10, 50, 70), (30, 70, 90), (50, 90, 100)]
    assert spans(10, 100, 40, 20, True) == [(10, 50, 70), (10, 70, 90), (10, 90, 100)]
    assert spans(0, 30, 40, 20, False) == []


def test_walk_forward_chooses_by_the_past_alone(tmp_path: Path) -> None:
    found, past = recipe(tmp_path), history(8, 2_000)
    whole = walk_forward(found, past, 500, 250)
    cut = walk_forward(found, past.until(whole.windows[2].end), 500, 250)
    assert whole.windows[:3] == cut.windows[:3]
    np.testing.assert_array_equal(whole.equity[: len(cut.equity)], cut.equity)
    for window in whole.windows:
        inside = sweep(found, past.until(window.test), int(past.opened_at[window.train]))
        assert inside.trials[0].params == window.params
        assert inside.trials[0].sharpe == pytest.approx(window.inside, rel=1e-12)
    assert walk_forward(found, past, 500, 250, anchored=True).windows[-1].train == whole.windows[0].train


def test_bad_sweeps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="do not hold one window"):
        walk_forward(recipe(tmp_path), history(bars=500), 600, 100)
    with pytest.raises(ParamError, match="no combination of the sweep can be"):
        sweep(recipe(tmp_path), history(bars=500), combinations=[{"fast": -1.0}])


ENTRIES = [
    "crosses_above(sma(fast), sma(slow))", "rsi(fast) < slow + 10", "close > highest(slow)[1]", "close < lowest(fast)[1]",
    "close > close[1] and close[1] > close[fast]", "close < bollinger(slow, 2).lower", "ema(fast) > ema(slow) and rsi(14) < 60",
    "volume > sma(volume, slow) and close > open", "close > sma(slow) and close < sma(fast)", "stddev(fast) < stddev(slow)",
]  # fmt: skip
EXITS = [
    "crosses_below(sma(fast), sma(slow))",
    "bars_held >= fast",
    "close < sma(fast)",
    "close > entry_price * 1.02 or bars_held >= slow",
    "rsi(fast) > 60",
]


def random_strategy(seed: int) -> str:
    random = np.random.default_rng(seed)
    entry, leave = random.choice(ENTRIES), random.choice(EXITS)
    stop = random.choice(["", "stop: 0.03", "trailing: 3 * atr(14)", "target: 0.05\n    stop: 0.05"])
    text = GOOD.replace("crosses_above(sma(fast), sma(slow))", entry).replace("crosses_below(sma(fast), sma(slow))", leave)
    return text.replace("    size:", f"    {stop}\n    size:" if stop else "    size:")


def test_random_strategies_on_random_walks_do_not_pass(tmp_path: Path) -> None:
    """At the 5 % level 5 of 100 are expected to pass without skill; 12 is what chance exceeds once in 240 times (binomial)."""
    unseen = winners = traded = 0
    for seed in range(100):
        found, past = recipe(tmp_path, random_strategy(seed)), history(1_000 + seed, 2_500)
        walked, swept = walk_forward(found, past, 800, 400), sweep(found, past)
        traded += swept.deflated is not None
        unseen += (walked.probability or 0) > 0.95
        winners += (swept.deflated or 0) > 0.95
    assert traded > 90
    assert unseen <= 12
    assert winners <= 12
