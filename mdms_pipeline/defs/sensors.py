"""What happens by itself while Dagster's daemon runs. No sensor asks the network: each compares the clock and the store, and makes a run.

`refresh`   a candle has closed, or somebody has written to the warehouse: one run over what is due (`refresh.py` decides)
`listings`  every ten minutes, and when there is no universe yet: a run of `symbols`, which adds new markets and marks those that are gone
`watch`     evaluates the check `fresh`, raises and resolves alerts, and hands them to the file and the webhook
`failed`    a run of ours has failed: raises an alert
`backtests` indicators were brought up to date: backtests that ask for it are made anew (`backtests.py`)
Screens that name a schedule, and the prune of Dagster's log, have schedules.
"""

import hashlib
import time
from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mdms_pipeline.alerts import deliver, evaluate
from mdms_pipeline.collect.budget import known_block
from mdms_pipeline.defs.candles import freshness
from mdms_pipeline.defs.due import why_due
from mdms_pipeline.defs.grid import SYMBOLS, range_tags
from mdms_pipeline.defs.processes import fail_dead_runs
from mdms_pipeline.defs.prune import log_bytes, prune
from mdms_pipeline.defs.refresh import (
    FAILED,
    JOB,
    UNFINISHED,
    WHY_TAG,
    Ended,
    Memory,
    decide,
    newest_closes,
    selection_of,
    tags_of,
    tick_seconds,
    under_way,
    waits,
)
from mdms_pipeline.defs.resources import Mdms, WarehouseResource, patiently
from mdms_pipeline.defs.universe import keep_partitions
from mdms_pipeline.screen.load import Screen
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.alerts import alerts, raise_alert, resolve_alert
from mdms_pipeline.store.journal import events_after, newest_id
from mdms_pipeline.store.universe import Chosen, chosen_by

UNIVERSE_JOB, SCREENING_JOB, PRUNE_JOB = "universe", "screening", "prune"
LISTINGS_SECONDS = 600  # between two looks at the exchange's markets
RUN_FAILED = "run failed"
REPORT_SECONDS = 1800  # between two reports of a check whose verdict stays
EVENTS_AT_ONCE = 1000  # events looked at in one tick
PRUNE_FROM = 0.6  # of what the log may take: with 120 symbols of 1m it grows by 15 MB a minute


def refresh_sensor(mdms: Mdms, grid: Sequence[str], screens: Sequence[Screen]) -> dg.SensorDefinition:
    """One run over what is due. `screens` that name a schedule are not judged by it."""
    judged = [screen for screen in screens if screen.schedule is None]

    @dg.sensor(
        name="refresh",
        job_name=JOB,
        minimum_interval_seconds=tick_seconds(mdms.settings.timeframes),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Makes one run over all that is due when a candle has closed, or when something was written outside of Dagster.",
    )
    def refresh(context: dg.SensorEvaluationContext, warehouse: WarehouseResource) -> dg.SensorResult | dg.SkipReason:
        return patiently(lambda: _refresh(context, warehouse.impatient, mdms, grid, screens, judged))

    return refresh


def _refresh(
    context: dg.SensorEvaluationContext,
    warehouse: Warehouse,
    mdms: Mdms,
    grid: Sequence[str],
    screens: Sequence[Screen],
    judged: Sequence[Screen],
) -> dg.SensorResult | dg.SkipReason:
    instance, settings = context.instance, mdms.settings
    fail_dead_runs(instance)
    records = instance.get_run_records(dg.RunsFilter(job_name=JOB), limit=20)
    running = [record.dagster_run for record in records if record.dagster_run.status in UNFINISHED]
    if running:
        return dg.SkipReason(f"run {running[0].run_id[:8]} is under way")
    with warehouse.read() as connection:
        event, chosen = newest_id(connection), chosen_by(connection)
    if chosen is None or not chosen.symbols or chosen.setting != settings.universe:
        return dg.SkipReason("there is no universe yet: the sensor `listings` has one made")
    keep_partitions(instance, chosen.symbols)
    closes, memory = newest_closes(settings.timeframes, mdms.clock()), Memory.read(context.cursor)
    last = [(record.dagster_run.run_id, record.dagster_run.status.value) for record in records[:1]]
    state = _digest(event, closes, last, chosen.setting, settings.history, [(screen.name, screen.fingerprint) for screen in screens])
    if memory.idle == state:
        return dg.SkipReason("nothing has closed or was written since everything was up to date")
    due = why_due(instance, warehouse, mdms, screens, judged)
    timeframes, why = decide(due, closes, memory, [_ended(record) for record in records], time.time())
    if not timeframes:
        return dg.SensorResult(skip_reason=dg.SkipReason(why), cursor=Memory("" if due else state, memory.launched).write())
    request = dg.RunRequest(tags=tags_of(instance, timeframes, event, why), asset_selection=selection_of(timeframes, grid, judged))
    return dg.SensorResult(run_requests=[request], cursor=memory.after(timeframes, closes).write())


def _ended(record: dg.RunRecord) -> Ended:
    at = record.end_time or record.update_timestamp.timestamp()
    return Ended(record.dagster_run.status in FAILED, at)


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


# ---- the universe


def universe_job() -> UnresolvedAssetJobDefinition:
    return dg.define_asset_job(UNIVERSE_JOB, dg.AssetSelection.assets("symbols"), description="Ask which markets there are.")


def listings_sensor(mdms: Mdms) -> dg.SensorDefinition:
    @dg.sensor(
        name="listings",
        job_name=UNIVERSE_JOB,
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Looks at the exchange's markets every {LISTINGS_SECONDS // 60} minutes: new ones are added, those gone are marked.",
    )
    def listings(context: dg.SensorEvaluationContext, warehouse: WarehouseResource) -> dg.SensorResult | dg.SkipReason:
        return patiently(lambda: _listings(context, warehouse.impatient, mdms))

    return listings


def _listings(context: dg.SensorEvaluationContext, warehouse: Warehouse, mdms: Mdms) -> dg.SensorResult | dg.SkipReason:
    records = context.instance.get_run_records(dg.RunsFilter(job_name=UNIVERSE_JOB), limit=20)
    if any(record.dagster_run.status in UNFINISHED for record in records):
        return dg.SkipReason("a run is under way")
    with warehouse.read() as connection:
        chosen, followed = chosen_by(connection), int(context.cursor or 0)
        seen = events_after(connection, followed, EVENTS_AT_ONCE, ["market_listed", "market_delisted"])
    cursor = str(seen[-1].id if seen else followed)
    news = "; ".join(f"{event.type}: {', '.join(event.symbols[:10])}" for event in seen[-3:])
    why = _why_look(chosen, mdms)
    wait = waits([_ended(record) for record in records], time.time())
    if why is None or wait > 0:
        said = f"waiting {wait:.0f} s because the last run failed" if wait > 0 else "the markets were looked at a moment ago"
        return dg.SensorResult(skip_reason=dg.SkipReason("; ".join(filter(None, (said, news)))), cursor=cursor)
    return dg.SensorResult(run_requests=[dg.RunRequest(tags={WHY_TAG: why})], cursor=cursor)


def _why_look(chosen: Chosen | None, mdms: Mdms) -> str | None:
    """Why the exchange is to be asked which markets there are; None where it need not be."""
    if chosen is None:
        return "there is no universe yet"
    if chosen.setting != mdms.settings.universe:
        return f"MDMS_SYMBOLS was {chosen.setting}"
    return "looked at every ten minutes" if mdms.clock() >= chosen.seen_at + LISTINGS_SECONDS else None


# ---- freshness and alerts


def watch_sensor(mdms: Mdms) -> dg.SensorDefinition:
    @dg.sensor(
        name="watch",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Evaluates the check `fresh`, raises and resolves alerts, and sends them.",
    )
    def watch(context: dg.SensorEvaluationContext, warehouse: WarehouseResource) -> dg.SensorResult | dg.SkipReason:
        return patiently(lambda: _watch(context, warehouse.impatient, mdms))

    return watch


def _watch(context: dg.SensorEvaluationContext, warehouse: Warehouse, mdms: Mdms) -> dg.SensorResult:
    now = int(mdms.clock())
    fail_dead_runs(context.instance)
    evaluate(warehouse, mdms.settings, now, known_block(mdms.settings.exchange_url, time.time()))
    _watch_runs(context.instance, warehouse, now)
    told = deliver(warehouse, mdms.settings)
    verdict = freshness(warehouse, mdms.settings.timeframes, now)
    state, _, at = (context.cursor or "").partition("@")
    found = _digest(verdict.passed, verdict.metadata.get("symbols"))
    held_up = [f"{name}: {cursor.error}" for name, cursor in told.items() if cursor.error]
    said = dg.SkipReason("; ".join([verdict.description or "", *held_up]))
    if state == found and time.time() < float(at) + REPORT_SECONDS:
        return dg.SensorResult(skip_reason=said)
    evaluation = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("candles"), check_name="fresh", passed=verdict.passed, severity=dg.AssetCheckSeverity.ERROR,
        metadata=verdict.metadata, description=verdict.description,
    )  # fmt: skip
    return dg.SensorResult(asset_events=[evaluation], cursor=f"{found}@{time.time():.0f}")


def _watch_runs(instance: dg.DagsterInstance, warehouse: Warehouse, now: int) -> None:
    """An alert for each job whose newest run has failed, also of `mdms run`; resolved by one that ends well."""
    with warehouse.read() as connection:
        lasting = {alert.subject for alert in alerts(connection, only_open=True) if alert.kind == RUN_FAILED}
    for job in (JOB, UNIVERSE_JOB, SCREENING_JOB, PRUNE_JOB):
        ended = [*FAILED, dg.DagsterRunStatus.SUCCESS]
        run = next(iter(instance.get_runs(dg.RunsFilter(job_name=job, statuses=ended), limit=1)), None)
        if run is not None and run.status == dg.DagsterRunStatus.FAILURE and job not in lasting:
            with warehouse.write() as connection:
                raise_alert(connection, RUN_FAILED, job, f"run {run.run_id[:8]} of {job} has failed: see its page in Dagster", now)
        elif run is not None and run.status == dg.DagsterRunStatus.SUCCESS and job in lasting:
            with warehouse.write() as connection:
                resolve_alert(connection, RUN_FAILED, job, now)


def failed_sensor(mdms: Mdms) -> dg.SensorDefinition:
    @dg.run_failure_sensor(
        name="failed", minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING,
        description="Raises an alert when a run has failed; `watch` sends it.",
    )  # fmt: skip
    def failed(context: dg.RunFailureSensorContext, warehouse: WarehouseResource) -> None:
        run = context.dagster_run
        steps = [event.step_failure_data for event in context.get_step_failure_events()]
        reason = next((str(said.error.cause or said.error) for said in steps if said.error), context.failure_event.message or "")
        first = next((line.strip() for line in reason.splitlines() if line.strip()), "no reason is known")
        with warehouse.impatient.write() as connection:
            text = f"run {run.run_id[:8]} of {run.job_name} has failed: {first}"
            raise_alert(connection, RUN_FAILED, run.job_name, text, int(mdms.clock()), run_id=run.run_id)

    return failed


# ---- screens at their own times


def screening_job(screens: Sequence[Screen]) -> UnresolvedAssetJobDefinition:
    selection = dg.AssetSelection.assets("screen_results", *(screen.name for screen in screens))
    return dg.define_asset_job(SCREENING_JOB, selection, description="Screen and rank what is stored, without collecting.")


def screen_schedule(screen: Screen) -> dg.ScheduleDefinition:
    """The run of one screen at its own times: what is stored is judged and ranked, nothing is collected."""

    @dg.schedule(
        name=f"screen_{screen.name}",
        job_name=SCREENING_JOB,
        cron_schedule=str(screen.schedule),
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Screens and ranks: {screen.title}.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        symbols = context.instance.get_dynamic_partitions(str(SYMBOLS.name))
        if not symbols:
            return dg.SkipReason("nothing was collected yet")
        return dg.RunRequest(
            tags={**range_tags(symbols, [screen.timeframe.name]), WHY_TAG: f"schedule of {screen.name}"},
            asset_selection=[dg.AssetKey("screen_results"), dg.AssetKey(screen.name)],
        )

    return schedule


# ---- Dagster's log


def prune_job(mdms: Mdms) -> dg.JobDefinition:
    @dg.op(name="prune_log")
    def prune_log(context: dg.OpExecutionContext, warehouse: WarehouseResource) -> None:  # the resource signs the run
        done = prune(mdms.settings.dagster_home, mdms.settings.log_mb * 2**20)
        context.log.info(str(done))

    @dg.job(name=PRUNE_JOB, description="Forgets old runs, so that Dagster's log stays within MDMS_LOG_MB. No materialization is lost.")
    def job() -> None:
        prune_log()

    return job


def prune_schedule(mdms: Mdms) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="prune",
        job_name=PRUNE_JOB,
        cron_schedule="*/5 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Prunes Dagster's log when it nears MDMS_LOG_MB.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        used, allowed = log_bytes(mdms.settings.dagster_home), mdms.settings.log_mb * 2**20
        if under_way(context.instance, PRUNE_JOB):
            return dg.SkipReason("a prune is under way")
        if used < PRUNE_FROM * allowed:
            return dg.SkipReason(f"the log takes {used / 2**20:.0f} MB of {mdms.settings.log_mb}")
        return dg.RunRequest(tags={WHY_TAG: f"the log takes {used / 2**20:.0f} MB"})

    return schedule
