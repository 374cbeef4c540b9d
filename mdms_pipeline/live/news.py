"""Which answers are news: told once each, over restarts too, and again only where they have changed. Pure.

What was told before is known by what the journal holds; of a bar that was told otherwise the next telling has a higher revision, and one
that says `answer == before` takes back what was told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from mdms_pipeline.live.parity import Key, content, key_of
from mdms_pipeline.live.signal import SIGNAL, Signal
from mdms_pipeline.live.watch import Name
from mdms_pipeline.market import Instant

REMEMBERED = 10_000  # signals: what is judged again is told again by the journal


class News:
    """What was told, and from which bar on each watch tells of each symbol."""

    def __init__(self, told: Iterable[Signal] = ()) -> None:
        self.told: dict[Key, Signal] = {}  # what was told longest ago first
        self._since: dict[tuple[Name, str], Instant] = {}  # bars before are nobody's news
        self.recall(told)

    @property
    def nbytes(self) -> int:
        """What it takes in RAM."""
        return SIGNAL * len(self.told)

    def recall(self, told: Iterable[Signal]) -> None:
        """These were told before, as the journal has it."""
        for signal in told:
            key = key_of(signal)
            held = self.told.pop(key, None)
            self.told[key] = signal if held is None or signal.revision >= held.revision else held
        self._forget()

    def begin(self, watch: Name, symbols: Iterable[str], since: Instant) -> None:
        """From the bar that opens at `since` on `watch` tells of these symbols."""
        self._since.update({(watch, symbol): since for symbol in symbols})

    def fresh(self, signals: Sequence[Signal]) -> list[Signal]:
        """Those that were not told yet, as they are to be told now."""
        found = []
        for signal in signals:
            watch, opened_at = (signal.source, signal.name, signal.rule), signal.opened_at
            if opened_at < self._since.get((watch, signal.symbol), opened_at):
                continue
            key, new = key_of(signal), signal
            held = self.told.get(key)
            if held is not None:
                if content(held) == content(signal):
                    continue
                new = replace(signal, revision=max(signal.revision, held.revision + 1))
                del self.told[key]
            self.told[key] = new
            found.append(new)
        self._forget()
        return found

    def again(self, signals: Sequence[Signal], judged: Mapping[str, Collection[Instant]], timeframe: str, now: float) -> list[Signal]:
        """`signals` are all that changed at bars that were judged once more, symbol -> their openings: what is news of it."""
        stands = {key_of(signal) for signal in signals}
        gone = [
            replace(held, answer=held.before, emitted_at=now, received_at=now, revision=held.revision + 1)
            for key, held in self.told.items()
            if held.timeframe == timeframe and held.answer != held.before and key not in stands
            if held.opened_at in judged.get(held.symbol, ()) and self._ours(held)
        ]
        self.recall(gone)
        return sorted([*gone, *self.fresh(signals)], key=lambda signal: signal.opened_at)

    def _ours(self, signal: Signal) -> bool:
        """Whether it is of a watch that is judged here, and of a bar that it tells of: what other rules have said stays said."""
        since = self._since.get(((signal.source, signal.name, signal.rule), signal.symbol))
        return since is not None and signal.opened_at >= since

    def _forget(self) -> None:
        for key in list(islice(self.told, max(0, len(self.told) - REMEMBERED))):
            del self.told[key]
