"""When the next request may leave. Pure: instants in, decisions out; `client.py` does the waiting.

Requests of one group are spaced evenly. The allowed rate is learnt from `Remaining-Req`: the first answer within a second tells the whole of
it (9 left means 10 allowed). A 429 slows the group down, answers without one let it recover.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

ALLOWED = 10.0  # requests/s of a group while no header has said otherwise; Upbit documentation
HEADROOM = 0.98  # of the allowed rate: even spacing at 95 ms ran clean, at 90 ms 9.5 % were refused
MEMORY = 3.0  # seconds for which what a header said counts
SLOWER, RECOVERY = 0.7, 1.02  # a 429 multiplies the rate by the first, each good answer by the second, up to 1


@dataclass(frozen=True)
class Pace:
    """What is known of one rate limit group. All times in seconds of one clock."""

    allowed: float = ALLOWED
    said: tuple[tuple[float, float], ...] = ()  # (when, allowed rate it showed) within MEMORY
    factor: float = 1.0  # lowered by 429
    next_at: float = -math.inf  # the next request may leave from here on
    blocked_until: float = -math.inf

    @property
    def rate(self) -> float:
        """Requests per second that we send."""
        return self.allowed * HEADROOM * self.factor

    def wait(self, now: float) -> float:
        """Seconds until the next request may leave."""
        return max(0.0, self.next_at - now, self.blocked_until - now)

    def sent(self, now: float) -> Pace:
        """A request left at `now`; a small credit lets a late one not delay all that follow."""
        return replace(self, next_at=max(self.next_at, now - 2 / self.rate) + 1 / self.rate)

    def answered(self, now: float, left: int | None) -> Pace:
        """A good answer came; `left` is what the header says is left of this second, None where it says nothing."""
        said = tuple(entry for entry in self.said if entry[0] > now - MEMORY)
        if left is not None:
            said = (*said, (now, left + 1.0))
        allowed = max((rate for _, rate in said), default=self.allowed)
        pace = replace(self, said=_thinned(said), allowed=max(1.0, allowed), factor=min(1.0, self.factor * RECOVERY))
        return replace(pace, next_at=max(pace.next_at, math.floor(now) + 1.0)) if left == 0 else pace

    def refused(self, now: float) -> Pace:
        """A 429 came: nothing leaves before the next second, and then less."""
        return replace(self, factor=max(0.1, self.factor * SLOWER), next_at=max(self.next_at, math.floor(now) + 1.0))

    def blocked(self, now: float, seconds: float) -> Pace:
        """A 418 came: nothing leaves for `seconds`."""
        return replace(self, blocked_until=max(self.blocked_until, now + seconds))


def _thinned(said: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Only what can still become the greatest: an earlier, smaller word is forgotten."""
    kept: list[tuple[float, float]] = []
    for entry in said:
        while kept and kept[-1][1] <= entry[1]:
            kept.pop()
        kept.append(entry)
    return tuple(kept)
