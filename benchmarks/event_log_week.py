"""Dagster's log on disk while 1m, 1h and 1d candles of 120 symbols refresh themselves for seven days, with the prune at its schedule.

    python benchmarks/event_log_week.py [--symbols 120 --days 7]
    python benchmarks/event_log_week.py --minutes 180    # until the size is steady

One real run per timeframe is made on the sandbox, and one of the prune. All that the storage writes for them is then written again and
again with a new run id and time, as the minutes, hours and days pass; nothing sleeps. At full size that is some 1,700 events a minute,
17 million in seven days: `copied_runs.py` copies rows instead of storing events, after it has proven that rows and files are the same.

The prune acts when its schedule would: every five simulated minutes, where the log takes more than 60 % of MDMS_LOG_MB. Once an hour it
is watched: a writer asks for the index again and again, and how long it waited at most is told, and the log's size is looked at while
the prune is at work. The others leave out the pauses that a prune makes for writers. Ticks of sensors are written too, as many as
a day has. Every two hours every partition must have its newest materialization: the ids that the storage answers are compared with
those written. The time of prunes contains the disk that TMPDIR names. The week is some 26 minutes of processor time.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
from copied_runs import Template, make, prove

from mdms_pipeline.definitions import build
from mdms_pipeline.defs import prune as pruning
from mdms_pipeline.defs.prune import log_bytes, prune
from mdms_pipeline.defs.resources import Mdms
from mdms_pipeline.defs.run import QUIET, refresh, use_home
from mdms_pipeline.defs.sensors import PRUNE_FROM, PRUNE_JOB
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse

EVERY = {"1m": 1, "1h": 60, "1d": 1440}  # minutes
BAR_MB = 500
TICKS_PER_MINUTE = 12 + 4 + 2 + 4  # of refresh, listings, watch and failed
LOOKED_AT = 120  # minutes between two looks for the newest materializations
WATCHED = 60  # minutes between two prunes that are watched
MB = 2**20


@dataclass
class Seen:
    """What the simulation has seen so far."""

    runs: int = 0
    events: int = 0
    peak: int = 0  # bytes, also while a prune is at work
    prunes: list[float] = field(default_factory=list)  # seconds
    watched: list[float] = field(default_factory=list)  # seconds, the pauses for others included
    waited: float = 0.0  # s; the longest that a writer waited for a watched prune
    looked_for: int = 0
    lost: list[Any] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--symbols", type=int, default=120)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--minutes", type=int, default=0, help="instead of --days")
    parser.add_argument("--log-mb", type=int, default=0, help="MDMS_LOG_MB; without it 400, or by symbols the share of that")
    options = parser.parse_args()
    minutes = options.minutes or options.days * 1440
    allowed = (options.log_mb or max(100, 400 * options.symbols // 120)) * MB
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(Path(folder, "home"), options.symbols)
        with use_home(settings) as instance:
            templates = make_templates(instance, settings, Path(folder, "copies"))
            per_run = {name: template.events for name, template in templates.items()}
            print(f"{options.symbols} symbols, {minutes} minutes, {allowed / MB:.0f} MB allowed; events of a run: {per_run}", flush=True)
            for template in templates.values():
                prove(template)
            print("copies of each of them are what the storage writes: all rows of all tables, all files' pages", flush=True)
            return report(simulate(instance, settings.dagster_home, templates, minutes, allowed), settings.dagster_home)


def settings_of(home: Path, symbols: int) -> Settings:
    os.environ.update(
        MDMS_HOME=str(home), MDMS_EXCHANGE_URL="sandbox", MDMS_TIMEFRAMES="1m,1h,1d", MDMS_SYMBOLS=f"top:{symbols}", MDMS_HISTORY="30"
    )
    return Settings.load()


def make_templates(instance: dg.DagsterInstance, settings: Settings, folder: Path) -> dict[str, Template]:
    """Timeframe -> its refresh; "prune" -> a run of the prune."""
    mdms = Mdms(settings)
    done = refresh(instance, Warehouse(settings.warehouse, settings.exchange_url), mdms)
    if not done.succeeded:
        raise SystemExit(f"the run that is to be copied has failed: {done.error}")
    build(mdms).resolve_job_def(PRUNE_JOB).execute_in_process(instance=instance, run_config=QUIET)
    return {name_of(run): make(instance, run, folder / name_of(run)) for run in instance.get_runs()}


def name_of(run: dg.DagsterRun) -> str:
    return str(run.tags.get("mdms/timeframes", run.job_name))


def simulate(instance: dg.DagsterInstance, home: Path, templates: dict[str, Template], minutes: int, allowed: int) -> Seen:
    seen, last, clock = Seen(), dict[str, str](), time.perf_counter()
    start = (time.time() // 86_400 + 1) * 86_400  # s; a midnight to come: the real runs are the oldest
    for minute in range(minutes):
        now = round(start + 60 * minute + 0.123457, 6)
        for name, every in EVERY.items():
            if minute % every == 0:
                last[name] = again(instance, templates[name], now, seen)
        add_ticks(home, now)
        seen.peak = max(seen.peak, log_bytes(home))
        if minute % 5 == 4 and log_bytes(home) > PRUNE_FROM * allowed:
            watched = (minute + 1) % WATCHED == 0
            (watched_prune if watched else hurried_prune)(home, allowed, now + 61, seen)
            again(instance, templates[PRUNE_JOB], round(now + 61, 6), seen)
        if minute % LOOKED_AT == LOOKED_AT - 1 or minute == minutes - 1:
            look(instance, templates, last, seen)
            print(f"{progress(minute + 1, home, seen)}  {time.perf_counter() - clock:7.0f} s", flush=True)
    return seen


def progress(minute: int, home: Path, seen: Seen) -> str:
    size = f"{log_bytes(home) / MB:6.1f} MB  peak {seen.peak / MB:6.1f} MB"
    newest = f"newest {seen.looked_for:>7,}, lost {len(seen.lost)}"
    return f"{minute:>6} min  {size}  {seen.runs:>6} runs  {newest}  {times(seen)}"


def times(seen: Seen) -> str:
    """What prunes took: those in a hurry, and those that left others time."""
    told = []
    for name, seconds in (("prunes", seen.prunes), ("watched", seen.watched)):
        ordered = sorted(seconds) or [0.0]
        told.append(f"{len(seconds)} {name}, median {ordered[len(ordered) // 2]:.2f} s, slowest {ordered[-1]:.2f} s")
    return f"{'; '.join(told)}; a writer waited {seen.waited:.3f} s at most"


def report(seen: Seen, home: Path) -> int:
    parts = {path.name: round(log_bytes(path) / MB, 1) for path in home.iterdir() if path.is_dir()}
    print(f"by folder, MB: {parts}; {seen.events:,} events of {seen.runs:,} runs were written")
    print(times(seen))
    print(f"newest materializations looked for: {seen.looked_for:,}, lost or old: {len(seen.lost)}")
    ok = not seen.lost and seen.peak <= BAR_MB * MB
    print(f"{'ok' if ok else 'MISSED'}: peak {seen.peak / MB:.0f} MB of {BAR_MB}")
    return 0 if ok else 1


def again(instance: dg.DagsterInstance, template: Template, now: float, seen: Seen) -> str:
    """The same run once more, at another time; its id."""
    run = dg.DagsterRun(
        job_name=template.run.job_name, run_id=str(uuid.uuid4()), tags={**template.run.tags}, asset_selection=template.run.asset_selection,
        job_snapshot_id=template.run.job_snapshot_id, execution_plan_snapshot_id=template.run.execution_plan_snapshot_id,
        status=dg.DagsterRunStatus.SUCCESS,
    )  # fmt: skip
    instance.run_storage.add_run(run)
    home = Path(instance.root_directory)
    template.copy.write(home / "history" / "runs", run.run_id, now)
    set_end(instance, run.run_id, now)
    folder = home / "storage" / run.run_id / "compute_logs"
    folder.mkdir(parents=True)  # what a run prints, as a run of the daemon leaves it
    for ending in ("out", "err", "complete"):
        (folder / f"abcdefgh.{ending}").write_text("x" * (4_000 if ending == "err" else 0))
    seen.runs, seen.events = seen.runs + 1, seen.events + template.events
    return run.run_id


def hurried_prune(home: Path, allowed: int, now: float, seen: Seen) -> None:
    """Prune without the pauses in which others could write: nobody does."""
    pause, pruning.PAUSE = pruning.PAUSE, 0.0
    try:
        seen.prunes.append(prune(home, allowed, now).seconds)
    finally:
        pruning.PAUSE = pause


def watched_prune(home: Path, allowed: int, now: float, seen: Seen) -> None:
    """Prune while somebody looks at the log's size and asks for its index, fifty times a second."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.peak = max(seen.peak, log_bytes(home))
            seen.waited = max(seen.waited, wait_of_a_writer(home))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seen.watched.append(prune(home, allowed, now).seconds)
    finally:
        over.set()
        watcher.join()


def wait_of_a_writer(home: Path) -> float:
    """Seconds until somebody may write into the index."""
    with closing(sqlite3.connect(home / "history" / "runs" / "index.db", timeout=60, isolation_level=None)) as connection:
        asked = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        waited = time.perf_counter() - asked
        connection.execute("ROLLBACK")
    return waited


def set_end(instance: dg.DagsterInstance, run_id: str, now: float) -> None:
    with closing(sqlite3.connect(Path(instance.root_directory) / "history" / "runs.db", timeout=30)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "UPDATE runs SET start_time = ?, end_time = ?, create_timestamp = ?, update_timestamp = ? WHERE run_id = ?",
            [now - 8, now, *[datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S")] * 2, run_id],
        )


def add_ticks(home: Path, now: float) -> None:
    """The ticks of a minute; a skipped one is some 800 bytes."""
    with closing(sqlite3.connect(home / "schedules" / "schedules.db", timeout=30)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(
            """INSERT INTO job_ticks (job_origin_id, selector_id, status, type, timestamp, tick_body)
               VALUES (?, ?, 'SKIPPED', 'SENSOR', datetime(?, 'unixepoch'), ?)""",
            [("o" * 40, "s" * 40, now, "x" * 800)] * TICKS_PER_MINUTE,
        )


def look(instance: dg.DagsterInstance, templates: dict[str, Template], last: dict[str, str], seen: Seen) -> None:
    """Every (asset, partition) must have the materialization of its timeframe's last run as its newest."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    wanted: dict[tuple[Any, str], str] = {}
    for name in last:
        for entry in (entry for batch in templates[name].batches for entry in batch):
            if entry.dagster_event_type == kind:
                made = entry.get_dagster_event()
                if made.partition:
                    wanted[made.asset_key, str(made.partition)] = last[name]
    for asset in {asset for asset, _ in wanted}:
        newest = instance.event_log_storage.get_latest_storage_id_by_partition(asset, kind)
        runs = dict(_runs_of(instance, newest.values()))
        seen.lost += [(asset, key) for (one, key), run_id in wanted.items() if one == asset and runs.get(newest.get(key)) != run_id]
    seen.looked_for += len(wanted)


def _runs_of(instance: dg.DagsterInstance, ids: Any) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(Path(instance.root_directory) / "history" / "runs" / "index.db")) as connection:
        return connection.execute(f"SELECT id, run_id FROM event_logs WHERE id IN ({', '.join(map(str, ids))})").fetchall()


if __name__ == "__main__":
    sys.exit(main())
