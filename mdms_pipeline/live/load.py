"""From the warehouse into RAM: of each symbol its last bars and the memories after them.

The short way reads the stored memories and the last rows; it is open where every needed indicator is stored as it is declared now, all of
them up to one bar. Otherwise everything is calculated from the stored candles. Both end at the newest stored bar, with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from mdms_pipeline.calculate.advance import HIT, INCREMENTAL, due
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.run import carry
from mdms_pipeline.live.signal import Signal
from mdms_pipeline.live.tape import FAR, NEVER, Loaded
from mdms_pipeline.live.watch import Bars, Watch, calls_of, columns_of, signals
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Floats, Instant, timeframe
from mdms_pipeline.store.candles import Standing, standings
from mdms_pipeline.store.indicators import Memory, memories
from mdms_pipeline.store.schema import SKIP, no_trade
from mdms_pipeline.store.series import EVER, Series, flattened, read_bars, read_last, read_spans
from mdms_pipeline.vocabulary import needed, tables

AT_ONCE = 20  # symbols calculated from all their candles at once
STORED, CALCULATED = "stored memory", "full calculation"  # ways


@dataclass(frozen=True)
class Found:
    """One symbol as the warehouse knows it, and by which way."""

    loaded: Loaded
    way: str


def indicators_of(watches: Sequence[Watch]) -> tuple[Indicator, ...]:
    """What these watches read and all that it reads, upstream first."""
    return needed(rule for watch in watches for rule in watch.rules)


def load(
    connection: duckdb.DuckDBPyConnection,
    watches: Sequence[Watch],
    symbols: Sequence[str],
    since: Instant | None = None,
    short: bool = True,
) -> Iterator[Found]:
    """Every one of `symbols` that has a bar, with the bars that `watches` (of one timeframe) read: so many that the answers of all
    bars from `since` on, and of the last one, can be told. Without `short` everything is calculated."""
    frame = watches[0].timeframe
    known = {s: one for (s, _), one in standings(connection, [(s, frame) for s in symbols]).items() if one.last_bar is not None}
    wanted = indicators_of(watches)
    marks = _marks(connection, frame, known, wanted) if short else {}
    yield from _stored(connection, watches, wanted, {s: known[s] for s in marks}, marks, since)
    rest = [symbol for symbol in known if symbol not in marks]
    for start in range(0, len(rest), AT_ONCE):
        yield from _calculated(connection, watches, wanted, {s: known[s] for s in rest[start : start + AT_ONCE]}, since)


def _marks(
    connection: duckdb.DuckDBPyConnection, frame: str, known: Mapping[str, Standing], wanted: Sequence[Indicator]
) -> dict[str, dict[Indicator, Memory]]:
    """The symbols to which the short way is open, with their memories."""
    held = memories(connection, frame, list(known), {indicator.kind.name for indicator in wanted}) if known and wanted else {}
    return {symbol: found for symbol, standing in known.items() if (found := _memories(symbol, standing, wanted, held)) is not None}


def _memories(
    symbol: str, standing: Standing, wanted: Sequence[Indicator], held: Mapping[tuple[str, str], Memory]
) -> dict[Indicator, Memory] | None:
    """The memories of one symbol, all of one bar; None where one is not there or not valid."""
    dues = [due(indicator, symbol, standing, held) for indicator in wanted]
    if any(one.mode not in (HIT, INCREMENTAL) for one in dues):
        return None
    found = {one.indicator: one.held for one in dues if one.held is not None}
    return found if len({memory.watermark for memory in found.values()}) <= 1 else None


def _stored(
    connection: duckdb.DuckDBPyConnection,
    watches: Sequence[Watch],
    wanted: Sequence[Indicator],
    known: Mapping[str, Standing],
    marks: Mapping[str, Mapping[Indicator, Memory]],
    since: Instant | None,
) -> Iterator[Found]:
    if not known:
        return
    stored = {**tables(calls_of(watches)), "candles": list(PRICES_AND_AMOUNTS)}
    read = read_last(connection, stored, watches[0].timeframe, known, _depth(watches, known, marks, since))
    for symbol, series in read.items():
        held = marks[symbol]
        done = next((memory.watermark for memory in held.values()), int(series.opened_at[-1]))
        new = int(np.searchsorted(series.opened_at, done, side="right"))
        before = float(series.columns["close"][new - 1]) if new else np.nan
        after, fresh = carry(wanted, {indicator: memory.memory for indicator, memory in held.items()}, series.candles[new:], before)
        filled = {name: _filled(series.columns[name], fresh, name, new) for name in series.columns}
        yield Found(_loaded(symbol, known[symbol], Series(series.opened_at, filled), after), STORED)


def _calculated(
    connection: duckdb.DuckDBPyConnection,
    watches: Sequence[Watch],
    wanted: Sequence[Indicator],
    known: Mapping[str, Standing],
    since: Instant | None,
) -> Iterator[Found]:
    frame, columns = watches[0].timeframe, columns_of(watches)
    for symbol, series in read_bars(connection, PRICES_AND_AMOUNTS, frame, dict.fromkeys(known, EVER)).items():
        after, fresh = carry(wanted, {}, series.candles)
        kept = {**series.columns, **{name: fresh[name] for name in columns if name in fresh}}
        bars = Series(series.opened_at, kept).last(_depth(watches, {symbol: known[symbol]}, {}, since))
        yield Found(_loaded(symbol, known[symbol], bars, after), CALCULATED)


def _loaded(symbol: str, standing: Standing, series: Series, after: Mapping[Indicator, Floats]) -> Loaded:
    newest = NEVER if standing.newest is None else standing.newest
    return Loaded(symbol, series.opened_at, series.columns, after, standing.bars, newest, standing.candles)


def _filled(stored: Floats, fresh: Mapping[str, Floats], name: str, new: int) -> Floats:
    """A column whose bars from `new` on are calculated just now; a candle's column is stored already."""
    return np.concatenate([stored[:new], fresh[name]]) if name in fresh and name not in PRICES_AND_AMOUNTS else stored


def _depth(
    watches: Sequence[Watch], known: Mapping[str, Standing], marks: Mapping[str, Mapping[Indicator, Memory]], since: Instant | None
) -> int:
    """How many of the last bars are read of every symbol."""
    frame = timeframe(watches[0].timeframe)
    starts = [memory.watermark for held in marks.values() for memory in held.values()]
    ends = [standing.last_bar for standing in known.values() if standing.last_bar is not None]
    first = min([*starts, *ends, *([] if since is None else [frame.floor(since)])])
    reach = max(watch.lookback + (watch.max_age or 0) for watch in watches)
    sparse = any(watch.trades for watch in watches) and any(standing.no_trade != SKIP for standing in known.values())
    if sparse:  # as far back as rules reach in candles, which lie between bars without a trade
        return max(standing.bars for standing in known.values())
    return reach + 3 + frame.slots(first, max([first, *ends]))


def reloaded(
    connection: duckdb.DuckDBPyConnection, watches: Sequence[Watch], symbol: str, told: Candles, until: Instant, bars: int
) -> Found:
    """One symbol anew from its stored candles, the last ones as they are `told` now, up to the slot `until`; with its last `bars`."""
    frame = watches[0].timeframe
    standing = standings(connection, [(symbol, frame)])[symbol, frame]
    if standing.covered is not None:  # history begins where the stored one does
        told = told[told.opened_at >= standing.covered[0]]
    start = int(told.opened_at[0]) if len(told) else until + 1
    stored = read_spans(connection, "candles", PRICES_AND_AMOUNTS, frame, {symbol: (EVER[0], start - 1)})[symbol]
    joined = Candles.joined([stored.candles, told])
    candles = Series(joined.opened_at, {name: getattr(joined, name) for name in PRICES_AND_AMOUNTS})
    seen = candles if standing.no_trade == SKIP else flattened(candles, frame, EVER[0], until)
    after, fresh = carry(indicators_of(watches), {}, seen.candles)
    kept = Series(seen.opened_at, {**seen.columns, **{name: fresh[name] for name in columns_of(watches) if name in fresh}}).last(bars)
    newest = int(candles.opened_at[-1])
    return Found(Loaded(symbol, kept.opened_at, kept.columns, after, len(seen.opened_at), newest, len(candles.opened_at)), CALCULATED)


def judged_bars(loaded: Loaded, watch: Watch, no_trade: str) -> Bars:
    """The bars of a loaded symbol as `watch` decides on them."""
    columns, opened_at = loaded.columns, loaded.opened_at
    first = loaded.bars - len(opened_at)
    if no_trade == SKIP:
        return Bars(loaded.symbol, opened_at, columns, first=first)
    traded = columns["volume"] > 0
    if watch.trades:
        there = {name: column[traded] for name, column in columns.items()}
        return Bars(loaded.symbol, opened_at[traded], there, first=loaded.trades - int(traded.sum()))
    slots = np.arange(len(opened_at))
    last = np.maximum.accumulate(np.where(traded, slots, -1))
    unknown = last < 0  # the last trade is older than what was read: by the stored standing it may still be told, here it need not
    return Bars(loaded.symbol, opened_at, columns, np.where(unknown, FAR, slots - last), first)


def expected(connection: duckdb.DuckDBPyConnection, watches: Sequence[Watch], symbols: Sequence[str], since: Instant) -> list[Signal]:
    """What the stored candles say that was to be told of `watches` (of one timeframe): every change at a bar from `since` on."""
    seen = no_trade(connection)
    found = []
    for each in load(connection, watches, symbols, since):
        for watch in watches:
            if watch.takes(each.loaded.symbol):
                told = signals(watch, judged_bars(each.loaded, watch, seen))
                found += [signal for signal in told if signal.opened_at >= since]
    return found
