"""Which answers are news: told once each, over restarts too, and again only where they have changed. Pure.

What was told before is known by what the journal holds; of a bar that was told otherwise the next telling has a higher revision, and one
that says `answer == before` takes back what was told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from mdms_pipeline.live.parity import Key, content, key_of
from mdms_pipeline.live.signal import SIGNAL, Signal
from mdms_pipeline.live.watch import Name
from mdms_pipeline.market import Instant

REMEMBERED = 10_000  # signals: what is judged again is told again by the journal


class News:
    """What was told, and from which bar on each watch tells of each symbol."""

    def __init__(self, told: Iterable[Signal] = ()) -> None:
        self.told: OrderedDict[Key, Signal] = OrderedDict()  # what was told longest ago first
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
            held = self.told.get(key)
            if held is None or signal.revision >= held.revision:
                self._remember(key, signal, again=held is not None)

    def begin(self, watch: Name, symbols: Iterable[str], since: Instant) -> None:
        """From the bar that opens at `since` on `watch` tells of these symbols."""
        self._since.update({(watch, symbol): since for symbol in symbols})

    def fresh(self, signals: Sequence[Signal]) -> list[Signal]:
        """Those that were not told yet, as they are to be told now."""
        found = []
        for signal in signals:
            if signal.opened_at < self._since.get(_watch_of(signal), signal.opened_at):
                continue
            key = key_of(signal)
            held = self.told.get(key)
            if held is not None and content(held) == content(signal):
                continue
            new = signal if held is None else replace(signal, revision=max(signal.revision, held.revision + 1))
            self._remember(key, new, again=held is not None)
            found.append(new)
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
        for signal in gone:
            self._remember(key_of(signal), signal, again=True)
        return sorted([*gone, *self.fresh(signals)], key=lambda signal: signal.opened_at)

    def _ours(self, signal: Signal) -> bool:
        """Whether it is of a watch that is judged here, and of a bar that it tells of: what other rules have said stays said."""
        since = self._since.get(_watch_of(signal))
        return since is not None and signal.opened_at >= since

    def _remember(self, key: Key, signal: Signal, again: bool) -> None:
        self.told[key] = signal
        if again:
            self.told.move_to_end(key)
        elif len(self.told) > REMEMBERED:
            self.told.popitem(last=False)


def _watch_of(signal: Signal) -> tuple[Name, str]:
    return (signal.source, signal.name, signal.rule), signal.symbol
