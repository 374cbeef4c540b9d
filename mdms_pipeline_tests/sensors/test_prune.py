"""Dagster's log is made small, and no partition loses its newest materialization."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._core.events import StepMaterializationData
from dagster._core.storage.event_log.base import EventRecordsFilter
from dagster._core.test_utils import create_run_for_test

from mdms_pipeline.cli import main
from mdms_pipeline.defs.prune import Pruned, log_bytes, prune
from mdms_pipeline.defs.refresh import JOB
from mdms_pipeline.defs.run import use_home

from ..support import settings

KEYS = [f"KRW-{letter}|1m" for letter in "ABCDEFGH"]
ASSETS = ("candles", "rsi")


@pytest.fixture
def home(tmp_path, monkeypatch):
    wanted = settings(tmp_path / "home")
    for name in ("DAGSTER_HOME", "DAGSTER_EVENT_BATCH_SIZE", "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with use_home(wanted) as instance:
        yield wanted.dagster_home, instance


def run(instance, keys=KEYS, status=dg.DagsterRunStatus.SUCCESS, padding=2_000):
    """A run that materializes `keys` of every asset, as the log holds it."""
    made = create_run_for_test(instance, job_name=JOB)
    entries = []
    for asset in ASSETS:
        for key in keys:
            found = dg.AssetMaterialization(
                asset, partition=key, metadata={"padding": "x" * padding}, tags={"dagster/data_version": "0f3a"}
            )
            event = dg.DagsterEvent(
                dg.DagsterEventType.ASSET_MATERIALIZATION.value, JOB, event_specific_data=StepMaterializationData(found)
            )
            entries.append(
                dg.EventLogEntry(
                    error_info=None, level=10, user_message="", run_id=made.run_id, timestamp=time.time(), step_key=asset, job_name=JOB,
                    dagster_event=event,
                )
            )  # fmt: skip
    instance.event_log_storage.store_event_batch(entries)
    instance.report_dagster_event(_ended(status), made.run_id)
    return made.run_id


def _ended(status):
    kind = {
        dg.DagsterRunStatus.SUCCESS: dg.DagsterEventType.RUN_SUCCESS,
        dg.DagsterRunStatus.FAILURE: dg.DagsterEventType.RUN_FAILURE,
        dg.DagsterRunStatus.STARTED: dg.DagsterEventType.RUN_START,
    }[status]
    return dg.DagsterEvent(kind.value, JOB)


def newest(instance):
    """(asset, partition) -> (run, storage id) of the newest materialization, by the queries that the UI makes."""
    found = {}
    for asset in ASSETS:
        ids = instance.event_log_storage.get_latest_storage_id_by_partition(dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION)
        for key, storage_id in ids.items():
            wanted = EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION, asset_key=dg.AssetKey(asset), asset_partitions=[key])
            record = instance.event_log_storage.get_event_records(wanted, limit=1)[0]
            assert record.storage_id == storage_id
            found[asset, key] = record.event_log_entry.run_id, storage_id
    return found


def later(seconds=3_600):
    return time.time() + seconds


def test_a_home_without_a_log_is_left_alone(tmp_path):
    done = prune(tmp_path / "nothing", 10**6)
    assert (done.bytes_before, done.bytes_after, done.run_logs, done.events) == (0, 0, 0, 0)


def test_the_newest_of_each_partition_stays_and_the_log_shrinks(home):
    folder, instance = home
    only_old = run(instance)  # all keys
    for _ in range(8):
        run(instance, KEYS[:4])
    before, materialized = newest(instance), {asset: instance.get_materialized_partitions(dg.AssetKey(asset)) for asset in ASSETS}
    done = prune(folder, 10**6, later())
    assert isinstance(done, Pruned)
    assert done.bytes_after < done.bytes_before / 2
    assert done.run_logs >= 6
    assert done.events >= 6 * 8
    assert newest(instance) == before
    assert before["rsi", KEYS[-1]][0] == only_old
    assert {asset: instance.get_materialized_partitions(dg.AssetKey(asset)) for asset in ASSETS} == materialized
    assert instance.get_latest_materialization_event(dg.AssetKey("rsi")) is not None
    again = prune(folder, 10**6, later())
    assert again.events == 0
    assert newest(instance) == before


def test_what_was_newest_of_a_run_without_a_log_goes_once_something_newer_is_there(home):
    folder, instance = home
    old = run(instance)
    for _ in range(8):
        run(instance, KEYS[:4])
    prune(folder, 10**6, later())
    assert _events_of(folder, old) == len(ASSETS) * 4  # the newest of those partitions
    run(instance)
    prune(folder, 10**6, later())
    assert _events_of(folder, old) == 0
    assert old not in {run_id for run_id, _ in newest(instance).values()}


def _events_of(folder, run_id):
    with closing(sqlite3.connect(folder / "history" / "runs" / "index.db")) as connection:
        return connection.execute("SELECT count(*) FROM event_logs WHERE run_id = ? AND partition IS NOT NULL", [run_id]).fetchone()[0]


def test_ids_go_on_growing_after_a_prune(home):
    """SQLite gives the id of a deleted last row away again; who follows by id would miss the next event."""
    folder, instance = home
    run(instance)
    last = max(storage_id for _, storage_id in newest(instance).values())
    instance.report_dagster_event(_ended(dg.DagsterRunStatus.SUCCESS), create_run_for_test(instance).run_id)
    prune(folder, 0, later())
    run(instance)
    assert min(storage_id for _, storage_id in newest(instance).values()) > last


def test_what_is_unfinished_or_has_just_ended_or_failed_stays(home):
    folder, instance = home
    running = run(instance, status=dg.DagsterRunStatus.STARTED)
    failed = run(instance, status=dg.DagsterRunStatus.FAILURE)
    for _ in range(10):
        run(instance)
    prune(folder, 4 * 10**6, later())
    files = {file.stem for file in (folder / "history" / "runs").glob("*.db")}
    assert {running, failed} <= files
    assert len(files) < 11
    just_ended = run(instance)
    prune(folder, 0)
    assert (folder / "history" / "runs" / f"{just_ended}.db").exists()


def test_the_page_of_a_run_whose_log_is_gone_is_empty_and_not_an_error(home):
    folder, instance = home
    gone = run(instance)
    assert len(instance.all_logs(gone)) == 17  # this process has the file open now and then
    prune(folder, 0, later())
    assert not (folder / "history" / "runs" / f"{gone}.db").exists()
    assert list(instance.all_logs(gone)) == []
    assert instance.get_run_by_id(gone).status == dg.DagsterRunStatus.SUCCESS
    run(instance)


def test_rows_of_old_runs_go_once_nothing_newest_hangs_on_them(home):
    folder, instance = home
    old = [run(instance) for _ in range(3)]
    prune(folder, 0, later(4 * 86_400))
    assert {found.run_id for found in instance.get_runs()} == {old[-1]}
    assert {run_id for run_id, _ in newest(instance).values()} == {old[-1]}


def test_a_prune_while_another_process_writes(home):
    """Short transactions: a writer gets through in between."""
    import threading

    folder, instance = home
    for _ in range(5):
        run(instance)
    errors = []

    def write():
        try:
            for _ in range(5):
                run(instance)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        prune(folder, 10**6, later())
    thread.join()
    assert errors == []
    assert len(newest(instance)) == 16


def test_a_page_that_is_being_read_keeps_no_writer_out(home):
    """What makes the file smaller waits for readers; writers must not wait for that."""
    import threading

    folder, instance = home
    for _ in range(5):
        run(instance)
    index = folder / "history" / "runs" / "index.db"
    with closing(sqlite3.connect(index)) as reader, closing(sqlite3.connect(index, timeout=10, isolation_level=None)) as writer:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM event_logs").fetchall()
        run(instance)
        thread = threading.Thread(target=prune, args=(folder, 10**6, later()))
        thread.start()
        while thread.is_alive():
            writer.execute("BEGIN IMMEDIATE")  # raises after ten seconds
            writer.execute("ROLLBACK")
        assert reader.execute("SELECT count(*) FROM event_logs").fetchone() == (5 * 17,)
    thread.join()
    assert len(newest(instance)) == 16


def test_the_command(home, monkeypatch):
    folder, instance = home
    for _ in range(3):
        run(instance, padding=100)
    monkeypatch.setenv("MDMS_HOME", str(folder.parent))
    monkeypatch.setenv("MDMS_EXCHANGE_URL", "sandbox")
    answer = CliRunner().invoke(main, ["prune", "--json"])
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert set(said) == {"bytes_before", "bytes_after", "run_logs", "events", "runs", "ticks", "seconds"}
    assert said["run_logs"] == 0  # within what is allowed
    assert said["bytes_after"] == pytest.approx(log_bytes(folder), rel=0.2)
    assert "MB before" in CliRunner().invoke(main, ["prune"]).output
