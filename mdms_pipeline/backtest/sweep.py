"""Many parameters: every combination over one period (`sweep`), and refitted on the past, traded on the unseen (`walk_forward`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mdms_pipeline.backtest.decide import Columns, decide, stable_from, terms_of
from mdms_pipeline.backtest.doubt import deflated, moments, overfitting, probabilistic, sharpe_per_slot
from mdms_pipeline.backtest.engine import Fill, Outcome, Side, trade
from mdms_pipeline.backtest.history import History, HistoryError, members
from mdms_pipeline.backtest.metrics import annual, drawdown, returns, sharpe
from mdms_pipeline.backtest.strategy import ParamError, Recipe, Strategy
from mdms_pipeline.market import Floats, Instant

Advanced = Callable[[int], None]


@dataclass(frozen=True)
class Trial:
    """One combination of parameters and what came of it."""

    params: Mapping[str, float]
    total_return: float
    annual_return: float | None
    sharpe: float | None  # annual
    max_drawdown: float
    trades: int  # closed


@dataclass(frozen=True)
class Sweep:
    """All combinations over one period, and how far their winner is to be believed."""

    trials: tuple[Trial, ...]  # the best Sharpe first
    refused: tuple[str, ...]  # combinations whose rules cannot be
    first: int  # slot
    end: int
    overfitting: float | None  # probability, by CSCV
    deflated: float | None  # probability that the winner's Sharpe is real, after so many trials


@dataclass(frozen=True)
class Window:
    """One refit: chosen on [train, test), traded on [test, end). Slots."""

    train: int
    test: int
    end: int
    params: Mapping[str, float]
    inside: float | None  # annual Sharpe of the chosen one where it was chosen
    outside: float | None  # and on the unseen


@dataclass(frozen=True)
class WalkForward:
    """What refitting would have earned. What is open at a window's end is sold at its last close, fee charged."""

    windows: tuple[Window, ...]
    equity: Floats  # from the first test slot on
    sharpe: float | None  # annual, of the unseen
    inside: float | None  # mean annual Sharpe of the chosen ones where they were chosen
    total_return: float
    probability: float | None  # that the true Sharpe of the unseen is above 0


@dataclass(frozen=True)
class _Bench:
    """What all combinations share."""

    recipe: Recipe
    history: History
    columns: Columns
    inside: tuple[np.ndarray, tuple[str, ...]]
    strategies: tuple[Strategy, ...]
    refused: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe, history: History, combinations: Sequence[Mapping[str, float]] | None) -> _Bench:
        strategies, refused = list[Strategy](), list[str]()
        for values in recipe.combinations() if combinations is None else combinations:
            try:
                strategies.append(recipe.bind(values))
            except ParamError as error:
                refused.append(str(error))
        if not strategies:
            raise ParamError(f"{recipe.name}: no combination of the sweep can be: {refused[0]}")
        return cls(recipe, history, Columns(history), members(strategies[0], history), tuple(strategies), tuple(refused))

    @property
    def stable(self) -> int:
        """The first slot at which the indicators of every combination are stable."""
        need = max(stable_from(expression) for strategy in self.strategies for expression in strategy.expressions)
        return min((int(rows[need]) for rows in self.history.rows.values() if len(rows) > need), default=self.history.slots)

    def traded(self, strategy: Strategy, spans: Sequence[tuple[int, int]], cash: float) -> list[Outcome]:
        """`strategy` over each span of slots, each from `cash`."""
        decisions = decide(strategy, self.history, self.columns, self.inside).decisions
        return [trade(self.history.market, decisions, terms_of(strategy), start, end, cash) for start, end in spans]


def sweep(
    recipe: Recipe, history: History, start: Instant | None = None, end: Instant | None = None,
    combinations: Sequence[Mapping[str, float]] | None = None, advanced: Advanced = lambda done: None,
) -> Sweep:  # fmt: skip
    """Every combination over the slots of [start, end), from the first at which all are stable. Raises HistoryError, ParamError."""
    bench = _Bench.of(recipe, history, combinations)
    first, last = _period(bench, start, end)
    trials, blocks, ratios, best = list[Trial](), list[Floats](), list[float](), (-np.inf, np.empty(0))
    for strategy in bench.strategies:
        (outcome,) = bench.traded(strategy, [(first, last)], strategy.capital)
        slot_returns = returns(outcome.equity, strategy.capital)
        ratio = sharpe_per_slot(slot_returns)
        trials.append(_trial(strategy, outcome, slot_returns))
        blocks.append(moments(slot_returns))
        ratios.append(np.nan if ratio is None else ratio)
        if ratio is not None and ratio > best[0]:
            best = (ratio, slot_returns)
        advanced(1)
    ranked = sorted(trials, key=lambda trial: -np.inf if trial.sharpe is None else trial.sharpe, reverse=True)
    lucky = deflated(best[1], np.array(ratios)) if len(best[1]) else None
    return Sweep(tuple(ranked), bench.refused, first, last, overfitting(np.array(blocks)), lucky)


def _period(bench: _Bench, start: Instant | None, end: Instant | None) -> tuple[int, int]:
    first, last = bench.history.period(start, end)
    first = max(first, bench.stable)
    if last - first < 2:
        raise HistoryError(f"the period ends before the indicators of {bench.recipe.name} are stable in all combinations")
    return first, last


def _trial(strategy: Strategy, outcome: Outcome, slot_returns: Floats) -> Trial:
    total, per_year = float(outcome.equity[-1] / strategy.capital - 1), strategy.timeframe.bars_per_year
    return Trial(
        strategy.params, total, annual(total, len(slot_returns), per_year), sharpe(slot_returns, per_year),
        abs(float(drawdown(outcome.equity, strategy.capital).min())), int((outcome.fills[:, Fill.SIDE] == Side.SELL).sum()),
    )  # fmt: skip


def spans(first: int, end: int, train: int, test: int, anchored: bool) -> list[tuple[int, int, int]]:
    """(train, test, end) of each refit over the slots first .. end - 1; the last may be shorter than `test`, not by more than half."""
    found = []
    at = first + train
    while end - at >= max(2, test // 2):
        found.append((first if anchored else at - train, at, min(at + test, end)))
        at += test
    return found


def walk_forward(
    recipe: Recipe, history: History, train: int, test: int, anchored: bool = False,
    start: Instant | None = None, end: Instant | None = None,
    combinations: Sequence[Mapping[str, float]] | None = None, advanced: Advanced = lambda done: None,
) -> WalkForward:  # fmt: skip
    """Choose the best Sharpe on `train` slots, trade it on the next `test` slots, move on. `anchored`: train on all that went before."""
    bench = _Bench.of(recipe, history, combinations)
    first, last = _period(bench, start, end)
    windows = spans(first, last, train, test, anchored)
    if train < 2 or test < 2 or not windows:
        raise HistoryError(
            f"{last - first} stable slots do not hold one window of {train} + {test}: choose shorter ones, at least 2 slots each"
        )
    scores = np.full((len(bench.strategies), len(windows)), np.nan)
    for row, strategy in enumerate(bench.strategies):
        for column, outcome in enumerate(bench.traded(strategy, [window[:2] for window in windows], strategy.capital)):
            ratio = sharpe_per_slot(returns(outcome.equity, strategy.capital))
            scores[row, column] = np.nan if ratio is None else ratio
        advanced(1)
    return _unseen(bench, windows, scores)


def _unseen(bench: _Bench, windows: Sequence[tuple[int, int, int]], scores: Floats) -> WalkForward:
    capital = bench.strategies[0].capital
    per_year = bench.strategies[0].timeframe.bars_per_year
    cash, told, pieces = capital, list[Window](), list[Floats]()
    for column, (train, test, end) in enumerate(windows):
        row = int(np.argmax(np.where(np.isnan(scores[:, column]), -np.inf, scores[:, column])))
        strategy = bench.strategies[row]
        (outcome,) = bench.traded(strategy, [(test, end)], cash)
        equity = outcome.equity
        equity[-1] -= strategy.costs.fee * (equity[-1] - outcome.cash[-1])
        inside = None if np.isnan(scores[row, column]) else float(scores[row, column] * per_year**0.5)
        told.append(Window(train, test, end, strategy.params, inside, sharpe(returns(equity, cash), per_year)))
        pieces.append(equity)
        cash = float(equity[-1])
    whole = np.concatenate(pieces)
    each = returns(whole, capital)
    known = [window.inside for window in told if window.inside is not None]
    return WalkForward(
        tuple(told),
        whole,
        sharpe(each, per_year),
        float(np.mean(known)) if known else None,
        float(whole[-1] / capital - 1),
        probabilistic(each),
    )
