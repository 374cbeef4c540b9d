"""At one bar of many symbols the rules say what they say over whole arrays, where numbers are missing or infinite too."""

from __future__ import annotations

import numpy as np
import pytest

from mdms_pipeline.live.panel import Decided, Panel
from mdms_pipeline.live.signal import SCREEN, WHERE
from mdms_pipeline.live.tape import Past
from mdms_pipeline.live.watch import Watch, values, verdicts
from mdms_pipeline.rules import FALSE, TRUE, UNKNOWN, Rule, parse
from mdms_pipeline.vocabulary import vocabulary

SYMBOLS, BARS = 50, 9
COLUMNS = ("open", "high", "low", "close", "volume")
RULES = (
    "close > open",
    "crosses_above(close, open) or not volume[1] >= 3",
    "close[2] / open[1] <= 1 and high != low",
    "(close - open)[3] > 0 and min(high, low)[1] < abs(-close) < max(high, 2)",
)


def watch(text: str, stable: int = 0) -> Watch:
    rule = parse(text, vocabulary())
    assert isinstance(rule, Rule)
    return Watch(SCREEN, text, WHERE, "1h", (rule,), stable=stable)


@pytest.mark.parametrize("seed", range(5))
def test_one_bar_is_as_all(seed: int) -> None:
    dice = np.random.default_rng(seed)
    columns = {name: dice.choice([0.0, 1, 2, 3, 4, np.nan, np.inf, -np.inf], (BARS, SYMBOLS)) for name in COLUMNS}
    watches = {place: watch(text, stable) for place, (text, stable) in enumerate(zip(RULES, (0, 7, 8, 9), strict=True))}
    past = Past(COLUMNS, 5, SYMBOLS)
    for row in range(SYMBOLS):
        past.put(row, np.arange(BARS - 1), {name: column[:-1, row] for name, column in columns.items()}, BARS - 1)
    panel, rows, age = Panel(past, watches), dice.permutation(SYMBOLS)[:40], np.zeros(40, dtype=np.int64)
    whole = {name: column[:, rows] for name, column in columns.items()}
    wanted = [verdicts(watches[i], whole, np.arange(BARS)[:, None]) for i in panel.among.tolist()]
    seen = {
        BARS - 3: panel.readings(rows, back=1),
        BARS - 2: panel.readings(rows),
        BARS - 1: panel.forming(rows, {name: column[-1] for name, column in whole.items()}),
    }
    for bar, readings in seen.items():
        said = panel.verdicts(readings, np.full(40, bar), age)
        np.testing.assert_array_equal(said, [of_one[bar] for of_one in wanted])
        decided = Decided([(panel, readings)])
        for i, one in watches.items():
            for nth in range(40):
                assert decided.by(i, nth) == values(one, {name: column[:, nth] for name, column in whole.items()}, bar)
    assert {TRUE, UNKNOWN, FALSE} == set(np.unique(wanted).tolist())
