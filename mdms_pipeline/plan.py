"""What would be done, before it is done: order, requests, bars, bytes and seconds. Reads the warehouse, asks nobody, writes nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import duckdb

from mdms_pipeline.calculate.advance import FROM_START, INCREMENTAL, due
from mdms_pipeline.calculate.catalog import closure, ordered
from mdms_pipeline.calculate.indicator import Indicator, Output
from mdms_pipeline.collect.capacity import Capacity, capacity_of
from mdms_pipeline.collect.fill import newest_end
from mdms_pipeline.collect.pace import ALLOWED
from mdms_pipeline.collect.pages import Ask, next_ask
from mdms_pipeline.kept import kept_indicators
from mdms_pipeline.market import stretches, timeframe
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import DELISTED, FRESH, Standing, standings
from mdms_pipeline.store.indicators import memories
from mdms_pipeline.store.universe import listed, universe

ROW_BYTES = 8  # of a DOUBLE, before DuckDB compresses it
KEY_BYTES = 10  # symbol, timeframe and time of a row, as stored on average
CANDLE_BYTES = KEY_BYTES + 6 * ROW_BYTES


@dataclass(frozen=True)
class Step:
    """One kind of work in one timeframe."""

    step: str
    timeframe: str
    partitions: int  # that have something to do
    bars: int  # rows that will be written
    bytes: int
    seconds: float | None  # median of earlier runs; None where there was none


@dataclass(frozen=True)
class Order:
    """One indicator in the order of calculation, and what it reads."""

    indicator: str
    reads: tuple[str, ...]
    depth: int  # candles are 0
    first: int  # index of the first bar that has a value
    stable_after: int


@dataclass(frozen=True)
class Plan:
    """The steps in the order in which a run takes them."""

    symbols: int
    runs: int  # one per stretch of neighbouring timeframes
    requests: int
    request_seconds: float  # at the allowed rate
    order: tuple[Order, ...]
    steps: tuple[Step, ...]
    assumed: str | None  # what is not known yet and was assumed
    capacity: Capacity  # what it takes to keep all fresh


def order_of(indicators: Iterable[Indicator]) -> tuple[Order, ...]:
    """These indicators and all that they read, in the order in which a run calculates them: kind by kind, upstream first."""
    whole = closure(indicators)
    kinds = ordered({indicator.kind.name for indicator in whole})
    depth: dict[Indicator, int] = {}
    for indicator in whole:
        depth[indicator] = 1 + max((depth[up] for up in indicator.upstream), default=0)
    return tuple(
        Order(indicator.call, _reads(indicator), depth[indicator], max(indicator.first), indicator.stable_after)
        for kind in kinds
        for indicator in whole
        if indicator.kind.name == kind
    )


def _reads(indicator: Indicator) -> tuple[str, ...]:
    return tuple(dict.fromkeys(read.indicator.call if isinstance(read, Output) else read for read in indicator.reads))


def plan_run(settings: Settings, warehouse: Warehouse, wanted: Sequence[Indicator] = (), now: float | None = None) -> Plan:
    """What a run would do now: for all that is kept, or for `wanted` indicators and what they read."""
    at = settings.clock() if now is None else now
    indicators = closure(wanted) if wanted else kept_indicators(settings)
    with warehouse.read() as connection:
        symbols = universe(connection)
        needed = capacity_of(settings, listed(connection))
        assumed = None if symbols else _assumption(settings)
        symbols = symbols or list(settings.symbols) or [f"KRW-?{i}" for i in range(settings.top)]
        steps: list[Step] = []
        requests = 0 if not assumed else 2
        for name in settings.timeframes:
            known = _standings(connection, symbols, name)
            asked, after = _collected(known, at, settings.history)
            requests += asked
            steps.append(_candles_step(connection, name, known, after))
            steps += _indicator_steps(connection, name, indicators, known, after)
    order = order_of(indicators)
    kinds = ["candles", *ordered({indicator.kind.name for indicator in indicators})]
    steps.sort(key=lambda step: kinds.index(step.step))
    runs = len(list(stretches(sorted({step.timeframe for step in steps if step.partitions}))))
    return Plan(len(symbols), runs, requests, requests / ALLOWED, order, tuple(step for step in steps if step.partitions), assumed, needed)


def _assumption(settings: Settings) -> str:
    return f"the universe was never asked for: {len(settings.symbols) or settings.top} markets with full history are assumed"


def _standings(connection: duckdb.DuckDBPyConnection, symbols: Sequence[str], name: str) -> dict[str, Standing]:
    known = standings(connection, [(symbol, name) for symbol in symbols])
    return {symbol: known.get((symbol, name)) or Standing(symbol, name, FRESH) for symbol in symbols}


def _collected(known: dict[str, Standing], now: float, history: int) -> tuple[int, dict[str, Standing]]:
    """How many requests it takes, and how the partitions stand afterwards if every slot has a trade."""
    requests, after = 0, {}
    for symbol, standing in known.items():
        end = newest_end(now, standing.timeframe)
        while standing.state != DELISTED and (ask := next_ask(standing, end, history)) is not None:
            standing = _answered(standing, ask)
            requests += 1
        after[symbol] = standing
    return requests, after


def _answered(standing: Standing, ask: Ask) -> Standing:
    frame = timeframe(standing.timeframe)
    start = frame.after(ask.to, -ask.count) if ask.since is None else ask.since
    covered = standing.covered or (start, ask.to)
    return replace(
        standing,
        candles=standing.candles + frame.slots(start, ask.to),
        oldest=start if standing.oldest is None else min(start, standing.oldest),
        covered=(min(covered[0], start), max(covered[1], ask.to)),
        newest=frame.after(max(covered[1], ask.to), -1),
        revision=standing.revision + (ask.since is None and standing.newest is not None),
    )


def _candles_step(connection: duckdb.DuckDBPyConnection, name: str, known: dict[str, Standing], after: dict[str, Standing]) -> Step:
    new = {symbol: after[symbol].candles - known[symbol].candles for symbol in known}
    rows = sum(new.values())
    return Step("candles", name, sum(map(bool, new.values())), rows, rows * CANDLE_BYTES, _median(connection, "candles", name))


def _indicator_steps(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    indicators: Sequence[Indicator],
    known: dict[str, Standing],
    after: dict[str, Standing],
) -> list[Step]:
    """Bars that each kind would calculate once the candles are there; upstream counts as brought up to date first."""
    kinds = ordered({indicator.kind.name for indicator in indicators})
    held = memories(connection, name, list(known), kinds)
    bars: dict[str, dict[str, int]] = {kind: {} for kind in kinds}
    width = {kind: KEY_BYTES + ROW_BYTES * sum(len(i.kind.writes) for i in indicators if i.kind.name == kind) for kind in kinds}
    for symbol, standing in after.items():
        fresh: set[Indicator] = set()
        for indicator in indicators:
            count, anew = _bars(indicator, standing, known[symbol], due(indicator, symbol, known[symbol], held).mode, fresh)
            if anew:
                fresh.add(indicator)
            bars[indicator.kind.name][symbol] = max(count, bars[indicator.kind.name].get(symbol, 0))
    return [
        Step(
            kind, name, sum(map(bool, rows.values())), sum(rows.values()), sum(rows.values()) * width[kind], _median(connection, kind, name)
        )
        for kind, rows in bars.items()
    ]


def _bars(indicator: Indicator, after: Standing, before: Standing, mode: str, fresh: set[Indicator]) -> tuple[int, bool]:
    """(bars to calculate, whether from the start)."""
    anew = mode == FROM_START or after.revision != before.revision or before.newest is None or any(up in fresh for up in indicator.upstream)
    if anew:
        return after.bars, True
    new = after.bars - before.bars
    return (max(new, 1) if mode == INCREMENTAL else new), False


def _median(connection: duckdb.DuckDBPyConnection, step: str, name: str) -> float | None:
    """Seconds that the step took in runs that had something to do."""
    rows = connection.execute(
        "SELECT seconds FROM work WHERE step = ? AND timeframe = ? AND rows > 0 ORDER BY rowid DESC LIMIT 20", [step, name]
    ).fetchall()
    return statistics.median(seconds for (seconds,) in rows) if rows else None
