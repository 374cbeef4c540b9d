"""The log of one real run written again, for another run and time, some twenty times faster than through the storage.

1. `make` has the storage write the run's events, with a run id and a time that stand nowhere else, into a home of its own
2. `Copy.write` copies the run's file, byte for byte but for run id and time (as long as the marks), and lets `index.db` take from it, with
   `INSERT ... SELECT`, what the storage writes there: events, tags, checks, assets
3. `prove` has the storage write the events of two runs, copies the same two besides, and compares every row of every table and the files'
   sizes: where anything differs nothing is measured
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, BATCH_WRITABLE_EVENTS, EVENT_TYPE_TO_PIPELINE_RUN_STATUS
from dagster._serdes import deserialize_value, serialize_value
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mdms_pipeline.defs.storage import BatchingSqliteEventLogStorage

BATCH = 1000
MIRRORED = sorted({*ASSET_EVENTS, *ASSET_CHECK_EVENTS, *EVENT_TYPE_TO_PIPELINE_RUN_STATUS})  # stored in the index too
MARKED_RUN = "c0de0000-0000-4000-8000-00000000c0de"
MARKED_TIME = 1_234_567_890.123457  # s; six decimals, as every time here
PROVED_RUNS = {f"{digit * 8}-0000-4000-8000-{digit * 12}": 1_800_000_000.765432 + int(digit) for digit in "12"}  # run id -> s
UNTOLD = {"create_timestamp", "migration_completed"}  # columns that SQLite fills with the machine's clock
SIZES = 0.001  # the index of two copied runs has a page of 3,800 less: rows of assets are written once, not once a batch

EXCHANGED = f"replace(replace({{}}, '{MARKED_RUN}', :run), '{MARKED_TIME}', :said)"  # in the text of an event
NEWEST = """(SELECT max(id) FROM marked.event_logs
              WHERE asset_key = kept.asset_key AND dagster_event_type = 'ASSET_MATERIALIZATION')"""
# What goes into `index.db` (main), from the run's file (run) and from what the storage wrote there (marked).
# :run and :said (the time in a text), :at (in a column), :first (events before these)
INDEX = (
    f"""INSERT INTO main.event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
        SELECT run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition
        FROM run.event_logs WHERE dagster_event_type IN ({", ".join(f"'{kind.value}'" for kind in MIRRORED)}) ORDER BY id""",
    """INSERT INTO main.asset_event_tags (event_id, asset_key, key, value, event_timestamp)
       SELECT :first + event_id, asset_key, key, value, :at FROM marked.asset_event_tags ORDER BY id""",
    f"""INSERT INTO main.asset_check_executions (asset_key, check_name, partition, run_id, execution_status, evaluation_event,
           evaluation_event_timestamp, evaluation_event_storage_id, materialization_event_storage_id)
        SELECT asset_key, check_name, partition, :run, execution_status, {EXCHANGED.format("evaluation_event")}, :at,
           :first + evaluation_event_storage_id, materialization_event_storage_id
        FROM marked.asset_check_executions ORDER BY id""",
    f"""INSERT INTO main.asset_keys (asset_key, last_materialization, last_run_id, last_materialization_timestamp)
        SELECT asset_key,
           replace({EXCHANGED.format("last_materialization")},
              '"storage_id": ' || {NEWEST} || '}}', '"storage_id": ' || (:first + {NEWEST}) || '}}'),
           CASE WHEN last_run_id IS NOT NULL THEN :run END, :at
        FROM marked.asset_keys AS kept WHERE true ORDER BY id
        ON CONFLICT (asset_key) DO UPDATE SET last_materialization = coalesce(excluded.last_materialization, last_materialization),
           last_run_id = coalesce(excluded.last_run_id, last_run_id),
           last_materialization_timestamp = excluded.last_materialization_timestamp""",
)


@event.listens_for(Engine, "connect")
def without_sync(connection: Any, record: Any) -> None:
    """Nobody waits for the disk here: sizes are measured, not the times of writers."""
    connection.execute("PRAGMA synchronous = OFF")


@dataclass(frozen=True)
class Copy:
    """What the storage wrote for one run, run id and time marked."""

    index: Path
    log: bytes  # the run's file
    torn: Mapping[int, str]  # id -> text of the events in which the end of a page divides a mark

    def write(self, base: Path, run_id: str, now: float) -> None:
        """The run once more, under this id and at this time (s, six decimals), into the event log in `base`."""
        said, at, file = repr(now), _at(now), base / f"{run_id}.db"
        file.write_bytes(_exchange(_exchange(_exchange(self.log, MARKED_RUN, run_id), repr(MARKED_TIME), said), _at(MARKED_TIME), at))
        with _open(base / "index.db", run=file, marked=self.index) as index:
            for event_id, text in self.torn.items():
                whole = text.replace(MARKED_RUN, run_id).replace(repr(MARKED_TIME), said)
                index.execute("UPDATE run.event_logs SET event = ? WHERE id = ?", [whole, event_id])
            first = index.execute("SELECT coalesce(max(id), 0) FROM main.event_logs").fetchone()[0]
            for statement in INDEX:
                index.execute(statement, {"run": run_id, "said": said, "at": at, "first": first})
            index.execute("COMMIT")
            index.execute("PRAGMA main.journal_mode = WAL")


def _exchange(data: bytes, mark: str, value: str) -> bytes:
    if len(mark) != len(value):
        raise ValueError(f"{value!r} is not as long as {mark!r}")
    return data.replace(mark.encode(), value.encode())


def _at(now: float) -> str:
    """A time as a column holds it."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


@dataclass(frozen=True)
class Template:
    """One real run: its events in the batches in which they were handed over, and how they are stored."""

    run: dg.DagsterRun
    batches: Sequence[Sequence[dg.EventLogEntry]]
    copy: Copy

    @property
    def events(self) -> int:
        return sum(map(len, self.batches))


def make(instance: dg.DagsterInstance, run: dg.DagsterRun, folder: Path) -> Template:
    """The template of a run, its copy kept in `folder`."""
    found, storage = list(batches(instance, run.run_id)), _new_storage(folder)
    store(storage, found, MARKED_RUN, MARKED_TIME)
    file = folder / f"{MARKED_RUN}.db"
    return Template(run, found, Copy(folder / "index.db", file.read_bytes(), _torn(file)))


def _torn(file: Path) -> dict[int, str]:
    """The events whose marks do not all stand whole in the file: found by exchanging those that do."""
    other = MARKED_RUN[::-1]
    exchanged = file.with_suffix(".exchanged")
    exchanged.write_bytes(_exchange(_exchange(file.read_bytes(), MARKED_RUN, other), repr(MARKED_TIME), repr(MARKED_TIME)[::-1]))
    with _reading(file) as marked, _reading(exchanged) as tried:
        query = "SELECT id, event FROM event_logs ORDER BY id"
        return {
            event_id: text
            for (event_id, text), (_, found) in zip(marked.execute(query), tried.execute(query), strict=True)
            if text.replace(MARKED_RUN, other).replace(repr(MARKED_TIME), repr(MARKED_TIME)[::-1]) != found
        }


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


def store(storage: Any, found: Sequence[Sequence[dg.EventLogEntry]], run_id: str, now: float) -> None:
    """Write these events through the storage, as events of another run at another time."""
    for batch in found:
        entries = [_as_of(entry, run_id, now) for entry in batch]
        if len(entries) > 1:
            storage.store_event_batch(entries)
        else:
            storage.store_event(entries[0])


def _as_of(entry: dg.EventLogEntry, run_id: str, now: float) -> dg.EventLogEntry:
    renamed = deserialize_value(serialize_value(entry).replace(entry.run_id, run_id), dg.EventLogEntry)
    return renamed._replace(timestamp=now)


def prove(template: Template) -> None:
    """Raise SystemExit where copies of two runs are not what the storage writes for them: rows of all tables, pages of both files."""
    with tempfile.TemporaryDirectory() as folder:
        stored, copied = Path(folder, "stored"), Path(folder, "copied")
        storage = _new_storage(stored)
        _new_storage(copied)
        for run_id, now in PROVED_RUNS.items():
            store(storage, template.batches, run_id, now)
            template.copy.write(copied, run_id, now)
        for name in ("index", *PROVED_RUNS):
            _refuse_differences(stored / f"{name}.db", copied / f"{name}.db")


def _refuse_differences(stored: Path, copied: Path) -> None:
    with _reading(stored) as wanted, _reading(copied) as found:
        if (tables := _tables(wanted)) != _tables(found):
            raise SystemExit(f"{stored.name}: the storage makes the tables {tables}, the copy {_tables(found)}")
        for table in tables:
            for place, (theirs, ours) in enumerate(zip_longest(_rows(wanted, table), _rows(found, table))):
                if theirs != ours:
                    raise SystemExit(f"{stored.name}, {table}, row {place}: the storage writes\n{theirs}\nand the copy\n{ours}")
        modes = [connection.execute("PRAGMA journal_mode").fetchone() for connection in (wanted, found)]
    sizes = [file.stat().st_size for file in (stored, copied)]
    if modes[0] != modes[1] or abs(sizes[0] - sizes[1]) > SIZES * sizes[0]:
        raise SystemExit(f"{stored.name}: the storage's file has {sizes[0]} bytes ({modes[0]}), the copy {sizes[1]} ({modes[1]})")


def _tables(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """All columns that the storage fills, in the order of the rows' ids."""
    names = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})") if name not in UNTOLD]
    quoted = ", ".join(f'"{name}"' for name in names)
    yield from connection.execute(f"SELECT {quoted} FROM {table} ORDER BY rowid")


def _reading(file: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(file))


def _new_storage(folder: Path) -> BatchingSqliteEventLogStorage:
    storage = BatchingSqliteEventLogStorage(str(folder))
    with storage.index_connection():
        pass
    return storage


def _open(file: Path, **besides: Path) -> closing[sqlite3.Connection]:
    """A transaction in `file`, with others beside it. Without a journal, which nobody else needs here: twice as fast."""
    connection = sqlite3.connect(file, timeout=30, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA main.cache_size = -64000")
    with suppress(sqlite3.OperationalError):  # somebody reads: with the journal it is, then
        connection.execute("PRAGMA main.journal_mode = OFF")
    for name, beside in besides.items():
        connection.execute(f"ATTACH ? AS {name}", [str(beside)])
    connection.execute("BEGIN IMMEDIATE")
    return closing(connection)
