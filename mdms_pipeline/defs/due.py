"""What is due: the clock, the warehouse and Dagster's record of it compared. Reads only, and asks no network.

A timeframe is due if its candles, its indicators, its screens, or Dagster's record of them are behind.
"""

from collections.abc import Sequence

import duckdb
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from mdms_pipeline.calculate.advance import outstanding
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.collect.fill import is_due
from mdms_pipeline.defs.refresh import EVENT_TAG, JOB, TIMEFRAMES_TAG
from mdms_pipeline.defs.resources import Mdms
from mdms_pipeline.kept import kept_indicators
from mdms_pipeline.market import TIMEFRAMES
from mdms_pipeline.screen.load import Screen
from mdms_pipeline.screen.look import unscreened
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import DELISTED, standings
from mdms_pipeline.store.journal import writers_after
from mdms_pipeline.store.universe import universe


def why_due(
    instance: DagsterInstance, warehouse: Warehouse, mdms: Mdms, screens: Sequence[Screen], judged: Sequence[Screen] | None = None
) -> dict[str, str]:
    """Timeframe -> why it is due; empty where everything is up to date. Only `judged` screens (None: all) must have a result."""
    must = screens if judged is None else judged
    indicators = kept_indicators(mdms.settings)
    found = {}
    for name in mdms.settings.timeframes:
        with warehouse.read() as connection:
            why = _why_behind(connection, name, mdms, indicators, [screen for screen in must if screen.timeframe.name == name])
        if why is None and unrecorded(instance, warehouse, name):
            why = "Dagster's record is behind the warehouse"
        if why is not None:
            found[name] = why
    return found


def _why_behind(
    connection: duckdb.DuckDBPyConnection, name: str, mdms: Mdms, indicators: Sequence[Indicator], screens: Sequence[Screen]
) -> str | None:
    """What of a timeframe is behind in the warehouse, the first thing found: the rest follows from it."""
    symbols, now = universe(connection), mdms.clock()
    known = standings(connection, [(symbol, name) for symbol in symbols])
    behind = [
        s
        for s in symbols
        if (s, name) not in known or (known[s, name].state != DELISTED and is_due(known[s, name], now, mdms.settings.history))
    ]
    if behind:
        return f"candles of {len(behind)} markets are behind the clock"
    if waiting := outstanding(connection, indicators, name, symbols):
        return f"indicators are behind the candles: {next(iter(waiting))}"
    if screened := unscreened(connection, screens):
        return f"not screened yet: {', '.join(screened)}"
    return None


def unrecorded(instance: DagsterInstance, warehouse: Warehouse, name: str) -> bool:
    """Whether anything was written that no run that ended well has told Dagster of.

    A run reports each partition as it finds it, so all that was written before a successful refresh was made is on record, and what it
    wrote itself.
    """
    ended_well = RunsFilter(job_name=JOB, statuses=[DagsterRunStatus.SUCCESS], tags={TIMEFRAMES_TAG: _stretches_with(name)})
    latest = next(iter(instance.get_runs(ended_well, limit=1)), None)
    with warehouse.read() as connection:
        writers = writers_after(connection, name, int(latest.tags.get(EVENT_TAG, 0)) if latest else 0)
    if latest:
        writers.discard(latest.run_id)
    return any(writer is None or not _succeeded(instance, writer) for writer in writers)


def _stretches_with(name: str) -> list[str]:
    """Every value of TIMEFRAMES_TAG that holds this timeframe."""
    known = list(TIMEFRAMES)
    here = known.index(name)
    return [",".join(known[start:end]) for start in range(here + 1) for end in range(here + 1, len(known) + 1)]


def _succeeded(instance: DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and run.status == DagsterRunStatus.SUCCESS
