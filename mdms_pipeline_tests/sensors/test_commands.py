"""`mdms events`, `mdms alerts`, the clock of simulations, and the page that shows how to follow."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mdms_pipeline.cli import main
from mdms_pipeline.market import instant
from mdms_pipeline.settings import FastClock, SettingError, Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.alerts import raise_alert
from mdms_pipeline.store.journal import emit
from mdms_pipeline.store.subscribe import follow

from ..support import NOW

PAGE = Path(__file__).parents[2] / "docs" / "events.md"


@pytest.fixture
def warehouse(tmp_path, monkeypatch):
    monkeypatch.setenv("MDMS_HOME", str(tmp_path))
    monkeypatch.setenv("MDMS_EXCHANGE_URL", "sandbox")
    made = Warehouse(tmp_path / "mdms.duckdb", "sandbox")
    with made.write() as connection:
        emit(connection, "market_data_collected", NOW, None, ["KRW-BTC", "KRW-ETH"], "1h", 12)
    return made


def answer(*words):
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(event):
    raise RuntimeError("not today")


def test_events(warehouse):
    follow(warehouse, "bot", fail)
    said = json.loads(answer("events", "--json"))
    assert said["newest"] == 1
    assert said["events"][0] | {"at": ""} == {
        "id": 1, "type": "market_data_collected", "symbols": ["KRW-BTC", "KRW-ETH"], "timeframe": "1h", "count": 12, "revision": 0,
        "at": "", "run_id": None,
    }  # fmt: skip
    assert said["followers"][0]["attempts"] == 1
    assert json.loads(answer("events", "--after", "1", "--json"))["events"] == []
    assert "not today" in answer("events")


def test_alerts_and_status(warehouse):
    assert "nothing is wrong" in answer("alerts")
    with warehouse.write() as connection:
        raise_alert(connection, "run failed", "refresh", "run 12345678 has failed", NOW)
    follow(warehouse, "bot", fail)
    said = json.loads(answer("alerts", "--json"))
    assert [(row["kind"], row["resolved_at"]) for row in said["alerts"]] == [("run failed", None)]
    assert "run 12345678" in (warehouse.path.parent / "alerts.jsonl").read_text()
    status = json.loads(answer("status", "--json"))
    assert "run failed" in status["alerts"][0]
    assert "not today" in status["held_up"]["bot"]


def test_the_page_says_what_works(warehouse, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(program, str(PAGE), "exec"), {})
    exec(compile(program, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == "1 market_data_collected 1h 12 KRW-BTC KRW-ETH\n"
    for line in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL):
        assert set(json.loads(line)) == {"id", "at", "state", "kind", "subject", "text"}


def test_a_fast_clock_is_the_same_in_every_process():
    anchor = time.time() - 100
    clock = Settings.load({"MDMS_CLOCK": f"10x@2026-11-20T09:00@{anchor}", "MDMS_EXCHANGE_URL": "sandbox"}).clock
    assert clock == FastClock(10, instant("2026-11-20T09:00"), anchor)
    assert clock() == pytest.approx(instant("2026-11-20T09:00") + 1000, abs=5)
    assert Settings.load({}).clock is time.time


@pytest.mark.parametrize("url", ["https://api.upbit.com", "http://127.0.0.1.example.com", "http://10.0.0.1:8017"])
def test_a_fast_clock_is_refused_where_the_exchange_is_real(url):
    with pytest.raises(SettingError, match="is for a sandbox on this machine"):
        Settings.load({"MDMS_CLOCK": "10x@2026-11-20@0", "MDMS_EXCHANGE_URL": url})
    assert Settings.load({"MDMS_CLOCK": "10x@2026-11-20@0", "MDMS_EXCHANGE_URL": "http://127.0.0.1:8017"}).clock() > 0


@pytest.mark.parametrize("text", ["fast", "10x", "0x@2026-11-20@0", "-1x@2026-11-20@0", "10x@someday@0", "nanx@2026-11-20@0"])
def test_a_clock_that_cannot_be(text):
    with pytest.raises(SettingError, match="write <speed>x@<start>@<instant>"):
        Settings.load({"MDMS_CLOCK": text, "MDMS_EXCHANGE_URL": "sandbox"})
