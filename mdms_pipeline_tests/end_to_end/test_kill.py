"""kill -9 at any moment loses nothing: the next run makes what a run that nobody killed would have made."""

from __future__ import annotations

import random
from pathlib import Path

from mdms_pipeline_tests.end_to_end.conftest import Ran
from mdms_pipeline_tests.end_to_end.dagster_record import statuses
from mdms_pipeline_tests.end_to_end.killing import differences, run, strike
from mdms_pipeline_tests.support import HOUR, NOW

KILLS = 6  # in each of two rounds: the first history, and one more candle


def test_killed_runs_are_taken_up_where_they_were(home: Path, first_run: Ran, second_run: Ran) -> None:
    dice, killed = random.Random(9), 0
    for at, whole in ((NOW, first_run), (NOW + HOUR, second_run)):
        for i in range(KILLS):
            killed += strike(home, at, dice.uniform(i, i + 1) / KILLS * whole.report["seconds"])
        run(home, at)
        assert list(differences(home, whole.home)) == []
    assert killed >= KILLS
    assert "FAILURE" in statuses(home)  # those that were killed, told so by the next
