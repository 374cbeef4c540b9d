"""Read stored pages again and compare: all of them, or a sample drawn at random.

1. the covered spans are cut into pages, without a list of all of them (`Pages`)
2. each page is asked for again, and what differs is found (`store/revisions.py`)
3. with `repair`, what differs is stored as a correction, or the partition is put aside where its whole history was rescaled
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.client import Exchange
from mdms_pipeline.collect.pages import impossible
from mdms_pipeline.collect.wire import MAX_CANDLES
from mdms_pipeline.market import Instant, timeframe
from mdms_pipeline.progress import Progress, unwatched
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import DELISTED, Partition, Standing, correct, restate
from mdms_pipeline.store.candles import standings as standings_of
from mdms_pipeline.store.revisions import Change, Told, differences, rescaled, stored

SAMPLE = 200  # pages, unless told: 20 s at the allowed rate
PARALLEL = 12  # pages in flight
KEPT = 10_000  # differences that are listed; the others are counted


@dataclass(frozen=True)
class Stretch:
    """The slots of one page: half-open."""

    standing: Standing
    start: Instant
    end: Instant


class Pages:
    """All pages of these partitions, numbered; a page is made when it is asked for."""

    def __init__(self, standings: Iterable[Standing]) -> None:
        self._standings = [standing for standing in standings if standing.covered and standing.candles]
        self._ends: list[int] = []
        for standing in self._standings:
            self._ends.append((self._ends[-1] if self._ends else 0) + self._count(standing))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Stretch:
        row = bisect_right(self._ends, number)
        standing = self._standings[row]
        assert standing.covered is not None
        frame, place = timeframe(standing.timeframe), number - (self._ends[row - 1] if row else 0)
        start = frame.after(standing.covered[0], place * MAX_CANDLES)
        return Stretch(standing, start, min(frame.after(start, MAX_CANDLES), standing.covered[1]))

    @staticmethod
    def _count(standing: Standing) -> int:
        assert standing.covered is not None
        return -(-timeframe(standing.timeframe).slots(*standing.covered) // MAX_CANDLES)

    def chosen(self, sample: int | None, seed: int | None = None) -> list[int] | range:
        """The numbers of a random sample, in order; all of them where `sample` is None or not fewer."""
        if sample is None or sample >= len(self):
            return range(len(self))
        return sorted(random.Random(seed).sample(range(len(self)), sample))


@dataclass
class Verified:
    """What a verification found."""

    pages: int = 0  # there are
    asked: int = 0  # were read again
    candles: int = 0  # were compared
    differing: int = 0
    changes: list[Change] = field(default_factory=list)  # the first KEPT
    rescaled: dict[Partition, float] = field(default_factory=dict)  # partitions whose history differs by one factor
    unread: dict[Partition, str] = field(default_factory=dict)  # why these could not be read again
    repaired: int = 0


async def verify(
    exchange: Exchange,
    warehouse: Warehouse,
    standings: Iterable[Standing],
    sample: int | None = SAMPLE,
    repair: bool = False,
    seed: int | None = None,
    progress: Progress = unwatched,
) -> Verified:
    """Read a sample of the stored pages again (all where `sample` is None) and say what differs. A delisted market cannot be read."""
    rows = list(standings)
    pages, found = Pages(row for row in rows if row.state != DELISTED), Verified()
    found.unread |= {row.partition: "delisted: our copy is the only one" for row in rows if row.state == DELISTED}
    numbers = pages.chosen(sample, seed)
    found.pages = len(pages)
    waiting = iter(numbers)
    with progress("verify", len(numbers)) as advanced:

        async def read() -> None:
            for number in waiting:
                await _compare(exchange, warehouse, pages[number], found, repair)
                advanced(1)

        await asyncio.gather(*(read() for _ in range(PARALLEL)))
    return found


async def _compare(exchange: Exchange, warehouse: Warehouse, page: Stretch, found: Verified, repair: bool) -> None:
    standing = page.standing
    if standing.partition in found.rescaled or standing.partition in found.unread:
        return
    count = timeframe(standing.timeframe).slots(page.start, page.end)
    try:
        answer = await exchange.candles(standing.symbol, standing.timeframe, page.end, count)
    except (wire.NotFound, wire.Garbled) as error:
        found.unread[standing.partition] = str(error)
        return
    answer = answer[answer.opened_at >= page.start]
    found.asked += 1
    bad, reason = impossible(answer, standing.timeframe, page.end)
    if bad.any():
        found.unread[standing.partition] = f"the exchange tells what cannot be: {reason}"
        return
    told = Told(*standing.partition, answer, page.start, page.end)
    changes, factor = await asyncio.to_thread(_differences, warehouse, told)
    found.candles += len(answer)
    found.differing += len(changes)
    found.changes += changes[: max(0, KEPT - len(found.changes))]
    if factor is not None:
        found.rescaled[standing.partition] = factor
    if repair and changes:
        found.repaired += await asyncio.to_thread(_repair, warehouse, standing, told, factor, int(exchange.clock()))


def _differences(warehouse: Warehouse, told: Told) -> tuple[list[Change], float | None]:
    """What differs, and the one factor where there is one."""
    with warehouse.read() as connection:
        changes = differences(connection, [told])
        if len(changes) < 2 or len(changes) < len(told.candles):
            return changes, None
        return changes, rescaled(stored(connection, [(told.symbol, told.timeframe, *told.span)])[0], told.candles)


def _repair(warehouse: Warehouse, standing: Standing, told: Told, factor: float | None, now: Instant) -> int:
    """Store what still differs; nothing where the span is no longer covered, because another page had the history put aside."""
    with warehouse.write() as connection:
        covered = standings_of(connection, [standing.partition])[standing.partition].covered
        if covered is None or told.span[0] < covered[0] or told.span[1] > covered[1]:
            return 0
        changes = differences(connection, [told])
        if factor is not None:
            restate(connection, standing, factor, now, None)
        else:
            correct(connection, changes, "found by verify", now, None)
    return len(changes)
