"""`mdms run`: what is due, and the one Dagster run that does it.

1. runs whose process died are marked failed
2. the universe is asked for, if a candle has closed since it was last
3. a timeframe is due if its candles, its indicators, its screens, or Dagster's record of them are behind
4. nothing due: no run. Else one run over all symbols of the due timeframes (one per stretch of neighbours)
"""

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster import DagsterInstance

from mdms_pipeline.collect.universe import update_universe
from mdms_pipeline.defs.due import why_due
from mdms_pipeline.defs.grid import SYMBOLS
from mdms_pipeline.defs.processes import PROCESS_TAG, fail_dead_runs, this_process
from mdms_pipeline.defs.refresh import JOB, selection_of, tags_of
from mdms_pipeline.defs.resources import Mdms
from mdms_pipeline.defs.storage import environment, write_dagster_yaml
from mdms_pipeline.defs.universe import keep_partitions, universe_metadata
from mdms_pipeline.market import SETTLE, timeframe
from mdms_pipeline.market import stretches as neighbours
from mdms_pipeline.screen.load import Screen
from mdms_pipeline.screen.look import screens_of
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import StoreError, Warehouse
from mdms_pipeline.store.journal import newest_id
from mdms_pipeline.store.universe import chosen_by

# Dagster would print each of thousands of events; its own log keeps them.
QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


@dataclass(frozen=True)
class Refreshed:
    """What `mdms run` did. No run: nothing was due."""

    due: Mapping[str, str]  # timeframe -> why
    run_ids: Sequence[str]
    succeeded: bool
    error: str | None
    seconds: float


def use_home(settings: Settings) -> DagsterInstance:
    """Dagster's home inside of ours, made if need be, and the environment that our processes run in."""
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    for name, value in environment().items():
        os.environ.setdefault(name, value)
    try:
        settings.dagster_home.mkdir(parents=True, exist_ok=True)
        _make_databases(settings.dagster_home)
        write_dagster_yaml(settings.dagster_home)
    except OSError as error:
        raise StoreError(
            f"Dagster's home {settings.dagster_home} cannot be written: {error.strerror}; set MDMS_HOME to a folder that can"
        ) from None
    return DagsterInstance.get()


def _make_databases(home: Path) -> None:
    """Dagster's databases, made aside by one process and then moved here: stock never finishes one that a killed process has begun."""
    if (home / "history").exists():
        return
    aside = home.with_name("dagster.new")
    with home.with_name("dagster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (home / "history").exists():
            return
        shutil.rmtree(aside, ignore_errors=True)
        write_dagster_yaml(aside)
        with DagsterInstance.from_config(str(aside)) as instance:
            instance.get_dynamic_partitions(str(SYMBOLS.name))
        for folder in ("schedules", "history"):  # the one that is looked for comes last
            shutil.rmtree(home / folder, ignore_errors=True)
            (aside / folder).replace(home / folder)
        shutil.rmtree(aside)


def refresh(instance: DagsterInstance, warehouse: Warehouse, mdms: Mdms) -> Refreshed:
    """Bring everything up to date in one Dagster run, or find that nothing is due."""
    clock = time.perf_counter()
    fail_dead_runs(instance)
    asyncio.run(refresh_universe(instance, warehouse, mdms))
    screens = list(screens_of(mdms.settings).screens.values())
    with warehouse.read() as connection:
        event = newest_id(connection)
    due = why_due(instance, warehouse, mdms, screens)
    run_ids, error = [], None
    for stretch in neighbours(list(due)):
        why = "; ".join(f"{name}: {due[name]}" for name in stretch)
        result = _execute(instance, mdms, screens, stretch, event, why)
        run_ids.append(result.run_id)
        error = error or failure(instance, result)
    return Refreshed(due, run_ids, error is None, error, time.perf_counter() - clock)


async def refresh_universe(instance: DagsterInstance, warehouse: Warehouse, mdms: Mdms) -> None:
    """Ask which markets there are, once per candle of the finest timeframe or when the setting has changed; report `symbols`."""
    settings, now = mdms.settings, int(mdms.clock())
    with warehouse.read() as connection:
        before = chosen_by(connection)
    if (
        before is not None
        and before.setting == settings.universe
        and before.seen_at >= timeframe(settings.timeframes[0]).floor(now - SETTLE)
    ):
        keep_partitions(instance, before.symbols)
        return
    async with mdms.connect() as exchange:
        chosen = await update_universe(exchange, warehouse, settings)
    new = keep_partitions(instance, chosen)
    instance.report_runless_asset_event(dg.AssetMaterialization("symbols", metadata=universe_metadata(warehouse, new)))


def _execute(
    instance: DagsterInstance, mdms: Mdms, screens: Sequence[Screen], timeframes: Sequence[str], event: int, why: str
) -> dg.ExecuteInProcessResult:
    from mdms_pipeline.definitions import build

    definitions = build(mdms)
    job = definitions.resolve_job_def(JOB)
    grid = [key for key in job.asset_layer.executable_asset_keys if job.asset_layer.get(key).partitions_def is not None]
    tags = {**tags_of(instance, timeframes, event, why), PROCESS_TAG: this_process()}
    selection = selection_of(timeframes, [key.to_user_string() for key in grid], screens)
    return job.execute_in_process(instance=instance, tags=tags, asset_selection=selection, raise_on_error=False, run_config=QUIET)


def failure(instance: DagsterInstance, result: dg.ExecuteInProcessResult) -> str | None:
    """What the first failed step says, None where all went well."""
    if result.success:
        return None
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.error is not None:
            error = event.step_failure_data.error
            said = event.step_failure_data.user_failure_data
            reason = (said.description if said else None) or (error.cause.message if error.cause else error.message)
            return f"step {event.step_key}: {str(reason).strip()}"
    return "the run failed: see its log in Dagster"
