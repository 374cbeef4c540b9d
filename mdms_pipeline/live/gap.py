"""What closed while nobody listened, asked of REST: which candles, and in what order. Knows the exchange only as it is passed in."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mdms_pipeline.collect.wire import MAX_CANDLES
from mdms_pipeline.market import Candles, Instant, Timeframe

PARALLEL = 12  # requests under way; the client's pace decides how fast
TICKER_PAYS = 4  # partitions from which one ticker/all is worth asking for


class Asked(Protocol):
    """The exchange as it is asked here: the collecting client."""

    async def candles(self, symbol: str, timeframe: str, to: Instant, count: int) -> Candles: ...

    async def last_trades(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Gap:
    """One symbol of one timeframe, and the last bar that is known of it."""

    symbol: str
    frame: Timeframe
    last: Instant
    complete_to: float = -math.inf  # s UTC: every trade up to there is known


@dataclass(frozen=True)
class Answer:
    """One page of a gap: candles from the last known one on, the newest perhaps still forming."""

    gap: Gap
    candles: Candles
    asked_at: float  # s UTC, the exchange's clock before it was asked
    complete: bool  # no page follows


@dataclass(frozen=True)
class Refusal:
    """The exchange did not answer for this gap."""

    gap: Gap
    error: Exception


def pages(gap: Gap, now: float) -> list[tuple[Instant, int]]:
    """`to` and `count` of every request that this gap takes, oldest first: the last known bar and the forming one are told as well."""
    end, start, found = gap.frame.after(gap.frame.floor(int(now))), gap.last, []
    while start < end:
        to = min(gap.frame.after(start, MAX_CANDLES), end)
        found.append((to, gap.frame.slots(start, to)))
        start = to
    return found


async def close_gaps(
    exchange: Asked, gaps: Sequence[Gap], clock: Callable[[], float], expected: type[Exception] | tuple[type[Exception], ...]
) -> AsyncIterator[Answer | Refusal]:
    """The answers for all gaps as they come, in parallel; those of one gap in order. Markets without a trade since need no request."""
    open_gaps, queue = await _traded(exchange, gaps, expected), asyncio.Queue[Answer | Refusal | BaseException | None]()
    limit = asyncio.Semaphore(PARALLEL)
    tasks = [asyncio.create_task(_close(exchange, gap, clock, expected, limit, queue.put)) for gap in open_gaps]
    done = asyncio.create_task(_end(tasks, queue.put))
    try:
        while (found := await queue.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        for task in (*tasks, done):
            task.cancel()
        await asyncio.gather(*tasks, done, return_exceptions=True)


async def _traded(exchange: Asked, gaps: Sequence[Gap], expected: type[Exception] | tuple[type[Exception], ...]) -> list[Gap]:
    """The gaps in which one ticker/all does not show that nothing was traded."""
    if len(gaps) < TICKER_PAYS:
        return list(gaps)
    try:
        traded = await exchange.last_trades()
    except expected:
        return list(gaps)
    return [gap for gap in gaps if traded.get(gap.symbol, math.inf) > gap.complete_to]


async def _close(
    exchange: Asked,
    gap: Gap,
    clock: Callable[[], float],
    expected: type[Exception] | tuple[type[Exception], ...],
    limit: asyncio.Semaphore,
    put: Callable[[Answer | Refusal], Awaitable[None]],
) -> None:
    async with limit:
        asks = pages(gap, clock())
        for i, (to, count) in enumerate(asks):
            asked_at = clock()
            try:
                candles = await exchange.candles(gap.symbol, gap.frame.name, to, count)
            except expected as error:
                await put(Refusal(gap, error))
                return
            await put(Answer(gap, candles[candles.opened_at >= gap.last], asked_at, i == len(asks) - 1))


async def _end(tasks: Sequence[asyncio.Task[None]], put: Callable[[BaseException | None], Awaitable[None]]) -> None:
    """When all have ended say so, or what was wrong with the first that broke."""
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, BaseException):
            await put(ended)
    await put(None)
