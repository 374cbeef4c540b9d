"""`mdms run`: one Dagster run does all that is due, says what became of each partition, and does nothing where nothing is due."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg

from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.definitions import build
from mdms_pipeline.defs.resources import Mdms
from mdms_pipeline.defs.run import refresh
from mdms_pipeline.sandbox import Fault, Sandbox, served
from mdms_pipeline.store import Warehouse
from mdms_pipeline_tests.end_to_end.conftest import Ran
from mdms_pipeline_tests.end_to_end.dagster_record import in_tables, instance_of, newest, statuses, steps
from mdms_pipeline_tests.support import HOUR, NOW, Clock, ask, bits, broken, environment, mdms, rows, settings

GRID = ("candles", *KINDS, "screen_results")
SYMBOLS = ("KRW-BTC", "KRW-ETH", "KRW-XRP")


def opened(home: Path, exchange: str = "sandbox") -> Warehouse:
    return Warehouse(home / "mdms.duckdb", exchange, memory_mb=200)


# ---- the first run


def test_one_run_materializes_every_partition_of_every_asset(first_run: Ran) -> None:
    home = first_run.home
    assert (first_run.said.code, first_run.said.err) == (0, "")
    assert first_run.report["succeeded"]
    assert statuses(home) == ["SUCCESS"]
    record = newest(home)
    assert {asset: set(record[asset]) for asset in GRID} == {asset: {f"{symbol}|1h" for symbol in SYMBOLS} for asset in GRID}
    warehouse = opened(home)
    assert {table: record[table] for table in ("candles", *KINDS)} == in_tables(warehouse)
    assert set(in_tables(warehouse)["rsi"].values()) == {"2026-11-20T08:00:00Z"}
    assert broken(warehouse) == []
    assert rows(warehouse, "SELECT count(*), count(DISTINCT (symbol, opened_at)) FROM indicators") == [(180, 180)]


def test_the_plan_is_the_order_of_the_run(first_run: Ran, home: Path) -> None:
    plan = json.loads(mdms("plan", "--json", given=environment(home)).out)
    planned = list(dict.fromkeys(entry["indicator"].split("(")[0] for entry in plan["order"]))
    taken = steps(first_run.home)
    assert [step for step in taken if step in KINDS] == planned
    assert list(dict.fromkeys(step["step"] for step in plan["steps"])) == ["candles", *planned]
    assert taken.index("candles") == 0
    assert taken.index("screen_results") > max(taken.index(kind) for kind in planned)
    seen: set[str] = {"open", "high", "low", "close", "volume", "value", "rise", "fall"}
    for entry in plan["order"]:
        assert set(entry["reads"]) <= seen, entry
        seen.add(entry["indicator"])


# ---- the second


def test_within_the_same_candle_nothing_is_asked_written_or_run(ran: Path) -> None:
    exchange, clock = Sandbox(clock=Clock()), Clock()
    before = (ran / "mdms.duckdb").read_bytes()
    with instance_of(ran) as instance:
        done = refresh(instance, opened(ran), Mdms(settings(ran), clock=clock, exchange=lambda: ask(exchange)))
    assert (done.due, done.run_ids, done.succeeded) == ({}, [], True)
    assert exchange.log == []
    assert (ran / "mdms.duckdb").read_bytes() == before
    said = mdms("run", given=environment(ran))
    assert said.code == 0
    assert "Nothing is due" in said.out
    assert statuses(ran) == ["SUCCESS"]


def test_what_was_written_outside_of_dagster_is_told_to_it(ran: Path) -> None:
    later = environment(ran, NOW + HOUR)
    assert mdms("collect", given=later).code == 0
    assert mdms("calculate", given=later).code == 0
    assert mdms("screen", given=later).code == 0
    assert newest(ran)["candles"]["KRW-BTC|1h"] == "2026-11-20T08:00:00Z"
    report = json.loads(mdms("run", "--json", given=later).out)
    assert report["due"] == {"1h": "Dagster's record is behind the warehouse"}
    record = newest(ran)
    assert {table: record[table] for table in ("candles", *KINDS)} == in_tables(opened(ran))
    assert record["rsi"]["KRW-BTC|1h"] == "2026-11-20T09:00:00Z"
    assert json.loads(mdms("run", "--json", given=later).out)["runs"] == []


def test_a_screen_over_candles_without_their_indicators_says_so(ran: Path) -> None:
    later = environment(ran, NOW + HOUR)
    assert mdms("screen", "volatility_squeeze", given=later).err.count("run `mdms") == 1  # a candle has closed since
    assert mdms("collect", given=later).code == 0
    assert "behind the candles (sma(20) new bars: 3 markets, " in mdms("screen", "volatility_squeeze", given=later).err
    assert mdms("calculate", given=later).code == 0
    assert mdms("screen", "volatility_squeeze", given=later).err == ""


def test_calculate_reaches_markets_that_have_left_the_universe(ran: Path) -> None:
    """After an update their values would stay those of the version before."""
    fewer = environment(ran, NOW + HOUR, MDMS_SYMBOLS="KRW-BTC")
    assert mdms("collect", given=fewer).code == 0
    before = bits(opened(ran))
    with opened(ran).write() as connection:
        connection.execute("UPDATE memory SET fingerprint = 'older' WHERE symbol = 'KRW-ETH' AND indicator = 'sma_20'")
        connection.execute("UPDATE sma SET sma_20 = 0 WHERE symbol = 'KRW-ETH'")
    assert mdms("calculate", "--symbol", "KRW-ETH", given=fewer).code == 0
    assert bits(opened(ran), ["sma"]) == {"sma": before["sma"]}
    done = json.loads(mdms("calculate", "--json", given=fewer).out)
    assert {step["incremental"] for step in done if step["indicator"] == "sma"} == {1}
    assert {step["hit"] for step in done if step["indicator"] == "sma"} == {2}


# ---- one that fails


def test_one_market_that_fails_stops_no_other(home: Path) -> None:
    exchange = Sandbox(clock=Clock())
    exchange.faults = lambda path, query: Fault(400, '{"error":{"name":400,"message":"no"}}') if query.get("market") == "KRW-ETH" else None
    with served(exchange) as url:
        given = environment(home, MDMS_EXCHANGE_URL=url)
        said = mdms("run", "--json", given=given)
        assert (said.code, said.err) == (3, "")
        report = json.loads(said.out)
        assert report["succeeded"]
        assert report["failed"] == {"KRW-ETH 1h": "failed: answered 400: no"}
        record = newest(home)
        assert record["candles"] == {"KRW-BTC|1h": "2026-11-20T08:00:00Z", "KRW-ETH|1h": None, "KRW-XRP|1h": "2026-11-20T08:00:00Z"}
        assert record["rsi"] == record["candles"]
        assert check(home, given, "fresh") == (False, ["KRW-ETH 1h answered 400: no"])
        told = {table: {name: at for name, at in record[table].items() if at is not None} for table in ("candles", *KINDS)}
        assert told == in_tables(opened(home, url))
        exchange.faults = None
        again = mdms("run", "--json", given=given)
    assert again.code == 0
    warehouse = opened(home, url)
    assert {table: newest(home)[table] for table in ("candles", *KINDS)} == in_tables(warehouse)
    assert set(in_tables(warehouse)["rsi"]) == {f"{symbol}|1h" for symbol in SYMBOLS}


# ---- checks


def check(home: Path, given: dict[str, str], name: str, at: float = NOW) -> tuple[bool, Any]:
    """Whether an asset check passes, and what it names."""
    found = settings(home, MDMS_EXCHANGE_URL=given["MDMS_EXCHANGE_URL"])
    definitions = build(Mdms(found, clock=Clock(at)))
    job = dg.define_asset_job("only_checks", selection=dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("candles"), name)))
    whole = dg.Definitions(definitions.assets, None, None, [job], resources=definitions.resources, asset_checks=definitions.asset_checks)
    result = whole.resolve_job_def("only_checks").execute_in_process()
    (evaluation,) = result.get_asset_check_evaluations()
    named = evaluation.metadata.get("symbols") or evaluation.metadata.get("first")
    assert evaluation.severity == dg.AssetCheckSeverity.ERROR
    assert not evaluation.blocking
    return evaluation.passed, named.value if named else None


def test_the_freshness_check_names_what_is_stale(ran: Path) -> None:
    given = environment(ran)
    assert check(ran, given, "fresh") == (True, [])
    with opened(ran).write() as connection:
        connection.execute("UPDATE coverage SET covered_to = covered_to - INTERVAL 3 HOUR WHERE symbol = 'KRW-XRP'")
    passed, named = check(ran, given, "fresh")
    assert (passed, [text.split()[:2] for text in named]) == (False, [["KRW-XRP", "1h"]])
    passed, named = check(ran, given, "fresh", at=NOW + 2 * HOUR)
    assert len(named) == 3


def test_each_candle_check_finds_a_row_that_breaks_it(ran: Path) -> None:
    given = environment(ran)
    damage = {
        "unique": "INSERT INTO candles SELECT * FROM candles WHERE symbol = 'KRW-BTC' ORDER BY opened_at LIMIT 1",
        "ordered": "UPDATE candles SET opened_at = opened_at + INTERVAL 9 DAY WHERE symbol = 'KRW-BTC' AND opened_at = '2026-11-20 03:00'",
        "high_is_highest": "UPDATE candles SET high = low / 2 WHERE symbol = 'KRW-BTC' AND opened_at = '2026-11-20 03:00'",
        "low_is_lowest": "UPDATE candles SET low = high * 2 WHERE symbol = 'KRW-BTC' AND opened_at = '2026-11-20 03:00'",
        "positive": "UPDATE candles SET volume = -1 WHERE symbol = 'KRW-BTC' AND opened_at = '2026-11-20 03:00'",
    }
    warehouse = opened(ran)
    assert broken(warehouse) == []
    assert check(ran, given, "unique") == (True, [])
    for law, statement in damage.items():
        with warehouse.write() as connection:
            connection.execute("CREATE OR REPLACE TABLE good AS FROM candles")
            connection.execute(statement)
        assert f"{law}: KRW-BTC 1h" in broken(warehouse)
        assert {found.split(" ")[1] for found in broken(warehouse)} == {"KRW-BTC"}
        if law == "unique":
            assert check(ran, given, law) == (False, ["KRW-BTC 1h"])
        with warehouse.write() as connection:
            connection.execute("DELETE FROM candles")
            connection.execute("INSERT INTO candles FROM good")
    assert broken(warehouse) == []


# ---- the layers apart


def test_the_layers_apart_make_the_same_tables(first_run: Ran, home: Path) -> None:
    given = environment(home)
    for command in ("collect", "calculate", "screen"):
        said = mdms(command, given=given)
        assert (said.code, said.err) == (0, ""), command
    assert bits(opened(home)) == bits(opened(first_run.home))
    screened = "SELECT screen, instant, symbol, verdict, place, rank_value, details FROM screen_results ORDER BY ALL"
    assert rows(opened(home), screened) == rows(opened(first_run.home), screened)
