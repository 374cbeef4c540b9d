"""The refresh sensor: one run over what is due, no storm, no overlap."""

from __future__ import annotations

import dagster as dg
import httpx
import pytest
from dagster._core.test_utils import create_run_for_test

from mdms_pipeline.defs import sensors
from mdms_pipeline.defs.processes import PROCESS_TAG, fail_dead_runs, this_process
from mdms_pipeline.defs.refresh import JOB, TIMEFRAMES_TAG, Ended, Memory, decide, pause, waits
from mdms_pipeline.market import TIMEFRAMES, instant
from mdms_pipeline.sandbox import Fault

from ..support import collect, rows

NOON = instant("2026-11-20T12:00:03")  # 1m, 1h and 4h have just closed
CLOSES = {"1m": 600, "1h": 0, "4h": 0}


# ---- the decision


def test_pauses_double_up_to_five_minutes():
    assert [pause(n) for n in range(7)] == [0, 15, 30, 60, 120, 240, 300]


def test_failures_in_a_row_count_from_the_newest():
    assert waits([], 100) == 0
    assert waits([Ended(False, 99), Ended(True, 98)], 100) == 0
    assert waits([Ended(True, 99), Ended(True, 60), Ended(False, 0)], 100) == 29
    assert waits([Ended(True, 10)], 100) == 0


@pytest.mark.parametrize(
    ("due", "expected"),
    [
        ({}, []),
        ({"1m": "behind"}, ["1m"]),
        ({"1h": "behind", "4h": "behind"}, ["1h", "4h"]),  # neighbours: one run
        ({"1m": "behind", "1h": "behind", "4h": "behind"}, ["1h", "4h"]),  # not neighbours: that which closed first
    ],
)
def test_one_stretch_at_a_time(due, expected):
    assert decide(due, CLOSES, Memory(), [], 1e9)[0] == expected


def test_the_finer_goes_first_where_both_closed_together():
    assert decide({"1m": "", "1h": ""}, {"1m": 0, "1h": 0}, Memory(), [], 1e9)[0] == ["1m"]


def test_no_timeframe_starves():
    """While 1m is always due, 1h is served too."""
    memory, served = Memory(), []
    for minute in range(3):
        closes = {"1m": 3600 + 60 * minute, "1h": 3600}
        chosen, _ = decide({"1m": "", "1h": ""}, closes, memory, [Ended(False, 1e9)], 1e9 + 60 * minute)
        served += chosen
        memory = memory.after(chosen, closes)
    assert {"1m", "1h"} <= set(served)


def test_what_a_run_left_over_waits_but_a_new_close_does_not():
    memory = Memory().after(["1m"], CLOSES)
    assert decide({"1m": "left"}, CLOSES, memory, [Ended(False, 100)], 101)[0] == []
    assert decide({"1m": "left"}, CLOSES, memory, [Ended(False, 100)], 116)[0] == ["1m"]
    assert decide({"1m": "left"}, {**CLOSES, "1m": 660}, memory, [Ended(False, 100)], 101)[0] == ["1m"]


def test_after_a_failure_a_new_close_waits_too():
    assert decide({"1m": ""}, CLOSES, Memory(), [Ended(True, 100)], 101) == ([], "waiting 14 s because the last run failed; due: 1m")


def test_a_memory_survives_its_cursor_and_a_broken_cursor_is_none():
    memory = Memory("state", {"1m": (60, 2)})
    assert Memory.read(memory.write()) == memory
    for text in (None, "", "{}", "17", "[]", '{"idle": 1, "launched": []}'):
        assert Memory.read(text).launched == {}


# ---- over a warehouse


def test_nothing_due_makes_no_run_and_is_not_looked_at_again(house, monkeypatch):
    assert house.requests() == []
    monkeypatch.setattr(sensors, "why_due", None)  # looking again would fail
    result = house.tick()
    assert isinstance(result, dg.SkipReason)
    assert "nothing has closed" in result.skip_message


def test_a_close_makes_one_run_over_every_symbol_of_its_timeframe(house):
    assert house.requests() == []
    house.clock.now += 60
    (request,) = house.requests()
    assert request.tags[TIMEFRAMES_TAG] == "1m"
    assert request.tags["dagster/asset_partition_range_start"] == "KRW-BTC|1m"
    assert request.tags["dagster/asset_partition_range_end"] == "KRW-ETH|1m"
    names = {key.to_user_string() for key in request.asset_selection}
    assert {"candles", "rsi", "screen_results"} <= names
    assert not {"symbols", "volatility_squeeze"} & names


def test_a_candle_that_has_not_settled_is_not_asked_for(house):
    house.requests()
    house.clock.now = instant("2026-11-20T09:31:01")
    assert house.requests() == []
    house.clock.now += 1
    assert len(house.requests()) == 1


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_no_run_while_one_is_unfinished(house, status):
    house.clock.now += 60
    create_run_for_test(house.instance, job_name=JOB, status=status, tags={PROCESS_TAG: this_process()})
    result = house.tick()
    assert isinstance(result, dg.SkipReason)
    assert "under way" in result.skip_message


def test_several_closes_together_are_one_run_per_stretch(house):
    house.clock.now = NOON
    assert house.settle() == ["1m", "1h,4h"]
    assert house.requests() == []
    assert rows(house.warehouse, "SELECT count(*) FROM screen_results WHERE screen = 'volatility_squeeze'")[0][0] >= 2


def test_two_days_of_downtime_are_caught_up_with_by_one_run_per_stretch(house):
    house.clock.now += 2 * 86_400
    assert sorted(house.settle()) == ["1h,4h", "1m"]
    for symbol, name, held in rows(house.warehouse, "SELECT symbol, timeframe, count(*) FROM candles GROUP BY ALL"):
        start, end = rows(
            house.warehouse,
            "SELECT epoch(covered_from)::BIGINT, epoch(covered_to)::BIGINT FROM coverage WHERE symbol = ? AND timeframe = ?", symbol, name,
        )[0]  # fmt: skip
        truth = house.sandbox.candles(symbol, TIMEFRAMES[name], end, TIMEFRAMES[name].slots(start, end))
        assert held == int((truth.opened_at >= start).sum())
        assert end == TIMEFRAMES[name].floor(int(house.clock.now) - 2)


def test_an_exchange_that_is_down_is_asked_less_and_less(house, monkeypatch):
    now = [1e9]
    monkeypatch.setattr(sensors.time, "time", lambda: now[0])
    monkeypatch.setattr(sensors, "_ended", lambda record: Ended(record.dagster_run.status in sensors.FAILED, now[0] - 1))
    house.sandbox.faults = lambda path, query: Fault.timeout()
    house.clock.now += 60
    (request,) = house.requests()
    assert not house.execute(request).success
    assert house.requests() == []  # waits
    monkeypatch.setattr(sensors, "_ended", lambda record: Ended(record.dagster_run.status in sensors.FAILED, now[0] - 16))
    (request,) = house.requests()
    assert not house.execute(request).success
    assert house.requests() == []  # 16 s are not enough any more
    house.sandbox.faults = None
    monkeypatch.setattr(sensors, "_ended", lambda record: Ended(record.dagster_run.status in sensors.FAILED, now[0] - 31))
    assert house.settle() == ["1m"]


def test_one_market_that_fails_does_not_hold_up_the_others(house, monkeypatch):
    now = [1e9]
    monkeypatch.setattr(sensors.time, "time", lambda: now[0])
    monkeypatch.setattr(sensors, "_ended", lambda record: Ended(record.dagster_run.status in sensors.FAILED, now[0]))
    house.sandbox.faults = lambda path, query: Fault.shape() if query.get("market") == "KRW-ETH" else None
    for _ in range(2):
        house.clock.now += 60
        (request,) = house.requests()  # at each close, at once
        assert house.execute(request).success
        assert house.requests() == []  # what failed waits
    assert rows(house.warehouse, "SELECT state FROM status WHERE timeframe = '1m' ORDER BY symbol") == [("fresh",), ("failed",)]


def test_without_a_universe_no_run(empty):
    result = empty.tick()
    assert isinstance(result, dg.SkipReason)
    assert "universe" in result.skip_message


# ---- runs whose process died


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_a_run_whose_process_is_gone_is_failed_and_holds_up_nothing(house, status):
    host, boot, pid, start = this_process().split(":")
    run = create_run_for_test(house.instance, job_name=JOB, status=status, tags={PROCESS_TAG: f"{host}:{boot}:{pid}:{int(start) - 1}"})
    house.clock.now += 60
    house.tick()
    assert house.instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_run_of_another_machine_or_of_a_process_that_lives_is_left_alone(house):
    for tag in (this_process(), "elsewhere:boot:1:1"):
        create_run_for_test(house.instance, job_name=JOB, status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: tag})
    assert fail_dead_runs(house.instance) == []


def test_a_run_that_repeats_a_dead_one_is_not_dead(house):
    host, boot, pid, start = this_process().split(":")
    dead = {PROCESS_TAG: f"{host}:{boot}:{pid}:{int(start) - 1}"}
    parent = create_run_for_test(house.instance, job_name=JOB, status=dg.DagsterRunStatus.FAILURE, tags=dead)
    create_run_for_test(
        house.instance, job_name=JOB, status=dg.DagsterRunStatus.STARTED, tags=dead, parent_run_id=parent.run_id, root_run_id=parent.run_id
    )
    assert fail_dead_runs(house.instance) == []


def test_a_run_is_signed_by_the_process_that_executes_it(house):
    house.clock.now += 60
    (request,) = house.requests()
    assert PROCESS_TAG not in request.tags
    done = house.execute(request._replace(asset_selection=[dg.AssetKey("candles")]))
    assert house.instance.get_run_by_id(done.run_id).tags[PROCESS_TAG] == this_process()


# ---- work outside of Dagster


def test_a_collection_outside_of_dagster_is_followed_without_a_second_one(house):
    assert house.requests() == []
    house.clock.now += 60
    collect(house.warehouse, house.sandbox, [(symbol, "1m") for symbol in ("KRW-BTC", "KRW-ETH")])
    before = len(house.asked())
    (request,) = house.requests()
    assert request.tags[TIMEFRAMES_TAG] == "1m"
    assert house.execute(request).success
    assert len(house.asked()) == before
    assert house.requests() == []
    bars = rows(house.warehouse, "SELECT max(opened_at) FROM candles WHERE timeframe = '1m'")
    assert rows(house.warehouse, "SELECT max(opened_at) FROM rsi WHERE timeframe = '1m'") == bars


def test_an_update_of_the_universe_outside_of_dagster_makes_partitions(house):
    house.requests()
    with house.warehouse.write() as connection:
        connection.execute("UPDATE symbols SET in_universe = true WHERE symbol = 'KRW-XRP'")
        connection.execute(
            "INSERT INTO events VALUES (nextval('event_id'), 'market_listed', ['KRW-XRP'], NULL, 1, 0, now()::TIMESTAMP, NULL)"
        )
    (request,) = house.requests()
    assert request.tags["dagster/asset_partition_range_end"].startswith("KRW-XRP|")
    assert house.instance.has_dynamic_partition("symbol", "KRW-XRP")


def test_no_sensor_speaks_to_the_exchange(house, monkeypatch):
    def refuse(*_: object, **__: object) -> httpx.Response:
        raise AssertionError("a sensor has asked the network")

    monkeypatch.setattr(httpx.AsyncClient, "send", refuse)
    house.clock.now += 3_600
    for name in ("refresh", "listings", "watch"):
        house.tick(name)
