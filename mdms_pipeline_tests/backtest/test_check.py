"""The checks: a planted leak of one bar is caught, clean strategies pass, unstable indicators give no signal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mdms_pipeline.backtest import decide as decide_module
from mdms_pipeline.backtest.check import look_ahead, warm_up
from mdms_pipeline.backtest.decide import NEAR, Columns, decide, stable_from
from mdms_pipeline.backtest.history import History, Past
from mdms_pipeline.backtest.strategy import BUILT_IN, load_strategies
from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.calculate.indicator import indicator
from mdms_pipeline.market import Candles, Floats, timeframe
from mdms_pipeline.vocabulary import vocabulary
from mdms_pipeline_tests.backtest.markets import GOOD, history, recipe, walk

LEAKS = GOOD.replace("crosses_above(sma(fast), sma(slow))", "peek() > close and sma(fast) > sma(slow)")


@pytest.fixture
def leaking() -> Iterator[None]:
    """An indicator that is the next bar's close."""

    def peek(memory: Floats, close: Floats) -> tuple[Floats, Floats]:
        """The close one bar ahead: what no indicator may know."""
        return memory, np.append(close[1:], np.nan).reshape(1, -1)

    KINDS["peek"] = indicator(reads=lambda: ("close",))(peek)
    yield
    del KINDS["peek"]


@pytest.mark.usefixtures("leaking")
def test_a_leak_of_one_bar_is_caught(tmp_path: Path) -> None:
    for seed in range(10):
        found = look_ahead(recipe(tmp_path, LEAKS).usual, history(seed), seed=seed)
        assert not found.passed
        assert "peek" in found.differences[0]


def test_a_leak_in_the_decisions_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean indicators, but a rule that is evaluated one bar ahead."""
    true = decide_module.passes
    monkeypatch.setattr(decide_module, "passes", lambda verdicts: np.append(true(verdicts)[1:], False))
    caught = [not look_ahead(recipe(tmp_path).usual, history(seed), seed=seed).passed for seed in range(5)]
    assert all(caught)


@pytest.mark.usefixtures("leaking")
def test_a_leak_that_is_stored_is_caught(tmp_path: Path) -> None:
    """The stored column was made with a leak; calculated again it is clean."""
    strategy, past = recipe(tmp_path).usual, history()
    column = next(name for name in ("sma_5", "sma_20"))
    columns = Columns(past)
    decide(strategy, past, columns)
    honest = {name: values for (_, name), values in columns.known.items()}
    stored = {**honest, column: np.append(honest[column][1:], honest[column][-1])}
    tainted = replace(past, past={symbol: replace(one, stored=stored) for symbol, one in past.past.items()})
    assert not look_ahead(strategy, tainted).passed
    assert look_ahead(strategy, replace(past, past={s: replace(one, stored=honest) for s, one in past.past.items()})).passed


def test_clean_strategies_pass() -> None:
    symbols = tuple(f"KRW-C{i}" for i in range(6))
    for found in load_strategies([BUILT_IN], vocabulary()).recipes.values():
        past = history(3, 900, symbols, holes=0.1, frame=found.usual.timeframe.name)
        assert look_ahead(found.usual, past).passed, found.name
        assert warm_up(found.usual, past).passed, found.name


def test_unstable_indicators_give_no_signal(tmp_path: Path) -> None:
    text = GOOD.replace("crosses_above(sma(fast), sma(slow))", "rsi(fast) > 0 and ema(slow) > 0")
    strategy, past = recipe(tmp_path, text).usual, history()
    decided = decide(strategy, past)
    stable = max(map(stable_from, strategy.expressions))
    assert stable > 20
    assert not decided.decisions.enter[:stable].any()
    assert decided.decisions.enter[stable:].all()
    assert decided.refused == stable - 19  # ema(20) has a value from bar 19 on: from there to stable_after the signals are refused
    assert decided.first == stable


def test_a_warm_up_that_is_too_short_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("crosses_above(sma(fast), sma(slow))", "ema(slow) > ema(fast)")
    strategy = recipe(tmp_path, text).usual
    past = history(5, 2_000)
    assert warm_up(strategy, past, starts=12).passed
    for module in ("decide", "check"):
        monkeypatch.setattr(f"mdms_pipeline.backtest.{module}.stable_from", lambda expression: 25)
    assert not warm_up(strategy, past, starts=12).passed


def test_too_little_history_is_no_pass(tmp_path: Path) -> None:
    assert not look_ahead(recipe(tmp_path).usual, history(bars=15)).passed
    assert len(walk(0, 15)) == 15


ALWAYS = GOOD.replace("[KRW-BTC]", "all").replace("crosses_above(sma(fast), sma(slow))", "close > 0 and sma(fast) > 0 and sma(slow) > 0")


def test_the_order_of_entries_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = recipe(tmp_path, f"{ALWAYS}    rank: {{expression: close / ema(50), direction: desc}}\n").usual
    past = history(7, 900, ("KRW-A", "KRW-B", "KRW-C"), holes=0.1)
    assert warm_up(strategy, past, starts=8).passed
    for module in ("decide", "check"):
        monkeypatch.setattr(f"mdms_pipeline.backtest.{module}.stable_from", lambda expression: 50)
    found = warm_up(strategy, past, starts=8)
    assert not found.passed
    assert all(said.startswith("rank of ") for said in found.differences)


def test_a_seed_that_is_forgotten_may_show_in_the_last_digits(tmp_path: Path) -> None:
    """After a storm the seed of a quiet market still moves ranks and stops by more than 1e-6 of themselves, and no decision."""
    strategy = recipe(tmp_path, f"{ALWAYS}    rank: {{expression: atr(14), direction: asc}}\n    stop: 2 * atr(14)\n").usual
    names = ("KRW-A", "KRW-B")
    noise = {name: walk(i, 1_000) for i, name in enumerate(names)}
    quiet = {name: 1e9 + (each.close - 1e9) * np.where(np.arange(1_000) < 310, 1.0, 1e-3) for name, each in noise.items()}
    candles = {name: Candles(noise[name].opened_at, close, close, close, close, close, close) for name, close in quiet.items()}
    past = History.of(timeframe("1h"), {name: Past(each) for name, each in candles.items()})
    begin = 300
    later = past.since(begin)
    whole, again = (decide(strategy, each) for each in (past, later))
    stable = slice(begin + max(map(stable_from, strategy.expressions)), None)
    for one, other in ((whole.decisions.rank, again.decisions.rank), (whole.decisions.stop, again.decisions.stop)):
        assert not np.allclose(one[stable], other[stable], rtol=NEAR, atol=0)
    found = warm_up(strategy, past, starts=40)
    assert found.passed, found.differences
