"""Screens: rules over all symbols at one instant, ranked.

1. `screens/*.yaml`  one screen per file; a directory of one's own works as well
2. `load.py`         files -> `Screen`s with parsed rules, or `ScreenError`s that name file, line, field, value and remedy
3. `judge.py`        a screen, an instant and each symbol's last bars -> a verdict per symbol and clause, and the ranking; pure
4. `look.py`         reads those bars from the warehouse, has them judged, keeps the result

To add a screen, add a file. `Screen.calls` and `Screen.lookback` say which indicators and how many bars it needs.
"""

from mdms_pipeline.screen.judge import Candidate, Clause, Outcome, Row, ScreenResult, judge, why
from mdms_pipeline.screen.load import BUILT_IN, Loaded, Screen, ScreenError, load_screen, load_screens

__all__ = [
    "BUILT_IN",
    "Candidate",
    "Clause",
    "Loaded",
    "Outcome",
    "Row",
    "Screen",
    "ScreenError",
    "ScreenResult",
    "judge",
    "load_screen",
    "load_screens",
    "why",
]
