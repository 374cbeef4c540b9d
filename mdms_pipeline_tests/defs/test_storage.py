"""The batching event log holds what the stock one holds: same rows, same answers, also after kill -9 and with two writers.

One real pair of runs is recorded, call by call, and played back into a stock home and into ours; hence the events are the
same objects and every column of every table can be compared, ids and times included.
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from mdms_pipeline.defs import storage

SYMBOLS = ["KRW-AAA", "KRW-BBB", "KRW-CCC"]
TIMEFRAMES = ["1d", "1h"]
KEYS = [f"{symbol}|{timeframe}" for symbol in SYMBOLS for timeframe in TIMEFRAMES]
GRID = dg.MultiPartitionsDefinition(
    {"symbol": dg.DynamicPartitionsDefinition(name="symbol"), "timeframe": dg.StaticPartitionsDefinition(TIMEFRAMES)}
)
STOCK_YAML = "telemetry: {enabled: false}\n"
SINGLE = dg.BackfillPolicy.single_run()


# ---------------------------------------------------------------- a small project with one of everything


@dg.asset(
    partitions_def=GRID,
    backfill_policy=SINGLE,
    code_version="3",
    check_specs=[dg.AssetCheckSpec("fresh", asset="candles"), dg.AssetCheckSpec("gaps", asset="candles")],
)
def candles(context: dg.AssetExecutionContext) -> Iterator[Any]:
    rows = {key: {"dagster/partition_row_count": n, "key": key} for n, key in enumerate(context.partition_keys)}
    storage.add_partition_metadata(context, rows)
    for key in context.partition_keys:
        context.log_event(dg.AssetObservation("exchange", partition=key, metadata={"seen": 1}))
    context.log.info("a line of the run's log that is no event")
    yield dg.MaterializeResult(data_version=dg.DataVersion("v7"), metadata={"all": True})
    yield dg.AssetCheckResult(passed=True, check_name="fresh")
    yield dg.AssetCheckResult(passed=False, check_name="gaps", severity=dg.AssetCheckSeverity.WARN, metadata={"symbols": ["KRW-BBB"]})


@dg.asset(partitions_def=GRID, backfill_policy=SINGLE, deps=[candles])
def ranks(context: dg.AssetExecutionContext) -> None:
    if "fail" in context.run.tags:
        raise RuntimeError("no ranks today")


@dg.asset
def universe() -> dg.MaterializeResult[Any]:
    return dg.MaterializeResult(metadata={"symbols": len(SYMBOLS)})


@dg.asset_check(asset=universe)
def not_empty() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


DEFINITIONS = dg.Definitions(
    assets=[candles, ranks, universe],
    asset_checks=[not_empty],
    jobs=[dg.define_asset_job("refresh", selection="*", executor_def=dg.in_process_executor)],
)
JOB = DEFINITIONS.resolve_job_def("refresh")


def span(first: str, last: str, **more: str) -> dict[str, str]:
    return {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last, **more}


def open_home(home: Path, ours: bool) -> dg.DagsterInstance:
    home.mkdir(parents=True, exist_ok=True)
    if ours:
        storage.write_dagster_yaml(home)
    else:
        (home / "dagster.yaml").write_text(STOCK_YAML)
    instance = dg.DagsterInstance.from_config(str(home))
    assert type(instance.event_log_storage) is (storage.BatchingSqliteEventLogStorage if ours else SqliteEventLogStorage)
    return instance


def two_runs(instance: dg.DagsterInstance) -> None:
    """Everything over all symbols with `ranks` failing, then again over two symbols without; and events outside of runs."""
    instance.add_dynamic_partitions("symbol", SYMBOLS)
    assert not JOB.execute_in_process(instance=instance, tags=span(KEYS[0], KEYS[-1], fail="1"), raise_on_error=False).success
    instance.report_runless_asset_event(dg.AssetMaterialization("live", partition="a", tags={"dagster/data_version": "1"}))
    instance.report_runless_asset_event(dg.AssetObservation("live", metadata={"lag": 0.5}))
    instance.report_runless_asset_event(dg.AssetCheckEvaluation(asset_key=dg.AssetKey("universe"), check_name="not_empty", passed=False))
    assert JOB.execute_in_process(instance=instance, tags=span(KEYS[0], "KRW-BBB|1h")).success


@pytest.fixture(autouse=True)
def batch_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in storage.environment().items():
        monkeypatch.setenv(name, value)


def per_partition_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS")


# ---------------------------------------------------------------- the same rows, the same answers


@dataclass
class Pair:
    stock: dg.DagsterInstance
    ours: dg.DagsterInstance
    run_ids: list[str]
    calls: list[list[dg.EventLogEntry]]


def record(instance: dg.DagsterInstance, calls: list[list[dg.EventLogEntry]]) -> None:
    """From now on `calls` gets every list of events that the instance hands to its event log."""
    log: Any = instance.event_log_storage
    one, many = log.store_event, log.store_event_batch

    def store_event(event: dg.EventLogEntry) -> None:
        calls.append([event])
        one(event)

    def store_event_batch(events: Sequence[dg.EventLogEntry]) -> None:
        calls.append(list(events))
        many(events)

    log.store_event, log.store_event_batch = store_event, store_event_batch


@pytest.fixture(scope="module", params=[True, False], ids=["subset planned", "each planned"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in storage.environment().items():
            monkeypatch.setenv(name, value)
        if not request.param:
            per_partition_planned(monkeypatch)
        calls: list[list[dg.EventLogEntry]] = []
        with open_home(folder / "recorded", ours=True) as recorded:
            record(recorded, calls)
            two_runs(recorded)
            run_ids = [run.run_id for run in recorded.get_runs()][::-1]
        for name in ("stock", "ours"):
            shutil.copytree(folder / "recorded" / "history", folder / name / "history", ignore=shutil.ignore_patterns("runs"))
        with open_home(folder / "stock", ours=False) as stock, open_home(folder / "ours", ours=True) as ours:
            for instance, play in ((stock, play_singly), (ours, play_batches)):
                instance.add_dynamic_partitions("symbol", SYMBOLS)
                play(instance.event_log_storage, calls)
                stop_the_clock(instance)
            yield Pair(stock, ours, run_ids, calls)


def play_singly(log: Any, calls: Sequence[Sequence[dg.EventLogEntry]]) -> None:
    for events in calls:
        for event in events:
            log.store_event(event)


def play_batches(log: Any, calls: Sequence[Sequence[dg.EventLogEntry]]) -> None:
    for events in calls:
        log.store_event_batch(events) if len(events) > 1 else log.store_event(events[0])


def stop_the_clock(instance: dg.DagsterInstance) -> None:
    """SQLite's own time of writing is part of a check's record, and the two were written at different times."""
    with closing(sqlite3.connect(shards(instance) / "index.db")) as db, db:
        db.execute("UPDATE asset_check_executions SET create_timestamp = '2026-01-01 00:00:00'")


def shards(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "history" / "runs"


def tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table of a file, without the columns that hold the time of writing."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'secondary_indexes'")]
        return {
            name: [_without_clock(row) for row in db.execute(f"SELECT * FROM {name} ORDER BY id")]
            for name in names
            if name != "alembic_version"
        }


def _without_clock(row: sqlite3.Row) -> dict[str, Any]:
    return {name: value for name, value in dict(row).items() if name != "create_timestamp"}


def files(instance: dg.DagsterInstance) -> dict[str, dict[str, list[dict[str, Any]]]]:
    return {path.name: tables(path) for path in sorted([*shards(instance).glob("*.db"), *shards(instance).glob(".db")])}


def test_the_recording_holds_one_of_everything(pair: Pair) -> None:
    kinds = {event.dagster_event_type for events in pair.calls for event in events}
    kind = dg.DagsterEventType
    assert kinds >= {
        *(kind.ASSET_MATERIALIZATION, kind.ASSET_OBSERVATION, kind.ASSET_MATERIALIZATION_PLANNED, kind.ASSET_CHECK_EVALUATION),
        *(kind.ASSET_CHECK_EVALUATION_PLANNED, kind.STEP_FAILURE, kind.RUN_FAILURE, kind.RUN_SUCCESS, None),
    }
    assert {len(events) for events in pair.calls} >= {1, len(KEYS), 4}, "batches of a step's partitions, and single events"


def test_every_row_of_every_file_is_the_same(pair: Pair) -> None:
    stock, ours = files(pair.stock), files(pair.ours)
    assert stock.keys() == ours.keys() == {"index.db", f"{RUNLESS_RUN_ID}.db", *(f"{run_id}.db" for run_id in pair.run_ids)}
    for name in stock:
        for table, rows in stock[name].items():
            assert ours[name][table] == rows, f"{table} of {name}"
    filled = {table for table, rows in ours["index.db"].items() if rows}
    assert filled == {"event_logs", "asset_keys", "asset_event_tags", "asset_check_executions", "dynamic_partitions"}


ASSETS = [dg.AssetKey(name) for name in ("candles", "ranks", "universe", "exchange", "live")]
MATERIALIZED, OBSERVED = dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION
CHECKS = [dg.AssetCheckKey(ASSETS[0], "fresh"), dg.AssetCheckKey(ASSETS[0], "gaps"), dg.AssetCheckKey(ASSETS[2], "not_empty")]
QUERIES: dict[str, Callable[[dg.DagsterInstance, list[str]], Any]] = {
    "keys": lambda i, _: i.get_asset_keys(),
    "counts": lambda i, _: [len(i.get_materialized_partitions(key)) for key in ASSETS],
    "materialized": lambda i, _: [i.get_materialized_partitions(key) for key in ASSETS],
    "latest ids": lambda i, _: [i.get_latest_storage_id_by_partition(k, t) for k in ASSETS for t in (MATERIALIZED, OBSERVED)],
    "latest tags": lambda i, _: [
        i.event_log_storage.get_latest_tags_by_partition(k, MATERIALIZED, ["dagster/data_version"]) for k in ASSETS
    ],
    "one partition": lambda i, _: [
        i.fetch_materializations(dg.AssetRecordsFilter(asset_key=ASSETS[0], asset_partitions=[key]), limit=9) for key in KEYS
    ],
    "materializations": lambda i, _: [i.fetch_materializations(key, limit=100) for key in ASSETS],
    "a page of them": lambda i, _: i.fetch_materializations(ASSETS[0], limit=3, cursor=i.fetch_materializations(ASSETS[0], limit=2).cursor),
    "observations": lambda i, _: [i.fetch_observations(key, limit=100) for key in ASSETS],
    "planned": lambda i, _: [i.event_log_storage.get_event_records(dg.EventRecordsFilter(storage.PLANNED, key)) for key in ASSETS],
    "failures": lambda i, _: i.event_log_storage.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.STEP_FAILURE)),
    "run status changes": lambda i, _: i.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=9),
    "asset records": lambda i, _: i.get_asset_records(ASSETS),
    "latest materializations": lambda i, _: i.get_latest_materialization_events(ASSETS),
    "tags": lambda i, _: [i.event_log_storage.get_event_tags_for_asset(key) for key in ASSETS],
    "checks": lambda i, _: i.event_log_storage.get_latest_asset_check_execution_by_key(CHECKS),
    "check history": lambda i, _: [i.event_log_storage.get_asset_check_execution_history(key, limit=9) for key in CHECKS],
    "check summary": lambda i, _: i.event_log_storage.get_asset_check_summary_records(CHECKS),
    "check partitions": lambda i, _: i.event_log_storage.get_asset_check_partition_info(CHECKS),
    "logs": lambda i, runs: [i.get_records_for_run(run) for run in runs],
    "a page of logs": lambda i, runs: i.get_records_for_run(runs[0], cursor=i.get_records_for_run(runs[0], limit=5).cursor, limit=7),
    "logs by kind": lambda i, runs: [i.all_logs(run, of_type=MATERIALIZED) for run in runs],
    "run stats": lambda i, runs: [i.get_run_stats(run) for run in runs],
    "step stats": lambda i, runs: [i.get_run_step_stats(run) for run in runs],
    "partitions of a run": lambda i, runs: [i.get_asset_partitions_for_run(run) for run in runs],
    "keys of a run": lambda i, runs: [i.get_asset_keys_for_run(run) for run in runs],
    "summaries": lambda i, _: i.get_asset_event_summary_records(dg.DagsterEventType.ASSET_MATERIALIZATION),
    "dynamic partitions": lambda i, _: (i.get_dynamic_partitions("symbol"), i.has_dynamic_partition("symbol", SYMBOLS[1])),
    "data versions": lambda i, _: i.event_log_storage.get_latest_storage_id_by_partition(ASSETS[0], MATERIALIZED, set(KEYS[:2])),
    "planned info": lambda i, _: [i.get_latest_planned_materialization_info(key) for key in ASSETS],
}


@pytest.mark.parametrize("query", QUERIES)
def test_the_same_answer(pair: Pair, query: str) -> None:
    stock, ours = (QUERIES[query](instance, pair.run_ids) for instance in (pair.stock, pair.ours))
    assert stock
    assert repr(ours) == repr(stock)
    assert ours == stock


def test_metadata_reaches_each_partition(pair: Pair) -> None:
    for key in KEYS:
        one = dg.AssetRecordsFilter(asset_key=dg.AssetKey("candles"), asset_partitions=[key])
        found = pair.ours.fetch_materializations(one, limit=9).records[-1].asset_materialization
        assert found is not None
        assert {name: value.value for name, value in found.metadata.items()} == {
            "all": True, "key": key, "dagster/partition_row_count": KEYS.index(key)
        }  # fmt: skip


ONE_PAIR = pytest.mark.parametrize("pair", [False], ids=["each planned"], indirect=True)


def test_wiping_an_asset_and_everything(pair: Pair, tmp_path: Path) -> None:
    """On copies, because the other tests still need the pair."""
    found = []
    for instance, ours in ((pair.stock, False), (pair.ours, True)):
        shutil.copytree(Path(instance.root_directory) / "history", tmp_path / str(ours) / "history")
        with open_home(tmp_path / str(ours), ours) as copy:
            copy.event_log_storage.wipe_asset(dg.AssetKey("candles"))
            after_asset = {name: {**found, "asset_keys": len(found["asset_keys"])} for name, found in files(copy).items()}
            copy.event_log_storage.delete_events(pair.run_ids[1])
            after_run = copy.get_materialized_partitions(dg.AssetKey("ranks"))
            copy.event_log_storage.wipe()
            copy.event_log_storage.store_event_batch(max(pair.calls, key=len))
            found.append((after_asset, after_run, files(copy)))
    assert found[0] == found[1]


# ---------------------------------------------------------------- what the UI shows of a run that failed or still runs


def statuses(instance: dg.DagsterInstance, name: str) -> dict[str, set[str]]:
    """partition status -> partitions, from the function that the asset page calls."""
    value = get_and_update_asset_status_cache_value(instance, dg.AssetKey(name), GRID, instance)
    assert value is not None
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        return {
            "materialized": set(value.deserialize_materialized_partition_subsets(GRID).get_partition_keys()),
            "failed": set(value.deserialize_failed_partition_subsets(GRID).get_partition_keys()),
            "running": set(value.deserialize_in_progress_partition_subsets(GRID).get_partition_keys()),
        }


def story(home: Path, ours: bool) -> Iterator[Any]:
    """Statuses of both assets after: a failed run, a run over two symbols, a run that is still going, the same one failed."""
    with open_home(home, ours) as instance:
        order: dict[str, int] = {}

        def seen() -> Any:
            for run in reversed(instance.get_runs()):
                order.setdefault(run.run_id, len(order))
            infos = [instance.get_latest_planned_materialization_info(dg.AssetKey("ranks"), key) for key in KEYS]
            return statuses(instance, "candles"), statuses(instance, "ranks"), [order[info.run_id] if info else None for info in infos]

        instance.add_dynamic_partitions("symbol", SYMBOLS)
        JOB.execute_in_process(instance=instance, tags=span(KEYS[0], KEYS[-1], fail="1"), raise_on_error=False)
        yield seen()
        JOB.execute_in_process(instance=instance, tags=span(KEYS[0], "KRW-BBB|1h"))
        yield seen()
        run = instance.create_run_for_job(JOB, tags=span("KRW-AAA|1d", "KRW-CCC|1d"), status=dg.DagsterRunStatus.STARTED)
        yield seen()
        instance.report_run_failed(run)
        yield seen()


def test_statuses_with_one_planned_event_are_those_of_stock_with_one_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = list(story(tmp_path / "ours", ours=True))
    per_partition_planned(monkeypatch)
    stock = list(story(tmp_path / "stock", ours=False))
    assert ours == stock
    daily = {key for key in KEYS if key.endswith("1d")}
    assert ours[0][1] == {"materialized": set(), "failed": set(KEYS), "running": set()}
    assert ours[1][1] == {"materialized": set(KEYS[:4]), "failed": set(KEYS[4:]), "running": set()}
    assert ours[2][1]["running"] == daily
    assert ours[3][0]["failed"] == daily


def test_stock_with_one_planned_event_forgets_what_failed(tmp_path: Path) -> None:
    """Why the storage looks into the planned event. When this fails, Dagster does it itself: remove ours."""
    _, ranks_status, _ = next(story(tmp_path, ours=False))
    assert ranks_status == {"materialized": set(), "failed": set(), "running": set()}


# ---------------------------------------------------------------- kill -9, two writers


WRITER = """
    import sys
    import dagster as dg
    from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent, StepMaterializationData
    from mdms_pipeline.defs.storage import BatchingSqliteEventLogStorage

    folder, name, batches, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

    def entry(run_id, partition):
        made = dg.AssetMaterialization("grid", partition=partition, tags={"dagster/data_version": partition})
        event = DagsterEvent("ASSET_MATERIALIZATION", "job", event_specific_data=StepMaterializationData(made))
        return dg.EventLogEntry(None, 10, "", run_id, 1.7e9, job_name="job", dagster_event=event)

    log = BatchingSqliteEventLogStorage(folder)
    for n in range(batches):
        for run_id in (name, "both"):
            log.store_event_batch([entry(run_id, f"{name}-{run_id}-{n}-{i}") for i in range(size)])
        log.store_event(entry(name, f"{name}-single-{n}"))
        print(n, flush=True)
"""


def start_writer(folder: Path, name: str, batches: int, size: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), name, str(batches), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def partitions(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [partition for (partition,) in db.execute("SELECT partition FROM event_logs ORDER BY id")]


def test_two_processes_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    """Both write batches and single events into the index file, and into one run's file too, while a third one reads."""
    reader = storage.BatchingSqliteEventLogStorage(str(tmp_path))
    writers = [start_writer(tmp_path, name, batches=12, size=40) for name in ("one", "two")]
    seen = [0]
    while any(writer.poll() is None for writer in writers):
        seen.append(len(reader.get_materialized_partitions(dg.AssetKey("grid"))))
        time.sleep(0.02)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen == sorted(seen)
    batched = {f"{w}-{run}-{n}-{i}" for w in ("one", "two") for run in (w, "both") for n in range(12) for i in range(40)}
    expected = batched | {f"{w}-single-{n}" for w in ("one", "two") for n in range(12)}
    index = partitions(tmp_path / "index.db")
    assert len(index) == len(expected)
    assert set(index) == expected == reader.get_materialized_partitions(dg.AssetKey("grid"))
    for run in ("one", "two", "both"):
        assert sorted(partitions(tmp_path / f"{run}.db")) == sorted(p for p in expected if f"-{run}-" in p or p.startswith(f"{run}-single"))
    with closing(sqlite3.connect(tmp_path / "index.db")) as db:
        assert db.execute(
            "SELECT count(*) FROM asset_event_tags t JOIN event_logs e ON e.id = t.event_id AND e.partition = t.value"
        ).fetchone() == (len(expected),)


def test_kill_9_leaves_whole_batches_and_files_that_work(tmp_path: Path) -> None:
    size = 500
    for attempt in range(2):
        writer = start_writer(tmp_path, f"w{attempt}", batches=10_000, size=size)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.04 * attempt)  # somewhere else in a batch each time
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        own, both, index = (partitions(tmp_path / f"{name}.db") for name in (f"w{attempt}", "both", "index"))
        assert len([p for p in own if "single" not in p]) % size == 0
        assert len(both) % size == 0
        assert len([p for p in index if "single" not in p]) % size == 0
        assert len(index) == len(set(index))
    writer = start_writer(tmp_path, "after", batches=1, size=size)
    assert writer.wait() == 0
    assert len([p for p in partitions(tmp_path / "index.db") if p.startswith("after")]) == 2 * size + 1


@ONE_PAIR
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_of_mixed_kinds_in_any_order(pair: Pair, seed: int, tmp_path: Path) -> None:
    """Dagster's own batches hold one kind per asset; which event decides an asset's row must not depend on that."""
    mixed = [event for events in pair.calls for event in events if event.run_id == pair.run_ids[0] and storage._is_batch([event, event])]
    random.Random(seed).shuffle(mixed)
    made = [event for event in mixed if event.dagster_event_type == MATERIALIZED and event.get_dagster_event().asset_key == ASSETS[0]]
    mixed = [made[0], *(event for event in mixed if event not in (made[0], made[1])), made[1]]  # planned between made and made
    assert len({event.dagster_event_type for event in mixed}) == 4
    stock, ours = SqliteEventLogStorage(str(tmp_path / "stock")), storage.BatchingSqliteEventLogStorage(str(tmp_path / "ours"))
    play_singly(stock, [mixed])
    play_batches(ours, [mixed])
    for name in ("index.db", f"{pair.run_ids[0]}.db"):
        assert tables(tmp_path / "ours" / name) == tables(tmp_path / "stock" / name)


@ONE_PAIR
def test_a_batch_that_fails_leaves_nothing_behind(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster stores the events of a failed batch one by one: what the batch had left would be there twice."""
    log = storage.BatchingSqliteEventLogStorage(str(tmp_path))
    batch = max(pair.calls, key=len)

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(log, "_store_asset_event", full)
        with pytest.raises(OSError, match="disk full"):
            log.store_event_batch(batch)
    assert partitions(tmp_path / "index.db") == partitions(tmp_path / f"{batch[0].run_id}.db") == []
    log.store_event_batch(batch)
    assert len(partitions(tmp_path / "index.db")) == len(batch)


# ---------------------------------------------------------------- another Dagster


def test_the_contract_holds_with_the_dagster_installed() -> None:
    assert storage.contract_breaches() == ()


@pytest.mark.parametrize(
    ("table", "change", "named"),
    [
        ("SIGNATURES", {"_store_asset_event": "self, event"}, "_store_asset_event"),
        ("SIGNATURES", {"no_such_method": "self"}, "no_such_method"),
        ("BODIES", {"store_event": "0"}, "store_event"),
    ],
)
@ONE_PAIR
def test_another_dagster_gets_the_stock_behaviour(
    table: str, change: dict[str, str], named: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, table, {**getattr(storage, table), **change})
    storage.contract_breaches.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=named):
            log = storage.BatchingSqliteEventLogStorage(str(tmp_path))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            storage.BatchingSqliteEventLogStorage(str(tmp_path))
    finally:
        storage.contract_breaches.cache_clear()
        storage._warn_once.cache_clear()
    monkeypatch.setattr(log, "_store_batch", None)
    assert not log.supports_partition_subset_in_asset_materialization_planned_events
    for events in pair.calls:
        log.store_event_batch(events)
    assert tables(tmp_path / "index.db")["event_logs"] == tables(shards(pair.stock) / "index.db")["event_logs"]


@ONE_PAIR
def test_batches_of_other_kinds_take_the_stock_way(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = storage.BatchingSqliteEventLogStorage(str(tmp_path))
    monkeypatch.setattr(log, "_store_batch", None)
    everything = [event for events in pair.calls for event in events]
    log.store_event_batch(everything)  # of several runs, with steps, checks and log lines
    assert tables(tmp_path / "index.db")["event_logs"] == tables(shards(pair.stock) / "index.db")["event_logs"]


# ---------------------------------------------------------------- metadata, environment, dagster.yaml


def test_metadata_for_a_partition_outside_the_run_is_refused(tmp_path: Path) -> None:
    @dg.asset(partitions_def=GRID, backfill_policy=SINGLE)
    def wrong(context: dg.AssetExecutionContext) -> None:
        with pytest.raises(KeyError, match=r"KRW-CCC\|1d"):
            storage.add_partition_metadata(context, {"KRW-CCC|1d": {"rows": 1}})

    with open_home(tmp_path, ours=True) as instance:
        instance.add_dynamic_partitions("symbol", SYMBOLS)
        assert dg.materialize([wrong], instance=instance, tags=span("KRW-AAA|1d", "KRW-BBB|1d")).success


def test_metadata_takes_the_public_way_where_the_private_one_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise AttributeError("_metadata_accumulator")

    monkeypatch.setattr(storage, "_add_at_once", gone)
    with open_home(tmp_path, ours=True) as instance:
        instance.add_dynamic_partitions("symbol", SYMBOLS)
        assert dg.materialize([candles], instance=instance, tags=span(KEYS[0], KEYS[-1])).success
        found = instance.fetch_materializations(dg.AssetKey("candles"), limit=99).records
        assert {r.partition_key: r.asset_materialization.metadata["key"].value for r in found} == {k: k for k in KEYS}  # type: ignore[union-attr]


def test_environment_names_what_the_processes_need() -> None:
    assert storage.environment() == {
        "DAGSTER_EVENT_BATCH_SIZE": "1000",
        "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "true",
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }


def test_dagster_yaml_is_written_and_renewed_until_a_user_edits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "a home: 'quoted' {x}"
    path = storage.write_dagster_yaml(home)
    assert path == home / "dagster.yaml"
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert isinstance(instance.event_log_storage, storage.BatchingSqliteEventLogStorage)
        passed_on: Any = instance.get_ref().storage  # what a run's own process gets
        assert isinstance(passed_on.event_log_storage, storage.BatchingSqliteEventLogStorage)
        assert not instance.telemetry_enabled
        assert not instance.run_retries_enabled
        assert not instance.run_monitoring_enabled
    written = path.read_text()
    monkeypatch.setattr(storage, "DAGSTER_YAML", storage.DAGSTER_YAML + "# of a newer version\n")
    storage.write_dagster_yaml(home)
    renewed = path.read_text()
    assert renewed != written
    assert renewed.endswith("# of a newer version\n")
    path.write_text(renewed.replace("max_concurrent_runs: 2", "max_concurrent_runs: 4"))
    storage.write_dagster_yaml(home)
    assert "max_concurrent_runs: 4" in path.read_text()
    assert [p.name for p in home.iterdir() if "new" in p.name] == []


def test_a_dagster_yaml_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("")
    assert storage.write_dagster_yaml(tmp_path).read_text() == ""
