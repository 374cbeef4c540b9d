"""Strategies as assets: edges, a materialization with its tables and metadata, the checks, a schedule."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from mdms_pipeline.backtest.strategy import BUILT_IN, Recipe, load_strategies
from mdms_pipeline.defs.backtests import backtest_asset, backtest_checks, backtest_schedules, strategy_expressions
from mdms_pipeline.defs.resources import Mdms, resources
from mdms_pipeline.settings import Settings
from mdms_pipeline.vocabulary import needed, vocabulary
from mdms_pipeline_tests.backtest.markets import GOOD, START, recipe, walk, warehouse


def materialized(folder: Path, found: Recipe) -> dg.ExecuteInProcessResult:
    settings = Settings.load({"MDMS_HOME": str(folder), "MDMS_EXCHANGE_URL": "sandbox"})
    given = resources(Mdms(settings, clock=lambda: START))
    return dg.materialize([backtest_asset(found), backtest_checks(found)], resources=given, raise_on_error=True)


def test_edges_are_what_the_rules_read() -> None:
    recipes = load_strategies([BUILT_IN], vocabulary()).recipes
    edges = {
        name: {key.to_user_string() for key in backtest_asset(each).asset_deps[dg.AssetKey(f"backtest_{name}")]}
        for name, each in recipes.items()
    }
    assert edges == {
        "breakout": {"candles", "highest", "sma", "atr"},
        "pullback": {"candles", "sma", "rsi", "atr"},
        "trend_following": {"candles", "sma", "atr"},
    }
    kept = {indicator.call for indicator in needed(strategy_expressions(list(recipes.values())))}
    assert {"highest(55)", "sma(volume, 20)", "sma(60)", "rsi(14)"} <= kept


def test_a_backtest_as_an_asset(tmp_path: Path) -> None:
    store = warehouse(tmp_path, {f"KRW-C{i}": walk(i, 600) for i in range(3)}, "1h")
    result = materialized(tmp_path, recipe(tmp_path, GOOD.replace("[KRW-BTC]", "all")))
    (event,) = result.asset_materializations_for_node("backtest_mine")
    assert event.metadata["state"].value == "traded"
    assert "data:image/png;base64" in str(event.metadata["picture"].value)
    assert Path(str(event.metadata["report"].value)).exists()
    checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
    assert checks == {"look_ahead": True, "warm_up": True}
    with store.read() as connection:
        run, run_id = connection.execute("SELECT run, run_id FROM backtest_runs").fetchall()[0]
    assert (run, run_id) == (event.metadata["run"].value, result.run_id)


def test_without_data_the_asset_says_so(tmp_path: Path) -> None:
    warehouse(tmp_path, {"KRW-C1": walk(1, 600)}, "4h")
    result = materialized(tmp_path, recipe(tmp_path))
    (event,) = result.asset_materializations_for_node("backtest_mine")
    assert "there are no 1h candles of KRW-BTC" in str(event.metadata["state"].value)
    checks = result.get_asset_check_evaluations()
    assert [(check.passed, check.severity) for check in checks] == [(False, dg.AssetCheckSeverity.WARN)] * 2


def test_a_schedule_where_the_file_names_one(tmp_path: Path) -> None:
    assert backtest_schedules([recipe(tmp_path)]) == []
    (schedule,) = backtest_schedules([recipe(tmp_path, GOOD.replace("size:", "schedule: 5 0 * * *\n    size:"))])
    assert (schedule.name, schedule.cron_schedule) == ("backtest_mine_schedule", "5 0 * * *")
