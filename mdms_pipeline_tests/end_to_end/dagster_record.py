"""What Dagster's own record says of a home, and what it should say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.defs.storage import write_dagster_yaml
from mdms_pipeline.market import iso
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.frames import instants
from mdms_pipeline_tests.support import rows


@contextmanager
def instance_of(home: Path) -> Iterator[dg.DagsterInstance]:
    write_dagster_yaml(home / "dagster")
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        yield instance


def newest(home: Path) -> dict[str, dict[str, str | None]]:
    """Asset -> partition (KRW-BTC|1h) -> the newest bar that its latest materialization tells of."""
    found: dict[str, dict[str, str | None]] = defaultdict(dict)
    with instance_of(home) as instance:
        for key in instance.all_asset_keys():
            for record in instance.fetch_materializations(key, limit=10_000).records:  # newest first
                if record.partition_key is not None and record.asset_materialization is not None:
                    told = record.asset_materialization.metadata.get("newest")
                    found[key.to_user_string()].setdefault(record.partition_key, None if told is None else str(told.value))
    return dict(found)


def in_tables(warehouse: Warehouse) -> dict[str, dict[str, str | None]]:
    """Table -> partition -> its newest row, as Dagster should tell it."""
    found: dict[str, dict[str, str | None]] = {}
    for table in ("candles", *KINDS):
        grouped = f"SELECT symbol, timeframe, max(opened_at) AS newest FROM {table} GROUP BY ALL"
        answer = rows(warehouse, f"SELECT symbol, timeframe, {instants('newest')} FROM ({grouped})")
        found[table] = {f"{symbol}|{frame}": iso(newest) for symbol, frame, newest in answer}
    return found


def statuses(home: Path) -> list[str]:
    """How the runs stand, oldest first."""
    with instance_of(home) as instance:
        return [run.status.value for run in reversed(instance.get_runs())]


def steps(home: Path) -> list[str]:
    """The steps of the latest run in the order in which they began."""
    with instance_of(home) as instance:
        run = next(iter(instance.get_runs(limit=1)))
        started = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
        return [str(event.step_key) for event in started]
