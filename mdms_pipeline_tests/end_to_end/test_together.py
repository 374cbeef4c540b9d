"""Two runs at once, and one that has to wait: both end well, nothing is lost, nothing is doubled."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.store import Warehouse
from mdms_pipeline_tests.end_to_end.conftest import Ran
from mdms_pipeline_tests.end_to_end.dagster_record import newest, statuses
from mdms_pipeline_tests.support import HOUR, NOW, Mdms, beside, bits, broken, environment, rows


def opened(home: Path) -> Warehouse:
    return Warehouse(home / "mdms.duckdb", "sandbox", memory_mb=200)


def is_whole(home: Path, like: Path) -> None:
    """Tables as if one had run alone, each bar calculated once, and Dagster's record level with them."""
    warehouse = opened(home)
    assert bits(warehouse) == bits(opened(like))
    assert broken(warehouse) == []
    for table in ("candles", *KINDS):
        assert rows(warehouse, f"SELECT count(*) - count(DISTINCT (symbol, timeframe, opened_at)) FROM {table}") == [(0,)]
    assert rows(warehouse, "SELECT DISTINCT bars = calculated FROM memory") == [(True,)]
    record, end = newest(home), rows(warehouse, "SELECT max(opened_at) FROM candles")[0][0]
    for table in ("candles", *KINDS):
        assert set(record[table].values()) == {f"{end:%Y-%m-%dT%H:%M:%SZ}"}
    assert set(statuses(home)) == {"SUCCESS"}


def hold_lock(ready: Any, home: Path, seconds: float) -> None:
    home.mkdir(exist_ok=True)
    handle = os.open(home / "mdms.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    ready.set()
    time.sleep(seconds)


def run_twice(home: Path, at: int, folder: Path) -> None:
    """Two runs at once, both of which have to wait for the lock at first."""
    given = environment(home, at)
    with beside(hold_lock, home, 5.0):
        both = [Mdms(["run", "--json"], given, folder / f"said{number}") for number in (1, 2)]
        assert all(one.process.is_alive() for one in both)
    for said in [one.wait() for one in both]:
        assert (said.code, said.err) == (0, "")


def test_two_first_runs_at_once(first_run: Ran, home: Path, tmp_path: Path) -> None:
    """In a home that neither has seen: also the warehouse and Dagster's files are made by both."""
    run_twice(home, NOW, tmp_path)
    is_whole(home, first_run.home)


def test_two_at_once_over_what_is_there(ran: Path, second_run: Ran, tmp_path: Path) -> None:
    run_twice(ran, NOW + HOUR, tmp_path)
    is_whole(ran, second_run.home)
