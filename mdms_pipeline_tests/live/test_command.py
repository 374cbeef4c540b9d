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
PATIENCE = 60.0  # s until a line is there


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home with candles of minutes, whose clock runs fast, and a strategy that turns often."""
    home = tmp_path_factory.mktemp("live")
    (home / "own" / "strategies").mkdir(parents=True)
    (home / "own" / "strategies" / "quick.yaml").write_text(dedent(QUICK).lstrip("\n"))
    clock = f"30x@2026-11-20T09:30:20@{time.time():.0f}"
    found = environment(home, MDMS_TIMEFRAMES="1m", MDMS_CLOCK=clock, MDMS_EXTENSIONS=str(home / "own"))
    assert mdms("collect", given=found).code == 0
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_live_tells_lines_and_ends_well(given: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    process = Mdms(["live", "--strategy", "quick", "--json"], given, tmp_path / "said")
    out = tmp_path / "said.out"
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and '"provisional": false' not in (out.read_text() if out.exists() else ""):
        time.sleep(0.1)
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
