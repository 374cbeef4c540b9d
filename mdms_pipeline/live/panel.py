"""What watched rules read at one bar of many symbols, and what they say there: each reading is fetched once for all rules.

Only the bar that is judged is looked at, with `sma(10)[1]` as a reading of its own, so an answer takes a few operations over the symbols.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, partial

import numpy as np

from mdms_pipeline.live.tape import Past, Rows
from mdms_pipeline.live.watch import Watch, silence, silent
from mdms_pipeline.market import Floats, Instants
from mdms_pipeline.rules import UNKNOWN, Verdicts
from mdms_pipeline.rules.evaluate import finite, prepared
from mdms_pipeline.rules.nodes import Leaf


class Panel:
    """The watches of a lane that decide on the same bars."""

    def __init__(self, past: Past, watches: Mapping[int, Watch]) -> None:
        """`watches` by their places in the lane."""
        self.past, self.among = past, np.array(list(watches), dtype=np.int64)
        asked = dict.fromkeys(reading for watch in watches.values() for reading in watch.readings.values())
        places = {reading: place for place, reading in enumerate(asked)}
        self._columns = np.array([[past.names[column]] for column, _ in places], dtype=np.int64)
        self._back = np.array([[back] for _, back in places], dtype=np.int64)
        self._now = {place: column for (column, back), place in places.items() if back == 0}
        self._answers = [prepared(watch.root, partial(_place, places, watch.leaves)) for watch in watches.values()]
        self._stable, self._longest = silence(list(watches.values()))
        self.always = np.array([[not watch.trades] for watch in watches.values()])  # also where no candle came
        self.picks = {i: tuple((said, places[reading]) for said, reading in watch.readings.items()) for i, watch in watches.items()}

    def readings(self, rows: Rows, back: int = 0) -> Floats:
        """What is read at the last bar of these symbols, or (`back` 1) at the one before: (readings, symbols)."""
        return finite(self.past.values[self._columns, -1 - back - self._back, rows])

    def forming(self, rows: Rows, fresh: Mapping[str, Floats]) -> Floats:
        """The same at one more bar, that is not kept: its columns by name."""
        found = self.past.values[self._columns, -self._back, rows]
        for place, column in self._now.items():
            found[place] = fresh[column]
        return finite(found)

    def verdicts(self, readings: Floats, index: Instants, age: Instants) -> Verdicts:
        """What the watches say, (watches, symbols): `index` counts a symbol's bars from its first, `age` slots since its last trade."""
        read = list(readings).__getitem__
        with np.errstate(all="ignore"):
            said = np.array([answer(read) for answer in self._answers])
        said[silent(self._stable, self._longest, index, age)] = UNKNOWN
        return said


class Decided:
    """What was read at one bar of some symbols, by the text of each reading."""

    def __init__(self, seen: Iterable[tuple[Panel, Floats]]) -> None:
        self._seen = tuple(seen)

    def by(self, i: int, nth: int) -> dict[str, float | None]:
        """What decided watch `i` at the nth symbol; None where that is not known."""
        panel, numbers = self._of[i]
        own = numbers[nth]
        return {said: own[place] for said, place in panel.picks[i]}

    @cached_property
    def _of(self) -> dict[int, tuple[Panel, list[list[float | None]]]]:
        return {i: (panel, numbers) for panel, readings in self._seen for numbers in [_numbers(readings)] for i in panel.picks}


def _place(places: Mapping[tuple[str, int], int], columns: Mapping[Leaf, str], leaf: Leaf, back: int) -> int:
    return places[columns[leaf], back]


def _numbers(readings: Floats) -> list[list[float | None]]:
    """Of each symbol what was read."""
    missing = np.isnan(readings)
    found: list[list[float | None]] = (np.where(missing, None, readings) if missing.any() else readings).T.tolist()  # type: ignore[call-overload]
    return found
