"""When the next request may leave. Pure: instants in, decisions out; `budget.py` keeps the state, `client.py` does the waiting.

How the exchange counts is not known: by whole seconds of its own clock (which is not ours), by the last second, by a bucket that refills.
So three rules, the strictest of which decides (`Pace.due`):

1. Requests leave evenly, and no more than `allowed` of them within a span a little longer than a second, wherever it begins. Under every
   way of counting that is allowed, and 96 % of all that is.
2. Where `Remaining-Req` jumps up, a second of the exchange has begun (`Second`). Within it no more leave than the newest answer left. So a
   request that came late and was counted in the next second, another program at this address, a limit that was lowered are heard of
   before they cost a 429; and the span need hardly be longer than the second: 98 %.
3. After a 429 nothing leaves before the next second, and then less (`slowed`): how much, what was let through decides.

What is `allowed` each answer tells anew: at least what is left and the request itself, at most what is left and all that we sent in that
second. Without a header it stays what it is, at first what the documentation says.

A 418 shuts out all groups (`Block`). `Ledger` is all of it. Instants are seconds of one clock, which may be set back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

ALLOWED = 10.0  # requests/s of a group while no header has said otherwise; Upbit documentation
CONNECT = "websocket-connect"  # the group of the WebSocket's handshakes
ALLOWED_IN = {CONNECT: 5.0}  # where it is not ALLOWED; Upbit documentation
COUNTED = 50  # requests/s; above this nobody counts, because nobody means it
TICK = 0.0005  # s; no sleep is as short as this

# How evenly. Found by simulation (test_pace.py): ways of 3 to 15 ms more or less, sleepers that wake up to 0.1 s late.
SPAN, SPAN_KNOWN = 1.035, 1.02  # s for `allowed` requests where the exchange's second is not known, and where it is
MAKE_UP, MAKE_UP_KNOWN = 0.01, 0.025  # s by which these may be shorter, to make up for what left late
CLOSEST = 0.3  # of the even distance; two that make up for lost time are not closer to each other
LAG = 3  # requests that may make up for lost time
MORE_SLACK, MOST_SLACK, KEPT_SLACK = 0.01, 0.2, 0.9999  # s longer for each 429, at most, and what each request leaves of it

# The exchange's second.
EDGE = 0.05  # s after its presumed begin in which it may not have begun
EARLIER = 0.003  # s by which it is found to begin earlier at a time; later at once: too early costs a 429, too late nothing
NEAR = 0.3  # s between two requests for what happened between them to be told from their answers
FORGET = 10.0  # s without a sign of it: clocks drift

# After a 429.
CAUTION = 0.9  # of what came through in the second before
REGAIN, REGAIN_LATER, PATIENCE = 1.02, 1.1, 10.0  # growth per second for so many seconds, then more

LONGEST_BLOCK = 86_400.0  # s that are believed; after a day we ask
FIRST_BLOCK = 60.0  # s where a 418 does not say how long
AGAIN = 60.0  # s after a block's end in which the next one is its continuation


@dataclass(frozen=True)
class Second:
    """What answers have shown of the seconds by which the exchange counts: when one `began`, as our departures see it.

    `sent_at` and `left` are of the newest answer: when its request left, and how many the header said were left after it.
    """

    began: float | None = None
    sent_at: float = -1.0
    left: int = 0

    def begin(self, at: float) -> float | None:
        """When the one that holds `at` began, None where not known."""
        if self.began is None or at - self.began > FORGET:
            return None
        return self.began + math.floor(at - self.began)

    def next(self, at: float) -> float:
        """An instant at which the next one has begun for sure."""
        begin = self.begin(at)
        return at + 1.0 if begin is None else begin + 1.0 + EDGE

    def free(self, at: float, sent: tuple[float, ...]) -> float:
        """From when on one may leave that would leave `at`: later where nothing is left, by what was heard and what left since."""
        begin = self.begin(at - EDGE)  # shortly after its begin the one before may last
        full = begin is not None and self.sent_at >= begin and self.left <= sum(other > self.sent_at for other in sent)
        return self.next(at - EDGE) if full else at

    def heard(self, sent_at: float, left: int, allowed: float) -> Second:
        """After an answer. One that was overtaken on its way tells nothing new."""
        if sent_at <= self.sent_at:
            return self
        return Second(self._found(sent_at, left, allowed), sent_at, left)

    def _found(self, sent_at: float, left: int, allowed: float) -> float | None:
        """`began` after an answer, from it and the newest before.

        What was left rose by half: a second began between the two departures. If we thought so, it stays; if we thought it began soon
        after, a little before; else with the later of the two, which is right or too late.
        It fell, in the second half: none began between the two. If we thought so, it begins after the later.
        """
        begin, gap = self.begin(sent_at), sent_at - self.sent_at
        if gap >= 1.0:
            return self.began
        within = begin is not None and begin > self.sent_at
        if left - self.left >= max(2.0, allowed / 2):
            if within:
                return begin
            if begin is not None and sent_at - begin >= 0.75:
                return max(sent_at, begin + 1.0 - EARLIER)
            return sent_at if gap < max(NEAR, 1.5 / allowed) else self.began
        return sent_at + TICK if within and left < self.left < allowed / 2 else self.began

    def not_over(self, sent_at: float) -> Second:
        """A 429 to what left just after its presumed begin: the one before was not over yet."""
        begin = self.begin(sent_at)
        return self if begin is None or sent_at - begin > 4 * EDGE else replace(self, began=sent_at + EDGE)


@dataclass(frozen=True)
class Pace:
    """What is known of one rate limit group."""

    allowed: float = ALLOWED  # requests/s
    sent: tuple[float, ...] = ()  # when the last requests left, oldest first; without those refused
    beat: float = 0.0  # when the next one would leave if all left evenly
    second: Second = field(default_factory=Second)
    slowed: tuple[float, float] | None = None  # when a 429 came, and the rate (requests/s) after it
    held_until: float = 0.0
    slack: float = 0.0  # s by which the span is longer, because of 429s that had no other reason

    def rate(self, now: float) -> float:
        """Requests per second that may leave: all that are allowed, less after a 429."""
        if self.slowed is None:
            return self.allowed
        at, rate = self.slowed
        soon, later = min(max(0.0, now - at), PATIENCE), min(max(0.0, now - at - PATIENCE), 100.0)
        return min(self.allowed, rate * math.pow(REGAIN, soon) * math.pow(REGAIN_LATER, later))

    def due(self, now: float) -> float:
        """The instant from which the next request may leave."""
        rate = self.rate(now)
        if rate > COUNTED or not self.sent:
            return self.held_until
        due = max(self.held_until, self.beat, self.sent[-1] + CLOSEST / rate)
        many = max(1, int(rate))
        if len(self.sent) >= many:
            made_up = MAKE_UP if self.second.begin(now) is None else MAKE_UP_KNOWN
            due = max(due, self.sent[-many] + (self._span(now) - made_up) * many / rate)
        return self.second.free(max(now, due), self.sent)

    def departed(self, now: float) -> Pace:
        """A request leaves at `now`."""
        distance = self._span(now) / self.rate(now)
        sent = (*(at for at in self.sent[1 - COUNTED :] if at > now - 2.0), now)
        return replace(self, sent=sent, beat=max(self.beat, now - LAG * distance) + distance, slack=self.slack * KEPT_SLACK)

    def answered(self, sent_at: float, left: int | None) -> Pace:
        """An answer came to what left at `sent_at`; `left` is what its header says is left of the second, None where it says nothing."""
        if left is None or sent_at not in self.sent:
            return self
        allowed = self._learnt(sent_at, left)
        slack = 0.0 if allowed < self.allowed - 0.5 else self.slack  # a lower limit is reason enough for the 429s before
        return replace(self, allowed=allowed, slack=slack, second=self.second.heard(sent_at, left, self.allowed))

    def refused(self, sent_at: float, now: float) -> Pace:
        """A 429 came to what left at `sent_at`. Many within a second are one."""
        through = self._count(sent_at - 1.0, sent_at) - 1
        sent = tuple(at for at in self.sent if at != sent_at)
        if self.slowed is not None and now < self.slowed[0] + 1.0:
            since, tried, second, slack = self.slowed[0], self.slowed[1] / CAUTION, self.second, self.slack
        else:
            since, tried, second = now, self.rate(now), self.second.not_over(sent_at)
            slack = min(self.slack + MORE_SLACK, MOST_SLACK) if through + 1 >= tried else self.slack
        rate = max(1.0, CAUTION * min(tried, max(through, min(tried, ALLOWED) / 2)))
        held_until = max(self.held_until, second.next(now))
        return replace(self, sent=sent, second=second, slowed=(since, rate), slack=slack, held_until=held_until)

    def believed(self, now: float) -> Pace:
        """Where instants are far ahead, the clock was set back: nothing but the limit is believed."""
        ahead = max(self.held_until, self.beat, *self.sent[-1:]) - now
        return self if ahead < 1.5 else Pace(allowed=self.allowed)

    def _span(self, now: float) -> float:
        return (SPAN if self.second.begin(now) is None else SPAN_KNOWN) + self.slack

    def _learnt(self, sent_at: float, left: int) -> float:
        """`allowed` after an answer. Up by 1 at a time, for a header may say too much: the first 429 must not find a hundred under way."""
        if left + 1 > self.allowed:
            return min(self.allowed + 1.0, left + 1.0)
        begin = self.second.begin(sent_at)
        if begin is None:
            return min(self.allowed, left + self._count(sent_at - 1.05, sent_at))
        most = self._count(begin - 2 * EDGE, sent_at)
        return self.allowed - max(0.0, self.allowed - most) / 3 if left == 0 else self.allowed

    def _count(self, after: float, until: float) -> float:
        """How many left in (after, until]."""
        return float(sum(after < at <= until for at in self.sent))


@dataclass(frozen=True)
class Block:
    """A 418: nothing leaves for `seconds` from `at` on."""

    at: float
    seconds: float
    said: str = ""  # by the exchange

    @property
    def until(self) -> float:
        return self.at + self.seconds


class Turn(NamedTuple):
    """A request leaves `at` once (`wait` is 0), or is to ask again after `wait` seconds; because of `block` where there is one."""

    at: float
    wait: float
    block: Block | None


@dataclass(frozen=True)
class Ledger:
    """All that is known of one exchange's limits for this address."""

    paces: Mapping[str, Pace] = field(default_factory=dict)  # by group
    block: Block | None = None

    def take(self, group: str, now: float) -> tuple[Ledger, Turn]:
        """Let a request of `group` leave at `now`, or say how long to wait before it is worth asking again."""
        block = self.blocked(now)
        if block is not None:
            return replace(self, block=block), Turn(now, block.until - now, block)
        wait = self.pace(group, now).due(now) - now
        return (self, Turn(now, wait, None)) if wait > TICK else (self.departed(group, now), Turn(now, 0.0, None))

    def departed(self, group: str, now: float) -> Ledger:
        """A request of `group` leaves at `now`, come what may."""
        return self._with(group, self.pace(group, now).departed(now))

    def answered(self, group: str, sent_at: float, left: int | None, now: float) -> Ledger:
        """An answer: see Pace.answered."""
        return self._with(group, self.pace(group, now).answered(sent_at, left))

    def refused(self, group: str, sent_at: float, now: float) -> Ledger:
        """A 429: see Pace.refused."""
        return self._with(group, self.pace(group, now).refused(sent_at, now))

    def shut_out(self, now: float, seconds: float | None, said: str = "") -> Ledger:
        """A 418 that lasts `seconds`; None where it does not say: a minute, or twice the block before where that has hardly ended."""
        before, present = self.block, self.blocked(now)
        if seconds is None:
            again = before is not None and before.until <= now < before.until + AGAIN
            seconds = 2 * before.seconds if before is not None and again else FIRST_BLOCK
        block = Block(now, min(seconds, LONGEST_BLOCK), said)
        return replace(self, block=block if present is None or block.until > present.until else present)

    def blocked(self, now: float) -> Block | None:
        """The block that is in force. One that begins in the future begins now: the clock was set back."""
        if self.block is None or self.block.until <= now:
            return None
        return self.block if self.block.at <= now + 1.0 else replace(self.block, at=now)

    def pace(self, group: str, now: float) -> Pace:
        return (self.paces.get(group) or Pace(ALLOWED_IN.get(group, ALLOWED))).believed(now)

    def _with(self, group: str, pace: Pace) -> Ledger:
        return replace(self, paces={**self.paces, group: pace})
