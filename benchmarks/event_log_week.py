"""Dagster's log on disk while 1m, 1h and 1d candles of 120 symbols refresh themselves, with the prune at its schedule.

    python benchmarks/event_log_week.py [--symbols 120 --minutes 180]     # full size, until the size is steady
    python benchmarks/event_log_week.py --symbols 4 --days 7              # seven days with few symbols: what grows by the run

One real run per timeframe is made on the sandbox. Its events, all of them, are then written again and again through the storage with a new
run id and time, as the minutes, hours and days pass; nothing sleeps. The prune acts when its schedule would: every five simulated minutes,
where the log takes more than 60 % of MDMS_LOG_MB. Ticks of sensors are written too, as many as a day has.

At full size a minute of 1m is some 1,700 events; seven days of them would be 17 million and take hours, and the size does not change any
more once the prune has acted a few times: so the full size runs for hours of simulated time, and seven days run with fewer symbols.
At the end every partition must have its newest materialization: the ids that the storage answers are compared with those written.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, BATCH_WRITABLE_EVENTS, EVENT_TYPE_TO_PIPELINE_RUN_STATUS
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mdms_pipeline.defs.prune import log_bytes, prune
from mdms_pipeline.defs.resources import Mdms
from mdms_pipeline.defs.run import refresh, use_home
from mdms_pipeline.defs.sensors import PRUNE_FROM
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse

EVERY = {"1m": 1, "1h": 60, "1d": 1440}  # minutes
START = 1_795_000_000 // 86_400 * 86_400  # s; a midnight
BAR_MB = 500
TICKS_PER_MINUTE = 12 + 4 + 2 + 4  # of refresh, listings, watch and failed
BATCH = 1000
MIRRORED = {*ASSET_EVENTS, *ASSET_CHECK_EVENTS, *EVENT_TYPE_TO_PIPELINE_RUN_STATUS}  # stored in the index too
MB = 2**20


@dataclass
class Template:
    """The events of one real run, in the batches in which they were handed over."""

    run: dg.DagsterRun
    batches: list[list[dg.EventLogEntry]]

    @property
    def events(self) -> int:
        return sum(map(len, self.batches))


@event.listens_for(Engine, "connect")
def without_sync(connection: Any, record: Any) -> None:
    """Nobody waits for the disk here: sizes are measured, not times."""
    connection.execute("PRAGMA synchronous = OFF")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--symbols", type=int, default=120)
    parser.add_argument("--minutes", type=int, default=180)
    parser.add_argument("--days", type=int, default=0, help="instead of --minutes")
    parser.add_argument("--log-mb", type=int, default=0, help="MDMS_LOG_MB; without it 400, or by symbols the share of that")
    options = parser.parse_args()
    minutes = options.days * 1440 or options.minutes
    allowed = (options.log_mb or max(100, 400 * options.symbols // 120)) * MB
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = settings_of(home, options.symbols)
        with use_home(settings) as instance:
            templates = make_templates(instance, settings)
            per_run = {name: template.events for name, template in templates.items()}
            print(f"{options.symbols} symbols, {minutes} minutes, {allowed / MB:.0f} MB allowed; events of a run: {per_run}", flush=True)
            return simulate(instance, settings.dagster_home, templates, minutes, allowed)


def settings_of(home: Path, symbols: int) -> Settings:
    os.environ.update(
        MDMS_HOME=str(home), MDMS_EXCHANGE_URL="sandbox", MDMS_TIMEFRAMES="1m,1h,1d", MDMS_SYMBOLS=f"top:{symbols}", MDMS_HISTORY="30"
    )
    return Settings.load()


def make_templates(instance: dg.DagsterInstance, settings: Settings) -> dict[str, Template]:
    """Timeframe -> the events of its refresh."""
    done = refresh(instance, Warehouse(settings.warehouse, settings.exchange_url), Mdms(settings))
    if not done.succeeded:
        raise SystemExit(f"the run that is to be copied has failed: {done.error}")
    return {str(run.tags["mdms/timeframes"]): Template(run, list(batches(instance, run.run_id))) for run in instance.get_runs()}


def batches(instance: dg.DagsterInstance, run_id: str) -> Iterator[list[dg.EventLogEntry]]:
    """What `handle_new_event` gave to the storage at once."""
    batch: list[dg.EventLogEntry] = []
    for entry in instance.all_logs(run_id):
        fits = entry.is_dagster_event and entry.dagster_event_type in BATCH_WRITABLE_EVENTS
        if batch and (not fits or len(batch) == BATCH or batch[-1].dagster_event_type != entry.dagster_event_type):
            yield batch
            batch = []
        batch.append(entry)
        if not fits:
            yield batch
            batch = []
    if batch:
        yield batch


def simulate(instance: dg.DagsterInstance, home: Path, templates: dict[str, Template], minutes: int, allowed: int) -> int:
    clock, runs, prunes, peak, slowest = time.perf_counter(), 0, 0, 0, 0.0
    shown = max(1, minutes // 24)
    last: dict[str, str] = {}
    for minute in range(minutes):
        now = START + 60.0 * minute
        for name, every in EVERY.items():
            if minute % every == 0:
                last[name] = again(instance, templates[name], now)
                runs += 1
        add_ticks(home, now)
        if minute % 5 == 4:
            used = log_bytes(home)
            peak = max(peak, used)
            if used > PRUNE_FROM * allowed:
                done = prune(home, allowed, now + 61)
                prunes, slowest = prunes + 1, max(slowest, done.seconds)
        if minute % shown == shown - 1:
            said = f"{minute + 1:>6} min  {log_bytes(home) / MB:7.1f} MB  peak {peak / MB:7.1f} MB  {runs:>6} runs  {prunes:>5} prunes"
            print(f"{said}  {time.perf_counter() - clock:7.0f} s", flush=True)
    lost = missing(instance, templates, last)
    parts = {path.name: log_bytes(path) / MB for path in home.iterdir() if path.is_dir()}
    print(f"by folder, MB: { {name: round(size, 1) for name, size in parts.items()} }; slowest prune {slowest:.1f} s")
    print(f"newest materializations looked for: {len(lost[0])}, lost or old: {len(lost[1])}")
    ok = not lost[1] and peak <= BAR_MB * MB
    print(f"{'ok' if ok else 'MISSED'}: peak {peak / MB:.0f} MB of {BAR_MB}")
    return 0 if ok else 1


def again(instance: dg.DagsterInstance, template: Template, now: float) -> str:
    """The same run once more, at another time."""
    run = dg.DagsterRun(
        job_name=template.run.job_name, tags={**template.run.tags}, asset_selection=template.run.asset_selection,
        job_snapshot_id=template.run.job_snapshot_id, execution_plan_snapshot_id=template.run.execution_plan_snapshot_id,
        status=dg.DagsterRunStatus.SUCCESS,
    )  # fmt: skip
    instance.run_storage.add_run(run)
    storage: Any = instance.event_log_storage
    plain = []  # events that only the run's page shows: one transaction, where a run takes one for each
    for batch in template.batches:
        entries = [entry._replace(run_id=run.run_id, timestamp=now) for entry in batch]
        if len(entries) > 1:
            storage.store_event_batch(entries)
        elif entries[0].is_dagster_event and entries[0].dagster_event_type in MIRRORED:
            storage.store_event(entries[0])
        else:
            plain.append(storage._event_to_row(entries[0]))
    with storage.run_connection(run.run_id) as connection:
        connection.execute(SqlEventLogStorageTable.insert(), plain)
    set_end(instance, run.run_id, now)
    folder = Path(instance.root_directory) / "storage" / run.run_id / "compute_logs"
    folder.mkdir(parents=True)  # what a run prints, as a run of the daemon leaves it
    for ending in ("out", "err", "complete"):
        (folder / f"abcdefgh.{ending}").write_text("x" * (4_000 if ending == "err" else 0))
    return run.run_id


def set_end(instance: dg.DagsterInstance, run_id: str, now: float) -> None:
    with sqlite3.connect(Path(instance.root_directory) / "history" / "runs.db", timeout=30) as connection:
        connection.execute(
            "UPDATE runs SET start_time = ?, end_time = ?, create_timestamp = ?, update_timestamp = ? WHERE run_id = ?",
            [now - 8, now, *[datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S")] * 2, run_id],
        )
    connection.close()


def add_ticks(home: Path, now: float) -> None:
    """The ticks of a minute; a skipped one is some 800 bytes."""
    with sqlite3.connect(home / "schedules" / "schedules.db", timeout=30) as connection:
        connection.executemany(
            """INSERT INTO job_ticks (job_origin_id, selector_id, status, type, timestamp, tick_body)
               VALUES (?, ?, 'SKIPPED', 'SENSOR', datetime(?, 'unixepoch'), ?)""",
            [("o" * 40, "s" * 40, now, "x" * 800)] * TICKS_PER_MINUTE,
        )
    connection.close()


def missing(instance: dg.DagsterInstance, templates: dict[str, Template], last: dict[str, str]) -> tuple[set[Any], list[Any]]:
    """((asset, partition) that must have a newest materialization, those of them that have not that of their timeframe's last run)."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    wanted: dict[tuple[Any, str], str] = {}
    for name, template in templates.items():
        for entry in (entry for batch in template.batches for entry in batch):
            if entry.dagster_event_type == kind:
                made = entry.get_dagster_event()
                if made.partition:
                    wanted[made.asset_key, str(made.partition)] = last[name]
    wrong = []
    for asset in {asset for asset, _ in wanted}:
        newest = instance.event_log_storage.get_latest_storage_id_by_partition(asset, kind)
        runs = dict(_records(instance, newest.values()))
        wrong += [(asset, key) for (one, key), run_id in wanted.items() if one == asset and runs.get(newest.get(key)) != run_id]
    return set(wanted), wrong


def _records(instance: dg.DagsterInstance, ids: Any) -> list[tuple[int, str]]:
    with sqlite3.connect(Path(instance.root_directory) / "history" / "runs" / "index.db") as connection:
        found = connection.execute(f"SELECT id, run_id FROM event_logs WHERE id IN ({', '.join(map(str, ids))})").fetchall()
    connection.close()
    return found


if __name__ == "__main__":
    sys.exit(main())
