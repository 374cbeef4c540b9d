"""The sandbox's rate limits: so many requests a second and group; 429 above; 418 for who does not stop.

Counted per group and whole second of the exchange's clock, for all clients together (the real one counts per IP). A 429 costs
nothing, but REFUSALS of them within PATIENCE seconds block everything for BLOCK seconds, and each further block is twice as long
as the one before, until MERCY seconds without one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

CONNECT, MESSAGE = "websocket-connect", "websocket-message"  # groups of the WebSocket; messages are counted per connection
PER_SECOND = {"market": 10, "candles": 10, "ticker": 10, "orderbook": 10, CONNECT: 5, MESSAGE: 5}  # requests; Upbit docs
MESSAGES_PER_MINUTE = 100  # of one connection; Upbit docs
UNLIMITED = 999  # what Remaining-Req tells as `sec` where nothing is limited
PER_MINUTE = 600  # `min` in Remaining-Req: a constant without meaning, Upbit docs
BROWSER_EVERY = 10  # s between requests that carry an Origin header; Upbit docs

# Ours: the real thresholds are not published. A client at 11 requests a second (one 429 a second) was not blocked.
REFUSALS, PATIENCE = 20, 10  # 429s within so many s lead to a block
BLOCK, LONGEST_BLOCK = 10, 3_600  # s: the first block, the longest
MERCY = 600  # s after a block's end; then the next one is short again


@dataclass(frozen=True)
class Verdict:
    """Status 200, 429 or 418; `left` requests in this second; `wait` s until a block ends."""

    status: int
    left: int = 0
    wait: float = 0.0


@dataclass
class Limits:
    """What each group may ask in a second (None: as much as it likes) and what was asked so far."""

    per_second: dict[str, int | None]
    used: dict[str, tuple[int, int]] = field(default_factory=dict)  # group: (second, requests)
    refused: deque[float] = field(default_factory=deque)  # instants of recent 429s
    blocked_until: float = 0.0
    block: float = 0.0  # s, the newest block's length

    def ask(self, group: str, now: float, browser: bool = False) -> Verdict:
        """May a request of `group` pass at `now`? Counts it when it may."""
        if now < self.blocked_until:
            return Verdict(418, 0, self.blocked_until - now)
        allowed = self.per_second[group]
        if allowed is None:
            return Verdict(200, UNLIMITED)
        if browser:
            return self._count(f"{group} browser", int(now) // BROWSER_EVERY, 1, now)
        return self._count(group, int(now), allowed, now)

    def _count(self, group: str, period: int, allowed: int, now: float) -> Verdict:
        counted, used = self.used.get(group, (period, 0))
        used = used if counted == period else 0
        if used >= allowed:
            return self._refuse(now)
        self.used[group] = (period, used + 1)
        return Verdict(200, allowed - used - 1)

    def _refuse(self, now: float) -> Verdict:
        self.refused.append(now)
        while self.refused[0] <= now - PATIENCE:
            self.refused.popleft()
        if len(self.refused) < REFUSALS:
            return Verdict(429)
        grown = 2 * self.block if now < self.blocked_until + MERCY else BLOCK
        self.block = min(max(grown, BLOCK), LONGEST_BLOCK)
        self.blocked_until = now + self.block
        self.refused.clear()
        return Verdict(418, 0, self.block)


def remaining_req(group: str, left: int) -> str:
    """`group=candles; min=600; sec=9`, the value of the header Remaining-Req."""
    return f"group={group}; min={PER_MINUTE}; sec={left}"
