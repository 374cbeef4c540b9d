"""Fill many partitions at once: pages are fetched in parallel and committed in groups; one that fails stops no other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.client import Exchange
from mdms_pipeline.collect.pages import next_ask, page_of
from mdms_pipeline.market import SETTLE, Instant, timeframe
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import (
    DELISTED,
    FAILED,
    FRESH,
    Page,
    Partition,
    Standing,
    extended,
    mark,
    outside,
    standings,
    store_pages,
)
from mdms_pipeline.store.journal import Work, note_work

PARALLEL = 12  # partitions in flight; the pace decides how fast, this only hides the way to the exchange
QUEUED = 64  # pages fetched but not yet committed, at most: some 0.6 MB
GIVE_UP_AFTER = 3  # partitions in a row that the exchange does not answer for: it is down, the others are not tried


@dataclass
class Filled:
    """What a collection did. `states` and `reasons` are by partition."""

    candles: dict[Partition, int] = field(default_factory=dict)
    states: dict[Partition, str] = field(default_factory=dict)
    reasons: dict[Partition, str] = field(default_factory=dict)
    requests: int = 0
    waited: float = 0.0
    seconds: float = 0.0

    def failed(self) -> list[Partition]:
        return sorted(partition for partition, state in self.states.items() if state == FAILED)


@dataclass
class _Job:
    """One collection under way."""

    exchange: Exchange
    warehouse: Warehouse
    history: int
    run_id: str | None
    progress: Callable[[int], None]
    queue: asyncio.Queue[Page | None]
    filled: Filled
    as_of: Instant  # every partition is brought up to the newest slot settled at this instant
    silent: int = 0  # partitions in a row that got no answer
    down: wire.ExchangeError | None = None  # set once: nothing more is asked


def newest_end(now: float, name: str) -> Instant:
    """Where the newest settled slot ends."""
    frame = timeframe(name)
    return frame.floor(int(now) - SETTLE)


def is_due(standing: Standing, now: float, history: int) -> bool:
    """Whether anything is missing that the exchange may have."""
    return next_ask(standing, newest_end(now, standing.timeframe), history) is not None


async def fill(
    exchange: Exchange,
    warehouse: Warehouse,
    partitions: Sequence[Partition],
    history: int,
    run_id: str | None = None,
    progress: Callable[[int], None] = lambda partitions: None,
) -> Filled:
    """Bring `partitions` up to the newest settled slot, each with `history` candles or as many as exist; in the order given."""
    started, clock = exchange.clock(), time.perf_counter()
    before, waited = exchange.requests, exchange.waited
    await _settle(exchange, partitions)
    with warehouse.read() as connection:
        known = standings(connection, partitions)
    job = _Job(exchange, warehouse, history, run_id, progress, asyncio.Queue(QUEUED), Filled(), int(exchange.clock()))
    waiting = iter([known.get(partition) or Standing(*partition, FRESH) for partition in partitions])
    writer = asyncio.create_task(_write(job))
    readers = [asyncio.create_task(_read(job, waiting)) for _ in range(PARALLEL)]
    await _all(writer, readers, job.queue)
    filled = job.filled
    filled.requests, filled.waited = exchange.requests - before, exchange.waited - waited
    filled.seconds = time.perf_counter() - clock
    _note(job, partitions, int(started))
    return filled


async def _settle(exchange: Exchange, partitions: Sequence[Partition]) -> None:
    """Wait out the moments after a close, so that the candle just closed is collected now and not a whole slot later."""
    now = exchange.clock()
    since = min((now - timeframe(name).floor(int(now)) for name in {name for _, name in partitions}), default=SETTLE)
    if since < SETTLE:
        await exchange.sleep(SETTLE - since + 0.01)


async def _all(writer: asyncio.Task[None], readers: list[asyncio.Task[None]], queue: asyncio.Queue[Page | None]) -> None:
    """Wait for all; the first that breaks (the disk is full, the user stops) ends the others and is raised."""
    everyone: set[asyncio.Task[None]] = {writer, *readers}
    try:
        pending = everyone
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if pending == {writer}:
                await queue.put(None)
    finally:
        for task in everyone:
            task.cancel()
        await asyncio.gather(*everyone, return_exceptions=True)


async def _read(job: _Job, waiting: Iterator[Standing]) -> None:
    for standing in waiting:
        if job.down is None:
            await _fill_one(job, standing)
        if job.down is not None:
            job.filled.states.setdefault(standing.partition, FAILED)
            job.filled.reasons.setdefault(standing.partition, f"not tried: {job.down}")
        job.progress(1)


async def _fill_one(job: _Job, standing: Standing) -> None:
    """Fetch page after page of one partition until nothing is missing or the exchange says no."""
    partition, filled = standing.partition, job.filled
    filled.candles[partition] = 0
    end = newest_end(job.as_of, standing.timeframe)
    try:
        while (ask := next_ask(standing, end, job.history)) is not None:
            answer = await job.exchange.candles(standing.symbol, standing.timeframe, ask.to, ask.count)
            job.silent = 0
            page = page_of(standing, ask, answer)
            standing = extended(standing, page, outside(page.candles, standing.covered), job.as_of)
            await job.queue.put(page)
            if page.refused is not None:
                break
        filled.states[partition] = standing.state if standing.state != FAILED else FRESH
        if standing.reason and standing.state != FRESH:
            filled.reasons[partition] = standing.reason
    except wire.ExchangeError as error:
        _failed(job, partition, error)


def _failed(job: _Job, partition: Partition, error: wire.ExchangeError) -> None:
    gone = isinstance(error, wire.NotFound)
    job.filled.states[partition] = DELISTED if gone else FAILED
    job.filled.reasons[partition] = str(error)
    job.silent = job.silent + 1 if isinstance(error, (wire.Unreachable, wire.ServerDown)) else 0
    if isinstance(error, wire.Blocked) or job.silent >= GIVE_UP_AFTER:
        job.down = error


async def _write(job: _Job) -> None:
    """Commit what has gathered, again and again, until None comes."""
    ended = False
    while not ended:
        pages = [await job.queue.get()]
        while not job.queue.empty():
            pages.append(job.queue.get_nowait())
        ended = pages[-1] is None
        filled = [page for page in pages if page is not None]
        if filled:
            stored = await asyncio.to_thread(_commit, job, filled)
            for partition, count in stored.items():
                job.filled.candles[partition] += count


def _commit(job: _Job, pages: list[Page]) -> Mapping[Partition, int]:
    with job.warehouse.write() as connection:
        return store_pages(connection, pages, job.as_of, int(job.exchange.clock()), job.run_id)


def _note(job: _Job, partitions: Sequence[Partition], started: Instant) -> None:
    """Keep how each partition ended, and the totals of each timeframe."""
    filled = job.filled
    with job.warehouse.write() as connection:
        ended = {partition: (state, filled.reasons.get(partition)) for partition, state in filled.states.items()}
        mark(connection, ended, job.as_of, job.run_id)
        for name, count in Counter(name for _, name in partitions).items():
            mine = [partition for partition in filled.states if partition[1] == name]
            got = sum(filled.candles.get(partition, 0) for partition in mine)
            failed = sum(filled.states[partition] == FAILED for partition in mine)
            still = sum(not filled.candles.get(partition) for partition in mine) - failed
            work = Work(
                job.run_id, "candles", name, started, filled.seconds, count,
                hit=still, incremental=count - still - failed, failed=failed, rows=got, requests=filled.requests,
            )  # fmt: skip
            note_work(connection, work)
