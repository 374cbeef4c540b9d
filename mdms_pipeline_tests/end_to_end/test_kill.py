"""kill -9 at any moment loses nothing: the next run makes what a run that nobody killed would have made."""

from __future__ import annotations

import random
from pathlib import Path

from mdms_pipeline_tests.end_to_end.dagster_record import statuses
from mdms_pipeline_tests.end_to_end.killing import Killed, differences, never_killed
from mdms_pipeline_tests.support import HOUR, NOW

KILLS = 12


def test_killed_runs_are_taken_up_where_they_were(home: Path, tmp_path: Path) -> None:
    killed = Killed(home, random.Random(9), seconds=2.0)
    for round_ in range(2):
        at = NOW + round_ * HOUR
        for _ in range(KILLS // 2):
            killed.strike(at)
        killed.finish(at)
        never_killed(tmp_path / "whole", at)
        assert list(differences(home, tmp_path / "whole")) == []
    assert len(killed.struck) >= KILLS // 2
    assert "FAILURE" in statuses(home)  # the runs that were killed
