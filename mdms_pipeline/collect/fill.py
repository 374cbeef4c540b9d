"""Fill many partitions at once: pages are fetched in parallel and committed in groups; one that fails stops no other."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.client import Exchange
from mdms_pipeline.collect.pages import next_ask, page_of, pages_left, quiet_page
from mdms_pipeline.market import SETTLE, Candles, Instant, timeframe
from mdms_pipeline.progress import Advanced, Progress, unwatched
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import (
    DELISTED,
    FAILED,
    FRESH,
    QUARANTINED,
    Page,
    Partition,
    Standing,
    emptied,
    extended,
    mark,
    outside,
    restate,
    standings,
    store_pages,
)
from mdms_pipeline.store.journal import Work, note_work
from mdms_pipeline.store.revisions import LEAST_OVERLAP, newest_of, rescaled, stored

PARALLEL = 12  # partitions in flight; the pace decides how fast, this only hides the way to the exchange
QUEUED = 64  # pages fetched but not yet committed, at most: some 0.6 MB
TICKER_PAYS = 4  # partitions behind from which one ticker/all is worth asking for
GIVE_UP_AFTER = 3  # partitions in a row that the exchange does not answer for: it is down, the others are not tried


@dataclass
class Filled:
    """What a collection did. `states` and `reasons` are by partition."""

    candles: dict[Partition, int] = field(default_factory=dict)
    states: dict[Partition, str] = field(default_factory=dict)
    reasons: dict[Partition, str] = field(default_factory=dict)
    quiet: int = 0  # partitions that a ticker showed to have had no trade: no page was asked for
    requests: int = 0
    waited: float = 0.0
    seconds: float = 0.0

    def failed(self) -> list[Partition]:
        return sorted(partition for partition, state in self.states.items() if state == FAILED)


@dataclass(frozen=True)
class _Restate:
    """The exchange has rescaled the history of this partition: what is stored of it is put aside."""

    standing: Standing
    factor: float


_Item = Page | _Restate | None  # None ends the writing


@dataclass
class _Job:
    """One collection under way."""

    exchange: Exchange
    warehouse: Warehouse
    history: int
    since: Instant | None
    run_id: str | None
    advanced: Advanced
    queue: asyncio.Queue[_Item]
    filled: Filled
    as_of: Instant  # every partition is brought up to the newest slot settled at this instant
    newest: Mapping[Partition, Candles]  # the newest stored candle of each partition, to be compared with what is told now
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
    progress: Progress = unwatched,
    since: Instant | None = None,
) -> Filled:
    """Bring `partitions` up to the newest settled slot, each with `history` candles and back to `since`, or as far as there are any.

    In the order given. Progress counts pages.
    """
    started, clock = exchange.clock(), time.perf_counter()
    before, waited = exchange.requests, exchange.waited
    await _settle(exchange, partitions)
    as_of = int(exchange.clock())
    with warehouse.read() as connection:
        found = standings(connection, partitions)
        tails = newest_of(connection, {partition: row.newest for partition, row in found.items() if row.newest is not None})
    known = [found.get(partition) or Standing(*partition, FRESH) for partition in partitions]
    pages = sum(pages_left(standing, newest_end(as_of, standing.timeframe), history, since) for standing in known)
    with progress("candles", pages) as advanced:
        job = _Job(exchange, warehouse, history, since, run_id, advanced, asyncio.Queue(QUEUED), Filled(), as_of, tails)
        quiet = await _quiet(job, known)
        waiting = iter([quiet.get(standing.partition, standing) for standing in known])
        writer = asyncio.create_task(_write(job))
        readers = [asyncio.create_task(_read(job, waiting)) for _ in range(PARALLEL)]
        await _all(writer, readers, job.queue)
    filled = job.filled
    filled.requests, filled.waited = exchange.requests - before, exchange.waited - waited
    filled.seconds = time.perf_counter() - clock
    _note(job, partitions, int(started))
    return filled


async def _quiet(job: _Job, known: Sequence[Standing]) -> dict[Partition, Standing]:
    """Cover at once what one ticker/all shows to have had no trade; how those partitions stand then. It counts in another rate group."""
    behind = [row for row in known if row.covered is not None and row.covered[1] < newest_end(job.as_of, row.timeframe)]
    if len(behind) < TICKER_PAYS:
        return {}
    try:
        traded = await job.exchange.last_trades()
    except wire.ExchangeError:
        return {}  # not needed: every page will be asked for
    found = [(row, quiet_page(row, newest_end(job.as_of, row.timeframe), traded.get(row.symbol, math.inf))) for row in behind]
    pages = [(row, page) for row, page in found if page is not None]
    job.filled.quiet = len(pages)
    job.filled.candles.update({row.partition: 0 for row, _ in pages})
    if pages:
        await asyncio.to_thread(_commit, job, [page for _, page in pages])
    job.advanced(len(pages))
    return {row.partition: extended(row, page, page.candles, job.as_of) for row, page in pages}


async def _settle(exchange: Exchange, partitions: Sequence[Partition]) -> None:
    """Wait out the moments after a close, so that the candle just closed is collected now and not a whole slot later."""
    now = exchange.clock()
    since = min((now - timeframe(name).floor(int(now)) for name in {name for _, name in partitions}), default=SETTLE)
    if since < SETTLE:
        await exchange.sleep(SETTLE - since + 0.01)


async def _all(writer: asyncio.Task[None], readers: list[asyncio.Task[None]], queue: asyncio.Queue[_Item]) -> None:
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


async def _fill_one(job: _Job, standing: Standing) -> None:
    """Fetch page after page of one partition until nothing is missing or the exchange says no."""
    partition, filled = standing.partition, job.filled
    filled.candles.setdefault(partition, 0)
    end = newest_end(job.as_of, standing.timeframe)
    left, tail = pages_left(standing, end, job.history, job.since), job.newest.get(partition)
    try:
        while (ask := next_ask(standing, end, job.history, job.since)) is not None:
            answer = await job.exchange.candles(standing.symbol, standing.timeframe, ask.to, ask.count)
            job.silent = 0
            page = page_of(standing, ask, answer)
            if tail is not None and page.reread is not None and rescaled(tail, page.reread) is not None:
                factor, again = await _overlap(job, standing)
                if factor is not None:
                    await job.queue.put(_Restate(standing, factor))
                    standing, tail = emptied(standing, factor), None
                    continue
                page = replace(page, reread=again)
            standing = extended(standing, page, outside(page.candles, standing.covered), job.as_of)
            await job.queue.put(page)
            if ask.since is not None and len(page.candles):
                tail = page.candles[-1:]
            left = _passed(job, left, 1)
            if page.refused is not None:
                break
        filled.states[partition] = standing.state if standing.state in (QUARANTINED, DELISTED) else FRESH
        if standing.reason and filled.states[partition] != FRESH:
            filled.reasons[partition] = standing.reason
    except wire.ExchangeError as error:
        _failed(job, partition, error)
    _passed(job, left, left)


def _passed(job: _Job, left: int, pages: int) -> int:
    """Tell that these pages need no longer be asked for; how many of those that were foreseen are left."""
    job.advanced(min(left, pages))
    return left - min(left, pages)


async def _overlap(job: _Job, standing: Standing) -> tuple[float | None, Candles]:
    """The newest candle looks rescaled: by what factor the whole history was, if it was, and what the exchange tells of it now."""
    assert standing.covered is not None
    told = await job.exchange.candles(standing.symbol, standing.timeframe, standing.covered[1], wire.MAX_CANDLES)
    told = told[told.opened_at >= standing.covered[0]]
    since = int(told.opened_at[0]) if len(told) else standing.covered[1]
    held = await asyncio.to_thread(_stored, job, (*standing.partition, since, standing.covered[1]))
    return (rescaled(held, told) if len(held) >= min(LEAST_OVERLAP, standing.candles) else None), told


def _stored(job: _Job, span: tuple[str, str, Instant, Instant]) -> Candles:
    with job.warehouse.read() as connection:
        return stored(connection, [span])[0]


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
        items = [await job.queue.get()]
        while not job.queue.empty():
            items.append(job.queue.get_nowait())
        ended = items[-1] is None
        found = [item for item in items if item is not None]
        if found:
            for partition, count in (await asyncio.to_thread(_commit, job, found)).items():
                job.filled.candles[partition] += count


def _commit(job: _Job, items: Sequence[Page | _Restate]) -> Mapping[Partition, int]:
    """Store in the order of the queue, in one transaction; partition -> candles that were new."""
    now, counts = int(job.exchange.clock()), Counter[Partition]()
    with job.warehouse.write() as connection:
        for paging, group in itertools.groupby(items, lambda item: isinstance(item, Page)):
            if paging:
                counts.update(store_pages(connection, [item for item in group if isinstance(item, Page)], job.as_of, now, job.run_id))
            else:
                for item in group:
                    if isinstance(item, _Restate):
                        restate(connection, item.standing, item.factor, now, job.run_id)
    return counts


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
