"""What `mdms live` takes in RAM at the most, against what it is allowed: arithmetic before anything is made. Pure.

It is the sum of all that grows with markets, rules and time, each at its bound: so what is held (`Live.nbytes`) never exceeds it.

ValueError
  OverMemory    the watched rules and markets need more than is allowed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mdms_pipeline.live.coarse import BAR, COARSE, PART
from mdms_pipeline.live.lane import shape_of
from mdms_pipeline.live.signal import SIGNAL
from mdms_pipeline.live.watch import Watch, grouped
from mdms_pipeline.market import DAY, timeframe

SHARE = 0.4  # of MDMS_MEMORY_MB; of the rest DuckDB takes 0.3, and what `mdms signal` keeps 0.2 of its own process's
MB = 2**20
LONGEST_MONTH = 31 * DAY


class OverMemory(ValueError):
    """The watched rules and markets need more memory than is allowed."""


@dataclass(frozen=True)
class Part:
    """One timeframe."""

    timeframe: str
    markets: int
    rules: int
    each: int  # bytes of one market

    @property
    def arithmetic(self) -> str:
        return f"{self.markets} markets x {self.rules} rules on {self.timeframe} ({self.each / 1_000:.1f} kB a market)"


@dataclass(frozen=True)
class Room:
    """What is needed at the most, and what is allowed."""

    parts: tuple[Part, ...]
    fixed: int  # bytes, whatever is watched: told signals that are remembered, messages that wait, the journal's index
    memory_mb: int  # MDMS_MEMORY_MB

    @property
    def needed(self) -> int:
        """Bytes."""
        return self.fixed + sum(part.markets * part.each for part in self.parts)

    @property
    def allowed(self) -> int:
        """Bytes."""
        return int(SHARE * self.memory_mb * MB)

    @property
    def arithmetic(self) -> str:
        """`120 markets x 50 rules on 1h (86.1 kB a market) + 33 MB for signals told, messages and the journal = 43 MB of 200 MB`"""
        terms = [*(part.arithmetic for part in self.parts), f"{self.fixed / MB:.0f} MB for signals told, messages and the journal"]
        return f"{' + '.join(terms)} = {self.needed / MB:.0f} MB of {self.allowed / MB:.0f} MB"


def room_of(watches: Sequence[Watch], symbols: Sequence[str], flat: bool, fixed: int, memory_mb: int) -> Room:
    """What these rules on these markets need; `fixed` bytes besides."""
    parts = []
    for name, mine in grouped(watches).items():
        markets = sum(any(watch.takes(symbol) for watch in mine) for symbol in symbols)
        shape = shape_of(mine, flat)
        told = len(mine) * SIGNAL  # every rule may turn at one bar
        longer = BAR * _parts_of(name) if name in COARSE else 0
        parts.append(Part(name, markets, len(mine), shape.held + shape.working + told + longer))
    return Room(tuple(parts), fixed, memory_mb)


def _parts_of(name: str) -> int:
    """Candles of four hours that a slot has at the most; one more begins the next."""
    assert PART.seconds is not None
    return (timeframe(name).seconds or LONGEST_MONTH) // PART.seconds + 1


def check_room(room: Room) -> Room:
    """The room, else OverMemory with the arithmetic and the remedy."""
    if room.needed > room.allowed:
        raise OverMemory(
            f"mdms live would need more than {SHARE:.0%} of MDMS_MEMORY_MB={room.memory_mb}: {room.arithmetic}; watch fewer markets "
            f"(MDMS_SYMBOLS) or fewer rules (--strategy, --screen), or allow more: MDMS_MEMORY_MB={_enough(room)}"
        )
    return room


def _enough(room: Room) -> int:
    """MB with which it would do, in hundreds."""
    return -(-int(room.needed / SHARE / MB + 1) // 100) * 100
