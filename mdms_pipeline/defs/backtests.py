"""One asset per strategy file, below the indicators that its rules read; its checks; a schedule where the file names one."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mdms_pipeline.backtest.check import Finding, look_ahead, warm_up
from mdms_pipeline.backtest.find import history_of
from mdms_pipeline.backtest.history import HistoryError
from mdms_pipeline.backtest.keep import keep, runs
from mdms_pipeline.backtest.metrics import drawdown
from mdms_pipeline.backtest.run import Result, backtest
from mdms_pipeline.backtest.strategy import AFTER_REFRESH, Recipe
from mdms_pipeline.defs.grid import OWNERS
from mdms_pipeline.defs.refresh import JOB, WHY_TAG, under_way
from mdms_pipeline.defs.resources import Mdms, WarehouseResource, patiently
from mdms_pipeline.market import iso
from mdms_pipeline.rules import Expression
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.journal import calculated_after, newest_id
from mdms_pipeline.vocabulary import tables

BACKTESTS_JOB = "backtests"


def strategy_expressions(recipes: Sequence[Recipe]) -> list[Expression]:
    """Everything that the strategies read with their usual parameters: indicators to keep in the warehouse."""
    return [expression for recipe in recipes for expression in recipe.usual.expressions]


def asset_name(recipe: Recipe) -> str:
    """A strategy may have the name of a screen or of an indicator."""
    return f"backtest_{recipe.name}"


def backtest_asset(recipe: Recipe) -> dg.AssetsDefinition:
    """The backtest of one strategy. Its edges are what its rules read."""
    strategy = recipe.usual
    rules = {name: said for name, said in strategy.said.items() if said not in ("None", "[]", "none")}

    @dg.asset(
        name=asset_name(recipe),
        group_name="backtests",
        kinds={"duckdb", "numba"},
        owners=OWNERS,
        description=f"{strategy.title}. {strategy.description}\n\n" + "\n".join(f"- {name}: `{said}`" for name, said in rules.items()),
        deps=sorted({*tables(strategy.calls), "candles"}),
        metadata={"dagster/table_name": "backtest_runs"},
        code_version=strategy.fingerprint[:8],
    )
    def asset(context: dg.AssetExecutionContext, warehouse: WarehouseResource, mdms: dg.ResourceParam[Mdms]) -> dg.MaterializeResult[None]:
        from mdms_pipeline.backtest import report  # plotly, a tenth of a second that all other runs need not spend

        store = warehouse.warehouse
        try:
            result = backtest(strategy, history_of(store, strategy))
        except HistoryError as error:
            return dg.MaterializeResult(metadata={"state": f"not traded: {error}"})
        with store.write() as connection:
            keep(connection, result, int(mdms.clock()), context.run.run_id)
        with store.read() as connection:
            kept = runs(connection, recipe.name, 10)
        file = mdms.settings.home / "backtests" / f"{recipe.name}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(report.page(result, report.Doubts()), encoding="utf-8")
        table = report.compare([report.compared(run) for run in kept])
        shown = {"report": dg.MetadataValue.path(file), "runs": dg.MetadataValue.md(table)}
        return dg.MaterializeResult(metadata={**_metadata(result), **shown})

    return asset


def _metadata(result: Result) -> dict[str, Any]:
    from mdms_pipeline.backtest.report import shown

    measured = shown(result.metrics)
    picture = base64.b64encode(equity_picture(result)).decode()
    return {
        "state": "traded",
        "run": result.id,
        "from": iso(int(result.opened_at[0])),
        "to": result.record["to"],
        **{name.replace(" ", "_"): value for name, value in measured.items()},
        "held_return": float(result.reference[-1] / result.strategy.capital - 1),
        "orders": dg.MetadataValue.json(result.counts),
        "markets": len(result.history.symbols),
        "signals_refused": result.decided.refused,
        "near_a_threshold": len(result.near),
        "picture": dg.MetadataValue.md(f"![{result.strategy.title}](data:image/png;base64,{picture})"),
    }


def equity_picture(result: Result) -> bytes:
    """Equity beside buy and hold, and the drawdown, as a PNG."""
    from matplotlib.figure import Figure  # half a second that a run with nothing to do need not spend

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    at = result.opened_at.astype("datetime64[s]")
    above.plot(at, result.reference, color="#9aa3af", linewidth=1, label="buy and hold")
    above.plot(at, result.outcome.equity, color="#2f6fbb", linewidth=1.2, label=result.strategy.name)
    above.legend(loc="upper left", frameon=False, fontsize=8)
    above.set_ylabel("million KRW", fontsize=8)
    above.yaxis.set_major_formatter(lambda krw, _: f"{krw / 1e6:,.4g}")
    below.fill_between(at, drawdown(result.outcome.equity, result.strategy.capital) * 100, color="#c0392b", alpha=0.5)
    below.set_ylabel("below high, %", fontsize=8)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    return picture.getvalue()


def backtest_checks(recipe: Recipe) -> dg.AssetChecksDefinition:
    """Look-ahead and warm-up of one strategy's backtest."""
    strategy, key = recipe.usual, dg.AssetKey(asset_name(recipe))
    named = {"look_ahead": look_ahead, "warm_up": warm_up}
    about = {
        "look_ahead": "decisions from data cut at random bars equal those of the whole",
        "warm_up": "decisions from history that starts later are the same after stable_after",
    }

    @dg.multi_asset_check(
        name=f"{asset_name(recipe)}_checks",
        specs=[dg.AssetCheckSpec(name, asset=key, description=about[name]) for name in named],
        can_subset=True,
    )
    def checks(context: dg.AssetCheckExecutionContext, warehouse: WarehouseResource) -> Any:
        try:
            history = history_of(warehouse.warehouse, strategy)
        except HistoryError as error:
            history, why = None, str(error)
        for name in sorted(asked.name for asked in context.selected_asset_check_keys):
            finding = named[name](strategy, history) if history else Finding(0, (why,))
            yield _result(name, key, finding)

    return checks


def _result(name: str, key: dg.AssetKey, finding: Finding) -> dg.AssetCheckResult:
    """A check that could compare nothing warns; one that found a difference is an error."""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=finding.passed,
        severity=dg.AssetCheckSeverity.ERROR if finding.compared else dg.AssetCheckSeverity.WARN,
        metadata={"cuts": finding.compared, "differences": "\n".join(finding.differences), "near_a_threshold": "\n".join(finding.listed)},
    )


def backtest_schedules(recipes: Sequence[Recipe]) -> list[dg.ScheduleDefinition]:
    """A schedule for each strategy that names one."""
    return [
        dg.ScheduleDefinition(
            name=f"{asset_name(recipe)}_schedule",
            target=dg.AssetSelection.assets(asset_name(recipe)),
            cron_schedule=recipe.usual.schedule,
            execution_timezone="UTC",
        )
        for recipe in recipes
        if recipe.usual.schedule not in (None, AFTER_REFRESH)
    ]


def backtests_job() -> UnresolvedAssetJobDefinition:
    return dg.define_asset_job(BACKTESTS_JOB, dg.AssetSelection.groups("backtests"), description="Trade strategies over what is stored.")


def backtests_sensor(recipes: Sequence[Recipe]) -> dg.SensorDefinition:
    """One run over the strategies with `schedule: refresh` whose timeframe's indicators were brought up to date."""
    waiting = [recipe for recipe in recipes if recipe.usual.schedule == AFTER_REFRESH]

    @dg.sensor(
        name="backtests",
        job_name=BACKTESTS_JOB,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Makes backtests anew after a refresh: {', '.join(recipe.name for recipe in waiting) or 'no strategy asks for it'}.",
    )
    def backtests(context: dg.SensorEvaluationContext, warehouse: WarehouseResource) -> dg.SensorResult | dg.SkipReason:
        return patiently(lambda: _backtests(context, warehouse.impatient, waiting))

    return backtests


def _backtests(context: dg.SensorEvaluationContext, warehouse: Warehouse, waiting: Sequence[Recipe]) -> dg.SensorResult | dg.SkipReason:
    for job in (JOB, BACKTESTS_JOB):
        if under_way(context.instance, job):
            return dg.SkipReason(f"a run of {job} is under way")
    with warehouse.read() as connection:
        newest, calculated = newest_id(connection), calculated_after(connection, int(context.cursor or 0))
    due = [recipe for recipe in waiting if recipe.usual.timeframe.name in calculated]
    if not due:
        return dg.SensorResult(skip_reason=dg.SkipReason("no indicator that they read has moved"), cursor=str(newest))
    keys = [dg.AssetKey(asset_name(recipe)) for recipe in due]
    why = f"refreshed: {', '.join(sorted({recipe.usual.timeframe.name for recipe in due}))}"
    return dg.SensorResult(run_requests=[dg.RunRequest(tags={WHY_TAG: why}, asset_selection=keys)], cursor=str(newest))
