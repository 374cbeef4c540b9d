"""kill -9 at any moment: no signal is lost, none is twice in the table. scripts/kill_live.py does it to `mdms live` itself."""

from __future__ import annotations

import random
import time
from pathlib import Path

from mdms_pipeline_tests.live.killing import live, strike, wrong

KILLS, BARS = 12, 800


def test_nothing_is_lost_or_doubled_over_kills(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    began = time.monotonic()
    live(tmp_path / "whole", BARS)
    seconds = time.monotonic() - began
    assert list(wrong(tmp_path / "whole", BARS)) == []
    dice, killed = random.Random(9), 0
    for i in range(KILLS):
        killed += strike(tmp_path / "killed", BARS, dice.uniform(0.02, 3 * seconds / KILLS), i)
    live(tmp_path / "killed", BARS)
    assert list(wrong(tmp_path / "killed", BARS)) == []
    assert killed >= KILLS // 2
