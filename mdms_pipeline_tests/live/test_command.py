"""`mdms live` and `mdms signal` as a user has them: in processes of their own, on the embedded exchange."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from textwrap import dedent

import pytest

from mdms_pipeline_tests.support import Mdms, environment, mdms

QUICK = """
    title: Quick
    timeframe: 1m
    universe: all
    entry: close > sma(3)
    exit: close < sma(3)
    size: {fraction: 0.1}
"""
SCREEN = """
    title: Forming
    timeframe: 3m
    where: [close > 0]
    rank: {expression: volume, direction: desc}
"""
PATIENCE = 60.0  # s until a line is there


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home with candles of minutes, whose clock runs fast, and a strategy that turns often."""
    home = tmp_path_factory.mktemp("live")
    (home / "own" / "strategies").mkdir(parents=True)
    (home / "own" / "strategies" / "quick.yaml").write_text(dedent(QUICK).lstrip("\n"))
    (home / "own" / "screens").mkdir()
    (home / "own" / "screens" / "forming.yaml").write_text(dedent(SCREEN).lstrip("\n"))
    clock = f"30x@2026-11-20T09:30:20@{time.time():.0f}"
    found = environment(home, MDMS_TIMEFRAMES="1m,3m", MDMS_CLOCK=clock, MDMS_EXTENSIONS=str(home / "own"))
    assert mdms("collect", given=found).code == 0
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_live_tells_lines_and_ends_well(given: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    process = Mdms(["live", "--strategy", "quick", "--json"], given, tmp_path / "said")
    until_said(tmp_path / "said.out", '"provisional": false')
    os.kill(process.pid, number)
    said = process.wait()
    assert said.code == 0, said.err
    told = [json.loads(line) for line in said.out.splitlines()]
    closed = [one for one in told if not one["provisional"]]
    assert closed
    assert {(one["source"], one["name"], one["timeframe"]) for one in told} == {("strategy", "quick", "1m")}
    assert all(one["answer"] != one["before"] for one in closed if not one["revision"])
    assert "2 rules on 3 1m candles" in said.err


def test_signal(given: dict[str, str]) -> None:
    said = mdms("signal", "KRW-BTC", "quick", "--json", given=given)
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    assert [one["rule"] for one in answer["said"]] == ["entry", "exit"]
    assert answer["way"] == "full calculation"
    assert answer["behind"] == 0
    assert "KRW-BTC quick, 1m bar of" in mdms("signal", "KRW-BTC", "quick", "--stored", given=given).out


def until_said(file: Path, word: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and word not in (file.read_text() if file.exists() else ""):
        time.sleep(0.1)


def test_a_process_that_runs_answers_and_one_that_was_killed_is_not_missed(given: dict[str, str], tmp_path: Path) -> None:
    process = Mdms(["live", "--strategy", "quick", "--json"], given, tmp_path / "said")
    try:
        until_said(tmp_path / "said.out", '"provisional": false')
        answer = json.loads(mdms("signal", "KRW-BTC", "quick", "--json", given=given).out)
        stored = json.loads(mdms("signal", "KRW-BTC", "quick", "--stored", "--json", given=given).out)
        screened = mdms("screen", "forming", "--live", given=given)  # 3m, put together from the 1m that is heard
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.process.join()
    assert answer["way"] == "memory in RAM of mdms live"
    assert [one["rule"] for one in answer["said"]] == ["entry", "exit"]
    assert stored["way"] == "full calculation"
    assert screened.code == 0, screened.err
    assert "by memory in RAM of mdms live" in screened.err
    assert list((Path(given["MDMS_HOME"]) / "live").glob("*.sock"))
    assert json.loads(mdms("signal", "KRW-BTC", "quick", "--json", given=given).out)["way"] == "full calculation"
    assert json.loads(mdms("screen", "forming", "--live", "--json", given=given).out)["forming"]["way"] == "ticker/all"


def test_what_cannot_be_is_said(given: dict[str, str], tmp_path: Path) -> None:
    cases = {
        ("live", "--strategy", "quik"): "strategy 'quik' is not known: did you mean quick?",
        ("live", "--screen", "nothing"): "screen 'nothing' is not known",
        ("live", "--strategy", "breakout"): "nothing to watch",
        ("signal", "KRW-BTC", "breakout"): "no 4h candle of KRW-BTC is stored",
        ("signal", "BTC", "quick"): "symbol 'BTC' is not a KRW market code",
    }
    for arguments, message in cases.items():
        said = mdms(*arguments, given=given)
        assert said.code == 1, arguments
        assert message in said.err, arguments
        assert "Traceback" not in said.err
    empty = mdms("live", "--strategy", "quick", given={**given, "MDMS_HOME": str(tmp_path / "empty")})
    assert (empty.code, "no market is collected yet" in empty.err) == (1, True)
