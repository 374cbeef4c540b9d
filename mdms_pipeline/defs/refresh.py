"""The refresh: one run over every symbol of neighbouring timeframes, from candles to rankings; and when it is made."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mdms_pipeline.defs.grid import SYMBOLS, range_tags
from mdms_pipeline.market import TIMEFRAMES
from mdms_pipeline.screen.load import Screen

JOB = "refresh"
TIMEFRAMES_TAG = "mdms/timeframes"
# When candles close, UTC. The step itself waits until the last candle has settled.
CLOSES = {
    **{f"{minutes}m": f"*/{minutes} * * * *" for minutes in (1, 3, 5, 10, 15, 30)},
    "1h": "0 * * * *",
    "4h": "0 */4 * * *",
    "1d": "0 0 * * *",
    "1w": "0 0 * * 1",
    "1M": "0 0 1 * *",
}
assert list(CLOSES) == list(TIMEFRAMES)


def refresh_job() -> UnresolvedAssetJobDefinition:
    return dg.define_asset_job(JOB, dg.AssetSelection.all(), description="Collect, calculate, screen and rank.")


def selection_of(timeframes: Sequence[str], grid: Sequence[str], screens: Sequence[Screen]) -> list[dg.AssetKey]:
    """The assets of a refresh of these timeframes: the universe, the grid, and the rankings that stand on these timeframes."""
    rankings = [screen.name for screen in screens if screen.timeframe.name in timeframes]
    return [dg.AssetKey(name) for name in ("symbols", *grid, *rankings)]


def schedule(timeframe: str, grid: Sequence[str], screens: Sequence[Screen]) -> dg.ScheduleDefinition:
    """Refresh one timeframe whenever its candle has closed."""
    selection = selection_of([timeframe], grid, screens)

    @dg.schedule(
        name=f"refresh_{timeframe}" if timeframe != "1M" else "refresh_1month",
        job_name=JOB,
        cron_schedule=CLOSES[timeframe],
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Collects, calculates and screens {timeframe} candles when one has closed.",
    )
    def refresh(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        symbols = context.instance.get_dynamic_partitions(str(SYMBOLS.name))
        at = context.scheduled_execution_time.isoformat()
        if not symbols:
            return dg.SkipReason("there is no symbol yet: materialize the asset `symbols` once")
        return dg.RunRequest(
            run_key=f"{timeframe} {at}", tags={**range_tags(symbols, [timeframe]), TIMEFRAMES_TAG: timeframe}, asset_selection=selection
        )

    return refresh
