"""The bar that forms, from what one ticker/all tells of every market's day, and what is stored. Pure.

    1d        the ticker's own figures: the day candle to the bit
    1w, 1M    the stored days before it, and that day: prices to the bit, amounts added in decimals
    finer     close, volume and value to the bit (the day's less those of its stored candles); high and low where the day's were made in
              this slot, else as stored finer candles and the last price tell them; open from those, else the close before

What cannot be known of a finer bar is named: `guessed`. A market without a trade in the slot has no bar that forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from mdms_pipeline.live.coarse import together, total
from mdms_pipeline.live.lane import Bar, rows_of
from mdms_pipeline.market import DAY, PRICES_AND_AMOUNTS, Candles, Instant, Timeframe


class Day(Protocol):
    """What a ticker tells of a market: its UTC day up to now."""

    @property
    def traded_at(self) -> float: ...
    @property
    def open(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def close(self) -> float: ...
    @property
    def volume(self) -> float: ...
    @property
    def value(self) -> float: ...
    @property
    def turnover(self) -> float: ...


@dataclass(frozen=True)
class Forming:
    """A bar that forms, and which of its columns are not sure."""

    bar: Bar
    guessed: tuple[str, ...] = ()


def forming(frame: Timeframe, now: Instant, day: Day, before: Candles, within: Candles | None) -> Forming | None:
    """The bar of the slot of `frame` that holds `now`; None where nothing was traded in it.

    `before` are stored candles that make up the rest: of a timeframe below a day its own since midnight, all of them up to the slot; of 1w
    and 1M the days of the slot before this one. `within` are finer candles of the slot, all up to some instant; None where none are stored.
    """
    slot, midnight = frame.floor(now), now - now % DAY
    if frame.seconds is not None and frame.seconds < DAY:
        return _finer(frame, slot, day, before, within) if day.traded_at >= slot else None
    if day.traded_at < slot:
        return None
    parts = [candle for _, candle in rows_of(before)]
    if day.traded_at >= midnight:  # else nothing today: the days before are all
        parts.append(tuple(getattr(day, name) for name in PRICES_AND_AMOUNTS))
    return Forming(Bar(slot, together(parts), day.traded_at)) if parts else None


def _finer(frame: Timeframe, slot: Instant, day: Day, before: Candles, within: Candles | None) -> Forming:
    """A slot of less than a day."""
    if slot % DAY == 0:  # the day's first slot is the day
        return Forming(Bar(slot, (day.open, day.high, day.low, day.close, day.volume, day.value), day.traded_at))
    pieces = within if within is not None and len(within) else None
    opening = float(pieces.open[0]) if pieces is not None else float(before.close[-1]) if len(before) else day.open
    top, bottom = max(before.high.tolist(), default=-math.inf), min(before.low.tolist(), default=math.inf)
    seen = [opening, day.close] if pieces is None else [opening, day.close, *pieces.high.tolist(), *pieces.low.tolist()]
    high, low = day.high if day.high > top else max(seen), day.low if day.low < bottom else min(seen)
    sure = {"open": pieces is not None or not len(before), "high": day.high > top, "low": day.low < bottom}
    amounts = (_less(day.volume, before.volume.tolist()), _less(day.value, before.value.tolist()))
    bar = Bar(slot, (opening, high, low, day.close, *amounts), day.traded_at)
    return Forming(bar, tuple(name for name, known in sure.items() if not known))


def _less(whole: float, parts: list[float]) -> float:
    """What is left of an amount, in decimals as the exchange writes them."""
    return total([whole, *(-part for part in parts)])
