"""Bars of a day, a week and a month while they form: the exchange's socket has none, so they are put together from those of four hours.

Open, high, low and close are then the exchange's own to the bit. Volume and value are sums, made in decimals as the exchange writes them:
equal to the bit on the sandbox, whose figures are exact (mdms_pipeline_tests/live/test_coarse.py); Upbit rounds the value of each candle by
itself, so the sum of six may differ from the day's in the last digits. That is why a bar that has closed is asked for by REST before
anything is decided on it, and only the forming one is put together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal

from mdms_pipeline.live.lane import Bar
from mdms_pipeline.market import TIMEFRAMES, Instant, Timeframe

PART = TIMEFRAMES["4h"]  # the longest candle that the socket has; days, weeks and months are whole numbers of it
COARSE = ("1d", "1w", "1M")
BAR = 600  # bytes of one in RAM at the most, its place in a dictionary included; tracemalloc


class Parts:
    """The candles of four hours of every symbol, as far back as the slots that form."""

    def __init__(self, frames: Iterable[Timeframe]) -> None:
        self.frames = tuple(frames)
        self._held: dict[str, dict[Instant, Bar]] = {}

    def put(self, symbol: str, part: Bar) -> None:
        """A candle of four hours as it is told; an older telling of it is passed over."""
        held = self._held.setdefault(symbol, {})
        known = held.get(part.opened_at)
        if known is None:
            start = min(frame.floor(part.opened_at) for frame in self.frames)
            for old in [at for at in held if at < start]:
                del held[old]
        if known is None or part.supersedes(known):
            held[part.opened_at] = part

    @property
    def nbytes(self) -> int:
        """What it takes in RAM."""
        return BAR * sum(map(len, self._held.values()))

    def keep(self, symbols: Collection[str]) -> None:
        """Forget all other symbols."""
        self._held = {symbol: parts for symbol, parts in self._held.items() if symbol in symbols}

    def bar(self, symbol: str, frame: Timeframe, at: Instant) -> Bar | None:
        """The candle of the slot of `frame` that opens at `at`, as far as it has come; None where nothing was traded."""
        end = frame.after(at)
        parts = [part for opened_at, part in sorted(self._held.get(symbol, {}).items()) if at <= opened_at < end]
        if not parts:
            return None
        return Bar(at, together([part.candle for part in parts]), parts[-1].at, parts[-1].received_at)


def together(candles: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """One candle of several that follow each other, as PRICES_AND_AMOUNTS."""
    opening, high, low, close, volume, value = zip(*candles, strict=True)
    return opening[0], max(high), min(low), close[-1], total(volume), total(value)


def total(amounts: Iterable[float]) -> float:
    """The sum of amounts as they are written in decimals, rounded once."""
    return float(sum((Decimal(repr(amount)) for amount in amounts), Decimal(0)))
