"""What Dagster loads: the assets of the catalog, of the screens and of the universe, with checks, sensors, schedules and resources."""

import dagster as dg

from mdms_pipeline.backtest.find import strategies_of
from mdms_pipeline.defs.backtests import backtest_asset, backtest_checks, backtest_schedules, backtests_job, backtests_sensor
from mdms_pipeline.defs.candles import candles, fresh, laws, reconciled
from mdms_pipeline.defs.indicators import indicator_assets
from mdms_pipeline.defs.refresh import refresh_job
from mdms_pipeline.defs.resources import Mdms, resources
from mdms_pipeline.defs.screens import ranking_asset, screen_results_asset
from mdms_pipeline.defs.sensors import (
    failed_sensor,
    listings_sensor,
    prune_job,
    prune_schedule,
    refresh_sensor,
    screen_schedule,
    screening_job,
    universe_job,
    watch_sensor,
)
from mdms_pipeline.defs.signals import live_parity_check, parity_job, signals_asset, signals_sensor
from mdms_pipeline.defs.universe import symbols
from mdms_pipeline.kept import kept_indicators
from mdms_pipeline.live_watch import screen_watch, strategy_watches
from mdms_pipeline.screen.look import screens_of
from mdms_pipeline.settings import Settings


@dg.definitions
def defs() -> dg.Definitions:
    """The project as the environment sets it."""
    return build(Mdms(Settings.load()))


def build(mdms: Mdms) -> dg.Definitions:
    """The project with these settings, this exchange and this clock."""
    settings = mdms.settings
    screens = list(screens_of(settings).screens.values())
    recipes = list(strategies_of(settings).recipes.values())
    indicators = indicator_assets(kept_indicators(settings))
    grid = [candles, *indicators, screen_results_asset(screens)]
    watches = [*(watch for recipe in recipes for watch in strategy_watches(recipe.usual)), *map(screen_watch, screens)]
    names = [asset.key.to_user_string() for asset in grid]
    return dg.Definitions(
        assets=[symbols, *grid, *map(ranking_asset, screens), *map(backtest_asset, recipes), signals_asset(watches)],
        asset_checks=[laws, fresh, reconciled, *map(backtest_checks, recipes), live_parity_check(watches)],
        jobs=[refresh_job(), universe_job(), screening_job(screens), parity_job(), prune_job(mdms), backtests_job()],
        sensors=[
            refresh_sensor(mdms, names, screens),
            listings_sensor(mdms),
            watch_sensor(mdms),
            failed_sensor(mdms),
            backtests_sensor(recipes),
            signals_sensor(mdms),
        ],
        schedules=[
            prune_schedule(mdms),
            *(screen_schedule(screen) for screen in screens if screen.schedule),
            *backtest_schedules(recipes),
        ],
        resources=resources(mdms),
        executor=dg.in_process_executor,
    )
