"""Dagster's event log in SQLite, a batch at a time: the embedded default.

1. Dagster collects the events of one step's partitions (and the planned events of a run) and hands them over together
   when `DAGSTER_EVENT_BATCH_SIZE` is set: `DagsterInstance.handle_new_event` -> `EventLogStorage.store_event_batch`.
   Stock SQLite storage stores such a batch event by event, with two connections and two commits each.
2. `BatchingSqliteEventLogStorage.store_event_batch` writes the batch in **one** transaction over two files: the run's
   (`<run id>.db`, what the run's page reads) and `index.db` (what the asset pages read). Same rows as stock.
3. One planned event per asset instead of one per partition (`DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS`) saves a
   fifth of the time and of the disk, but stock storage then forgets which partitions a failed run was to make. Ours
   looks into that event, so failed and running partitions are shown as before.
4. `MdmsSqliteStorage` is what `dagster.yaml` names; `write_dagster_yaml` writes that file; `environment` names the
   variables every process must have.

All of it rests on Dagster's private parts, and so does `add_partition_metadata`: nothing outside this file may.
`contract_breaches` compares them with what was read when this was written (1.13.27). Where they differ, a warning is
given once and the stock behaviour is used: slower, never wrong.

What a batch does when things go wrong:
- An exception (disk full, the files locked for 30 s) rolls both files back; Dagster then stores the events one by one.
- kill -9: events still in memory (one step's partitions, at most a batch) are gone; what was handed over is in both files
  or in neither. Between the two commits lie microseconds: killed there, `index.db` has the batch and the run's page lacks it.
- Power cut: SQLite's WAL with `synchronous=FULL` (stock) syncs each commit, so what was committed stays. `NORMAL` may lose
  the last commits and gained nothing (a batch of 360 events: 112 to 119 ms against 105 to 116): stock it is.
- Batches of one event, and events of kinds that Dagster does not batch, take the stock way.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as db
from dagster import AssetExecutionContext, AssetKey, DagsterEventType, EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData, deserialize_value
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

BUSY_SECONDS = 30  # as stock: how long a writer waits for another process's transaction

PLANNED = DagsterEventType.ASSET_MATERIALIZATION_PLANNED
ASSET_EVENTS = {
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.ASSET_OBSERVATION,
    DagsterEventType.ASSET_FAILED_TO_MATERIALIZE,
    PLANNED,
}
CHECK_EVENTS = {DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED}

# method -> its parameters. Called or overridden below.
SIGNATURES = {
    "_check_partitions_table": "self",
    "_connect": "self, shard",
    "_event_to_row": "self, event",
    "_store_asset_event": "self, conn, event, event_id",
    "_store_asset_event_tags": "self, conn, events, event_ids",
    "conn_string_for_shard": "self, shard_name",
    "get_latest_asset_partition_materialization_attempts_without_materializations": "self, asset_key, after_storage_id",
    "get_latest_planned_materialization_info": "self, asset_key, partition",
    "get_latest_storage_id_by_partition": "self, asset_key, event_type, partitions, after_cursor",
    "index_connection": "self",
    "path_for_shard": "self, run_id",
    "run_connection": "self, run_id",
    "store_asset_check_event": "self, event, event_id",
    "store_event": "self, event",
    "store_event_batch": "self, events",
}
# method -> digest of the names its body uses. `_store_batch` repeats what these do: a new name is a new thing to store.
BODIES = {
    "_connect": "3075855f7429",
    "_get_asset_entry_values": "07059ada82cb",
    "_store_asset_check_evaluation_planned": "53b453dd9d1f",
    "_store_asset_event": "586ab52d6d8c",
    "_store_asset_event_tags": "6ff701efe26f",
    "store_event": "6cde1c2fffe4",
}
CONNECT = "c157af8204a1"  # the same of SqliteRunStorage.connect
COLUMNS = ["asset_key", "dagster_event_type", "event", "id", "partition", "run_id", "step_key", "timestamp"]


# ---------------------------------------------------------------- the contract


def _parameters(method: Callable[..., Any]) -> str:
    return ", ".join(inspect.signature(method).parameters)


def _names_used(method: Callable[..., Any]) -> str:
    """Digest of every global and attribute the body of `method` names; formatting and comments do not change it."""
    names = sorted(set(inspect.unwrap(method).__code__.co_names))
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]


def _differences(what: str, measure: Callable[[Callable[..., Any]], str], expected: Mapping[str, str]) -> Iterator[str]:
    for name, wanted in expected.items():
        method = getattr(SqliteEventLogStorage, name, None)
        found = "missing" if method is None else measure(method)
        if found != wanted:
            yield f"{what} of {name}: {found!r}, expected {wanted!r}"


def _missing_parts() -> Iterator[str]:
    try:
        from dagster._core.events import BATCH_WRITABLE_EVENTS, DagsterEvent
        from dagster._core.storage.event_log.base import PlannedMaterializationInfo
        from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
    except ImportError as error:
        yield str(error)
        return
    if sorted(SqlEventLogStorageTable.c.keys()) != COLUMNS:
        yield f"columns of event_logs: {sorted(SqlEventLogStorageTable.c.keys())}, expected {COLUMNS}"
    if BATCH_WRITABLE_EVENTS != ASSET_EVENTS | CHECK_EVENTS:
        yield f"kinds of events that come in batches: {sorted(kind.value for kind in BATCH_WRITABLE_EVENTS)}"
    if not hasattr(DagsterEvent, "partitions_subset"):
        yield "DagsterEvent.partitions_subset is missing"
    if _names_used(SqliteRunStorage.connect) != CONNECT:
        yield f"names used in the body of SqliteRunStorage.connect: {_names_used(SqliteRunStorage.connect)!r}, expected {CONNECT!r}"
    if set(PlannedMaterializationInfo.__annotations__) != {"run_id", "storage_id"}:
        yield f"fields of PlannedMaterializationInfo: {sorted(PlannedMaterializationInfo.__annotations__)}"


@cache
def contract_breaches() -> tuple[str, ...]:
    """What differs between the installed Dagster and the private parts this file was written against; () when nothing does."""
    return (
        *_differences("parameters", _parameters, SIGNATURES),
        *_differences("names used in the body", _names_used, BODIES),
        *_missing_parts(),
    )


@cache
def _warn_once(breaches: tuple[str, ...]) -> None:
    import dagster

    warnings.warn(
        f"Dagster {dagster.__version__} differs inside from the one the batching event storage knows; events are stored one by one, "
        f"some 20 times slower ({'; '.join(breaches)}). Install the Dagster that constraints.txt names.",
        RuntimeWarning,
        stacklevel=3,
    )


# ---------------------------------------------------------------- the event log


class BatchingSqliteEventLogStorage(SqliteEventLogStorage):
    """`SqliteEventLogStorage` that writes a batch of events in one transaction. Same files, same rows, same answers."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._open = threading.local()  # .index: the connection of this thread's batch, while there is one
        self._has_partitions_table = False
        self._batches = not contract_breaches()
        if not self._batches:
            _warn_once(contract_breaches())
        super().__init__(base_dir, inst_data)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> BatchingSqliteEventLogStorage:
        return cls(inst_data=inst_data, **config_value)

    # writing

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store `events`, all of them or (when it raises) none. Errors: SQLAlchemy's, "database is locked" after BUSY_SECONDS."""
        if self._batches and _is_batch(events):
            self._store_batch(events)
        else:
            super().store_event_batch(events)

    def _store_batch(self, events: Sequence[EventLogEntry]) -> None:
        rows = [self._event_to_row(event) for event in events]
        try:
            self._write_batch(events, rows)
        except db.exc.OperationalError as error:
            if "no such table: run." not in str(error):
                raise
            self._initialized_dbs.discard(events[0].run_id)  # a prune took the run's file away at this very moment: make it anew
            self._write_batch(events, rows)

    def _write_batch(self, events: Sequence[EventLogEntry], rows: Sequence[dict[str, Any]]) -> None:
        with self._batch_transaction(events[0].run_id) as conn:
            conn.execute(_event_logs(schema="run").insert(), rows)
            first = conn.execute(db.text("SELECT coalesce(max(id), 0) + 1 FROM main.event_logs")).scalar_one()
            ids = range(first, first + len(rows))  # what SQLite would give: nobody else writes in here
            conn.execute(_event_logs().insert(), [{**row, "id": id_} for row, id_ in zip(rows, ids, strict=True)])
            self._store_what_follows(conn, list(zip(events, ids, strict=True)))

    def _store_what_follows(self, conn: Connection, stored: Sequence[tuple[EventLogEntry, int]]) -> None:
        """The tables that stock `store_event` fills besides: tags, one row per asset, planned checks."""
        assets = [(event, id_) for event, id_ in stored if event.dagster_event_type in ASSET_EVENTS]
        self._store_asset_event_tags(conn, [event for event, _ in assets], [id_ for _, id_ in assets])
        for event, id_ in _last_of_each_kind(assets):
            self._store_asset_event(conn, event, id_)
        for event, id_ in stored:
            if event.dagster_event_type in CHECK_EVENTS:
                self.store_asset_check_event(event, id_)

    @contextmanager
    def _batch_transaction(self, run_id: str) -> Iterator[Connection]:
        """One transaction over `index.db` (main) and the run's file (schema "run"); both locked before anything is written."""
        with self.run_connection(run_id):  # creates the file and its tables the first time
            pass
        with self._db_lock, _engine(self.conn_string_for_shard("index")).connect() as conn:
            conn.exec_driver_sql("ATTACH DATABASE ? AS run", (self.path_for_shard(run_id),))
            conn.exec_driver_sql("BEGIN IMMEDIATE")
            self._open.index = conn
            try:
                yield conn
                conn.commit()
            finally:
                self._open.index = None

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        """Stock's, but that the engine is kept: stock's compiles every statement of the some 500 of a run anew."""
        if not self._batches:
            with super()._connect(shard) as conn:
                yield conn
            return
        with self._db_lock:
            engine = _engine(self.conn_string_for_shard(shard))
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            with engine.connect() as conn, conn.begin():
                yield conn

    def run_connection(self, run_id: str | None = None) -> Any:
        """Stock's. A file that a prune has taken away under a process that knew it is made anew, with its tables, and empty."""
        if run_id is not None and run_id in self._initialized_dbs and not os.path.exists(self.path_for_shard(run_id)):
            self._initialized_dbs.discard(run_id)
        return super().run_connection(run_id)

    def index_connection(self) -> AbstractContextManager[Connection]:
        """Stock's, or this thread's open batch: stock's own methods then write into its transaction."""
        conn: Connection | None = getattr(self._open, "index", None)
        return super().index_connection() if conn is None else nullcontext(conn)

    def _check_partitions_table(self) -> None:
        """Stock's, until it is there. Stock looks before each of the some hundred questions of a run whether a partition exists."""
        if not self._has_partitions_table:
            super()._check_partitions_table()
            self._has_partitions_table = True

    # one planned event per asset

    @property
    def supports_partition_subset_in_asset_materialization_planned_events(self) -> bool:
        return self._batches and super().supports_partition_subset_in_asset_materialization_planned_events

    def get_latest_asset_partition_materialization_attempts_without_materializations(
        self, asset_key: AssetKey, after_storage_id: int | None = None
    ) -> Mapping[str, tuple[str, int]]:
        """partition -> (run id, id of its planned event) where no materialization followed: what the UI shows failed or running."""
        attempts = dict(super().get_latest_asset_partition_materialization_attempts_without_materializations(asset_key, after_storage_id))
        planned = self._planned_by_partition(asset_key, after_storage_id)
        if not planned:
            return attempts
        made = self.get_latest_storage_id_by_partition(asset_key, DagsterEventType.ASSET_MATERIALIZATION, after_cursor=after_storage_id)
        for partition, (run_id, id_) in planned.items():
            if id_ > max(made.get(partition, 0), attempts.get(partition, ("", 0))[1]):
                attempts[partition] = (run_id, id_)
        return attempts

    def get_latest_planned_materialization_info(self, asset_key: AssetKey, partition: str | None = None) -> Any:
        """The newest planned event of the asset, or of one partition: the run that the UI names beside it."""
        latest = super().get_latest_planned_materialization_info(asset_key, partition)
        if partition is None or not self._batches:
            return latest
        for run_id, id_, keys in self._planned_subsets(asset_key, latest.storage_id if latest else None):
            if partition in keys:
                return _planned_info(id_, run_id)
        return latest

    def _planned_by_partition(self, asset_key: AssetKey, after_id: int | None) -> dict[str, tuple[str, int]]:
        newest: dict[str, tuple[str, int]] = {}
        for run_id, id_, keys in self._planned_subsets(asset_key, after_id) if self._batches else ():
            for key in keys:
                newest.setdefault(key, (run_id, id_))
        return newest

    def _planned_subsets(self, asset_key: AssetKey, after_id: int | None) -> Iterator[tuple[str, int, frozenset[str]]]:
        """(run id, event id, partitions) of the planned events that hold many partitions, newest first."""
        table = _event_logs()
        query = (
            db.select(table.c.run_id, table.c.id, table.c.event)
            .where(table.c.asset_key == asset_key.to_string(), table.c.dagster_event_type == PLANNED.value)
            .where(table.c.partition.is_(None), table.c.id > (after_id or 0))
            .order_by(table.c.id.desc())
        )
        with self.index_connection() as conn:
            rows = conn.execute(query).fetchall()
        for run_id, id_, event in rows:
            subset = deserialize_value(event, EventLogEntry).get_dagster_event().partitions_subset
            if subset is not None:
                yield run_id, id_, frozenset(subset.get_partition_keys())


def _is_batch(events: Sequence[EventLogEntry]) -> bool:
    """Many events of one run, each of a kind that Dagster batches."""
    kinds = ASSET_EVENTS | CHECK_EVENTS
    return len(events) > 1 and len({event.run_id for event in events}) == 1 and all(event.dagster_event_type in kinds for event in events)


def _last_of_each_kind(stored: Sequence[tuple[EventLogEntry, int]]) -> list[tuple[EventLogEntry, int]]:
    """The events that decide the assets' rows: what a kind sets depends on its last event alone, so the others can be left out.

    Assets in the order in which their first event came (it creates the row), the events of one asset oldest first.
    """
    last: dict[AssetKey | None, dict[DagsterEventType | None, tuple[EventLogEntry, int]]] = {}
    for event, id_ in stored:
        last.setdefault(event.get_dagster_event().asset_key, {})[event.dagster_event_type] = (event, id_)
    return [pair for kinds in last.values() for pair in sorted(kinds.values(), key=lambda pair: pair[1])]


def _event_logs(schema: str | None = None) -> db.Table:
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    return SqlEventLogStorageTable.to_metadata(db.MetaData(), schema=schema) if schema else SqlEventLogStorageTable


def _planned_info(storage_id: int, run_id: str) -> Any:
    from dagster._core.storage.event_log.base import PlannedMaterializationInfo

    return PlannedMaterializationInfo(storage_id=storage_id, run_id=run_id)


@lru_cache(maxsize=16)
def _engine(address: str) -> db.Engine:
    """Opens the file at each asking: one that was replaced meanwhile is seen."""
    return db.create_engine(address, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})


class KeptSqliteRunStorage(SqliteRunStorage):
    """Stock's, but that the engine is kept."""

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with _engine(self._conn_string).connect() as conn, conn.begin():
            yield conn


class MdmsSqliteStorage(DagsterSqliteStorage):
    """Dagster's three SQLite storages, the event log and the runs being ours. In `dagster.yaml`:

    storage:
      custom:
        module: mdms_pipeline.defs.storage
        class: MdmsSqliteStorage
        config: {base_dir: /where/dagster/lives}
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        stock = self._event_log_storage
        self._event_log_storage = BatchingSqliteEventLogStorage(stock._base_dir)
        if not contract_breaches():
            self._run_storage = KeptSqliteRunStorage(self._run_storage._conn_string)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> MdmsSqliteStorage:
        return cls.from_local(inst_data=inst_data, **config_value)

    @property
    def event_storage_data(self) -> ConfigurableClassData:
        folder = json.dumps({"base_dir": self._event_log_storage._base_dir})
        return ConfigurableClassData(__name__, BatchingSqliteEventLogStorage.__name__, folder)


# ---------------------------------------------------------------- metadata of many partitions


@lru_cache(maxsize=1)
def partition_keys(context: AssetExecutionContext) -> tuple[str, ...]:
    """The partitions of a step, which stay as they are: Dagster asks the database three times and lists the range at each asking."""
    return tuple(context.partition_keys)


def add_partition_metadata(
    context: AssetExecutionContext, metadata: Mapping[str, Mapping[str, Any]], asset_key: AssetKey | None = None
) -> None:
    """`context.add_asset_metadata(metadata[key], partition_key=key)` for every key, at once.

    Dagster's own asks the database for the dynamic partitions three times and lists the whole range for *each* key: 10 ms a
    key at 240 keys, growing with the range; here it hardly shows. Raises KeyError for a key that the run does not hold.
    """
    unknown = metadata.keys() - set(partition_keys(context))
    if unknown:
        raise KeyError(f"partitions {sorted(unknown)} are not in this run; give metadata for {context.partition_key_range} only")
    try:
        _add_at_once(context, metadata, asset_key or context.asset_key)
    except (ImportError, AttributeError, TypeError):  # another Dagster, or a context made for a test: the public way
        for key, values in metadata.items():
            context.add_asset_metadata(dict(values), asset_key=asset_key, partition_key=key)


def _add_at_once(context: AssetExecutionContext, metadata: Mapping[str, Mapping[str, Any]], asset_key: AssetKey) -> None:
    from dagster._core.execution.context.metadata_logging import AssetMetadataHandle, OutputMetadataAccumulator

    step = context.get_step_execution_context()
    known = dict(step._metadata_accumulator.per_output_metadata)
    for key, values in metadata.items():
        handle = AssetMetadataHandle(asset_key=asset_key, partition_key=key)
        known[handle] = {**known.get(handle, {}), **values}
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=known)


# ---------------------------------------------------------------- the home

# name -> (value, why). Every process needs them: the one that makes a run writes its planned events, the one that executes it the rest.
ENVIRONMENT = {
    "DAGSTER_EVENT_BATCH_SIZE": ("1000", "hand events over in batches; without it each event is two commits, 20 times slower"),
    "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": (
        "true",
        "one planned event per asset, not one per partition: a fifth less time and disk",
    ),
    "DAGSTER_DISABLE_TELEMETRY": ("yes", "nothing is sent anywhere, also by commands that have no home yet"),
}


def environment() -> dict[str, str]:
    """The variables that each of our processes sets before Dagster starts; ENVIRONMENT says why."""
    return {name: value for name, (value, _) in ENVIRONMENT.items()}


DAGSTER_YAML = """\
storage:  # the event log a batch at a time; `sqlite: {{base_dir: ...}}` reads the same files, slower
  custom:
    module: mdms_pipeline.defs.storage
    class: MdmsSqliteStorage
    config:
      base_dir: {home}

compute_logs:
  module: dagster._core.storage.local_compute_log_manager
  class: LocalComputeLogManager
  config:
    base_dir: {logs}

telemetry:
  enabled: false
nux:
  enabled: false

run_coordinator:  # runs wait here; look for the next one every second instead of every five
  module: dagster._core.run_coordinator.queued_run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
concurrency:
  runs:
    max_concurrent_runs: 2

python_logs:  # what processes print; the event log of a run has everything all the same
  python_log_level: INFO

run_retries:  # the next refresh does what a failed one left
  enabled: false
run_monitoring:
  enabled: false

schedules:
  use_threads: true
  num_workers: 2
sensors:
  use_threads: true
  num_workers: 4

retention:  # days that ticks are kept
  schedule:
    purge_after_days: {{skipped: 1, success: 7, failure: 30, started: 7}}
  sensor:
    purge_after_days: {{skipped: 1, success: 7, failure: 30, started: 7}}
"""
SEAL = "# Written by mdms, which renews it as long as nobody edits it. Yours after the first edit. Check: "


def write_dagster_yaml(home: Path) -> Path:
    """Write the `dagster.yaml` of our embedded default into `home` and return its path. A file that a user edited stays as it is."""
    path = home / "dagster.yaml"
    if not path.exists() or _is_ours(path.read_text(encoding="utf-8")):
        home.mkdir(parents=True, exist_ok=True)
        _replace(path, _sealed(_dagster_yaml(home.absolute())))
    return path


def _dagster_yaml(home: Path) -> str:
    return DAGSTER_YAML.format(home=json.dumps(str(home)), logs=json.dumps(str(home / "storage")))


def _sealed(text: str) -> str:
    return f"{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _is_ours(text: str) -> bool:
    _, _, body = text.partition("\n")
    return text == _sealed(body)


def _replace(path: Path, text: str) -> None:
    """Write through a neighbour file: a process that starts now reads the old text or the new one, never half of it."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    neighbour = path.with_name(f"{path.name}.{os.getpid()}.new")
    neighbour.write_text(text, encoding="utf-8")
    neighbour.replace(path)
