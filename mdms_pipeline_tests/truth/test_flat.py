"""What indicators see of slots without a trade: `skip` nothing, `flat` the previous close. Chosen once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mdms_pipeline.calculate.run import calculate as in_ram
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, instant
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.series import EVER, flattened, read_all, read_bars
from mdms_pipeline.store.warehouse import WrongNoTrade
from mdms_pipeline_tests.support import Clock, bits, calculate, collect, rows
from mdms_pipeline_tests.truth.world import INDICATORS

QUIET = "KRW-META"


def made(path: Path, no_trade: str | None) -> Warehouse:
    return Warehouse(path / "mdms.duckdb", "sandbox", no_trade=no_trade)


def test_the_choice_holds_for_good(tmp_path: Path, exchange: Sandbox) -> None:
    warehouse = made(tmp_path, "flat")
    made(tmp_path, "skip")  # nothing is stored yet: it may still be changed
    warehouse = made(tmp_path, "flat")
    collect(warehouse, exchange, [("KRW-BTC", "1h")], 10)
    with pytest.raises(WrongNoTrade, match="MDMS_NO_TRADE=flat, not skip"):
        made(tmp_path, "skip")
    assert made(tmp_path, None).no_trade is None  # who does not ask takes what there is


def test_flat_is_the_candles_filled_up_in_any_portions(tmp_path: Path, exchange: Sandbox, now: Clock) -> None:
    """Rows and memories are those of one calculation over all bars, however the slots arrived."""
    dice, end = np.random.default_rng(5), now.now
    whole, portions = made(tmp_path / "whole", "flat"), made(tmp_path / "portions", "flat")
    now.now = end - 300 * 60
    collect(portions, exchange, [(QUIET, "1m")], 60)
    calculate(portions, [QUIET], ["1m"], INDICATORS)
    while now.now < end:
        now.now = min(end, now.now + 60 * int(dice.integers(1, 90)))
        collect(portions, exchange, [(QUIET, "1m")], 60)
        calculate(portions, [QUIET], ["1m"], INDICATORS)
    since = rows(portions, "SELECT epoch(min(opened_at))::BIGINT FROM candles")[0][0]
    count = rows(portions, "SELECT count(*) FROM candles")[0][0]
    collect(whole, exchange, [(QUIET, "1m")], count)
    calculate(whole, [QUIET], ["1m"], INDICATORS)
    assert rows(whole, "SELECT epoch(min(opened_at))::BIGINT FROM candles")[0][0] == since
    assert bits(portions) == bits(whole)
    bars = rows(whole, "SELECT epoch(opened_at)::BIGINT, * EXCLUDE (symbol, timeframe, opened_at) FROM bars ORDER BY 1")
    assert np.diff([row[0] for row in bars]).tolist() == [60] * (len(bars) - 1)
    assert len(bars) > count  # there are slots without a trade
    with whole.read() as connection:
        series = read_bars(connection, PRICES_AND_AMOUNTS, "1m", {QUIET: EVER})[QUIET]
    assert [tuple(row) for row in bars] == list(
        zip(series.opened_at.tolist(), *(series.columns[name].tolist() for name in PRICES_AND_AMOUNTS), strict=True)
    )
    expected = in_ram(INDICATORS, Candles(series.opened_at, *(series.columns[name] for name in PRICES_AND_AMOUNTS)))
    with whole.read() as connection:
        stored = read_all(connection, {"candles": ["close"], "rsi": ["rsi_14"]}, "1m", QUIET)
    assert np.array_equal(stored.columns["rsi_14"], expected["rsi_14"], equal_nan=True)
    assert rows(whole, "SELECT count(*) FROM indicators") == [(len(bars),)]


def test_skip_and_flat_differ_only_where_there_was_no_trade(tmp_path: Path, exchange: Sandbox) -> None:
    skip, flat = made(tmp_path / "skip", "skip"), made(tmp_path / "flat", "flat")
    for warehouse in (skip, flat):
        collect(warehouse, exchange, [(QUIET, "1m")], 300)
        calculate(warehouse, [QUIET], ["1m"], INDICATORS)
    assert bits(skip, ["candles"]) == bits(flat, ["candles"])  # never rows of candles
    count = "SELECT count(*) FROM rsi"
    assert rows(skip, count) == [(300,)]
    assert rows(flat, count) == rows(flat, "SELECT count(*) FROM bars")
    assert rows(flat, count) > rows(skip, count)
    added = "SELECT count(*) FROM bars ANTI JOIN candles USING (symbol, timeframe, opened_at)"
    assert rows(skip, added) == [(0,)]
    assert rows(flat, f"{added} WHERE volume = 0 AND value = 0 AND open = close AND high = low AND open = high") == rows(flat, added)
    marks = {warehouse: {mark for (mark,) in rows(warehouse, "SELECT fingerprint FROM memory")} for warehouse in (skip, flat)}
    assert marks[skip] & marks[flat] == set()


def test_months_are_filled_up_too() -> None:
    from mdms_pipeline.store.series import Series

    opened_at = np.array([instant("2026-01-01"), instant("2026-04-01")])
    found = flattened(Series(opened_at, {"close": np.array([5.0, 7.0])}), "1M", EVER[0], instant("2026-05-01"))
    assert found.opened_at.tolist() == [instant(f"2026-0{month}-01") for month in (1, 2, 3, 4, 5)]
    assert found.columns["close"].tolist() == [5, 5, 5, 7, 7]
