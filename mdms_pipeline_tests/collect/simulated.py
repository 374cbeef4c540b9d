"""An exchange and the processes that ask it, as events on one simulated clock: latency, jitter, late wake-ups, clocks that disagree."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mdms_pipeline.collect.pace import Ledger

GROUP = "candles"
START = 1_000_000.0  # s; when the first request may leave


class Fixed:
    """Counts by whole seconds of the exchange's clock, which is `skew` seconds ahead of ours."""

    def __init__(self, limit: float, skew: float) -> None:
        self.limit, self.skew, self.second, self.used = limit, skew, -1, 0

    def ask(self, now: float) -> int | None:
        """How many are left after this request, None where it is refused."""
        second = math.floor(now + self.skew)
        self.used = self.used if second == self.second else 0
        self.second = second
        if self.used >= self.limit:
            return None
        self.used += 1
        return int(self.limit) - self.used


class Sliding:
    """Counts what was let through within the last second."""

    def __init__(self, limit: float, skew: float) -> None:
        self.limit, self.through = limit, deque[float]()

    def ask(self, now: float) -> int | None:
        while self.through and self.through[0] <= now - 1:
            self.through.popleft()
        if len(self.through) >= self.limit:
            return None
        self.through.append(now)
        return int(self.limit) - len(self.through)


class Bucket:
    """A bucket of `limit` tokens, refilled at `limit` a second."""

    def __init__(self, limit: float, skew: float) -> None:
        self.limit, self.tokens, self.at = limit, float(limit), 0.0

    def ask(self, now: float) -> int | None:
        self.tokens = min(self.limit, self.tokens + (now - self.at) * self.limit)
        self.at = now
        if self.tokens < 1:
            return None
        self.tokens -= 1
        return int(self.tokens)


Counter = Fixed | Sliding | Bucket


@dataclass
class World:
    """Processes that send as much as they may, over one ledger."""

    counter: Counter
    processes: int = 1
    workers: int = 12  # requests in flight per process
    way: Callable[[random.Random], float] = lambda dice: 0.02 + dice.expovariate(1 / 0.004)  # s to the exchange, and as much back
    late: Callable[[random.Random], float] = lambda dice: dice.expovariate(1 / 0.002)  # s by which a sleeper wakes up too late
    header: Callable[[int], int | None] = lambda left: left
    changes: dict[float, float] = field(default_factory=dict)  # instant -> limit from then on
    others: float = 0.0  # requests/s of another program at the same address, which keeps no pace
    seed: int = 1
    ledger: Ledger = field(default_factory=Ledger)
    through: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def run(self, seconds: float) -> World:
        """The same world after so many seconds."""
        dice, order = random.Random(self.seed), itertools.count()
        events: list[tuple[float, int, str, tuple[float, ...]]] = []

        def at(when: float, what: str, *more: float) -> None:
            heapq.heappush(events, (when, next(order), what, more))

        free, waiting = [self.workers] * self.processes, [True] * self.processes
        for process in range(self.processes):
            at(START + 0.001 * process, "turn", process)
        for when, limit in self.changes.items():
            at(when, "limit", limit)
        if self.others:
            at(START, "other")
        while events and events[0][0] < START + seconds:
            now, _, what, more = heapq.heappop(events)
            if what == "limit":
                self.counter.limit = more[0]
            elif what == "other":
                self.counter.ask(now)
                at(now + dice.expovariate(self.others), "other")
            elif what == "turn":
                process = int(more[0])
                self.ledger, turn = self.ledger.take(GROUP, now)
                if turn.wait:
                    at(now + turn.wait + self.late(dice), "turn", process)
                    continue
                free[process] -= 1
                waiting[process] = free[process] > 0
                if waiting[process]:
                    at(now + 0.0002, "turn", process)
                at(now + self.way(dice), "arrival", process, now)
            elif what == "arrival":
                left = self.counter.ask(now)
                (self.refused if left is None else self.through).append(now)
                at(now + self.way(dice), "answer", *more, math.nan if left is None else left)
            else:
                process, sent_at, left = int(more[0]), more[1], more[2]
                if math.isnan(left):
                    self.ledger = self.ledger.refused(GROUP, sent_at, now)
                else:
                    self.ledger = self.ledger.answered(GROUP, sent_at, self.header(int(left)), now)
                free[process] += 1
                if not waiting[process]:
                    waiting[process] = True
                    at(now, "turn", process)
        return self

    def share(self, since: float, until: float, limit: float = 10) -> float:
        """What was let through in [since, until), seconds from the start, as a fraction of what the limit allows."""
        return sum(START + since <= at < START + until for at in self.through) / (limit * (until - since))

    def refusals(self, since: float = 0.0) -> int:
        return sum(at >= START + since for at in self.refused)

    def most_refusals(self, seconds: float) -> int:
        """The most within any such stretch."""
        return max((sum(first <= at < first + seconds for at in self.refused) for first in self.refused), default=0)
