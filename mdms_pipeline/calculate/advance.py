"""Carry one kind of indicator forward over one timeframe: stored candles and upstream columns in, rows and memories out.

1. `due`     compares a memory with what it was calculated from: hit, incremental, from start, or not possible yet (pure)
2. `_load`   reads the due bars of the declared columns, and no other
3. `_run`    the kernels, symbols on threads
4. `store_advances` writes rows and memories in one transaction; who was overtaken meanwhile is left out
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import duckdb
import numpy as np

from mdms_pipeline.calculate.indicator import Indicator, Output
from mdms_pipeline.calculate.run import columns, inputs, run
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Floats, Instant
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import QUARANTINED, Standing, standings
from mdms_pipeline.store.indicators import Advance, Memory, memories, next_revision, store_advances
from mdms_pipeline.store.journal import Work, emit, note_work
from mdms_pipeline.store.series import EVER, Series, read_spans

HIT, INCREMENTAL, FROM_START, SKIPPED = "hit", "incremental", "from start", "skipped"
CHUNK_SHARE = 0.2  # of the memory allowed, for the arrays of one chunk: they are held as read, as calculated and as written


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
    reasons: Mapping[str, str]  # symbol -> why, where it is not a hit
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
    if standing is None or standing.newest is None:
        return Due(indicator, symbol, SKIPPED, "no candles")
    if standing.state == QUARANTINED:
        return Due(indicator, symbol, SKIPPED, f"quarantined: {standing.reason}")
    upstream = {read.name: held.get((symbol, read.name)) for read in indicator.upstream}
    if missing := [name for name, memory in upstream.items() if memory is None]:
        return Due(indicator, symbol, SKIPPED, f"{missing[0]} is not calculated yet")
    present = [memory for memory in upstream.values() if memory is not None]
    behind = [memory for memory in present if memory.reads["candles"] != standing.revision]
    if behind:
        return Due(indicator, symbol, SKIPPED, f"{behind[0].indicator} stands on candles that were revised")
    reads = {"candles": standing.revision, **{memory.indicator: memory.revision for memory in present}}
    until = min([standing.newest, *(memory.watermark for memory in present)])
    mine = held.get((symbol, indicator.name))
    mode, reason = _mode(indicator, mine, reads, until)
    if until < standing.newest and mode != HIT:
        laggard = min(present, key=lambda memory: memory.watermark).indicator
        reason = f"{reason}; stops where {laggard} does"
    return Due(indicator, symbol, mode, reason, until, mine, reads)


def _mode(indicator: Indicator, mine: Memory | None, reads: Mapping[str, int], until: Instant) -> tuple[str, str]:
    if mine is None:
        return FROM_START, "first time"
    if mine.fingerprint != indicator.fingerprint:
        return FROM_START, "declaration changed"
    if dict(mine.reads) != dict(reads):
        changed = next((name for name in reads if mine.reads.get(name) != reads[name]), "reads")
        return FROM_START, f"{changed} was revised"
    if mine.watermark >= until:
        return HIT, "nothing new"
    return INCREMENTAL, "new bars"


def advance(
    warehouse: Warehouse,
    indicators: Sequence[Indicator],
    timeframe: str,
    symbols: Sequence[str],
    now: Callable[[], float] = time.time,
    run_id: str | None = None,
    progress: Callable[[int], None] = lambda symbols: None,
) -> Done:
    """Bring the `indicators`, all of one kind, up to what they read, for these symbols. Writes chunk by chunk; safe to repeat."""
    kind = indicators[0].kind.name
    started, clock = int(now()), time.perf_counter()
    rows: dict[str, int] = {}
    bars = 0
    with warehouse.read() as connection:
        plan = _plan(connection, indicators, timeframe, symbols)
        chunks = list(_chunks(connection, _to_do(plan), timeframe, warehouse.memory_mb))
        ready = _load(connection, plan, chunks[0], timeframe) if chunks else _Loaded([], {})
    for chunk in chunks:
        if chunk is not chunks[0]:
            with warehouse.read() as connection:  # planned again: bars and memories of one chunk must be of one moment
                ready = _load(connection, _plan(connection, indicators, timeframe, chunk), chunk, timeframe)
        advances = _run(ready, timeframe)
        bars += sum(len(advance.opened_at) for advance in advances)
        with warehouse.write() as connection:
            rows |= _store(connection, kind, advances, timeframe, int(now()), run_id)
            if chunk is chunks[-1]:
                done = _done(kind, timeframe, plan, rows, bars, time.perf_counter() - clock)
                note_work(connection, _work(done, run_id, started))
        progress(len(chunk))
    if not chunks:
        done = _done(kind, timeframe, plan, rows, bars, time.perf_counter() - clock)
        with warehouse.write() as connection:
            note_work(connection, _work(done, run_id, started))
    progress(len(plan) - sum(map(len, chunks)))
    return done


def outstanding(
    connection: duckdb.DuckDBPyConnection, indicators: Sequence[Indicator], timeframe: str, symbols: Sequence[str]
) -> dict[str, int]:
    """What is to be calculated: reason -> (indicator, symbol) pairs. Those that have nothing to stand on do not count."""
    plan = _plan(connection, indicators, timeframe, symbols)
    work = [item for dues in plan.values() for item in dues if item.mode in (INCREMENTAL, FROM_START)]
    found = Counter(f"{item.indicator.call} {item.reason}" for item in work)
    return dict(found.most_common())


def _plan(
    connection: duckdb.DuckDBPyConnection, indicators: Sequence[Indicator], timeframe: str, symbols: Sequence[str]
) -> dict[str, list[Due]]:
    known = standings(connection, [(symbol, timeframe) for symbol in symbols])
    kinds = {indicator.kind.name for indicator in indicators} | {up.kind.name for indicator in indicators for up in indicator.upstream}
    held = memories(connection, timeframe, symbols, kinds)
    return {symbol: [due(indicator, symbol, known.get((symbol, timeframe)), held) for indicator in indicators] for symbol in symbols}


@dataclass(frozen=True)
class _Loaded:
    """What is due and the bars that it needs, read in one transaction."""

    work: Sequence[Due]
    series: Mapping[str, Series]


def _to_do(plan: Mapping[str, list[Due]]) -> dict[str, list[Due]]:
    """Those symbols that have anything to calculate."""
    return {symbol: dues for symbol, dues in plan.items() if any(item.mode in (INCREMENTAL, FROM_START) for item in dues)}


def _chunks(connection: duckdb.DuckDBPyConnection, todo: Mapping[str, list[Due]], timeframe: str, memory_mb: int) -> Iterator[list[str]]:
    """Symbols in groups whose arrays stay within the share of the memory that chunks may take."""
    candles = {symbol: standing.candles for (symbol, _), standing in standings(connection, [(s, timeframe) for s in todo]).items()}
    room = memory_mb * 2**20 * CHUNK_SHARE
    chunk: list[str] = []
    taken = 0.0
    for symbol, dues in todo.items():
        whole = any(item.mode == FROM_START for item in dues)
        width = 8 * (7 + sum(len(item.indicator.kind.writes) + len(item.indicator.reads) for item in dues))
        size = width * (candles[symbol] if whole else min(candles[symbol], 1_000))
        if chunk and taken + size > room:
            yield chunk
            chunk, taken = [], 0.0
        chunk.append(symbol)
        taken += size
    if chunk:
        yield chunk


def _load(connection: duckdb.DuckDBPyConnection, plan: Mapping[str, list[Due]], symbols: Sequence[str], timeframe: str) -> _Loaded:
    """The declared columns of each symbol, from the last bar calculated (for what changed since) to the last one to calculate."""
    work = [item for symbol in symbols for item in plan[symbol] if item.mode in (INCREMENTAL, FROM_START)]
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
    joined = read_spans(connection, "candles", PRICES_AND_AMOUNTS, timeframe, spans)
    for table, names in tables.items():
        found = read_spans(connection, table, list(names), timeframe, spans)
        joined = {symbol: series.join(found[symbol]) for symbol, series in joined.items()}
    return _Loaded(work, joined)


def _run(loaded: _Loaded, timeframe: str) -> list[Advance]:
    """The new rows of all that is due, symbols on threads: the kernels hold no interpreter lock."""
    if len(loaded.work) < 2 * (os.cpu_count() or 1):
        return [_advanced(item, loaded.series[item.symbol], timeframe) for item in loaded.work]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda item: _advanced(item, loaded.series[item.symbol], timeframe), loaded.work))


def _advanced(item: Due, series: Series, timeframe: str) -> Advance:
    """Run one indicator over the bars after its memory."""
    assert item.until is not None
    start = 0 if item.since is None else int(np.searchsorted(series.opened_at, item.since, side="right"))
    end = int(np.searchsorted(series.opened_at, item.until, side="right"))
    previous_close = series.columns["close"][start - 1] if start else np.nan
    known = _columns(item.indicator, series, slice(start, end), previous_close)
    fresh = item.mode == FROM_START or item.held is None
    memory = item.indicator.memory if fresh or item.held is None else item.held.memory
    after, outputs = run(item.indicator, memory, inputs(item.indicator, known))
    opened_at = series.opened_at[start:end]
    held = item.held
    remembered = Memory(
        symbol=item.symbol,
        timeframe=timeframe,
        kind=item.indicator.kind.name,
        indicator=item.indicator.name,
        fingerprint=item.indicator.fingerprint,
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
    candles = Candles(series.opened_at[bars], *(series.columns[name][bars] for name in PRICES_AND_AMOUNTS))
    return upstream | columns(candles, plain, previous_close)


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


def _done(kind: str, timeframe: str, plan: Mapping[str, list[Due]], rows: Mapping[str, int], bars: int, seconds: float) -> Done:
    order = (SKIPPED, FROM_START, INCREMENTAL, HIT)
    worst = {symbol: min(dues, key=lambda item: order.index(item.mode)) for symbol, dues in plan.items()}
    return Done(
        kind,
        timeframe,
        modes={symbol: item.mode for symbol, item in worst.items()},
        reasons={symbol: item.reason for symbol, item in worst.items() if item.mode != HIT},
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
