"""Carry one kind of indicator forward: stored candles and upstream columns in, rows and memories out.

1. `due`     compares a memory with what it was calculated from: hit, incremental, from start, or not possible yet (pure)
2. `_load`   reads the due bars of the declared columns, and no other
3. `_run`    the kernels, symbols on threads
4. `store_advances` writes rows and memories of all timeframes in one transaction; who was overtaken meanwhile is left out
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import duckdb
import numpy as np

from mdms_pipeline.calculate.indicator import Indicator, Output
from mdms_pipeline.calculate.run import columns, inputs, run
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Floats, Instant
from mdms_pipeline.store import StoreError, Warehouse
from mdms_pipeline.store.candles import QUARANTINED, Standing, standings
from mdms_pipeline.store.indicators import Advance, Memory, memories, next_revision, store_advances
from mdms_pipeline.store.journal import Work, emit, note_work
from mdms_pipeline.store.schema import SKIP
from mdms_pipeline.store.series import EVER, Series, nth_bar, read_bars, read_spans

HIT, INCREMENTAL, FROM_START, SKIPPED = "hit", "incremental", "from start", "skipped"
NOTHING_NEW = "nothing new"
CHUNK_SHARE = 0.08  # of the memory allowed, for the arrays of one chunk: they are held as read, as calculated and as written
WORTH_THREADS = 20_000  # bars; all defaults over one new bar of 120 symbols: 331 ms on threads, 85 ms without
MIN_PIECE = 1_000  # bars of one symbol that are calculated at once, however small the memory


@dataclass(frozen=True)
class Due:
    """What is to be done for one indicator of one partition."""

    indicator: Indicator
    symbol: str
    mode: str
    reason: str
    until: Instant | None = None  # last bar to calculate
    held: Memory | None = None
    reads: Mapping[str, int] = field(default_factory=dict)
    bars: int | None = None  # there are until then, from the start; None where it is not known
    no_trade: str = SKIP

    @property
    def since(self) -> Instant | None:
        """The last bar calculated, None from the start."""
        return self.held.watermark if self.held is not None and self.mode == INCREMENTAL else None


@dataclass(frozen=True)
class Done:
    """What became of each symbol in one step, and the totals that are shown."""

    kind: str
    timeframe: str
    modes: Mapping[str, str]  # symbol -> the most laborious mode of its indicators
    reasons: Mapping[str, str]  # symbol -> why, where it is not a hit, or stops before the newest candle
    newest: Mapping[str, Instant]  # symbol -> last bar calculated
    rows: Mapping[str, int]  # symbol -> rows written
    bars: int  # bars run through kernels, over all indicators
    seconds: float

    def count(self, mode: str) -> int:
        return sum(found == mode for found in self.modes.values())

    @property
    def why(self) -> dict[str, int]:
        """Reason -> symbols, most frequent first."""
        return dict(Counter(self.reasons.values()).most_common())


def due(indicator: Indicator, symbol: str, standing: Standing | None, held: Mapping[tuple[str, str], Memory]) -> Due:
    """Hit, incremental or from start, with the reason; skipped where there is nothing to stand on."""
    if standing is None or standing.last_bar is None:
        return Due(indicator, symbol, SKIPPED, "no candles")
    if standing.state == QUARANTINED:
        return Due(indicator, symbol, SKIPPED, f"quarantined: {standing.reason}")
    upstream = {read.name: held.get((symbol, read.name)) for read in indicator.upstream}
    if missing := [name for name, memory in upstream.items() if memory is None]:
        return Due(indicator, symbol, SKIPPED, f"{missing[0]} is not calculated yet")
    present = [memory for memory in upstream.values() if memory is not None]
    marks = [fingerprint(up, standing.no_trade) for up in indicator.upstream]
    if old := [memory for memory, mark in zip(present, marks, strict=True) if memory.fingerprint != mark]:
        return Due(indicator, symbol, SKIPPED, f"{old[0].indicator} stands on an older declaration")
    behind = [memory for memory in present if memory.reads["candles"] != standing.revision]
    if behind:
        return Due(indicator, symbol, SKIPPED, f"{behind[0].indicator} stands on candles that were revised")
    reads = {"candles": standing.revision, **{memory.indicator: memory.revision for memory in present}}
    until = min([standing.last_bar, *(memory.watermark for memory in present)])
    mine = held.get((symbol, indicator.name))
    mode, reason = _mode(fingerprint(indicator, standing.no_trade), mine, reads, until)
    bars = standing.bars
    if until < standing.last_bar:
        laggard = min(present, key=lambda memory: memory.watermark)
        reason, bars = f"{reason}; stops where {laggard.indicator} does", laggard.bars
    return Due(indicator, symbol, mode, reason, until, mine, reads, bars, standing.no_trade)


def fingerprint(indicator: Indicator, no_trade: str) -> str:
    """What a memory is marked with: the declaration, and what the warehouse makes of slots without a trade."""
    return f"{no_trade} {indicator.fingerprint}"


def _mode(mark: str, mine: Memory | None, reads: Mapping[str, int], until: Instant) -> tuple[str, str]:
    if mine is None:
        return FROM_START, "first time"
    if mine.fingerprint != mark:
        return FROM_START, "declaration changed"
    if dict(mine.reads) != dict(reads):
        changed = next((name for name in reads if mine.reads.get(name) != reads[name]), "reads")
        return FROM_START, f"{changed} was revised"
    if mine.watermark >= until:
        return HIT, NOTHING_NEW
    return INCREMENTAL, "new bars"


def advance(
    warehouse: Warehouse,
    indicators: Sequence[Indicator],
    asked: Mapping[str, Sequence[str]],
    now: Callable[[], float] = time.time,
    run_id: str | None = None,
    progress: Callable[[int], None] = lambda symbols: None,
) -> list[Done]:
    """Bring the `indicators`, all of one kind, up to what they read, for the symbols `asked` of each timeframe. Safe to repeat.

    Works and writes chunk by chunk. A chunk is as many symbols, over all timeframes, or of one symbol as many bars, as the memory
    allows: the next piece goes on from the memory of the last.
    """
    kind = indicators[0].kind.name
    started, clock = int(now()), time.perf_counter()
    before: dict[str, dict[str, list[Due]]] = {}  # timeframe -> what was due at the beginning
    rows: dict[str, Counter[str]] = {name: Counter() for name in asked}
    bars: Counter[str] = Counter()
    pending = dict(asked)
    done: list[Done] = []
    while pending:
        with warehouse.read() as connection:  # bars and memories of one chunk are of one moment
            plans = {name: _plan(connection, indicators, name, symbols) for name, symbols in pending.items()}
            before = before or plans
            chunks = _next_chunks(connection, plans, warehouse.memory_mb)
            loaded = {name: _load(connection, chunk.work, name) for name, chunk in chunks.items()}
        advances = {name: _run(loaded.pop(name), name) for name in chunks}
        bars.update({name: sum(len(advance.opened_at) for advance in made) for name, made in advances.items()})
        with warehouse.write() as connection:
            for name, chunk in chunks.items():
                stored = _store(connection, kind, advances.pop(name), name, int(now()), run_id)
                rows[name].update(stored)
                pending[name] = [*(symbol for symbol in chunk.unfinished if symbol in stored), *chunk.later]
            pending = {name: symbols for name, symbols in pending.items() if symbols}
            if not pending:
                done = _done(kind, before, rows, bars, time.perf_counter() - clock)
                for step in done:
                    note_work(connection, _work(step, run_id, started))
        progress(sum(len(chunk.symbols) - len(chunk.unfinished) for chunk in chunks.values()))
    progress(sum(not _to_do(dues) for plan in before.values() for dues in plan.values()))
    return done


def outstanding(
    connection: duckdb.DuckDBPyConnection, indicators: Sequence[Indicator], timeframe: str, symbols: Sequence[str]
) -> dict[str, int]:
    """What is to be calculated: reason -> (indicator, symbol) pairs. Those that have nothing to stand on do not count."""
    plan = _plan(connection, indicators, timeframe, symbols)
    found = Counter(f"{item.indicator.call} {item.reason}" for dues in plan.values() for item in _to_do(dues))
    return dict(found.most_common())


def current(
    connection: duckdb.DuckDBPyConnection, indicators: Sequence[Indicator], timeframe: str, symbols: Sequence[str]
) -> dict[str, set[Indicator]]:
    """Of each symbol those indicators that are stored up to its newest bar, as they are declared now and of the candles as they are now."""
    plan = _plan(connection, indicators, timeframe, symbols)
    return {symbol: {item.indicator for item in dues if (item.mode, item.reason) == (HIT, NOTHING_NEW)} for symbol, dues in plan.items()}


def _plan(
    connection: duckdb.DuckDBPyConnection, indicators: Sequence[Indicator], timeframe: str, symbols: Sequence[str]
) -> dict[str, list[Due]]:
    known = standings(connection, [(symbol, timeframe) for symbol in symbols])
    kinds = {indicator.kind.name for indicator in indicators} | {up.kind.name for indicator in indicators for up in indicator.upstream}
    held = memories(connection, timeframe, symbols, kinds)
    return {symbol: [due(indicator, symbol, known.get((symbol, timeframe)), held) for indicator in indicators] for symbol in symbols}


@dataclass(frozen=True)
class _Chunk:
    """What is calculated at once."""

    symbols: Sequence[str]
    work: Sequence[Due]
    unfinished: Sequence[str]  # those of which only a piece fits
    later: Sequence[str]  # those that wait for another chunk


@dataclass(frozen=True)
class _Loaded:
    """What is due and the bars that it needs, read in one transaction."""

    work: Sequence[Due]
    series: Mapping[str, Series]


def _to_do(dues: Sequence[Due]) -> list[Due]:
    """Those that have anything to calculate."""
    return [item for item in dues if item.mode in (INCREMENTAL, FROM_START)]


def _next_chunks(connection: duckdb.DuckDBPyConnection, plans: Mapping[str, Mapping[str, list[Due]]], memory_mb: int) -> dict[str, _Chunk]:
    """Timeframe -> as many symbols as fit into the share of the memory that chunks may take; at least a piece of one."""
    room = memory_mb * 2**20 * CHUNK_SHARE
    chunks: dict[str, _Chunk] = {}
    for name, plan in plans.items():
        begun = any(chunk.symbols for chunk in chunks.values())
        chunks[name], room = _next_chunk(connection, plan, name, room, begun)
    return chunks


def _next_chunk(
    connection: duckdb.DuckDBPyConnection, plan: Mapping[str, list[Due]], timeframe: str, room: float, begun: bool
) -> tuple[_Chunk, float]:
    """What fits into `room` bytes, and the room left; a piece of a symbol that does not fit, unless the chunk has `begun`."""
    todo = {symbol: work for symbol, dues in plan.items() if (work := _to_do(dues))}
    chosen: list[str] = []
    for symbol, work in todo.items():
        needed = _width(work) * max(map(_bars_due, work))
        if needed > room and (chosen or begun):
            break
        chosen.append(symbol)
        if needed > room:
            piece = _first_piece(connection, work, timeframe, max(MIN_PIECE, int(room / _width(work))))
            return _Chunk(chosen, piece, chosen, [other for other in todo if other != symbol]), 0.0
        room -= needed
    later = [symbol for symbol in todo if symbol not in set(chosen)]
    return _Chunk(chosen, [item for symbol in chosen for item in todo[symbol]], [], later), 0.0 if later else room


def _width(work: Sequence[Due]) -> int:
    """Bytes that a bar takes while these are calculated."""
    return 8 * (7 + sum(len(item.indicator.kind.writes) + len(item.indicator.reads) for item in work))


def _bars_due(item: Due) -> int:
    """Bars that it has to do."""
    assert item.bars is not None
    return item.bars - (0 if item.since is None or item.held is None else item.held.bars)


def _first_piece(connection: duckdb.DuckDBPyConnection, work: Sequence[Due], timeframe: str, bars: int) -> list[Due]:
    """The same work up to the bar that many bars after the earliest begins; what has passed that bar waits."""
    since = min(EVER[0] if item.since is None else item.since for item in work)
    until = nth_bar(connection, work[0].symbol, timeframe, since, bars)
    return [
        replace(item, until=min(item.until, until), bars=None)
        for item in work
        if item.until is not None and (item.since is None or item.since < until)
    ]  # fmt: skip


def _load(connection: duckdb.DuckDBPyConnection, work: Sequence[Due], timeframe: str) -> _Loaded:
    """The declared columns of each symbol, from the last bar calculated (for what changed since) to the last one to calculate."""
    spans: dict[str, tuple[Instant, Instant]] = {}
    tables: dict[str, dict[str, None]] = {}
    for item in work:
        since, until = spans.get(item.symbol, (EVER[1], EVER[0]))
        assert item.until is not None
        spans[item.symbol] = (min(since, EVER[0] if item.since is None else item.since), max(until, item.until))
        for read in item.indicator.reads:
            if isinstance(read, Output):
                tables.setdefault(read.indicator.kind.name, {})[read.name] = None
    if not work:
        return _Loaded([], {})
    joined = read_bars(connection, PRICES_AND_AMOUNTS, timeframe, spans)
    for table, names in tables.items():
        found = read_spans(connection, table, list(names), timeframe, spans)
        for item in work:
            if any(up.kind.name == table for up in item.indicator.upstream):
                _check_step(item, joined[item.symbol], found[item.symbol], table, timeframe)
        joined = {symbol: series.join(found[symbol]) for symbol, series in joined.items()}
    for item in work:
        _check_bars(item, joined[item.symbol], timeframe)
    return _Loaded(work, joined)


def _check_step(item: Due, bars: Series, upstream: Series, table: str, timeframe: str) -> None:
    """An upstream table has a row for each bar that its memories stand for; a missing one would be calculated with as unknown."""
    wanted, there = (series.opened_at[_due_rows(item, series)] for series in (bars, upstream))
    if not np.array_equal(wanted, there):
        raise StoreError(
            f"{table} of {item.symbol} {timeframe} has {len(there)} rows for {len(wanted)} bars: somebody else has changed the tables; "
            f"to have it calculated anew: DELETE FROM memory WHERE symbol = '{item.symbol}' AND timeframe = '{timeframe}'"
        )


def _check_bars(item: Due, series: Series, timeframe: str) -> None:
    """Bars calculated before and bars to be calculated are all that there are."""
    held = 0 if item.since is None or item.held is None else item.held.bars
    found = held + len(series.opened_at[_due_rows(item, series)])
    if item.bars is not None and found != item.bars:
        where = f"WHERE symbol = '{item.symbol}' AND timeframe = '{timeframe}'"
        raise StoreError(
            f"candles of {item.symbol} {timeframe}: {found} are there, {item.bars} were stored: somebody else has changed the tables; "
            f"to have them collected anew: DELETE FROM each of candles, coverage, status and memory {where}"
        )


def _due_rows(item: Due, series: Series) -> slice:
    """The rows of `series` after the last bar calculated, up to the last one to calculate."""
    assert item.until is not None
    start = 0 if item.since is None else int(np.searchsorted(series.opened_at, item.since, side="right"))
    return slice(start, int(np.searchsorted(series.opened_at, item.until, side="right")))


def _run(loaded: _Loaded, timeframe: str) -> list[Advance]:
    """The new rows of all that is due. Symbols go on threads where it pays: the kernels hold no interpreter lock, handing over does."""
    if sum(len(series.opened_at) for series in loaded.series.values()) < WORTH_THREADS:
        return [_advanced(item, loaded.series[item.symbol], timeframe) for item in loaded.work]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda item: _advanced(item, loaded.series[item.symbol], timeframe), loaded.work))


def _advanced(item: Due, series: Series, timeframe: str) -> Advance:
    """Run one indicator over the bars after its memory."""
    assert item.until is not None
    due_rows = _due_rows(item, series)
    previous_close = series.columns["close"][due_rows.start - 1] if due_rows.start else np.nan
    known = _columns(item.indicator, series, due_rows, previous_close)
    fresh = item.mode == FROM_START or item.held is None
    memory = item.indicator.memory if fresh or item.held is None else item.held.memory
    after, outputs = run(item.indicator, memory, inputs(item.indicator, known))
    opened_at = series.opened_at[due_rows]
    held = item.held
    remembered = Memory(
        symbol=item.symbol,
        timeframe=timeframe,
        kind=item.indicator.kind.name,
        indicator=item.indicator.name,
        fingerprint=fingerprint(item.indicator, item.no_trade),
        reads=item.reads,
        revision=0 if fresh or held is None else held.revision,
        watermark=item.until,
        bars=len(opened_at) + (0 if fresh or held is None else held.bars),
        calculated=len(opened_at) + (0 if held is None else held.calculated),
        memory=after,
    )
    return Advance(remembered, held, fresh, opened_at, dict(zip(item.indicator.columns, outputs, strict=True)))


def _columns(indicator: Indicator, series: Series, bars: slice, previous_close: float) -> dict[str, Floats]:
    plain = [read for read in indicator.reads if isinstance(read, str)]
    upstream = {read.name: series.columns[read.name][bars] for read in indicator.reads if isinstance(read, Output)}
    return upstream | columns(series.candles[bars], plain, previous_close)


def _store(
    connection: duckdb.DuckDBPyConnection, kind: str, advances: Sequence[Advance], timeframe: str, now: Instant, run_id: str | None
) -> dict[str, int]:
    """Write one chunk; symbol -> rows written."""
    if not advances:
        return {}
    stale = store_advances(connection, kind, advances, next_revision(connection))
    counts: dict[str, int] = {}
    for advance in advances:
        symbol = advance.after.symbol
        if symbol not in stale:
            counts[symbol] = max(counts.get(symbol, 0), len(advance.opened_at))
    if counts:
        emit(connection, f"{kind}_calculated", now, run_id, sorted(counts), timeframe, sum(counts.values()))
    return counts


def _done(
    kind: str, plans: Mapping[str, Mapping[str, list[Due]]], rows: Mapping[str, Mapping[str, int]], bars: Mapping[str, int], seconds: float
) -> list[Done]:
    """What became of each timeframe. They are calculated together: each is said to have taken its share of the bars."""
    total = sum(bars.values())
    shares = {name: bars[name] / total if total else 1 / len(plans) for name in plans}
    return [_done_of(kind, name, plan, rows[name], bars[name], shares[name] * seconds) for name, plan in plans.items()]


def _done_of(kind: str, timeframe: str, plan: Mapping[str, list[Due]], rows: Mapping[str, int], bars: int, seconds: float) -> Done:
    order = (SKIPPED, FROM_START, INCREMENTAL, HIT)
    worst = {symbol: min(dues, key=lambda item: order.index(item.mode)) for symbol, dues in plan.items()}
    return Done(
        kind,
        timeframe,
        modes={symbol: item.mode for symbol, item in worst.items()},
        reasons={symbol: item.reason for symbol, item in worst.items() if item.reason != NOTHING_NEW},
        newest={symbol: item.until for symbol, item in worst.items() if item.until is not None},
        rows=rows,
        bars=bars,
        seconds=seconds,
    )


def _work(done: Done, run_id: str | None, started: Instant) -> Work:
    return Work(
        run_id,
        done.kind,
        done.timeframe,
        started,
        done.seconds,
        partitions=len(done.modes),
        hit=done.count(HIT),
        incremental=done.count(INCREMENTAL),
        from_start=done.count(FROM_START),
        skipped=done.count(SKIPPED),
        rows=sum(done.rows.values()),
    )
