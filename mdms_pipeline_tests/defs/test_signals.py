"""The asset `signals`: what came is reported once, and the check finds whatever is not as the candles say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mdms_pipeline.defs.resources import Mdms, WarehouseResource
from mdms_pipeline.defs.signals import (
    PARITY_SECONDS,
    live_parity_check,
    parity_job,
    parity_result,
    signals_asset,
    signals_metadata,
    signals_sensor,
    signals_table,
)
from mdms_pipeline.live.deliver import Delivery, Table
from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.ran import Compared, compare
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.alerts import alerts
from mdms_pipeline.store.signals import keep, last_signals
from mdms_pipeline_tests.docs.pages import blocks
from mdms_pipeline_tests.live.made import AT, WATCHED, signal
from mdms_pipeline_tests.live.stream import Simulation
from mdms_pipeline_tests.live.test_parity import BEGAN, simulation
from mdms_pipeline_tests.support import HOUR, NOW, candles, page, put, rows, settings

# ---- the sensor


def kept(warehouse: Warehouse, first: int, last: int) -> None:
    with warehouse.write() as connection:
        keep(connection, [signal(i) for i in range(first, last)], [], last, NOW)


class Ticking:
    """A sensor and its cursor."""

    def __init__(self, given: Settings, now: list[int]) -> None:
        self.sensor = signals_sensor(Mdms(given, clock=lambda: now[0]))
        self.instance = dg.DagsterInstance.ephemeral()
        self.resource = WarehouseResource(database=str(given.warehouse), exchange=given.exchange_url)
        self.cursor: str | None = None

    def tick(self) -> dg.SensorResult | dg.SkipReason:
        result = self.sensor(dg.build_sensor_context(self.instance, cursor=self.cursor, resources={"warehouse": self.resource}))
        if isinstance(result, dg.SensorResult):
            self.cursor = result.cursor
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        return result


def reported(result: dg.SensorResult | dg.SkipReason) -> list[int]:
    """How many signals each observation tells of."""
    events = result.asset_events if isinstance(result, dg.SensorResult) else []
    assert all(event.asset_key == dg.AssetKey("signals") for event in events)
    return [int(event.metadata["signals"].value) for event in events if isinstance(event, dg.AssetObservation)]  # type: ignore[union-attr,call-overload,arg-type]


def requested(result: dg.SensorResult | dg.SkipReason) -> int:
    """How many runs of the check are asked for, each with a materialization that it stands for."""
    if not isinstance(result, dg.SensorResult):
        return 0
    runs = len(result.run_requests or [])
    assert sum(isinstance(event, dg.AssetMaterialization) for event in result.asset_events) == runs
    return runs


def test_all_that_came_is_one_observation_and_comes_once(home: Path) -> None:
    given, now = settings(home), [NOW]
    warehouse, ticking = Warehouse(given.warehouse, "sandbox"), Ticking(given, now)
    assert isinstance(ticking.tick(), dg.SkipReason)
    for first in (0, 5, 10):
        kept(warehouse, first, first + 5)
    assert reported(ticking.tick()) == [15]
    assert reported(ticking.tick()) == []
    kept(warehouse, 15, 16)
    assert reported(ticking.tick()) == [1]
    assert reported(ticking.tick()) == []


def test_signals_are_compared_after_candles_were_collected_but_not_too_often(home: Path) -> None:
    given, now = settings(home), [NOW]
    warehouse, ticking = Warehouse(given.warehouse, "sandbox"), Ticking(given, now)

    def collected(hour: int) -> int:
        put(warehouse, page("KRW-BTC", candles(AT - (30 - hour) * HOUR, 1)))
        return requested(ticking.tick())

    kept(warehouse, 0, 5)
    assert collected(0) == 0  # no candle of what was watched is stored
    with warehouse.write() as connection:
        keep(connection, [], [replace(WATCHED, since=AT - 30 * HOUR, until=AT)], 1, NOW)
    assert requested(ticking.tick()) == 0
    assert collected(1) == 1
    assert collected(2) == 0
    now[0] += PARITY_SECONDS
    assert requested(ticking.tick()) == 0
    assert collected(3) == 1


def test_signals_make_no_refresh(home: Path) -> None:
    """What is written outside of Dagster is followed by a refresh; a signal changes nothing that it would make."""
    from mdms_pipeline.store.journal import writers_after

    given = settings(home)
    warehouse = Warehouse(given.warehouse, "sandbox")
    kept(warehouse, 0, 5)
    with warehouse.read() as connection:
        assert writers_after(connection, "1h", 0) == set()


def test_the_documented_sensor_raises_an_alert_for_each_entry(home: Path) -> None:
    """docs/signals.md, as it stands there."""
    given = settings(home)
    warehouse = Warehouse(given.warehouse, "sandbox")
    with warehouse.write() as connection:
        keep(connection, [signal(0, answer=True), signal(1, answer=False), signal(2, answer=True, rule="exit")], [], 1, NOW)
    (code,) = (block.code for block in blocks("docs/signals.md", "python") if "dg.sensor" in block.code)
    made: dict[str, Any] = {}
    exec(code, made)
    resource = WarehouseResource(database=str(given.warehouse), exchange=given.exchange_url)
    context = dg.build_sensor_context(dg.DagsterInstance.ephemeral(), resources={"warehouse": resource})
    for _ in range(2):
        assert isinstance(made["entries"](context), dg.SkipReason)
        with warehouse.read() as connection:
            assert [(one.kind, one.subject) for one in alerts(connection)] == [("entry", "KRW-BTC")]


def test_what_is_shown(warehouse: Warehouse) -> None:
    with warehouse.write() as connection:
        keep(connection, [signal(0, answer=None), signal(1, revision=2)], [], 1, NOW)
    with warehouse.read() as connection:
        last = last_signals(connection)
    table = signals_table(last).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert "KRW-\u2060BTC" in table[2]
    assert ", revision 2" in table[2]
    assert "`sma(20)[1]` " in table[2]
    shown = signals_metadata([], type("Whole", (), {"total": 2, "by_rule": {"a": 2}, "newest": AT})(), last)
    assert shown["slowest_emission_ms"] == pytest.approx(126.544)


# ---- the check


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """A day of live signals, with cuts and a restart, delivered into the table; the candles were collected after it."""
    found = simulation(tmp_path_factory.mktemp("ran"), "1h,4h", 3)
    found.collect()
    for hours in (14, 20):
        found.listen(int(found.clock()) + hours * HOUR)
        Delivery(Journal(found.folder), (), Table(Journal(found.folder), found.warehouse, found.clock)).close(60)
    found.collect()
    return found


@pytest.fixture
def tampered(ran: Simulation) -> Iterator[Warehouse]:
    """A copy of its warehouse."""
    copy = ran.settings.home / "copy.duckdb"
    copy.write_bytes(ran.warehouse.path.read_bytes())
    yield Warehouse(copy, "sandbox", 600)
    copy.unlink()


def compared(ran: Simulation, warehouse: Warehouse) -> Compared:
    with warehouse.read() as connection:
        return compare(connection, ran.watches, int(ran.clock()))


def test_what_ran_is_what_is_stored(ran: Simulation) -> None:
    found = compared(ran, ran.warehouse)
    assert [str(one) for one in found.differences[:5]] == []
    assert found.signals > 50
    assert found.judged > found.signals
    assert (found.changed, found.corrected) == (set(), set())


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("DELETE FROM signals WHERE number = {}", "missing"),
        ("UPDATE signals SET opened_at = opened_at + INTERVAL 1 SECOND WHERE number = {}", "too much"),
        ("UPDATE signals SET before = NULL WHERE number = {}", "otherwise"),
        ("UPDATE signals SET symbol = 'KRW-XXX' WHERE number = {}", "missing"),
    ],
)
def test_whatever_is_not_as_the_candles_say_is_found(ran: Simulation, tampered: Warehouse, damage: str, what: str) -> None:
    ((number,),) = rows(
        tampered, """SELECT min(number) FROM signals WHERE answer IS NOT NULL AND before IS NOT NULL AND "values" LIKE '%.%' AND
                     (symbol, opened_at) IN (SELECT (symbol, opened_at) FROM candles)"""
    )  # fmt: skip
    with tampered.write() as connection:
        connection.execute(damage.format(number))
    assert what in {one.what for one in compared(ran, tampered).differences}


def test_a_value_that_is_off_by_its_last_bit_is_found(ran: Simulation, tampered: Warehouse) -> None:
    with tampered.write() as connection:
        one = [found for found in last_signals(connection, 1_000) if any(found.values.values())][-1]  # the oldest
        off = {name: value and math.nextafter(value, math.inf) for name, value in one.values.items()}
        connection.execute('UPDATE signals SET "values" = ? WHERE number = ?', [json.dumps(off), one.number])
    assert [found.what for found in compared(ran, tampered).differences] == ["otherwise"]


def test_what_differs_at_the_last_bar_judged_is_open_until_somebody_has_listened_after_it(
    ran: Simulation, tampered: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trade may be told after the clock has closed its bar. Who listens takes the bar back; where nobody does, nobody can."""
    ((number, opened_at),) = rows(
        tampered,
        """SELECT number, epoch(s.opened_at)::BIGINT FROM signals s WHERE before IS NOT NULL AND answer IS NOT NULL AND
           s.opened_at = (SELECT max(until) FROM watched w WHERE w.name = s.name AND w.rule = s.rule) ORDER BY ALL LIMIT 1""",
    )
    with tampered.write() as connection:
        connection.execute("UPDATE signals SET before = NULL WHERE number = ?", [number])
    found = compared(ran, tampered)
    assert ([one.what for one in found.open], found.differences) == (["otherwise"], [])
    assert found.open[0].key[-1] == opened_at
    assert found.said.endswith("none differs; 1 open, of the last bar judged")
    result = parity_result(found)
    assert (result.passed, str(found.open[0])) == (True, result.metadata["open"].value)
    monkeypatch.setattr("mdms_pipeline.live.ran.COARSE", ("1h", "4h"))  # as days are: closed by what REST tells then, which is final
    assert ([one.what for one in compared(ran, tampered).differences], compared(ran, tampered).open) == (["otherwise"], [])
    monkeypatch.undo()
    with tampered.write() as connection:  # everybody was judged once more, and nothing taken back
        connection.execute("UPDATE watched SET until = until + to_hours(IF(timeframe = '1h', 1, 4))")
    found = compared(ran, tampered)
    assert ([one.what for one in found.differences], found.open) == (["otherwise"], [])


def test_a_rule_that_has_changed_is_named_and_not_compared(ran: Simulation) -> None:
    with ran.warehouse.read() as connection:
        found = compare(connection, ran.watches[1:], int(ran.clock()))
    assert found.changed == {" ".join(ran.watches[0].known_by)}
    assert found.differences == []


def test_a_market_whose_candles_were_corrected_is_left_out(ran: Simulation, tampered: Warehouse) -> None:
    with tampered.write() as connection:
        later = f"make_timestamp({(BEGAN + 9 * HOUR) * 10**6})"
        connection.execute(f"INSERT INTO revisions (symbol, timeframe, opened_at, revised_at) VALUES ('KRW-BTC', '1h', now(), {later})")
        connection.execute("DELETE FROM signals WHERE symbol = 'KRW-BTC' AND timeframe = '1h'")
    found = compared(ran, tampered)
    assert found.differences == []
    assert found.corrected == {"KRW-BTC 1h"}


def test_the_check_in_dagster(ran: Simulation, tampered: Warehouse) -> None:
    check = live_parity_check(ran.watches)
    definitions = dg.Definitions(
        assets=[signals_asset(ran.watches)], asset_checks=[check], jobs=[parity_job()], executor=dg.in_process_executor,
        resources={
            "warehouse": WarehouseResource(database=str(tampered.path), exchange="sandbox"), "mdms": Mdms(ran.settings, clock=ran.clock),
        },
    )  # fmt: skip
    job = definitions.resolve_job_def("live_parity")
    (good,) = job.execute_in_process().get_asset_check_evaluations()
    assert (good.passed, good.check_name, good.asset_key) == (True, "live_parity", dg.AssetKey("signals"))
    with tampered.write() as connection:
        connection.execute("DELETE FROM signals WHERE number % 10 = 0")
    (bad,) = job.execute_in_process().get_asset_check_evaluations()
    assert (bad.passed, bad.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "missing" in str(bad.metadata["differences"].value)


def test_nothing_watched_is_nothing_wrong(warehouse: Warehouse, home: Path) -> None:
    with warehouse.write() as connection:
        keep(connection, [], [WATCHED], 1, NOW)
    with warehouse.read() as connection:
        assert compare(connection, [], NOW).said == "0 signals from 0 judged bars in 0 stretches: none differs"
