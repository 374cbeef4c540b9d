"""`mdms run`: what is due, and the one Dagster run that does it.

1. runs whose process died are marked failed
2. the universe is asked for, if a candle has closed since it was last
3. a timeframe is due if its candles, its indicators, its screens, or Dagster's record of them are behind
4. nothing due: no run. Else one run over all symbols of the due timeframes (one per stretch of neighbours)
"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from mdms_pipeline.calculate.advance import outstanding
from mdms_pipeline.collect.fill import is_due
from mdms_pipeline.collect.universe import update_universe
from mdms_pipeline.defs.grid import SYMBOLS, range_tags
from mdms_pipeline.defs.refresh import JOB, TIMEFRAMES_TAG, selection_of
from mdms_pipeline.defs.resources import Mdms
from mdms_pipeline.defs.storage import environment, write_dagster_yaml
from mdms_pipeline.defs.universe import keep_partitions, universe_metadata
from mdms_pipeline.market import SETTLE, timeframe
from mdms_pipeline.market import stretches as neighbours
from mdms_pipeline.screen.load import Screen
from mdms_pipeline.screen.look import screens_of, unscreened
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import DELISTED, standings
from mdms_pipeline.store.journal import writers_since
from mdms_pipeline.store.universe import chosen_by, universe
from mdms_pipeline.vocabulary import stored

PROCESS_TAG = "mdms/process"
# Dagster would print each of thousands of events; its own log keeps them.
QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
UNFINISHED = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


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
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    for name, value in environment().items():
        os.environ.setdefault(name, value)
    write_dagster_yaml(settings.dagster_home)
    return DagsterInstance.get()


def refresh(instance: DagsterInstance, warehouse: Warehouse, mdms: Mdms) -> Refreshed:
    """Bring everything up to date in one Dagster run, or find that nothing is due."""
    clock = time.perf_counter()
    fail_dead_runs(instance)
    asyncio.run(refresh_universe(instance, warehouse, mdms))
    screens = list(screens_of(mdms.settings).screens.values())
    due = why_due(instance, warehouse, mdms, screens)
    run_ids, error = [], None
    for stretch in neighbours(list(due)):
        result = _execute(instance, mdms, screens, stretch)
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


def why_due(instance: DagsterInstance, warehouse: Warehouse, mdms: Mdms, screens: Sequence[Screen]) -> dict[str, str]:
    """Timeframe -> why it is due; empty where everything is up to date."""
    indicators = stored(expression for screen in screens for expression in screen.expressions)
    now, found = mdms.clock(), {}
    for name in mdms.settings.timeframes:
        with warehouse.read() as connection:
            symbols = universe(connection)
            known = standings(connection, [(symbol, name) for symbol in symbols])
            behind = [
                s
                for s in symbols
                if (s, name) not in known or (known[s, name].state != DELISTED and is_due(known[s, name], now, mdms.settings.history))
            ]
            waiting = outstanding(connection, indicators, name, symbols)
            screened = unscreened(connection, [screen for screen in screens if screen.timeframe.name == name])
        if behind:
            found[name] = f"candles of {len(behind)} markets are behind the clock"
        elif waiting:
            found[name] = f"indicators are behind the candles: {next(iter(waiting))}"
        elif screened:
            found[name] = f"not screened yet: {', '.join(screened)}"
        elif unrecorded(instance, warehouse, name):
            found[name] = "Dagster's record is behind the warehouse"
    return found


def unrecorded(instance: DagsterInstance, warehouse: Warehouse, name: str) -> bool:
    """Whether anything was written that no run that ended well has told Dagster of.

    A run reports each partition as it finds it, so all that was written before a successful refresh began is on record, and what it
    wrote itself.
    """
    runs = instance.get_run_records(RunsFilter(job_name=JOB, statuses=[DagsterRunStatus.SUCCESS]), limit=50)
    latest = next((run for run in runs if name in run.dagster_run.tags.get(TIMEFRAMES_TAG, "").split(",")), None)
    with warehouse.read() as connection:
        writers = writers_since(connection, name, int(latest.start_time or 0) if latest else 0)
    if latest:
        writers.discard(latest.dagster_run.run_id)
    return any(writer is None or not _succeeded(instance, writer) for writer in writers)


def _succeeded(instance: DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and run.status == DagsterRunStatus.SUCCESS


def _execute(instance: DagsterInstance, mdms: Mdms, screens: Sequence[Screen], timeframes: Sequence[str]) -> dg.ExecuteInProcessResult:
    from mdms_pipeline.definitions import build

    definitions = build(mdms)
    job = definitions.resolve_job_def(JOB)
    grid = [key for key in job.asset_layer.executable_asset_keys if job.asset_layer.get(key).partitions_def is not None]
    symbols = instance.get_dynamic_partitions(str(SYMBOLS.name))
    tags = {**range_tags(symbols, timeframes), TIMEFRAMES_TAG: ",".join(timeframes), PROCESS_TAG: this_process()}
    selection = [
        key for key in selection_of(timeframes, [key.to_user_string() for key in grid], screens) if key.to_user_string() != "symbols"
    ]
    return job.execute_in_process(
        instance=instance, tags=tags, asset_selection=selection, raise_on_error=False, run_config=QUIET
    )


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


def this_process() -> str:
    """host:boot:pid:start of this process: no other process ever has the same."""
    return f"{socket.gethostname()}:{_boot()}:{os.getpid()}:{_started(os.getpid())}"


def fail_dead_runs(instance: DagsterInstance) -> list[str]:
    """Mark runs of this machine whose process is gone as failed: Dagster itself would show them running for ever."""
    dead = []
    for record in instance.get_run_records(RunsFilter(statuses=UNFINISHED)):
        run = record.dagster_run
        host, boot, pid, started = (*run.tags.get(PROCESS_TAG, "").split(":"), "", "", "", "")[:4]
        if host == socket.gethostname() and (boot != _boot() or _started(int(pid)) != started):
            instance.report_run_failed(run, message="The process that made this run is gone (killed, or the machine was restarted).")
            dead.append(run.run_id)
    return dead


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown"


def _started(pid: int) -> str:
    """When the process began, in clock ticks since boot; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
