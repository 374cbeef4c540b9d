"""Listings, freshness and alerts, screens at their own times."""

from __future__ import annotations

import json

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from mdms_pipeline.alerts import GRACE, append_line, deliver, evaluate
from mdms_pipeline.collect.pace import Block
from mdms_pipeline.defs import sensors
from mdms_pipeline.defs.processes import PROCESS_TAG, this_process
from mdms_pipeline.defs.refresh import JOB, Ended
from mdms_pipeline.settings import Settings
from mdms_pipeline.store.alerts import alerts, raise_alert, resolve_alert
from mdms_pipeline.store.journal import emit
from mdms_pipeline.store.subscribe import cursors

from ..support import NOW, rows

OFTEN = """
title: Every hour at ten past
timeframe: 1h
schedule: "10 * * * *"
where: close > 0
rank: {expression: close, direction: desc}
"""


def said(house):
    """The alerts told in the file: (state, kind, subject)."""
    file = house.settings.alerts
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [(line["state"], line["kind"], line["subject"]) for line in lines]


# ---- listings


def test_a_home_without_a_universe_gets_one(empty):
    (request,) = empty.requests("listings")
    assert empty.execute(request, "universe").success
    assert empty.instance.get_dynamic_partitions("symbol") == ["KRW-BTC", "KRW-ETH"]
    assert empty.requests("listings") == []
    (refresh,) = empty.requests()
    assert refresh.tags["dagster/asset_partition_range_end"].startswith("KRW-ETH|")


def test_the_markets_are_looked_at_every_ten_minutes_and_news_of_them_is_told(house):
    assert house.requests("listings") == []
    house.sandbox.listing("KRW-NEWCOIN", price=100.0)
    house.clock.now += sensors.LISTINGS_SECONDS
    (request,) = house.requests("listings")
    assert house.execute(request, "universe").success
    result = house.tick("listings")
    assert "market_listed: KRW-NEWCOIN" in result.skip_reason.skip_message
    assert "market_listed" not in house.tick("listings").skip_reason.skip_message  # the cursor has moved


def test_listings_wait_after_a_failure_and_while_a_run_is_under_way(empty, monkeypatch):
    create_run_for_test(empty.instance, job_name="universe", status=dg.DagsterRunStatus.FAILURE)
    assert empty.requests("listings") == []
    monkeypatch.setattr(sensors, "_ended", lambda record: Ended(True, 0.0))
    assert len(empty.requests("listings")) == 1
    create_run_for_test(empty.instance, job_name="universe", status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: this_process()})
    assert empty.requests("listings") == []


# ---- freshness and alerts


def verdict(result):
    return [(event.check_name, event.passed) for event in result.asset_events]


def test_data_that_goes_stale_without_a_run_turns_the_check_red_and_raises_one_alert(house):
    assert verdict(house.tick("watch")) == [("fresh", True)]
    assert verdict(house.tick("watch")) == []  # nothing new
    house.clock.now += GRACE + 120
    result = house.tick("watch")
    assert verdict(result) == [("fresh", False)]
    assert "KRW-BTC" in result.asset_events[0].description
    house.tick("watch")
    assert said(house) == [("raised", "stale data", "1m")]
    house.settle()
    assert verdict(house.tick("watch")) == [("fresh", True)]
    house.tick("watch")
    assert said(house) == [("raised", "stale data", "1m"), ("resolved", "stale data", "1m")]


def test_a_market_just_chosen_has_some_time_until_it_is_stale(empty):
    (request,) = empty.requests("listings")
    empty.execute(request, "universe")
    empty.tick("watch")
    assert said(empty) == []
    empty.clock.now += GRACE + 1
    empty.tick("watch")
    assert {subject for _, _, subject in said(empty)} == {"1m", "1h", "4h"}


def test_failed_runs_are_one_alert_until_one_ends_well(house):
    for _ in range(2):
        create_run_for_test(house.instance, job_name=JOB, status=dg.DagsterRunStatus.FAILURE)
        house.tick("watch")
    assert said(house) == [("raised", "run failed", "refresh")]
    create_run_for_test(house.instance, job_name=JOB, status=dg.DagsterRunStatus.SUCCESS)
    house.tick("watch")
    assert said(house)[1:] == [("resolved", "run failed", "refresh")]


def test_the_failure_of_a_run_says_what_its_step_said(house):
    from mdms_pipeline.sandbox import Fault

    house.sandbox.faults = lambda path, query: Fault.timeout()
    house.clock.now += 60
    (request,) = house.requests()
    failed = house.execute(request)
    assert not failed.success
    run = house.instance.get_run_by_id(failed.run_id)
    event = next(event for event in failed.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE)
    sensor = house.definitions.get_repository_def().get_sensor_def("failed")
    context = dg.build_run_status_sensor_context(
        "failed", event, house.instance, run, resources={"warehouse": house.resource()}
    ).for_run_failure()
    sensor(context)
    with house.warehouse.read() as connection:
        (alert,) = alerts(connection, only_open=True)
    assert (alert.kind, alert.subject) == ("run failed", "refresh")
    assert "no market could be collected" in alert.message


def test_a_delisted_market_is_told_of_once(house):
    house.sandbox.delist("KRW-ETH", int(house.clock.now))
    house.clock.now += sensors.LISTINGS_SECONDS
    (request,) = house.requests("listings")
    house.execute(request, "universe")
    for _ in range(2):
        evaluate(house.warehouse, house.settings, int(house.clock.now) - GRACE, None)
        deliver(house.warehouse, house.settings)
    assert [line for line in said(house) if line[1] == "delisted"] == [("raised", "delisted", "KRW-ETH")]


def test_a_block_by_the_exchange_is_told_of_and_its_end_too(house):
    evaluate(house.warehouse, house.settings, NOW, Block(at=1e9, seconds=60.0, said="too many requests"))
    evaluate(house.warehouse, house.settings, NOW, None)
    deliver(house.warehouse, house.settings)
    assert [(state, kind) for state, kind, _ in said(house) if kind == "blocked"] == [("raised", "blocked"), ("resolved", "blocked")]
    assert (
        "blocked this address until 2001-09-09 01:47 UTC, nothing is asked before: too many requests" in house.settings.alerts.read_text()
    )


def test_a_webhook_that_fails_holds_up_only_itself_and_comes_again(house, monkeypatch):
    from dataclasses import replace

    from mdms_pipeline import alerts as module

    wanted, got = replace(house.settings, alert_url="http://127.0.0.1:1/alerts"), []
    with house.warehouse.write() as connection:
        raise_alert(connection, "run failed", "refresh", "a reason", NOW)
        assert not raise_alert(connection, "run failed", "refresh", "another", NOW)

    def refuse(url, body):
        raise OSError("connection refused")

    deliver(house.warehouse, wanted, refuse)
    assert said(house) == [("raised", "run failed", "refresh")]
    with house.warehouse.read() as connection:
        held = {one.subscriber: one for one in cursors(connection)}
    assert held["alerts-webhook"].attempts == 1
    assert "connection refused" in held["alerts-webhook"].error
    deliver(house.warehouse, wanted, lambda url, body: got.append((url, body)))
    assert got == []  # pauses
    monkeypatch.setattr(module, "_pause", lambda attempts: -1.0)
    deliver(house.warehouse, wanted, lambda url, body: got.append((url, body)))
    assert [(url, body["text"]) for url, body in got] == [("http://127.0.0.1:1/alerts", "a reason")]
    with house.warehouse.write() as connection:
        assert resolve_alert(connection, "run failed", "refresh", NOW)
        assert not resolve_alert(connection, "run failed", "refresh", NOW)
    deliver(house.warehouse, wanted, lambda url, body: got.append((url, body)))
    assert [body["state"] for _, body in got] == ["raised", "resolved"]


def test_a_line_told_twice_stands_once_and_half_a_line_is_no_line(tmp_path):
    file = tmp_path / "alerts.jsonl"
    append_line(file, {"id": 1})
    append_line(file, {"id": 1})
    with file.open("a") as lines:
        lines.write('{"id": 2')  # killed while writing
    append_line(file, {"id": 2})
    assert file.read_text() == '{"id": 1}\n{"id": 2\n{"id": 2}\n'


# ---- screens at their own times


@pytest.fixture
def scheduled(house):
    folder = house.settings.home / "own" / "screens"
    folder.mkdir(parents=True)
    (folder / "often.yaml").write_text(OFTEN)
    house.settings = Settings(**{**vars(house.settings), "extensions": folder.parent})
    return house


def test_a_screen_with_a_schedule_runs_then_and_nothing_is_collected(scheduled):
    house = scheduled
    assert house.requests() == []  # a refresh neither judges nor waits for it
    schedule = house.definitions.get_repository_def().get_schedule_def("screen_often")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("10 * * * *", "UTC")
    request = schedule(dg.build_schedule_context(house.instance))
    before = len(house.sandbox.log)
    done = house.execute(request, "screening")
    assert done.success
    assert len(house.sandbox.log) == before
    assert {key.to_user_string() for key in request.asset_selection} == {"screen_results", "often"}
    assert rows(house.warehouse, "SELECT screen, count(*) FROM screen_results WHERE run_id = ? GROUP BY 1", done.run_id) == [("often", 2)]
    assert house.requests() == []


def test_a_refresh_leaves_it_out(scheduled):
    scheduled.clock.now += 3_600
    names = {key.to_user_string() for request in scheduled.requests() for key in request.asset_selection}
    assert "screen_results" in names
    assert "often" not in names


def test_an_event_of_a_stranger_does_no_harm(house):
    with house.warehouse.write() as connection:
        emit(connection, "something_else", NOW, None, [], None, 0)
    assert house.requests() == []
    house.tick("watch")
    house.tick("listings")


# ---- backtests

EVERY_HOUR = """
title: Made anew every hour
timeframe: 1h
universe: [KRW-BTC]
entry: close > close[1]
exit: close < close[1]
size: {fraction: 0.5}
schedule: refresh
"""


def test_a_backtest_that_asks_for_it_is_made_after_each_refresh_of_its_timeframe(house):
    folder = house.settings.home / "own" / "strategies"
    folder.mkdir(parents=True)
    (folder / "every_hour.yaml").write_text(EVERY_HOUR)
    house.settings = Settings(**{**vars(house.settings), "extensions": folder.parent})
    (request,) = house.requests("backtests")
    assert request.asset_selection == [dg.AssetKey("backtest_every_hour")]
    done = house.execute(request, "backtests")
    assert done.success
    assert {check.check_name for check in done.get_asset_check_evaluations()} == {"look_ahead", "warm_up"}
    assert rows(house.warehouse, "SELECT strategy, run_id FROM backtest_runs") == [("every_hour", done.run_id)]
    house.clock.now += 60
    assert house.settle() == ["1m"]
    assert house.requests("backtests") == []  # of another timeframe
    house.clock.now += 3_600
    (refresh,) = house.requests()
    run = create_run_for_test(house.instance, job_name=JOB, status=dg.DagsterRunStatus.STARTED)
    assert house.execute(refresh).success
    assert house.requests("backtests") == []  # a refresh is under way
    house.instance.report_run_canceled(run)
    assert len(house.requests("backtests")) == 1  # nothing was forgotten


def test_without_such_a_strategy_nothing_is_made(house):
    assert house.requests("backtests") == []
