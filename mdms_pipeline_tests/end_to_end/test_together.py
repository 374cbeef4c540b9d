"""Two runs at once, and one that has to wait: both end well, nothing is lost, nothing is doubled."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.store import Warehouse
from mdms_pipeline_tests.end_to_end.dagster_record import newest, statuses
from mdms_pipeline_tests.support import HOUR, NOW, Mdms, Said, beside, bits, broken, environment, rows

LATER = NOW + HOUR


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


def test_two_first_runs_at_once(first_run: tuple[Path, Said], home: Path, tmp_path: Path) -> None:
    """In a home that neither has seen: also the warehouse and Dagster's files are made by both."""
    given = environment(home)
    both = [Mdms(["run", "--json"], given, tmp_path / f"said{number}") for number in (1, 2)]
    for said in [one.wait() for one in both]:
        assert (said.code, said.err) == (0, "")
    is_whole(home, first_run[0])


def hold_lock(ready: Any, path: Path, seconds: float) -> None:
    handle = os.open(path, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    ready.set()
    time.sleep(seconds)


def test_two_at_once_while_another_process_holds_the_lock(ran: Path, tmp_path: Path) -> None:
    alone = Mdms(["run", "--json"], environment(ran, LATER), tmp_path / "alone")
    assert alone.wait().code == 0
    home = tmp_path / "other"
    first = Mdms(["run", "--json"], environment(home), tmp_path / "first")
    assert first.wait().code == 0
    given = environment(home, LATER)
    with beside(hold_lock, home / "mdms.lock", 5.0):
        both = [Mdms(["run", "--json"], given, tmp_path / f"said{number}") for number in (1, 2)]
        assert all(one.process.is_alive() for one in both)
    for said in [one.wait() for one in both]:
        assert (said.code, said.err) == (0, "")
    is_whole(home, ran)
